"""Derivative streams: residuals at points and their Jacobian in batched layers instead of nested transforms."""

from .factored import Local, Outer
from .fingerprint import fingerprint, of_model
from .trace import trace_residual

__all__ = ["Local", "Outer", "fingerprint", "of_model", "trace_residual"]
