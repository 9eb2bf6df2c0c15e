"""Derivative streams: residuals at points and their Jacobian in batched layers instead of nested transforms."""

from .local import Local, Outer, factor
from .reading import fingerprint

__all__ = ["Local", "Outer", "factor", "fingerprint"]
