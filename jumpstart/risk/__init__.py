"""Loss on new data, from the training samples alone."""
