"""A loss in which samples count differently: left out, repeated, or trusted less (docs/theory.md, section 7)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from .base import Loss
from .pointwise import require_weights


class Weighted(Loss):
    """Φ = Σ_i w_i ℓ_i for the per-sample losses ℓ_i of another loss, in that loss's normalization.

    Args:
        inner: the loss whose samples are weighed.
        weights: (n,) weights w_i ≥ 0 in the order of the samples; 0 leaves a sample out, 1 keeps it as it was.
        dims: dimensions of one sample's outputs.
    """

    def __init__(self, inner: Loss, weights: Tensor, dims: int) -> None:
        self.inner, self.weights, self.dims = inner, weights.detach(), dims
        self.quadratic, self.known_convex = inner.quadratic, inner.known_convex
        self.follows_targets, self.presumed = inner.follows_targets, inner.presumed
        self.targets = inner.targets

    def _rows(self, v: Tensor) -> Tensor:
        """Weights shaped to multiply v, whose last dimensions are those of the outputs (n, …)."""
        return self.weights.to(v).reshape(-1, *(1,) * self.dims)

    def check(self, u: Tensor) -> None:
        self.inner.check(u)
        if self.weights.shape != u.shape[:1]:
            raise ShapeError(f"weights of shape {tuple(self.weights.shape)} for {u.shape[0]} samples: one each.")

    def per_sample(self, u: Tensor) -> Tensor:
        return self.inner.per_sample(u) * self.weights.to(u)

    def grad(self, u: Tensor) -> Tensor:
        g = self.inner.grad(u)
        return g * self._rows(g)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return self.inner.hvp(u, v) * self._rows(v)

    def sqrt(self, u: Tensor, v: Tensor) -> Tensor:
        return self.inner.sqrt(u, v) * self._rows(v).sqrt()

    def sqrt_t(self, u: Tensor, v: Tensor) -> Tensor:
        return self.inner.sqrt_t(u, v) * self._rows(v).sqrt()

    def _inverse_rows(self, v: Tensor) -> Tensor:
        rows = self._rows(v).sqrt()
        return torch.where(rows > 0, 1 / torch.where(rows > 0, rows, torch.ones_like(rows)), torch.zeros_like(rows))

    def sqrt_inverse(self, u: Tensor, v: Tensor) -> Tensor:
        return self.inner.sqrt_inverse(u, v) * self._inverse_rows(v)

    def sqrt_t_inverse(self, u: Tensor, v: Tensor) -> Tensor:
        return self.inner.sqrt_t_inverse(u, v) * self._inverse_rows(v)

    def with_targets(self, targets: Tensor) -> Weighted:
        twin = copy.copy(self)
        twin.inner = self.inner.with_targets(targets)
        twin.targets = twin.inner.targets
        return twin

    def on_new_samples(self, targets: Tensor) -> Loss:
        return self.inner.on_new_samples(targets)

    def holds(self, u: Tensor) -> bool:
        return self.inner.holds(u)

    def as_general(self) -> Loss:
        twin = copy.copy(self)
        twin.inner, twin.quadratic = self.inner.as_general(), False
        twin.known_convex, twin.presumed = twin.inner.known_convex, False
        return twin

    def correct(self, u: Tensor) -> Tensor | None:
        return self.inner.correct(u)

    def to(self, u: Tensor) -> Weighted:
        twin = copy.copy(self)
        twin.inner = self.inner.to(u)
        twin.targets, twin.weights = twin.inner.targets, self.weights.to(u.device)
        return twin


def unweighted(loss: Loss) -> Loss:
    """The loss in which every sample counts once."""
    return loss.inner if isinstance(loss, Weighted) else loss


def weighted(loss: Loss, weights: Tensor, u: Tensor) -> Weighted:
    """A checked :class:`Weighted` of ``loss`` for outputs u (n, …), with weights (n,).

    Raises:
        ShapeError, NonFiniteError, InputError: quoting the weights that cannot be used.
    """
    require_weights(weights)
    if isinstance(loss, Weighted) and loss.weights.shape == weights.shape:  # weights upon weights multiply
        loss, weights = loss.inner, loss.weights.to(weights) * weights
    made = Weighted(loss, weights, u.dim() - 1).to(u)
    made.check(u)
    if not bool((weights > 0).any()):
        raise InputError("sample weights are all 0: there is nothing left to train on.")
    return made
