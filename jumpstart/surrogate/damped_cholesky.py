"""Implicit steps by one Cholesky factorization a horizon, where eigenvectors would cost ten times as much.

On the smaller side, parameters or outputs. Source: docs/theory.md, section 9.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..linalg.cholesky import Factor, factor, lower_gram
from ..linalg.operator import LinearOperator, Matrix
from ..linearization.ntk.collocation import gathered_kernel
from ..linearization.operators import Explicit, GraphJacobian, require_finite_derivatives
from ..linearization.problem import LinearizedProblem
from ..utils.autodiff import normal
from .implicit_euler import EPS, ImplicitEuler, longest

PROBES = 2  # random vectors that the effective dimension is estimated from
SKETCHED = 300  # least size of the Gram matrix, below which a sketch saves nothing
SAFE = 1e-8  # damping over the trace from which a solve has eight digits as it is


class DampedCholesky(ImplicitEuler):
    """Factors of the Gram matrix of an explicit A; with weight decay always on the parameters' side.

    Args:
        problem: the linearized problem. formed: its explicit Jacobian, where there is one already.
        least: how many modes are reached for certain, since a sketch of fewer did not do.

    Raises:
        NonFiniteError: derivatives are not finite.
    """

    kind = "dense"
    route = "cholesky"

    def __init__(self, problem: LinearizedProblem, formed: Explicit | None = None, least: float = 1.0) -> None:
        super().__init__(problem)
        self.least = least
        metric = problem.metric
        a = Explicit(problem.lin, metric) if formed is None else formed
        n, p = a.shape
        self.dual = n < p and not metric.decays
        self.size = n if self.dual else p
        self.rows: LinearOperator = a  # SᵀA (N, P)
        if self.plain:
            self.matrix = a.gram(self.dual)  # its lower triangle
        else:
            rows = self.weighed(a.dense().T).T.contiguous()
            self.rows, self.matrix = Matrix(rows), lower_gram(rows.T if self.dual else rows)
        if self.beta != 1:
            self.matrix.mul_(self.beta)
        require_finite_derivatives(self.matrix.diagonal())
        if metric.decays:
            self.matrix.diagonal().add_(metric.decay.double() if isinstance(metric.decay, Tensor) else metric.decay)
        self._z0 = problem.z.double()
        g = self.loss.grad(self.u)
        self.initial_gradient = self.force(g, torch.zeros_like(self._z0) if metric.decays else None)
        self._factors: dict[float, Factor] = {}
        self._image: tuple[Tensor, Tensor] = (
            self.initial_gradient.new_empty(0),
            self.u,
        )  # the last step and A times it
        self._pulled = self._image

    @cached_property
    def max_rate(self) -> float:
        """The largest rate, by a few products."""
        v = self.initial_gradient
        top = 0.0
        for _ in range(6):
            v = v / torch.linalg.vector_norm(v).clamp_min(1e-300)
            w = self.times(v)
            top, v = float(torch.dot(v, w)), w
        return top

    @cached_property
    def trace(self) -> float:
        """The sum of all rates."""
        return float(self.matrix.diagonal().sum())

    @property
    def known_rates(self) -> tuple[float, float]:
        return self.__dict__.get("max_rate", math.nan), self.trace

    @property
    def precision(self) -> float:
        """Relative rounding of the matrix."""
        return EPS

    def learned(self, t: float) -> dict[str, Any]:
        """The effective dimension, from the last factor, by Hutchinson's estimate; all of a small matrix."""
        if not self._factors or self.size < SKETCHED:
            return {"modes": float(self.size)}
        held = list(self._factors.values())[-1]
        signs = normal((PROBES, self.size), self.size).sign().to(self.matrix)
        left = sum(float(torch.dot(z, held.solve(z))) for z in signs) / PROBES
        return {"modes": min(max(self.size - held.shift * left, self.least), float(self.size))}

    def initial_horizon(self) -> float:
        """A thousand relaxation times of the fastest mode, or a little less."""
        return 1e3 / self.trace if self.trace > 0 else 1.0

    @property
    def max_horizon(self) -> float:
        """Beyond this the factorization has no digits left for the slowest modes."""
        return longest(self.trace, self.precision)

    def image(self, c: Tensor) -> Tensor:
        known, moved = self._image
        if known is not c:  # the same step is asked for several times, and each time reads all of A
            moved = self.rows @ self.scaled(c)
            self._image = (c, moved)
        return moved

    def scaled(self, c: Tensor) -> Tensor:
        if not self.dual:
            return c
        known, z = self._pulled
        if known is not c:
            z = self.rows.T @ c
            self._pulled = (c, z)
        return z

    def length(self, c: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.scaled(c))

    def force(self, g: Tensor, decayed: Tensor | None) -> Tensor:
        """Aᵀg + W (z₀ + decayed) (P,), or S⁺g itself on the outputs' side."""
        if self.dual:
            return self.reduced(g)
        found = self.rows.T @ self.reduced(g)
        if self.problem.metric.decays and decayed is not None:
            found = found + self.problem.metric.decay * (self._z0 + decayed)
        return found

    def times(self, c: Tensor) -> Tensor:
        """M c by products with A, which keep what squaring A has lost."""
        if self.dual:
            return self.beta * (self.rows @ (self.rows.T @ c))
        moved = self.beta * (self.rows.T @ (self.rows @ c))
        return moved + self.problem.metric.decay * c if self.problem.metric.decays else moved

    def solve(self, force: Tensor, t: float, correction: bool) -> Tensor:
        """By a factor, with one step of refinement where damping leaves rounding room to grow."""
        if t not in self._factors:
            if len(self._factors) > 1:  # each is as large as the matrix
                self._factors.pop(next(iter(self._factors)))
            self._factors[t] = factor(self.matrix, 1 / t, self.precision * self.trace)
        held = self._factors[t]
        found = held.solve(force)
        if held.shift < SAFE * self.trace:
            found = found + held.solve(force - self.times(found) - held.shift * found)
        return -found


class GatheredCholesky(DampedCholesky):
    """The same from a kernel that is gathered layer by layer: for networks whose Jacobian is too large to form.

    On the outputs' side, in the plain metric without decay; products with A go through graphs that are kept.
    """

    kind = "gathered"
    route = "cholesky"

    def __init__(self, problem: LinearizedProblem) -> None:
        ImplicitEuler.__init__(self, problem)
        self.a, self.dual, self.size = GraphJacobian(problem.lin, problem.metric), True, self.u.numel()
        kernel = gathered_kernel(problem.lin)
        assert kernel is not None
        self.matrix = self.beta * kernel.double()
        require_finite_derivatives(self.matrix.diagonal())
        self.initial_gradient = self.loss.grad(self.u).reshape(-1)
        self._factors, self.least = {}, 1.0

    @property
    def precision(self) -> float:
        return torch.finfo(self.problem.lin.u.dtype).eps

    def initial_horizon(self) -> float:
        return 1e2 / self.trace if self.trace > 0 else 1.0

    def image(self, c: Tensor) -> Tensor:
        return self.times(c) / self.beta

    def scaled(self, c: Tensor) -> Tensor:
        return self.a.T @ c

    def length(self, c: Tensor) -> Tensor:
        return torch.dot(c, self.image(c)).clamp_min(0).sqrt()

    def times(self, c: Tensor) -> Tensor:
        return self.matrix @ c
