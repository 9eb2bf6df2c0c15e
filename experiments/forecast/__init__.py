"""When will it generalize: from the spectrum, from the norm of the weights, from the settings alone."""
