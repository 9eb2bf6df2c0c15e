"""Empirical neural tangent kernels: dense (layer by layer), assembled for a linearization, and matrix-free."""

from .assemble import query_kernel, train_kernel
from .dense import dense_kernel

__all__ = ["dense_kernel", "query_kernel", "train_kernel"]
