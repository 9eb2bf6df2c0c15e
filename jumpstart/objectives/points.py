"""Points of a residual term as they are given, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import EmptyBatchError, ShapeError
from ..utils.brief import brief
from .parts import leaves, require_finite, taken


def as_points(points: Any, model: Any) -> Tensor:
    """A term's points as a tensor, checked."""
    if isinstance(points, np.ndarray) and points.dtype.kind in "fiu":
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None) if _is_module(model) else None
        points = torch.as_tensor(points, dtype=own, device=next(model.parameters()).device if own else None)
    points = taken(points)
    check_points(points)
    return points


def _is_module(model: Any) -> bool:
    return isinstance(model, nn.Module)


def check_points(points: Any, like: Tensor | None = None) -> None:
    if not isinstance(points, Tensor) or points.dim() == 0:
        raise ShapeError(f"a term's points must be a tensor or an array with one row a point, got {brief(points)}.")
    if points.shape[0] == 0:
        raise EmptyBatchError(f"a term has no points (shape {tuple(points.shape)}).")
    if like is not None and (points.shape[1:] != like.shape[1:] or points.dtype != like.dtype):
        raise ShapeError(
            f"points of shape {tuple(points.shape)} and {points.dtype} for a term whose points were "
            f"{tuple(like.shape)} and {like.dtype}: only their number may change."
        )
    require_finite(leaves(points), "collocation points")
