"""Exponential integration of ċ = F(c) for many rows c at once, with one linear part for all of them.

The linear part is solved exactly, whatever its stiffness, and what is left by Krogstad's fourth-order scheme (J.
Comput. Phys. 203, 2005; ETDRK4-B) with an embedded third-order result that reuses the force at the new point. The
linear part may lag behind the truth: that costs accuracy, which the error estimate sees, and never consistency. Where
it is no smaller than the true one, as for losses whose curvature falls, it costs no stability either.
Source: docs/theory.md, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FlowError

STEPS = 5000  # from one horizon to the next, at most; smooth losses take tens
RENEW = 0.3  # relative change of the curvature at which a lagging linear part is renewed
SMALL = 64  # up to this many modes a factorization costs less than the steps that a lagging one wastes


@dataclass(frozen=True)
class Modes:
    """Eigenvalues λ (k,) ≥ 0 and eigenvectors V (k, k) (columns) of Eᵀ B E + H at one point of the flow."""

    rates: Tensor
    vectors: Tensor | None  # None: the identity
    floor: float = 0.0  # rates below it were rounding and have been set to zero

    def into(self, c: Tensor) -> Tensor:
        """Vᵀ c for rows c (…, k)."""
        return c if self.vectors is None else c @ self.vectors

    def out(self, m: Tensor) -> Tensor:
        """V m for rows m (…, k)."""
        return m if self.vectors is None else m @ self.vectors.T


@dataclass(frozen=True)
class FlowPoint:
    """A point that the integration has come by: flow time, rows c (G, k), and the step to try next."""

    time: float
    rows: Tensor
    step: float


class Integrator:
    """Advances all rows together, by steps that suit the most demanding one.

    Args:
        force: F, rows (G, k) -> (G, k).
        modes: the linear part at one point (k,), namely at the last row.
        curvature: something that tells how far the linear part has moved, at one point (k,) -> a tensor.
        tolerance: local error of each row, relative to its length.
        settled: forces below this length have come to rest.
        rounding: length of what rounding makes of a force; errors of that size are not fought.
        spend: called before each step; may raise FlowError.
    """

    def __init__(
        self,
        force: Callable[[Tensor], Tensor],
        modes: Callable[[Tensor], Modes],
        curvature: Callable[[Tensor], Tensor],
        tolerance: float,
        settled: float,
        rounding: float = 0.0,
        spend: Callable[[], None] | None = None,
    ) -> None:
        self.force, self.modes_at, self.curvature = force, modes, curvature
        self.tolerance, self.settled, self.rounding = tolerance, max(settled, rounding), rounding
        self.spend = spend
        self.reached: FlowPoint | None = None  # where the last call has come to, whether or not it got to its end
        self._linear: tuple[Modes, Tensor] | None = None
        self._table: tuple[float, list[Tensor]] | None = None

    def advance(self, state: FlowPoint, end: float) -> FlowPoint:
        """From a state to flow time ``end``, or to rest.

        Raises:
            FlowError: the tolerance cannot be met.
        """
        t, c, step = state.time, state.rows, state.step
        if t >= end:
            return state
        f = self.force(c)
        self._renew(c[-1])
        for _ in range(STEPS):
            if t >= end or bool(torch.linalg.vector_norm(f, dim=1).max() <= self.settled) or step > 1e250:
                return FlowPoint(max(t, end), c, step)
            self.reached = FlowPoint(t, c, step)
            if self.spend is not None:
                self.spend()
            h = min(step, end - t)
            new, force, error = self._step(c, f, h)
            scale = self.tolerance * torch.linalg.vector_norm(new, dim=1) + h * self.rounding
            ratio = float((error / scale.clamp_min(1e-300)).max())
            grow = 0.9 * max(ratio, 1e-10) ** -0.25 if math.isfinite(ratio) else 0.1
            if ratio <= 1:
                c, f, t = new, force, t + h
                grown = h * min(5.0, max(grow, 0.2))
                step = grown if h == step else max(step, grown)  # a step cut short by the horizon says little
                self._renew(c[-1])
            else:
                step = h * max(0.1, min(grow, 0.9))
                if step <= 1e-14 * t or step < 1e-290:
                    break
        raise FlowError(
            f"the reduced flow cannot be integrated to its tolerance (from flow time {t:.3g} on, of {end:.3g}); the "
            "loss must be convex and twice differentiable. A shorter horizon or a coarser tolerance may do."
        )

    def _renew(self, c: Tensor) -> None:
        now = self.curvature(c) if len(c) > SMALL else None
        if now is not None and self._linear is not None:
            moved = torch.linalg.vector_norm(now - self._linear[1])
            if bool(moved <= RENEW * torch.linalg.vector_norm(now)):
                return
        self._linear, self._table = (self.modes_at(c), c if now is None else now), None

    def _step(self, c: Tensor, f: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor]:
        """One step: new rows, forces there, and the embedded error of each row (G,)."""
        assert self._linear is not None
        modes = self._linear[0]
        if self._table is None or self._table[0] != h:
            z = -h * modes.rates
            self._table = h, [*phis(0.5 * z)[:2], *phis(z)]
        half1, half2, p1, p2, p3 = self._table[1]
        y = modes.into(f)

        def surplus(move: Tensor) -> Tensor:
            """N(c + V·move) − N(c) in modes, where N is the force less its linear part."""
            return modes.into(self.force(c + modes.out(move)) - f) + modes.rates * move

        first = 0.5 * h * half1 * y
        d2 = surplus(first)
        d3 = surplus(first + h * half2 * d2)
        whole = h * p1 * y
        d4 = surplus(whole + 2 * h * p2 * d3)
        move = whole + h * ((2 * p2 - 4 * p3) * (d2 + d3) + (4 * p3 - p2) * d4)
        new = c + modes.out(move)
        force = self.force(new)
        d5 = modes.into(force - f) + modes.rates * move
        return new, force, torch.linalg.vector_norm(h * (4 * p3 - p2) * (d4 - d5), dim=1)


def phis(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ₁, φ₂, φ₃ at z ≤ 0, where φ₀ = e^z and φ_{k+1}(z) = (φ_k(z) − 1/k!)/z; Taylor series near zero."""
    small = z.abs() < 1
    near, far = torch.where(small, z, torch.zeros_like(z)), torch.where(small, -torch.ones_like(z), z)
    p3 = torch.zeros_like(near)
    for j in range(18, -1, -1):
        p3 = p3 * near + 1 / math.factorial(j + 3)
    p2 = near * p3 + 0.5
    p1 = near * p2 + 1
    q1 = torch.expm1(far) / far
    q2 = (q1 - 1) / far
    q3 = (q2 - 0.5) / far
    return torch.where(small, p1, q1), torch.where(small, p2, q2), torch.where(small, p3, q3)
