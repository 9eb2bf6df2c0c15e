"""What users give to domains, checked and made plain: numbers, vectors, axes, counts; and numbers as they are typed."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError, NonFiniteError, ShapeError
from ..utils.brief import brief


def number(value: Any, what: str) -> float:
    """A finite real number of Python, NumPy or torch (or a tensor that holds one), as a float."""
    found = value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        found = value.detach().item()
    elif isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
        found = value.item()
    if isinstance(found, bool) or not isinstance(found, numbers.Real):
        raise InputError(f"{what} must be a number, got {brief(value)}.")
    try:
        found = float(found)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise NonFiniteError(f"{what} must be finite, got {brief(value)}.")
    return found


def vector(values: Any, what: str, least: int = 1, most: int | None = None) -> tuple[float, ...]:
    """Coordinates from a sequence, a 1-D array or a 1-D tensor."""
    if isinstance(values, (str, bytes, dict, set, frozenset)) or not isinstance(values, (Iterable, torch.Tensor)):
        raise InputError(f"{what} must be a sequence of numbers, one a coordinate, got {brief(values)}.")
    if isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim != 1:
        raise ShapeError(f"{what} must be one-dimensional, got {brief(values)}.")
    entries = list(values)
    if len(entries) < least or (most is not None and len(entries) > most):
        span = f"{least} to {most}" if most is not None else f"at least {least}"
        raise ShapeError(f"{what} must have {span} coordinates, got {len(entries)}: {brief(values)}.")
    return tuple(number(entry, f"{what}, coordinate {i},") for i, entry in enumerate(entries))


def whole(value: Any, what: str, least: int, most: int = 2**62) -> int:
    """A whole number from ``least`` to ``most``."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise InputError(f"{what} must be a whole number, got {brief(value)}.") from None
    if not least <= found <= most:
        raise InputError(f"{what} must be {f'at least {least}' if found < least else f'at most {most}'}, got {found}.")
    return found


def axis_of(value: Any, dim: int, what: str) -> int:
    """An axis of ``dim``, counted from 0; negative ones from the end."""
    found = whole(value, f"{what}: axis", -(2**62))
    if not -dim <= found < dim:
        raise InputError(f"{what}: axis {found} of {dim}; give 0 to {dim - 1} (or -1 for the last).")
    return found % dim


def rows(x: Any, dim: int, what: str) -> tuple[np.ndarray, float]:
    """Points (n, dim) as float64, and the machine precision that they came with."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiu":
        x = torch.as_tensor(x)
    if not isinstance(x, torch.Tensor) or x.is_complex() or x.dtype == torch.bool:
        raise InputError(f"{what}: points must be a tensor or an array of real numbers, got {brief(x)}.")
    if x.dim() != 2 or x.shape[1] != dim:
        raise ShapeError(f"{what}: points must have shape (n, {dim}), got {brief(x)}.")
    eps = torch.finfo(x.dtype if x.is_floating_point() else torch.float64).eps
    return x.detach().cpu().double().numpy(), max(eps, torch.finfo(torch.float64).eps)


def text(value: float) -> str:
    """A number as one would type it."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def texts(values: Sequence[float]) -> str:
    """A tuple of numbers as one would type it."""
    inside = ", ".join(text(value) for value in values)
    return f"({inside},)" if len(values) == 1 else f"({inside})"
