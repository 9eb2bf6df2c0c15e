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

from ..linearization.linearize import Linearization
from ..linearization.metric import Metric


@dataclass(frozen=True)
class Remainder:
    """What a Krylov basis leaves out: ``measure()`` gives β_k and ‖A q_{k+1}‖, for at most one product, once."""

    measure: Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Basis:
    """Orthonormal directions and their images; ``images`` (k, *outputs), cotangents' rows first, then vectors'.

    Attributes:
        squares: (k,) squared norms of the images where these are mutually orthogonal, else None.
        remainder: for Krylov bases, what is left out; None where nothing is (dense).
        decay: (k, k) and drift (k,): weight decay seen by the reduced flow, Qᵀ W Q and Qᵀ W z₀.
    """

    kind: str
    metric: Metric
    images: Tensor
    vectors: Tensor | None
    cotangents: Tensor | None
    lin: Linearization
    squares: Tensor | None = None
    remainder: Remainder | None = None
    complete: bool = False
    decay: Tensor | None = None
    drift: Tensor | None = None
    route: str = ""

    @property
    def size(self) -> int:
        return self.images.shape[0]

    def displacement(self, c: Tensor) -> Tensor:
        """δθ (P,) for coefficients c (k,); one combination of vectors, or one vjp where cotangents are kept."""
        at = 0 if self.cotangents is None else self.cotangents.shape[0]
        total: Tensor | None = None
        if self.cotangents is not None:
            s = torch.tensordot(c[:at].to(self.cotangents.dtype), self.cotangents, dims=1)
            total = self.metric.scale(self.metric.scale(self.lin.vjp(s.to(self.lin.u.dtype))))
        if self.vectors is not None and (total is None or self.vectors.shape[0]):
            step = self.metric.scale((c[at:].to(self.vectors.dtype) @ self.vectors).to(self.lin.theta.dtype))
            total = step if total is None else total + step
        assert total is not None
        return total

    def damped(self, rate: float) -> Basis:
        """The same directions with a pull ``rate`` back to z₀ added to the reduced flow."""
        extra = rate * torch.eye(self.size, dtype=torch.float64, device=self.images.device)
        decay = extra if self.decay is None else self.decay + extra
        drift = extra.new_zeros(self.size) if self.drift is None else self.drift
        return replace(self, decay=decay, drift=drift)

    def rows(self) -> Tensor:
        """The directions q_i as explicit rows (k, P); one vjp for each cotangent."""
        found = []
        if self.cotangents is not None:
            found += [self.metric.scale(self.lin.vjp(s.to(self.lin.u.dtype))) for s in self.cotangents]
        if self.vectors is not None:
            found += list(self.vectors)
        return torch.stack(found)


def rounding(dtype: torch.dtype, size: int) -> float:
    """Relative eigenvalue below which a matrix of this size is noise; in half precision n·ε would leave nothing."""
    eps = torch.finfo(dtype).eps
    return eps if dtype in (torch.float16, torch.bfloat16) else eps * size


def with_decay(basis: Basis, lin: Linearization) -> Basis:
    """Let the reduced flow see weight decay: Qᵀ W Q, Qᵀ W z₀, and z₀'s part outside the span as one more direction.

    For one rate for all parameters this is exact; rates that differ leave the span, and are followed inside it only.
    """
    metric = basis.metric
    z0 = metric.unscale(lin.theta).double()
    parts = []
    if basis.cotangents is not None:
        # Qᵀ z₀ = S A z₀ and A z₀ = J θ₀: one jvp, and no direction is made explicit.
        parts.append(basis.cotangents.flatten(1).double() @ lin.jvp(lin.theta).double().reshape(-1))
    if basis.vectors is not None:
        parts.append(basis.vectors.double() @ z0)
    inner = torch.cat(parts)
    if basis.kind == "dense":
        rest = z0 - metric.unscale(basis.displacement(inner)).double()
        length = torch.linalg.vector_norm(rest)
        if bool(length > 1e-12 * torch.linalg.vector_norm(z0)):
            extra = (rest / length)[None]
            vectors = extra if basis.vectors is None else torch.cat([basis.vectors.double(), extra])
            # Outside all modes the outputs do not move; outside the leading ones they do.
            image, squares = torch.zeros_like(basis.images[:1]), None
            if not basis.complete:
                image = lin.jvp(metric.scale(extra[0].to(lin.theta.dtype)))[None]
            elif basis.squares is not None:
                squares = torch.cat([basis.squares, basis.squares.new_zeros(1)])
            images, inner = torch.cat([basis.images, image]), torch.cat([inner, length[None]])
            basis = replace(basis, vectors=vectors, images=images, squares=squares)
    if isinstance(metric.decay, Tensor):
        rows = basis.rows().double()
        w = metric.decay.double()
        whole = basis.complete and basis.size == z0.numel()
        return replace(basis, decay=(rows * w) @ rows.T, drift=rows @ (w * z0), squares=None, complete=whole)
    rate = float(metric.decay)
    eye = torch.eye(basis.size, dtype=torch.float64, device=z0.device)
    return replace(basis, decay=rate * eye, drift=rate * inner)
