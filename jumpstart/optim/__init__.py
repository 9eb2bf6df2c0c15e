"""Optimizers: what is known of the ones that users bring. Loads without the solver."""

from .adapters import Adapter, register

__all__ = ["Adapter", "register"]
