"""Losses of classifiers: cross-entropy and logistic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError, TargetError
from .base import Loss, require_finite_targets, require_same_shape


class CrossEntropy(Loss):
    """``F.cross_entropy`` over the last dimension of u (…, C), mean over the targets that are not ignored.

    Args:
        targets: integer classes of shape u.shape[:-1], or probabilities of u's shape.
        ignore_index: integer targets of this value carry no loss.

    Raises:
        TargetError: targets are neither integer classes nor non-negative rows that sum to one.
    """

    known_convex = True

    def __init__(self, targets: Tensor, ignore_index: int = -100) -> None:
        targets = targets.detach()
        self.classes = not targets.is_floating_point()
        if self.classes and targets.dtype in (torch.bool,):
            raise TargetError("cross_entropy got boolean targets: give integer classes, or use loss='logistic'.")
        if not self.classes:
            require_finite_targets(targets)
            if bool((targets < 0).any()) or not torch.allclose(
                targets.sum(-1), torch.ones((), dtype=targets.dtype, device=targets.device), atol=1e-4
            ):
                raise TargetError(
                    "cross_entropy got floating-point targets that are no probabilities (rows must be ≥ 0 and sum "
                    "to 1): for integer classes pass targets.long()."
                )
        self.targets, self.ignore_index = targets, ignore_index
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def check(self, u: Tensor) -> None:
        if u.dim() < 2:
            raise ShapeError(f"cross_entropy needs outputs (n, …, classes), got shape {tuple(u.shape)}.")
        expected = u.shape[:-1] if self.classes else u.shape
        if self.targets.shape != expected:
            raise ShapeError(
                f"cross_entropy: outputs {tuple(u.shape)} need targets {tuple(expected)} (classes in the last "
                f"dimension), got {tuple(self.targets.shape)}."
            )
        if self.classes:
            kept = self.targets[self.targets != self.ignore_index]
            if kept.numel() == 0:
                raise TargetError("cross_entropy: every target is ignore_index, so there is no loss to train on.")
            low, high = int(kept.min()), int(kept.max())
            if low < 0 or high >= u.shape[-1]:
                raise TargetError(
                    f"cross_entropy: targets run from {low} to {high}, but the outputs have classes 0 to "
                    f"{u.shape[-1] - 1}."
                )

    def _rows(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Target probabilities (n, …, C) and row weights (n, …, 1) that sum to one."""
        kind = (u.dtype, u.device)
        if kind not in self._tables:
            if self.classes:
                kept = self.targets != self.ignore_index
                rows = F.one_hot(self.targets.where(kept, torch.zeros_like(self.targets)).long(), u.shape[-1])
                weight = kept.to(u.dtype) / kept.sum()
            else:
                rows = self.targets
                weight = torch.full(u.shape[-rows.dim() : -1], 1.0, dtype=u.dtype, device=u.device)
                weight = weight / weight.numel()
            rows, weight = rows.to(u.device, u.dtype), weight.to(u.device)[..., None]
            # Rows that sum to 1 up to rounding only: −Σ y log p is Σy times that of y/Σy.
            total = rows.sum(-1, keepdim=True) if not self.classes else torch.ones_like(weight)
            self._tables[kind] = rows / total, weight * total
        return self._tables[kind]

    def per_sample(self, u: Tensor) -> Tensor:
        y, w = self._rows(u)
        losses = -(w * y * u.log_softmax(-1)).sum(-1)
        inner = y.dim() - 2
        return losses.flatten(-inner).sum(-1) if inner else losses

    def grad(self, u: Tensor) -> Tensor:
        y, w = self._rows(u)
        return w * (u.softmax(-1) - y)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        _, w = self._rows(u)
        p = u.softmax(-1)
        pv = p * v
        return w * (pv - p * pv.sum(-1, keepdim=True))

    def sqrt(self, u: Tensor, v: Tensor) -> Tensor:
        _, w = self._rows(u)
        p = u.softmax(-1)
        root = p.sqrt()
        return w.sqrt() * (root * v - p * (root * v).sum(-1, keepdim=True))

    def sqrt_t(self, u: Tensor, v: Tensor) -> Tensor:
        _, w = self._rows(u)
        p = u.softmax(-1)
        return w.sqrt() * p.sqrt() * (v - (p * v).sum(-1, keepdim=True))

    def with_targets(self, targets: Tensor) -> CrossEntropy:
        return CrossEntropy(targets, self.ignore_index)

    def correct(self, u: Tensor) -> Tensor:
        if not self.classes:
            return u.argmax(-1) == self.targets.argmax(-1)
        return (u.argmax(-1) == self.targets)[self.targets != self.ignore_index]


class Logistic(Loss):
    """``F.binary_cross_entropy_with_logits``, mean over all entries; targets in [0, 1], shaped like u.

    Raises:
        TargetError: a target lies outside [0, 1].
    """

    known_convex = True

    def __init__(self, targets: Tensor) -> None:
        targets = targets.detach()
        require_finite_targets(targets)
        if targets.numel() and (float(targets.min()) < 0 or float(targets.max()) > 1):
            raise TargetError(
                f"logistic targets must lie in [0, 1], got {float(targets.min()):g} to {float(targets.max()):g}: "
                "labels of −1/+1 become (y + 1) / 2."
            )
        self.targets = targets if targets.is_floating_point() else targets.to(torch.get_default_dtype())

    def check(self, u: Tensor) -> None:
        require_same_shape(u, self.targets, "logistic")

    def per_sample(self, u: Tensor) -> Tensor:
        y = self.targets
        # Both terms are positive, so that a small loss keeps its digits; F.softplus drops e^{−u} from u = 20.
        losses = (y * _softplus(-u) + (1 - y) * _softplus(u)) / y.numel()
        inner = max(y.dim() - 1, 0)
        return losses.flatten(-inner).sum(-1) if inner else losses

    def grad(self, u: Tensor) -> Tensor:
        return (u.sigmoid() - self.targets) / self.targets.numel()

    def _curvatures(self, u: Tensor) -> Tensor:
        return u.sigmoid() * (-u).sigmoid() / self.targets.numel()

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return self._curvatures(u) * v

    def sqrt(self, u: Tensor, v: Tensor) -> Tensor:
        return self._curvatures(u).sqrt() * v

    sqrt_t = sqrt

    def with_targets(self, targets: Tensor) -> Logistic:
        return Logistic(targets)

    def correct(self, u: Tensor) -> Tensor:
        return (u > 0) == (self.targets > 0.5)


def _softplus(u: Tensor) -> Tensor:
    return u.clamp_min(0) + torch.log1p(torch.exp(-u.abs()))
