"""Squared losses: a multiple of the squared distance to the targets."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import TargetError
from .base import Loss, require_finite_targets, require_same_shape
from .pointwise import Pointwise


class Squares(Loss):
    """Φ = ½ β Σ (u − y)²; mse is β = 2/N, and residual objectives are β = 1 with y = 0.

    Args:
        targets: y, (n, …). curvature: β.
    """

    quadratic = True
    follows_targets = True
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

    def sqrt_inverse(self, u: Tensor, v: Tensor) -> Tensor:
        return v / self.beta**0.5

    sqrt_t_inverse = sqrt_inverse

    def with_targets(self, targets: Tensor) -> Squares:
        require_squarable(targets)
        return Squares(targets, self.beta * self.targets.numel() / max(targets.numel(), 1))


class WeightedSquares(Pointwise):
    """Φ = Σ w_i m_e (u_e − y_e)² / Σ w_i m_e: ``F.mse_loss`` with its ``weight``, or over the entries of a mask.

    Args:
        targets: (n, …). weights, mask: as for :class:`Pointwise`: (n,), and of the targets' shape.
    """

    name = "squared-error"
    quadratic = True
    follows_targets = True

    def accepted(self, targets: Tensor) -> Tensor:
        require_squarable(targets)
        return targets

    def entry(self, u: Tensor) -> Tensor:
        return (u - self.targets).square()

    def slope(self, u: Tensor) -> Tensor:
        return 2 * (u - self.targets)

    def bend(self, u: Tensor) -> Tensor:
        return 2 * torch.ones_like(u)

    def on_new_samples(self, targets: Tensor) -> Loss:
        return mse(targets)


def mse(targets: Tensor, *, weights: Tensor | None = None, mask: Tensor | None = None) -> Squares | WeightedSquares:
    """``F.mse_loss`` with reduction "mean": Φ = Σ (u − y)² / N over all N entries, or a weighted mean.

    Args:
        targets: (n, …). weights, mask: as for :class:`Pointwise`: (n,), and of the targets' shape.

    Raises:
        TargetError: targets are not floating point.
    """
    if weights is not None or mask is not None:
        return WeightedSquares(targets, weights=weights, mask=mask)
    require_squarable(targets)
    return Squares(targets, 2.0 / max(targets.numel(), 1))


def require_squarable(targets: Tensor) -> None:
    """Raise unless targets are finite floating-point numbers."""
    require_finite_targets(targets)
    if not targets.is_floating_point():
        raise TargetError(
            f"mse needs floating-point targets, got {targets.dtype}: use targets.float(), or one-hot vectors for "
            "classes (F.one_hot(y).float()), or loss='cross_entropy'."
        )
