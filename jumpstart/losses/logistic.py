"""The logistic loss of one label or several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, ShapeError, TargetError
from .base import require_finite_targets
from .pointwise import Pointwise


class Logistic(Pointwise):
    """``F.binary_cross_entropy_with_logits``; targets in [0, 1], shaped like u: one label or several ("multi_label").

    The mean over all entries (with ``pos_weight`` too, as torch has it), or the weighted mean with ``weights`` or
    ``mask``: torch's own ``weight`` divides by the number of entries instead, which is the same for weights of mean 1.

    Args:
        targets, weights, mask: as for :class:`Pointwise`.
        pos_weight: how much positives count, a number or one for each label, ≥ 0.

    Raises:
        TargetError: a target lies outside [0, 1].
    """

    name = "logistic"
    moving = ("targets", "pos_weight")

    def __init__(
        self,
        targets: Tensor,
        *,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
        pos_weight: Tensor | float | None = None,
    ) -> None:
        super().__init__(targets, weights=weights, mask=mask)
        self.pos_weight = checked_pos_weight(pos_weight, self.targets)

    def accepted(self, targets: Tensor) -> Tensor:
        require_finite_targets(targets)
        if targets.numel() and (float(targets.min()) < 0 or float(targets.max()) > 1):
            raise TargetError(
                f"logistic targets must lie in [0, 1], got {float(targets.min()):g} to {float(targets.max()):g}: "
                "labels of −1/+1 become (y + 1) / 2; those that are missing are left out with mask=."
            )
        return targets if targets.is_floating_point() else targets.to(torch.get_default_dtype())

    def _counts(self) -> tuple[Tensor, Tensor]:
        """What the positive and the negative branch count."""
        y = self.targets
        return (y if self.pos_weight is None else self.pos_weight * y), 1 - y

    def entry(self, u: Tensor) -> Tensor:
        # Both terms are positive, so that a small loss keeps its digits; F.softplus drops e^{−u} from u = 20.
        positive, negative = self._counts()
        return positive * _softplus(-u) + negative * _softplus(u)

    def slope(self, u: Tensor) -> Tensor:
        positive, negative = self._counts()
        return negative * u.sigmoid() - positive * (-u).sigmoid()

    def bend(self, u: Tensor) -> Tensor:
        positive, negative = self._counts()
        return (positive + negative) * u.sigmoid() * (-u).sigmoid()

    def options(self) -> dict[str, Any]:
        return {"pos_weight": self.pos_weight}

    def correct(self, u: Tensor) -> Tensor:
        right = (u > 0) == (self.targets > 0.5)
        return right if self.mask is None else right[self.mask.to(right.device)]


def _softplus(u: Tensor) -> Tensor:
    return u.clamp_min(0) + torch.log1p(torch.exp(-u.abs()))


def checked_pos_weight(weight: Any, targets: Tensor) -> Tensor | None:
    """What positives count, against targets (n, …), or None."""
    if weight is None:
        return None
    if isinstance(weight, (int, float)) and not isinstance(weight, bool):
        weight = torch.tensor(float(weight), dtype=targets.dtype, device=targets.device)
    if not isinstance(weight, Tensor) or weight.is_complex():
        raise InputError(f"pos_weight must be a number or a tensor, one for each label; got {type(weight).__name__}.")
    if not bool(torch.isfinite(weight).all()) or not bool((weight >= 0).all()):
        raise InputError("pos_weight must be finite and 0 or more.")
    inner = targets.shape[1:]
    if weight.dim() > len(inner) or any(a not in (1, b) for a, b in zip(weight.shape[::-1], inner[::-1], strict=False)):
        raise ShapeError(f"pos_weight {tuple(weight.shape)} for labels {tuple(inner)} of a sample: one for each.")
    return weight.detach().to(targets.device, targets.dtype, copy=True)
