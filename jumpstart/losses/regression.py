"""Losses of real numbers beside the squared one: Huber's, and Poisson's of counts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, TargetError
from .base import require_finite_targets
from .pointwise import Pointwise


class Huber(Pointwise):
    """``F.huber_loss``: ½(u − y)² up to ``delta``, and δ(|u − y| − ½δ) beyond; robust against outliers.

    The mean over all entries, or the weighted mean with ``weights`` or ``mask``. Slopes are continuous and curvature
    is 0 or 1, so that its runs are integrated like those of any smooth loss.

    Args:
        targets: (n, …). weights, mask: as for :class:`Pointwise`: (n,), and of the targets' shape.
        delta: where squares end, positive; a small one comes close to δ|u − y|.
    """

    name = "huber"

    def __init__(
        self, targets: Tensor, delta: float = 1.0, *, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        number = isinstance(delta, (int, float)) and not isinstance(delta, bool)
        if not (number and 0 < delta < math.inf):
            told = type(delta).__name__ if isinstance(delta, Tensor) else repr(delta)
            raise InputError(f"huber: delta={told} must be a positive number.")
        self.delta = float(delta)
        super().__init__(targets, weights=weights, mask=mask)

    def accepted(self, targets: Tensor) -> Tensor:
        require_finite_targets(targets)
        if not targets.is_floating_point():
            raise TargetError(f"huber needs floating-point targets, got {targets.dtype}: use targets.float().")
        return targets

    def entry(self, u: Tensor) -> Tensor:
        r = (u - self.targets).abs()
        inside = r.clamp_max(self.delta)  # ½r² and δ(r − ½δ) at once
        return inside * (r - 0.5 * inside)

    def slope(self, u: Tensor) -> Tensor:
        return (u - self.targets).clamp(-self.delta, self.delta)

    def bend(self, u: Tensor) -> Tensor:
        return ((u - self.targets).abs() <= self.delta).to(u.dtype)

    def options(self) -> dict[str, Any]:
        return {"delta": self.delta}


class Poisson(Pointwise):
    """``F.poisson_nll_loss`` of the log rate u (``log_input=True, full=False``): e^u − y u, for counts y ≥ 0.

    The mean over all entries, or the weighted mean with ``weights`` or ``mask``. It is y − y log y at best: often below
    zero, never zero.

    Args:
        targets: counts, or other amounts ≥ 0. weights, mask: as for :class:`Pointwise`.

    Raises:
        TargetError: a target is negative.
    """

    name = "poisson"

    def accepted(self, targets: Tensor) -> Tensor:
        require_finite_targets(targets)
        if targets.numel() and float(targets.min()) < 0:
            raise TargetError(f"poisson targets are counts, 0 or more; the smallest is {float(targets.min()):g}.")
        return targets if targets.is_floating_point() else targets.to(torch.get_default_dtype())

    def entry(self, u: Tensor) -> Tensor:
        return u.exp() - self.targets * u

    def slope(self, u: Tensor) -> Tensor:
        return u.exp() - self.targets

    def bend(self, u: Tensor) -> Tensor:
        return u.exp()
