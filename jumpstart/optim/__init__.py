"""Optimizers: what is known of the ones that users bring. Loads without the solver."""
