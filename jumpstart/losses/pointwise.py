"""Losses of one entry of the outputs at a time, with entries that count differently or not at all.

Their mean is the weighted one: Φ = Σ w_i m_e ℓ_e / Σ w_i m_e over the entries e of every sample i, with sample weights
w and a mask m; Σ ℓ_e / N without them. Where every weight and entry is the same, so is the loss.
"""

from __future__ import annotations

import abc
import copy
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, NonFiniteError, ShapeError, TargetError
from .base import Loss, require_finite_targets, require_same_shape


class Pointwise(Loss):
    """A loss ℓ(u_e, y_e) of single entries, convex in u.

    Args:
        targets: (n, …), shaped like the outputs.
        weights: (n,) how much each sample counts, ≥ 0.
        mask: entries that count, True or 1, shaped like the targets, or (n,); what targets hold elsewhere (NaN, say)
            does not matter.

    Raises:
        TargetError, NonFiniteError, ShapeError, InputError: quoting what cannot be used.
    """

    known_convex = True
    name = "pointwise"

    def __init__(self, targets: Tensor, *, weights: Tensor | None = None, mask: Tensor | None = None) -> None:
        self.mask = checked_mask(mask, targets)
        self.targets = self.accepted(present(targets, self.mask))
        self.weights = owned(weights)
        self.scale = entry_shares(self.targets.shape, self.targets.device, weights, self.mask)

    def accepted(self, targets: Tensor) -> Tensor:
        """Targets, checked, without those that are masked out."""
        require_finite_targets(targets)
        return targets

    @abc.abstractmethod
    def entry(self, u: Tensor) -> Tensor:
        """ℓ(u, y) of each entry of u."""

    @abc.abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        """∂ℓ/∂u of each entry of u."""

    @abc.abstractmethod
    def bend(self, u: Tensor) -> Tensor:
        """∂²ℓ/∂u² ≥ 0 of each entry of u."""

    def options(self) -> dict[str, Any]:
        """What makes the same loss of other targets, weights and masks left out."""
        return {}

    def check(self, u: Tensor) -> None:
        require_same_shape(u, self.targets, self.name)

    def per_sample(self, u: Tensor) -> Tensor:
        losses = self._shared(self.entry(u))
        inner = max(self.targets.dim() - 1, 0)
        return losses.flatten(-inner).sum(-1) if inner else losses

    def grad(self, u: Tensor) -> Tensor:
        return self._shared(self.slope(u))

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return self._shared(self.bend(u)) * v

    def sqrt(self, u: Tensor, v: Tensor) -> Tensor:
        return self._shared(self.bend(u)).sqrt() * v

    def sqrt_t(self, u: Tensor, v: Tensor) -> Tensor:
        return self.sqrt(u, v)

    def sqrt_inverse(self, u: Tensor, v: Tensor) -> Tensor:
        root = self.sqrt(u, torch.ones_like(u))
        return torch.where(root > 0, v / torch.where(root > 0, root, torch.ones_like(root)), torch.zeros_like(v))

    def sqrt_t_inverse(self, u: Tensor, v: Tensor) -> Tensor:
        return self.sqrt_inverse(u, v)

    def _shared(self, entries: Tensor) -> Tensor:
        return (entries * self.scale).to(entries.dtype)

    def to(self, u: Tensor) -> Loss:
        twin = super().to(u)
        assert isinstance(twin, Pointwise)
        if isinstance(self.scale, Tensor):  # not in half precision, where a mean would be a sum of rounded shares
            scale = self.scale.to(u.device, torch.promote_types(u.dtype, torch.float32))
            if scale is not self.scale:
                twin = copy.copy(twin)
                twin.scale = scale
        return twin

    def with_targets(self, targets: Tensor) -> Loss:
        return type(self)(targets, weights=self.weights, mask=self.mask, **self.options())

    def on_new_samples(self, targets: Tensor) -> Loss:
        return type(self)(targets, **self.options())


def require_weights(weights: Any) -> None:
    """Raise unless sample weights are a real tensor of finite numbers ≥ 0.

    Raises:
        InputError, NonFiniteError: quoting what cannot be used.
    """
    if not isinstance(weights, Tensor):
        raise InputError(f"sample weights must be a tensor, got {type(weights).__name__}.")
    if weights.is_complex():
        raise InputError(f"sample weights must be real, got {weights.dtype}.")
    if not bool(torch.isfinite(weights).all()):
        raise NonFiniteError("sample weights hold NaN or infinity.")
    if weights.numel() and float(weights.min()) < 0:
        raise InputError(f"sample weights must be 0 or more; the smallest is {float(weights.min()):.3g}.")


def owned(weights: Any) -> Any:
    """A copy, so that a loss stays what it was when a tensor that it was made from is overwritten."""
    return weights.detach().clone() if isinstance(weights, Tensor) else weights


def checked_mask(mask: Any, targets: Tensor) -> Tensor | None:
    """A mask as booleans of the targets' shape.

    Raises:
        InputError, ShapeError: it is no mask, or of another shape.
    """
    if mask is None:
        return None
    if not isinstance(targets, Tensor):
        raise InputError(f"targets must be a tensor, got {type(targets).__name__}.")
    if not isinstance(mask, Tensor):
        raise InputError(f"mask must be a tensor of booleans, got {type(mask).__name__}.")
    if mask.dtype is not torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            f"mask of {mask.dtype} must hold 0 and 1 (or booleans) alone: entries that count by other amounts are "
            "not masked; samples that do are weighted with weights=."
        )
    keep = mask.detach().to(targets.device, torch.bool, copy=True)
    if keep.shape == targets.shape[:1] and targets.dim() > 1:
        keep = keep.reshape(-1, *(1,) * (targets.dim() - 1)).expand(targets.shape)
    if keep.shape != targets.shape:
        raise ShapeError(
            f"mask {tuple(mask.shape)} for targets {tuple(targets.shape)}: give one value for each of them, or one a "
            "sample."
        )
    if not bool(keep.any()):
        raise TargetError("mask leaves no target to train on.")
    return keep


def present(targets: Tensor, mask: Tensor | None) -> Tensor:
    """Targets with 0 where they are masked out."""
    if mask is None:
        return targets.detach() if isinstance(targets, Tensor) else targets
    return torch.where(mask, targets.detach(), torch.zeros_like(targets))


def entry_shares(
    shape: torch.Size, device: torch.device, weights: Tensor | None, mask: Tensor | None
) -> Tensor | float:
    """What entries of this shape count in a mean: 1/N, or (n, …) w_i m_e over their sum.

    Raises:
        InputError, ShapeError: quoting the weights that cannot be used.
    """
    if weights is None and mask is None:
        return 1.0 / max(shape.numel(), 1)
    counts = torch.ones(shape, dtype=torch.float64, device=device) if mask is None else mask.double()
    if weights is not None:
        counts = counts * sample_weights(weights, shape, device)
    total = counts.sum()
    if not bool(total > 0):
        raise InputError("weights are 0 wherever there is a target: there is nothing left to train on.")
    return counts / total


def sample_weights(weights: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Checked weights (n, 1, …) that multiply entries of this shape."""
    require_weights(weights)
    if weights.shape != shape[:1]:
        raise ShapeError(
            f"weights of shape {tuple(weights.shape)} for {shape[0] if shape else 0} samples: one each. (Weights by "
            "class are class_weights=, entries that do not count are masked with mask=.)"
        )
    return weights.detach().to(device, torch.float64).reshape(-1, *(1,) * (len(shape) - 1))
