"""Any convex loss, by autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, JumpstartError, NonFiniteError, ShapeError
from ..utils.autodiff import normal, pullback, push, push_symmetric
from ..utils.brief import brief
from .base import Loss, require_convex, require_finite_targets
from .blame import blamed, called_once, described, outside
from .lines import Lines, require_smooth
from .pointwise import owned, sample_weights

CONSTANT = 1e-9  # relative difference of Hessians that are taken for the same
HOLDS = 1e-8  # of a gradient from that of a constant Hessian
ENTRIES = 2**24  # of all samples' Hessians; with more, curvature is not looked at as a constant
COARSE = 1e-4  # both, for a function that computes in single precision


@dataclass(frozen=True)
class Constant:
    """A curvature that is the same at every output: g(u) = slope + H (u − center), in double precision.

    Attributes:
        center, slope: (n, m). hessians: (n, m, m), and their roots (n, m) and eigenvectors (n, m, m).
    """

    center: Tensor
    slope: Tensor
    hessians: Tensor
    roots: Tensor
    vectors: Tensor


class Convex(Loss):
    """Any convex loss, by autograd: Φ = mean over samples of ``fn(row of u, row of targets)``.

    The function must be smooth: a kink is refused. Where its curvature is found to be the same everywhere (a masked or
    weighted squared error, say), runs have the closed form of squared losses, and outputs that do not fit it are
    noticed.

    Args:
        fn: maps ONE sample's outputs and targets to a scalar; torch operations only, convex in the outputs.
        targets: (n, …) tensor, row i belonging to sample i.
        weights: (n,) how much each sample counts, ≥ 0: the mean becomes Σ w_i fn_i / Σ w_i.

    Raises:
        NonConvexError: a sample's Hessian has a negative eigenvalue. NotSmoothError: a slope jumps.
        InputError and its kinds: names the loss and says why it cannot be used; all when the outputs are known.
    """

    moving = ("targets", "share")

    def __init__(
        self, fn: Callable[[Tensor, Tensor], Tensor], targets: Tensor, *, weights: Tensor | None = None
    ) -> None:
        if not callable(fn):
            raise InputError(f"Convex needs a function (outputs, targets) -> scalar for one sample, got {brief(fn)}.")
        require_finite_targets(
            targets, "drop or fix those samples, or put a mask into the targets and let the function multiply by it"
        )
        self.fn, self.targets, self.weights = fn, targets.detach(), owned(weights)
        n = targets.shape[0] if targets.dim() else 1
        self.share: Tensor | float = 1.0 / max(n, 1)
        if weights is not None:
            counts = sample_weights(weights, torch.Size([n]), targets.device)
            if not bool(counts.sum() > 0):
                raise InputError("weights are all 0: there is nothing left to train on.")
            self.share = counts / counts.sum()
        self.rank = 1  # dimensions of the outputs
        self.native: torch.dtype | None = None  # what the function computes in, where it is not that of its inputs
        self.forward = True  # whether every operation of it knows forward mode
        self.flat: bool | None = None  # whether curvature was constant where it was looked at; None: not yet
        self.constant: Constant | None = None

    # -- when the outputs are known ----------------------------------------------------------------------------------

    def check(self, u: Tensor) -> None:
        if u.dim() == 0 or self.targets.dim() == 0 or u.shape[0] != self.targets.shape[0]:
            raise ShapeError(f"outputs {tuple(u.shape)} and targets {tuple(self.targets.shape)} differ in samples.")
        loss = called_once(self.fn, u[0], self.targets[0])
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ShapeError(
                f"the loss of one sample must be a scalar tensor, got {got} from {described(self.fn)}: reduce it with "
                ".sum() or .mean()."
            )
        self.rank = u.dim()
        wide = u.double()
        twin = self._computing(wide)
        try:
            hessians = twin._transformed(wide)
        except JumpstartError:
            raise
        except Exception as error:
            raise blamed(error, self.fn, u[0], self.targets[0]) from error
        require_convex(torch.linalg.eigvalsh(hessians), f"the loss {described(self.fn)} of a sample")
        twin._require_dependence(wide, hessians)
        try:
            found = twin._flat_everywhere(wide, hessians)
        except JumpstartError:
            raise
        except Exception as error:
            raise outside(error, self.fn) from error
        self.native, self.forward, self.flat = twin.native, twin.forward, twin.flat
        self.constant = twin._constant(wide, hessians) if found else None
        self.quadratic = self.known_convex = self.presumed = found

    def _require_dependence(self, u: Tensor, hessians: Tensor) -> None:
        """Refuse a function through which no gradient can flow (``detach``); one that is flat where it is looked at, or
        everywhere (a factor of 0), is answered as torch answers it: nothing moves.

        Raises:
            InputError: says so.
        """
        if bool((hessians != 0).any()) or bool((self.grad(u) != 0).any()):
            return
        with torch.enable_grad():
            if self.own(u[0].detach().requires_grad_(), self.targets[0]).requires_grad:
                return
        raise InputError(
            f"the loss {described(self.fn)} does not depend on the outputs as far as torch can differentiate it: look "
            "for detach(), no_grad() or .data on the outputs in it."
        )

    def _computing(self, wide: Tensor) -> Convex:
        """This loss for outputs in double precision, cast to its own precision where the function insists on it."""
        twin = self.to(wide)
        assert isinstance(twin, Convex)
        twin = copy.copy(twin)
        try:
            twin.fn(wide[0], twin.targets[0])
        except Exception:  # it has answered in the outputs' own precision already
            twin.native = self.targets.dtype if self.targets.is_floating_point() else torch.float32
        return twin

    def _transformed(self, u: Tensor) -> Tensor:
        """Value and slope tried, and the Hessians (n, m, m) of the samples' own losses, not divided by their number.

        Raises:
            NonFiniteError: says for which sample.
        """
        values, slopes = self.per_sample(u), self.grad(u)
        bad = ~(torch.isfinite(values) & torch.isfinite(slopes.reshape(len(u), -1)).all(1))
        if bool(bad.any()):
            raise NonFiniteError(
                f"the loss {described(self.fn)} or its slope is NaN or infinite for {int(bad.sum())} of {len(u)} "
                f"samples, the first of them sample {int(bad.nonzero()[0])}: check logarithms, roots and divisions in "
                "it; targets that are to be ignored are left out with ignore_index= or mask= of a named loss."
            )
        try:
            return self._looked_at(u)
        except (NotImplementedError, RuntimeError) as error:
            if "forward" not in str(error).lower():
                raise
            self.forward = False  # an operation without a forward rule: the Hessian by two backward passes
            return self._looked_at(u)

    def _looked_at(self, u: Tensor) -> Tensor:
        """The Hessians of all samples, or of as many, evenly spread, as fit in memory."""
        n, size = len(u), max(u[0].numel(), 1)
        few = max(1, int(ENTRIES // size**2))
        if few >= n:
            return self._hessians(u)
        some = copy.copy(self)
        chosen = torch.linspace(0, n - 1, few, device="cpu").round().long().to(u.device)
        some.targets = self.targets[chosen]
        return some._hessians(u[chosen])

    def _flat_everywhere(self, u: Tensor, hessians: Tensor) -> bool:
        """Whether curvature is the same wherever one looks; kinks are refused on the way."""
        if self.flat is None:
            lines = Lines.through(u, self.targets)
            require_smooth(lines, self.along, described(self.fn), self.native is not None)
            self.flat = lines.flat
        return self.flat and len(hessians) == len(u) and self._same_elsewhere(u, hessians)

    def _same_elsewhere(self, u: Tensor, hessians: Tensor) -> bool:
        """Whether the Hessians are those of outputs near and far, for every sample."""
        tolerance = CONSTANT if self.native is None else COARSE
        size = hessians.abs().amax((1, 2))
        for seed, scale in enumerate((1.0, 1 + float(u.abs().max()), 1e2)):
            other = self._hessians(u + scale * normal(u.shape, seed).to(u))
            if not bool(((other - hessians).abs().amax((1, 2)) <= tolerance * size).all()):
                return False
        return True

    def _constant(self, u: Tensor, hessians: Tensor) -> Constant:
        share = self._shares(u)[:, None]
        lam, vectors = torch.linalg.eigh(hessians * share[..., None])
        slope = self.grad(u).reshape(len(u), -1)
        return Constant(u.reshape(len(u), -1), slope, hessians * share[..., None], lam.clamp_min(0).sqrt(), vectors)

    def holds(self, u: Tensor) -> bool:
        if self.constant is None:
            return True
        known, tolerance = self.constant, HOLDS if self.native is None else COARSE
        flat = u.double().reshape(*u.shape[: u.dim() - self.rank], *known.center.shape)
        bent = torch.einsum("nij,...nj->...ni", known.hessians, flat - known.center)
        found = self.grad(u).double().reshape(flat.shape)
        size = [torch.linalg.vector_norm(x, dim=(-2, -1)) for x in (found - known.slope - bent, found, bent)]
        return bool((size[0] <= tolerance * (size[1] + size[2])).all())

    def as_general(self) -> Loss:
        twin = super().as_general()
        assert isinstance(twin, Convex)
        twin.known_convex, twin.presumed, twin.constant = False, False, None
        return twin

    # -- the function, sample by sample ------------------------------------------------------------------------------

    def own(self, row: Tensor, target: Tensor) -> Tensor:
        """The loss of one sample, by itself: a row (…) of the outputs and its ``target``."""
        if self.native is None:
            return self.fn(row, target).reshape(())
        narrow = target.to(self.native) if target.is_floating_point() else target
        return self.fn(row.to(self.native), narrow).reshape(()).to(row.dtype)

    def _one(self, row: Tensor, target: Tensor, share: Any) -> Tensor:
        return self.own(row, target) * share

    def _shares(self, u: Tensor) -> Tensor:
        if isinstance(self.share, Tensor):
            return self.share.to(u)
        return torch.full(self.targets.shape[:1], self.share, dtype=u.dtype, device=u.device)

    def _over(self, u: Tensor, one: Callable[..., Any]) -> Any:
        """Apply a function of one sample to every row, under every leading dimension of u."""
        each = torch.vmap(one, in_dims=(0, 0, 0 if isinstance(self.share, Tensor) else None))

        def rows(x: Tensor) -> Any:
            return each(x, self.targets, self.share)

        for _ in range(u.dim() - self.rank):
            rows = torch.vmap(rows)
        try:
            return rows(u)
        except Exception as error:
            if self.flat is None or isinstance(error, JumpstartError):  # ``check`` says it in its own words
                raise
            raise outside(error, self.fn) from error

    def to(self, u: Tensor) -> Loss:
        twin = copy.copy(super().to(u))
        assert isinstance(twin, Convex)
        twin.rank = u.dim()
        return twin

    def along(self, rows: Tensor, directions: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and curvature (m,) of some samples' own losses at rows (m, …) along directions (m, …)."""
        targets = self.targets[samples]

        def slopes(x: Tensor) -> Tensor:
            return torch.vmap(torch.func.grad(self.own))(x, targets)

        if self.forward:
            slope, bend = torch.func.jvp(slopes, (rows,), (directions,))[:2]
        else:
            slope, pull = pullback(slopes, rows)
            bend = pull(directions)
        return tuple((x.detach() * directions).reshape(len(rows), -1).sum(1) for x in (slope, bend))  # type: ignore[return-value]

    def per_sample(self, u: Tensor) -> Tensor:
        return self._over(u, self._one)

    def grad(self, u: Tensor) -> Tensor:
        return self._over(u, torch.func.grad(self._one))

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        if self.constant is None:
            return (push if self.forward else push_symmetric)(self.grad, u.expand_as(v).contiguous(), v)
        flat = v.reshape(*v.shape[: v.dim() - self.rank], *self.constant.center.shape)
        return torch.einsum("nij,...nj->...ni", self.constant.hessians.to(v), flat).reshape(v.shape)

    def _hessians(self, u: Tensor) -> Tensor:
        """(n, m, m) of the samples' own losses."""
        shape = u.shape[1:]
        outer = torch.func.jacfwd if self.forward else torch.func.jacrev

        def one(row: Tensor, target: Tensor) -> Tensor:
            return self.own(row.reshape(shape), target)

        return torch.vmap(outer(torch.func.grad(one)))(u.reshape(len(u), -1), self.targets).detach()

    def _root(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Roots of the eigenvalues (n, m) and eigenvectors of each sample's share of B."""
        if self.constant is not None:
            return self.constant.roots.to(u), self.constant.vectors.to(u)
        lam, vectors = torch.linalg.eigh(self._hessians(u) * self._shares(u)[:, None, None])
        require_convex(lam, f"the loss {described(self.fn)} of a sample")
        return lam.clamp_min(0).sqrt(), vectors

    def sqrt(self, u: Tensor, v: Tensor) -> Tensor:
        root, vectors = self._root(u)
        flat = v.reshape(*v.shape[: v.dim() - self.rank], u.shape[0], -1)
        return torch.einsum("nij,nj,...nj->...ni", vectors, root, flat).reshape(v.shape)

    def sqrt_t(self, u: Tensor, v: Tensor) -> Tensor:
        root, vectors = self._root(u)
        flat = v.reshape(*v.shape[: v.dim() - self.rank], u.shape[0], -1)
        return (torch.einsum("nij,...ni->...nj", vectors, flat) * root).reshape(v.shape)

    def _inverse_root(self, u: Tensor) -> tuple[Tensor, Tensor]:
        root, vectors = self._root(u)
        moves = root > 1e-7 * root.amax(1, keepdim=True)  # below, an eigenvalue is rounding
        return torch.where(moves, 1 / torch.where(moves, root, torch.ones_like(root)), torch.zeros_like(root)), vectors

    def sqrt_inverse(self, u: Tensor, v: Tensor) -> Tensor:
        inverse, vectors = self._inverse_root(u)
        flat = v.reshape(*v.shape[: v.dim() - self.rank], u.shape[0], -1)
        return (torch.einsum("nij,...ni->...nj", vectors, flat) * inverse).reshape(v.shape)

    def sqrt_t_inverse(self, u: Tensor, v: Tensor) -> Tensor:
        inverse, vectors = self._inverse_root(u)
        flat = v.reshape(*v.shape[: v.dim() - self.rank], u.shape[0], -1)
        return torch.einsum("nij,nj,...nj->...ni", vectors, inverse, flat).reshape(v.shape)

    def with_targets(self, targets: Tensor) -> Convex:
        return self._again(targets, self.weights)

    def on_new_samples(self, targets: Tensor) -> Convex:
        return self._again(targets, None)

    def _again(self, targets: Tensor, weights: Tensor | None) -> Convex:
        twin = Convex(self.fn, targets, weights=weights)
        twin.flat = self.flat  # the function is the same; Hessians are looked at again
        return twin
