"""The subspace that a solve is restricted to, one interface for every way to it (``bases``).

In scaled coordinates z = D^{−½}θ, with A = J D^{½}, a basis is an orthonormal set q_1 … q_k and its images A q_i.
Directions are kept as vectors of the parameters' size or as cotangents s_i of the outputs' size with q_i = Aᵀ s_i.
Source: docs/theory.md, sections 2 and 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..linearization.linearize import Linearization
from ..linearization.metric import Metric
from ..linearization.operators import Jacobian


@dataclass(frozen=True)
class Remainder:
    """What a Krylov basis leaves out: ``measure()`` gives β_k and ‖A q_{k+1}‖, for at most one product, once."""

    measure: Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Basis:
    """Orthonormal directions and their images; ``images`` (k, *outputs), cotangents' rows first, then vectors'.

    Attributes:
        kind, route: which subspace and how it was made, for people.
        jacobian: A, of whose linearization and metric the basis was made.
        squares: (k,) squared norms of the images where these are mutually orthogonal, else None.
        remainder: for Krylov bases, what is left out; None where nothing is (dense).
        decay: (k, k) and decay_force (k,): weight decay seen by the reduced flow, Qᵀ W Q and Qᵀ W z₀.
        damping: rate of a pull back to z₀ that ``decay`` holds besides.
        complete: nothing is left out. modal: the kernel's own modes, all or the leading ones. is_krylov: grown from the
            gradient of one run, which other runs leave.
    """

    kind: str
    jacobian: Jacobian
    images: Tensor
    vectors: Tensor | None
    cotangents: Tensor | None
    squares: Tensor | None = None
    remainder: Remainder | None = None
    complete: bool = False
    modal: bool = False
    is_krylov: bool = False
    decay: Tensor | None = None
    decay_force: Tensor | None = None
    damping: float = 0.0
    route: str = ""

    @property
    def lin(self) -> Linearization:
        return self.jacobian.lin

    @property
    def metric(self) -> Metric:
        return self.jacobian.metric

    @property
    def size(self) -> int:
        return self.images.shape[0]

    @property
    def supports_leave_out(self) -> bool:
        """Whether runs without some samples stay inside: leading dense modes leave out only what is slow."""
        return self.complete or self.modal or self.size >= min(self.jacobian.shape)

    def scaled(self, c: Tensor) -> Tensor:
        """z − z₀ (P,) for coefficients c (k,); one combination of vectors, or one vjp where cotangents are kept."""
        at = 0 if self.cotangents is None else self.cotangents.shape[0]
        total: Tensor | None = None
        if self.cotangents is not None:
            s = torch.tensordot(c[:at].to(self.cotangents.dtype), self.cotangents, dims=1)
            total = self.jacobian.apply_adjoint(s)
        if self.vectors is not None and (total is None or self.vectors.shape[0]):
            step = (c[at:].to(self.vectors.dtype) @ self.vectors).to(self.jacobian.dtype)
            total = step if total is None else total + step
        assert total is not None
        return total

    def displacement(self, c: Tensor) -> Tensor:
        """δθ (P,) for coefficients c (k,)."""
        return self.metric.scale(self.scaled(c))

    def damped(self, rate: float) -> Basis:
        """The same directions with a pull ``rate`` back to z₀ added to the reduced flow."""
        extra = rate * torch.eye(self.size, dtype=torch.float64, device=self.images.device)
        decay = extra if self.decay is None else self.decay + extra
        force = extra.new_zeros(self.size) if self.decay_force is None else self.decay_force
        return replace(self, decay=decay, decay_force=force, damping=self.damping + rate)

    def rows(self) -> Tensor:
        """The directions q_i as explicit rows (k, P); one vjp for each cotangent."""
        found = []
        if self.cotangents is not None:
            found += [self.jacobian.apply_adjoint(s) for s in self.cotangents]
        if self.vectors is not None:
            found += list(self.vectors)
        return torch.stack(found)


def rounding(dtype: torch.dtype, size: int) -> float:
    """Relative eigenvalue below which a matrix of this size is noise; in half precision n·ε would leave nothing."""
    eps = torch.finfo(dtype).eps
    return eps if dtype in (torch.float16, torch.bfloat16) else eps * size


def with_decay(basis: Basis) -> Basis:
    """Let the reduced flow see weight decay: Qᵀ W Q, Qᵀ W z₀, and z₀'s part outside the span as one more direction.

    For one rate for all parameters this is exact; rates that differ leave the span, and are followed inside it only.
    Without weight decay in the metric the basis is returned as it is.
    """
    lin, metric = basis.lin, basis.metric
    if not metric.decays:
        return basis
    z0 = metric.unscale(lin.theta).double()
    parts = []
    if basis.cotangents is not None:
        # Qᵀ z₀ = S A z₀ and A z₀ = J θ₀: one jvp, and no direction is made explicit.
        parts.append(basis.cotangents.flatten(1).double() @ lin.jvp(lin.theta).double().reshape(-1))
    if basis.vectors is not None:
        parts.append(basis.vectors.double() @ z0)
    inner = torch.cat(parts)
    if basis.modal:
        basis, inner = _with_start(basis, z0, inner)
    if isinstance(metric.decay, Tensor):
        rows = basis.rows().double()
        w = metric.decay.double()
        whole = basis.complete and basis.size == z0.numel()
        return replace(basis, decay=(rows * w) @ rows.T, decay_force=rows @ (w * z0), squares=None, complete=whole)
    rate = float(metric.decay)
    eye = torch.eye(basis.size, dtype=torch.float64, device=z0.device)
    return replace(basis, decay=rate * eye, decay_force=rate * inner)


def _with_start(basis: Basis, z0: Tensor, inner: Tensor) -> tuple[Basis, Tensor]:
    """The part of z₀ (P,) outside the span as one more direction, and Qᵀz₀ with it."""
    rest = z0 - basis.scaled(inner).double()
    length = torch.linalg.vector_norm(rest)
    if not bool(length > 1e-12 * torch.linalg.vector_norm(z0)):
        return basis, inner
    extra = (rest / length)[None]
    if basis.complete and basis.lin.still_responds:
        return _with_still(basis, extra, inner, length)
    vectors = extra if basis.vectors is None else torch.cat([basis.vectors.double(), extra])
    # Outside all modes the outputs do not move; outside the leading ones they do.
    image, squares = torch.zeros_like(basis.images[:1]), None
    if not basis.complete:
        image = basis.jacobian.image(extra[0])[None]
    elif basis.squares is not None:
        squares = torch.cat([basis.squares, basis.squares.new_zeros(1)])
    basis = replace(basis, vectors=vectors, images=torch.cat([basis.images, image]), squares=squares)
    return basis, torch.cat([inner, length[None]])


STILL = 1e-6  # the square of it is how far a gradient that is none may move such a direction, relative


def _with_still(basis: Basis, extra: Tensor, inner: Tensor, length: Tensor) -> tuple[Basis, Tensor]:
    """z₀ outside all modes where the outputs respond to it though no gradient pulls it (a padding row that decays).

    The direction is scaled down until its gradient does nothing; by weight decay it moves by all of its length still.
    """
    if isinstance(basis.metric.decay, Tensor):
        raise InputError(
            "weight decay moves weights that get no gradient (a padding row of an embedding, say) but that the outputs "
            "depend on; that is followed for one rate for all parameters only: leave them out with params=[…], set "
            "them to zero, or give one weight_decay=."
        )
    image = basis.jacobian.image(extra[0])[None]
    extra = STILL * extra
    vectors = extra if basis.vectors is None else torch.cat([basis.vectors.double(), extra])
    basis = replace(basis, vectors=vectors, images=torch.cat([basis.images, STILL * image]), squares=None)
    return basis, torch.cat([inner, (length / STILL)[None]])
