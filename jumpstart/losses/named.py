"""Losses by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import InputError
from .base import Loss
from .classification import CrossEntropy, Logistic
from .convex import Convex
from .squared import mse


def as_loss(loss: str | Callable[[Tensor, Tensor], Tensor] | Loss, targets: Tensor | None) -> Loss:
    """A loss from its name, a per-sample function, or itself."""
    if isinstance(loss, Loss):
        return loss
    if targets is None:
        raise InputError(f"loss {loss!r} needs targets.")
    if callable(loss):
        return Convex(loss, targets)
    table: dict[str, Callable[[Tensor], Loss]] = {"mse": mse, "cross_entropy": CrossEntropy, "logistic": Logistic}
    if loss not in table:
        raise InputError(f"loss={loss!r} is not known: use one of {sorted(table)}, a function or a js.Loss.")
    return table[loss](targets)
