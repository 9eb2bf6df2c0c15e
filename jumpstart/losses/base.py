"""What every loss of the outputs answers, and the checks that losses share (docs/theory.md, section 1)."""

from __future__ import annotations

import abc
import copy

import torch
from torch import Tensor

from ..errors import InputError, NonConvexError, NonFiniteError, ShapeError, TargetError
from ..utils.values import require_dense


class Loss(abc.ABC):
    """A convex loss with its targets bound to it: Φ(u) for outputs u of one shape.

    ``curvature`` is the number β where B = β·I everywhere, else None; ``quadratic`` says that B is constant;
    ``follows_targets`` that ∇Φ = B (u − y) besides, whatever the targets y; ``known_convex`` that no check is needed,
    and that ``sqrt_t`` is cheap and keeps the small curvatures exact.

    Everywhere: u are outputs (n, …), or (…, n, …) with any leading dimensions; v and what is returned have the shape of
    u, a leading dimension more where v has; B is ∇²Φ(u), block diagonal by samples (docs/theory.md, section 1).

    Raises:
        ShapeError, TargetError, NonFiniteError: targets, or outputs beside them, that do not fit; quoted.
    """

    curvature: float | None = None
    quadratic: bool = False
    follows_targets: bool = False
    known_convex: bool = False
    presumed: bool = False  # B was found to be constant by looking: ``holds`` is asked at the outputs of every answer
    targets: Tensor
    moving: tuple[str, ...] = ("targets",)  # tensors, or None, that follow the outputs to their device and dtype

    @abc.abstractmethod
    def check(self, u: Tensor) -> None:
        """Raise if outputs of this shape and dtype cannot go with the targets."""

    @abc.abstractmethod
    def per_sample(self, u: Tensor) -> Tensor:
        """(…, n): losses whose sum is Φ; sample i depends on row i of the outputs alone."""

    @abc.abstractmethod
    def grad(self, u: Tensor) -> Tensor:
        """g = ∇Φ(u), shaped like u."""

    @abc.abstractmethod
    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """B(u) v; v may have further leading dimensions."""

    @abc.abstractmethod
    def sqrt(self, u: Tensor, v: Tensor) -> Tensor:
        """S v with B = S Sᵀ."""

    @abc.abstractmethod
    def sqrt_t(self, u: Tensor, v: Tensor) -> Tensor:
        """Sᵀ v with B = S Sᵀ."""

    def sqrt_inverse(self, u: Tensor, v: Tensor) -> Tensor:
        """S⁺ v, for constant B = S Sᵀ; by the pseudo-inverse of each sample's S unless a loss knows better."""
        flat = v.reshape(*v.shape[: v.dim() - u.dim()], len(u), -1)
        return torch.einsum("nij,...nj->...ni", torch.linalg.pinv(self._roots(u)), flat).reshape(v.shape)

    def sqrt_t_inverse(self, u: Tensor, v: Tensor) -> Tensor:
        """S⁺ᵀ v, for constant B = S Sᵀ."""
        flat = v.reshape(*v.shape[: v.dim() - u.dim()], len(u), -1)
        return torch.einsum("nji,...nj->...ni", torch.linalg.pinv(self._roots(u)), flat).reshape(v.shape)

    def _roots(self, u: Tensor) -> Tensor:
        """S of each sample, (n, m, m): samples do not mix."""
        probes = torch.eye(u[0].numel(), dtype=u.dtype, device=u.device).reshape(-1, 1, *u.shape[1:])
        columns = self.sqrt(u, probes.expand(-1, *u.shape))
        return columns.reshape(len(probes), len(u), -1).permute(1, 2, 0)

    def value(self, u: Tensor) -> Tensor:
        """Φ(u): a scalar, or one per leading dimension."""
        return self.per_sample(u).sum(-1)

    @abc.abstractmethod
    def with_targets(self, targets: Tensor) -> Loss:
        """The same loss of other targets of the same samples, checked like the first; a mean stays a mean."""

    def on_new_samples(self, targets: Tensor) -> Loss:
        """The same loss of other samples: weights and masks, which belong to the samples, stay behind."""
        return self.with_targets(targets)

    def holds(self, u: Tensor) -> bool:
        """Whether B at outputs u is the constant that it was found to be; for losses whose B was found by looking."""
        return True

    def as_general(self) -> Loss:
        """The same loss, without the claim that B is constant."""
        twin = copy.copy(self)
        twin.quadratic, twin.curvature = False, None
        return twin

    def correct(self, u: Tensor) -> Tensor | None:
        """Which outputs say the right class (booleans), where the targets are classes; else None."""
        return None

    def to(self, u: Tensor) -> Loss:
        """The same loss with its tensors on the device (and, if floating, in the dtype) of the outputs u."""
        held = {name: getattr(self, name) for name in self.moving}
        held = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
        moved = {
            name: tensor.to(u.device, u.dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in held.items()
        }
        if all(moved[name] is held[name] for name in held):
            return self
        twin = copy.copy(self)
        for name, tensor in moved.items():
            setattr(twin, name, tensor)
        return twin


def require_convex(eigenvalues: Tensor, what: str, scale: float = 0.0) -> None:
    """Raise if eigenvalues of a Hessian are negative beyond rounding, relative to the largest or to ``scale``.

    Raises:
        NonConvexError: quotes the most negative one.
    """
    if eigenvalues.numel() == 0:
        return
    low, high = float(eigenvalues.min()), max(float(eigenvalues.abs().max()), scale)
    if low < -1e3 * torch.finfo(eigenvalues.dtype).eps ** 0.75 * max(high, 1e-30):
        raise NonConvexError(
            f"{what} has negative curvature in the outputs ({low:.3g} against {high:.3g}): jumpstart solves convex "
            "losses of the network's outputs; move the non-convex part into the outputs function."
        )


def require_same_shape(u: Tensor, targets: Tensor, name: str) -> None:
    """Raise unless outputs and targets have one shape."""
    if u.shape != targets.shape:
        hint = ""
        if u.numel() == targets.numel():
            hint = f": targets.reshape({tuple(u.shape)}) would agree (torch would broadcast, which is a silent bug)"
        raise ShapeError(f"{name} loss: outputs {tuple(u.shape)} and targets {tuple(targets.shape)} differ{hint}.")


def require_finite_targets(targets: Tensor, remedy: str | None = None) -> None:
    """Raise unless targets are a tensor without NaN or infinity."""
    if not isinstance(targets, Tensor):
        raise InputError(f"targets must be a tensor, got {type(targets).__name__}.")
    require_dense(targets, "targets")
    if targets.is_complex():
        raise TargetError(f"targets must be real, got {targets.dtype}.")
    if targets.is_floating_point() and not bool(torch.isfinite(targets).all()):
        bad = int((~torch.isfinite(targets)).sum())
        remedy = remedy or "drop or fix those samples, or leave the entries out with mask=torch.isfinite(targets)"
        raise NonFiniteError(f"{bad} of {targets.numel()} targets are NaN or infinite: {remedy}.")
