"""Empirical neural tangent kernels, dense (layer by layer) and matrix-free."""
