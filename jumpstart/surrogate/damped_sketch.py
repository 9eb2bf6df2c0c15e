"""Implicit steps within the modes that the horizon reaches: a third of the work where these are few.

A jump moves modes whose rate is above 1/t; on the way to a solution these are a tenth of all. Their span is found from
random sums of rows of A (``linalg.sketch``), and the step is the damped one within it, by orthogonal factors, which
leave room for horizons that a matrix of squares has no digits for. What is left out is bounded by the gradient outside
of the span. Source: docs/theory.md, equation 22′, and docs/decisions/0035-sketched-steps.md.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..flow.horizon import FARTHEST
from ..linalg.sketch import row_space
from ..linearization.operators import Explicit, require_finite_derivatives
from ..linearization.problem import LinearizedProblem
from .implicit_euler import EPS, ImplicitEuler

WIDER = 1.6  # times the effective dimension of the last jump
SPARE = 24  # columns more
MISSED = 0.02  # of what a step gains, at most, that one in all directions could gain besides


def width_for(modes: float) -> int:
    """Columns for so many modes."""
    return math.ceil(WIDER * modes) + SPARE


class DampedSketch(ImplicitEuler):
    """Coefficients c (k,) belong to orthonormal columns V (P, k): z − z₀ = V c. AV = QR; a force is Qᵀg (k,).

    Args:
        problem: in the plain output metric, without weight decay. a: its Jacobian. width: k.

    Raises:
        NonFiniteError: derivatives are not finite.
    """

    kind = "sketched"
    route = "random sums of rows"

    def __init__(self, problem: LinearizedProblem, a: Explicit, width: int) -> None:
        super().__init__(problem)
        self.size = width
        self.columns = row_space(a.rows, width, seed=width)
        self.images = a.rows if width == a.shape[1] else a.rows @ self.columns  # (N, k)
        require_finite_derivatives(self.images)
        # Orthogonal, since squares would lose the modes that are 1e-8 of the largest.
        self._reflectors = torch.geqrf(self.images)
        self.triangle = self._reflectors[0][:width].triu()
        self._rows = a.rows
        self.initial_gradient = self.force(self.loss.grad(self.u), None)
        self._factors: dict[float, tuple[Tensor, Tensor]] = {}

    def reaches(self, t: float) -> bool:
        """Whether a step of length t gains all but a little of what one in all directions would.

        With the gradient after it, Aᵀg, the damped loss could fall by at most t/2 ‖(I − VVᵀ) Aᵀg‖² more.
        """
        step = self.solve(self.initial_gradient, t, False)
        after = self.outputs(step)
        gained = float(self.loss.value(self.u)) - float(self.loss.value(after))
        pull = self._rows.T @ self.loss.grad(after).reshape(-1)
        for _ in range(2):  # the second time takes away what rounding has left
            pull = pull - self.columns @ (self.columns.T @ pull)
        return 0.5 * t * float(torch.dot(pull, pull)) <= MISSED * gained

    def learned(self, t: float) -> dict[str, Any]:
        """The effective dimension, tr R(RᵀR + 1/t)⁻¹Rᵀ."""
        triangle = self._factor(t)[0][: self.size].triu()
        inverse = torch.linalg.solve_triangular(triangle, torch.eye(self.size).to(triangle), upper=True)
        return {"modes": max(self.size - float(inverse.square().sum()) / t, 1.0)}

    @cached_property
    def max_rate(self) -> float:
        return self.beta * float(torch.linalg.matrix_norm(self.triangle, 2)) ** 2

    @cached_property
    def trace(self) -> float:
        """The sum of all rates within the span."""
        return self.beta * float(self.triangle.square().sum())

    @property
    def known_rates(self) -> tuple[float, float]:
        return self.__dict__.get("max_rate", math.nan), self.trace

    def initial_horizon(self) -> float:
        """A thousand relaxation times of the fastest mode, or a little less."""
        return 1e3 / self.trace if self.trace > 0 else 1.0

    @property
    def max_horizon(self) -> float:
        """Beyond this the factor has no digits left for the slowest modes."""
        return min(1 / EPS / max(EPS * self.trace, 1e-290), FARTHEST)

    def force(self, g: Tensor, decayed: Tensor | None) -> Tensor:
        return torch.ormqr(*self._reflectors, g.reshape(-1, 1), transpose=True)[: self.size, 0]

    def scaled(self, c: Tensor) -> Tensor:
        return self.columns @ c

    def image(self, c: Tensor) -> Tensor:
        return self.images @ c

    def length(self, c: Tensor) -> Tensor:
        return torch.linalg.vector_norm(c)

    def solve(self, force: Tensor, t: float, correction: bool) -> Tensor:
        """By least squares: min β‖R c + force/β‖² + ‖c‖²/t."""
        factor, tau = self._factor(t)
        right = torch.cat([force / self.beta**0.5, torch.zeros_like(force)])[:, None]
        turned = torch.ormqr(factor, tau, right, transpose=True)[: self.size]
        return -torch.linalg.solve_triangular(factor[: self.size], turned, upper=True)[:, 0]

    def _factor(self, t: float) -> tuple[Tensor, Tensor]:
        """Reflectors and factors of (√β R; 1/√t), large rows first."""
        if t not in self._factors:
            damping = torch.eye(self.size).to(self.triangle) / t**0.5
            self._factors = {t: torch.geqrf(torch.cat([self.beta**0.5 * self.triangle, damping]))}
        return self._factors[t]
