"""Derivative streams: residuals at points and their Jacobian in batched layers instead of nested transforms."""

from .factoring import factor
from .local import Local, Outer
from .reading import fingerprint, of_model

__all__ = ["Local", "Outer", "factor", "fingerprint", "of_model"]
