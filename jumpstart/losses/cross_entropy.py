"""Cross-entropy of classes or probabilities."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, ShapeError, TargetError
from ..utils.values import require_dense
from .base import Loss, require_finite_targets
from .pointwise import checked_mask, owned, present, sample_weights


class CrossEntropy(Loss):
    """``F.cross_entropy`` over the last dimension of u (…, C): a mean over the targets that count, as torch has it.

    That is Σ a ℓ / Σ a·class_weights[y] for integer classes, with a = 0 where a target is ignored or masked out and the
    sample's weight elsewhere; Σ a ℓ / Σ a for probabilities, whose class weights are in ℓ alone.

    Args:
        targets: integer classes of shape u.shape[:-1], or probabilities of u's shape.
        ignore_index: integer targets of this value carry no loss.
        weights: (n,) how much each sample counts, ≥ 0.
        class_weights: (C,) how much each class counts, ≥ 0, as torch's ``weight``.
        mask: targets that count, of shape u.shape[:-1] or (n,); what targets hold elsewhere does not matter.
        label_smoothing: share of every target that is spread over all classes, from 0 to 1.

    Raises:
        TargetError: targets are neither integer classes nor non-negative rows that sum to one.
        InputError and its other kinds: quoting what cannot be used.
    """

    known_convex = True

    def __init__(
        self,
        targets: Tensor,
        ignore_index: int = -100,
        *,
        weights: Tensor | None = None,
        class_weights: Tensor | None = None,
        mask: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if not isinstance(targets, Tensor):
            raise InputError(f"targets must be a tensor, got {type(targets).__name__}.")
        require_dense(targets, "targets")
        self.classes = not targets.is_floating_point()
        rows = targets if self.classes or targets.dim() < 2 else targets[..., 0]
        self.mask = checked_mask(mask, rows)
        self.ignore_index, self.weights = ignore_index, owned(weights)
        self.class_weights, self.label_smoothing = checked_class_weights(class_weights), checked_share(label_smoothing)
        if self.classes:
            require_classes(targets)
            self.targets = targets.detach()
        else:
            if ignore_index != -100:
                raise InputError(
                    f"cross_entropy: ignore_index={ignore_index} is for integer classes; probabilities are left out "
                    "with mask=."
                )
            # Rows that are masked out are made probabilities, so that nothing else needs to know of them.
            whole = None if self.mask is None else self.mask[..., None].expand(targets.shape)
            self.targets = present(targets, whole)
            require_probabilities(self.targets, self.mask)
        if weights is not None:
            sample_weights(weights, targets.shape, targets.device)
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def kept(self) -> Tensor:
        """Which targets count, as booleans: not ignored, not masked out."""
        shape = self.targets.shape if self.classes else self.targets.shape[:-1]
        keep = torch.ones(shape, dtype=torch.bool, device=self.targets.device)
        if self.mask is not None:
            keep = keep & self.mask.to(keep.device)
        return keep & (self.targets != self.ignore_index) if self.classes else keep

    def check(self, u: Tensor) -> None:
        if u.dim() < 2:
            raise ShapeError(f"cross_entropy needs outputs (n, …, classes), got shape {tuple(u.shape)}.")
        expected = u.shape[:-1] if self.classes else u.shape
        if self.targets.shape != expected:
            raise ShapeError(
                f"cross_entropy: outputs {tuple(u.shape)} need targets {tuple(expected)} (classes in the last "
                f"dimension), got {tuple(self.targets.shape)}."
            )
        if self.class_weights is not None and len(self.class_weights) != u.shape[-1]:
            raise ShapeError(
                f"cross_entropy: {len(self.class_weights)} class_weights for outputs of {u.shape[-1]} classes: one "
                "each."
            )
        if self.classes:
            kept = self.targets[self.kept()]
            if kept.numel() == 0:
                raise TargetError("cross_entropy: every target is ignore_index, so there is no loss to train on.")
            low, high = int(kept.min()), int(kept.max())
            if low < 0 or high >= u.shape[-1]:
                raise TargetError(
                    f"cross_entropy: targets run from {low} to {high}, but the outputs have classes 0 to "
                    f"{u.shape[-1] - 1}; those that carry no loss are told by ignore_index= or mask=."
                )
        if not bool(self._rows(u)[1].sum() > 0):
            raise InputError("cross_entropy: weights are 0 for every target: there is nothing left to train on.")

    def _rows(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Target probabilities (n, …, C), and what each counts (n, …, 1), both in the dtype of u."""
        kind = (u.dtype, u.device)
        if kind not in self._tables:
            rows, weight = self._counted(u.shape[-1])
            self._tables[kind] = rows.to(u.device, u.dtype), weight.to(u.device, u.dtype)[..., None]
        return self._tables[kind]

    def _counted(self, classes: int) -> tuple[Tensor, Tensor]:
        """The same in double precision, from what was given."""
        kept = self.kept()
        share = kept.double()
        if self.weights is not None:
            share = share * sample_weights(self.weights, share.shape, share.device)
        if self.classes:
            chosen = torch.where(kept, self.targets, torch.zeros_like(self.targets)).long()
            rows = F.one_hot(chosen, classes).double()
        else:
            rows = self.targets.double()
        by_class = torch.ones(classes, dtype=torch.float64, device=rows.device)
        if self.class_weights is not None:
            by_class = self.class_weights.to(rows.device, torch.float64)
        whole = share * (rows * by_class).sum(-1) if self.classes else share
        if self.label_smoothing:
            rows = (1 - self.label_smoothing) * rows + self.label_smoothing / classes
        rows = rows * by_class
        # −Σ q log p is Σq times that of q/Σq: probabilities again, whatever class weights and rounding did to them.
        total = rows.sum(-1)
        some = torch.where(total > 0, total, torch.ones_like(total))
        return rows / some[..., None], share * total / whole.sum().clamp_min(1e-300)

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
        return self._again(targets, self.weights, self.mask)

    def on_new_samples(self, targets: Tensor) -> CrossEntropy:
        return self._again(targets, None, None)

    def _again(self, targets: Tensor, weights: Tensor | None, mask: Tensor | None) -> CrossEntropy:
        ignored = self.ignore_index if not targets.is_floating_point() else -100
        return CrossEntropy(
            targets, ignored, weights=weights, mask=mask, class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip

    def correct(self, u: Tensor) -> Tensor:
        best = self.targets if self.classes else self.targets.argmax(-1)
        return (u.argmax(-1) == best)[self.kept()] if self.mask is not None or self.classes else u.argmax(-1) == best


def require_classes(targets: Tensor) -> None:
    """Raise for targets that are no integers."""
    if targets.dtype is torch.bool:
        raise TargetError("cross_entropy got boolean targets: give integer classes, or use loss='logistic'.")
    if targets.is_complex():
        raise TargetError(f"cross_entropy needs integer classes or probabilities, got {targets.dtype}.")


def require_probabilities(targets: Tensor, mask: Tensor | None) -> None:
    """Raise unless the rows that are not masked out are probabilities."""
    require_finite_targets(targets, "drop or fix those samples, or leave them out with mask= (one value a row)")
    total = targets.sum(-1) if mask is None else targets.sum(-1)[mask]
    if bool((targets < 0).any()) or not torch.allclose(
        total, torch.ones((), dtype=targets.dtype, device=targets.device), atol=1e-4
    ):
        raise TargetError(
            "cross_entropy got floating-point targets that are no probabilities (rows must be ≥ 0 and sum to 1): for "
            "integer classes pass targets.long()."
        )


def checked_class_weights(weights: Any) -> Tensor | None:
    """(C,) finite numbers ≥ 0, or None."""
    if weights is None:
        return None
    if not isinstance(weights, Tensor) or weights.dim() != 1 or weights.is_complex():
        got = (
            f"shape {tuple(weights.shape)}, {weights.dtype}" if isinstance(weights, Tensor) else type(weights).__name__
        )
        raise InputError(f"class_weights must be a real tensor (C,), one number for each class; got {got}.")
    if not bool(torch.isfinite(weights).all()) or not bool((weights >= 0).all()):
        raise InputError("class_weights must be finite and 0 or more.")
    return weights.detach().clone()


def checked_share(share: Any) -> float:
    """A number from 0 to 1."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise InputError(f"label_smoothing={share!r}: give a share from 0 to 1.")
    return float(share)
