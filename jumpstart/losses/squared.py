"""Squared losses: a multiple of the squared distance to the targets."""

from __future__ import annotations

from torch import Tensor

from ..errors import TargetError
from .base import Loss, require_finite_targets, require_same_shape


class Squares(Loss):
    """Φ = ½ β Σ (u − y)²; mse is β = 2/N, and residual objectives are β = 1 with y = 0."""

    quadratic = True
    known_convex = True

    def __init__(self, targets: Tensor, curvature: float) -> None:
        self.targets, self.beta = targets.detach(), float(curvature)
        self.curvature = self.beta

    def check(self, u: Tensor) -> None:
        require_same_shape(u, self.targets, "squared-error")

    def per_sample(self, u: Tensor) -> Tensor:
        squares = (u - self.targets).square()
        inner = max(self.targets.dim() - 1, 0)
        return 0.5 * self.beta * (squares.flatten(-inner).sum(-1) if inner else squares)

    def grad(self, u: Tensor) -> Tensor:
        return self.beta * (u - self.targets)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return self.beta * v

    def sqrt(self, u: Tensor, v: Tensor) -> Tensor:
        return self.beta**0.5 * v

    sqrt_t = sqrt

    def with_targets(self, targets: Tensor) -> Squares:
        mse(targets)  # checked in the same way
        return Squares(targets, self.beta * self.targets.numel() / max(targets.numel(), 1))


def mse(targets: Tensor) -> Squares:
    """``F.mse_loss`` with reduction "mean": Φ = Σ (u − y)² / N over all N entries.

    Raises:
        TargetError: targets are not floating point.
    """
    require_finite_targets(targets)
    if not targets.is_floating_point():
        raise TargetError(
            f"mse needs floating-point targets, got {targets.dtype}: use targets.float(), or one-hot vectors for "
            "classes (F.one_hot(y).float()), or loss='cross_entropy'."
        )
    return Squares(targets, 2.0 / max(targets.numel(), 1))
