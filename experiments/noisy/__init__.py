"""Fits to noisy data, with and without a gate, beside the same optimizer at smaller rates: the slower clock."""
