"""Implicit steps without a Jacobian: conjugate gradients on the outputs' side, preconditioned from the last jump.

For networks whose Jacobian is too large to form. Products with AAᵀ are a vjp and a jvp through graphs that are made
once. Every product tells something of the spectrum: the pairs (s, AAᵀs) of one jump make a Nyström approximation
(Frangella, Tropp & Udell, SIAM J. Matrix Anal. 44, 2023) that preconditions the next, whose kernel differs little.
Source: docs/theory.md, section 9.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..linalg.nystrom import Nystrom
from ..linearization.operators import GraphJacobian
from ..linearization.problem import LinearizedProblem
from .implicit_euler import ImplicitEuler

RANK = 200  # pairs kept for the preconditioner
STEP = 1e-2  # residual of a step, relative to its gradient, at which it is solved; the real loss decides on the step
CORRECTION = 0.1  # of that of a correction
LEARN = 8  # new pairs after which the preconditioner is made again within a jump
DEPTH = 30  # products a solve may take where no depth is asked for


class DampedCG(ImplicitEuler):
    """Coefficients are cotangents s (N,) with z − z₀ = Aᵀs.

    Args:
        depth: most products a solve may take, 30 by default.
        sketch: of the last jump, of the same outputs (other points make it useless, but not wrong).

    Raises:
        InputError: weight decay, which leaves the span of Aᵀ.
    """

    kind = "matrix-free"
    route = "conjugate gradients"

    def __init__(self, problem: LinearizedProblem, depth: int | None = None, sketch: Nystrom | None = None) -> None:
        if problem.metric.decays:
            raise InputError("matrix-free jumps know no weight decay: leave it out, or use basis='krylov'.")
        super().__init__(problem)
        self.depth = depth or DEPTH
        self.a, self.size = GraphJacobian(problem.lin, problem.metric), self.u.numel()
        self._sketch = sketch if sketch is not None and sketch.vectors.shape[0] == self.size else None
        self._tests: list[Tensor] = []
        self._images: list[Tensor] = []
        self._learned = 0
        self._solutions: list[tuple[Tensor, Tensor]] = []  # and A Aᵀ times them
        self.initial_gradient = self.reduced(self.loss.grad(self.u))
        norm = torch.dot(self.initial_gradient, self.initial_gradient).clamp_min(1e-300)
        self._rate = float(torch.dot(self.initial_gradient, self.product(self.initial_gradient)) / norm)

    @property
    def max_rate(self) -> float:
        """From below, along the gradient."""
        return self._rate

    @property
    def known_rates(self) -> tuple[float, float]:
        return self._rate, math.nan

    def product(self, s: Tensor) -> Tensor:
        """βAAᵀ s (N,), or SᵀAAᵀS s, remembered for the sketch."""
        found = self.beta * self.weighed((self.a @ self.scaled(s)).double())
        if bool(torch.isfinite(found).all()):
            self._tests.append(s)
            self._images.append(found)
        return found

    def sketch(self) -> Nystrom | None:
        """What this jump has learned, and the last ones: the preconditioner of the next."""
        if not self._tests:
            return None
        tests, images = torch.stack(self._tests[self._learned :]), torch.stack(self._images[self._learned :])
        if self._sketch is not None:
            old = self._sketch
            tests = torch.cat([tests, old.vectors.T])
            images = torch.cat([images, old.values[:, None] * old.vectors.T])
        found = Nystrom.of(tests, images)
        if found is None or found.values.numel() <= RANK:
            return found
        return Nystrom(found.vectors[:, :RANK], found.values[:RANK])

    def learned(self, t: float) -> dict[str, Any]:
        return {"sketch": self.sketch()}

    def initial_horizon(self) -> float:
        return 1e2 / self.max_rate if self.max_rate > 0 else 1.0

    @property
    def max_horizon(self) -> float:
        """Beyond this, rounding of the products decides."""
        eps = torch.finfo(self.problem.lin.u.dtype).eps
        return 1 / (eps * self.max_rate) if self.max_rate > 0 else 1e16

    def scaled(self, c: Tensor) -> Tensor:
        return self.a.T @ self.unweighed(c)

    def force(self, g: Tensor, decayed: Tensor | None) -> Tensor:
        return self.reduced(g)

    def length(self, c: Tensor) -> Tensor:
        """‖z − z₀‖ = √(sᵀAAᵀs)."""
        return torch.dot(c, self.image(c)).clamp_min(0).sqrt()

    def image(self, c: Tensor) -> Tensor:
        """AAᵀ c; products are linear, so that solutions and their multiples are read off from those made already."""
        for known, image in self._solutions:
            scale = torch.dot(c, known) / torch.dot(known, known).clamp_min(1e-300)
            if bool(torch.linalg.vector_norm(c - scale * known) <= 1e-12 * torch.linalg.vector_norm(c)):
                return scale * image
        return self.product(c) / self.beta

    def solve(self, force: Tensor, t: float, correction: bool) -> Tensor:
        """By preconditioned conjugate gradients, as far as ``depth`` products go."""
        shift = 1 / t
        if len(self._tests) >= self._learned + LEARN:  # a second solve knows what the first has met
            self._sketch, self._learned = self.sketch(), len(self._tests)
        x, kx = torch.zeros_like(force), torch.zeros_like(force)
        r = force.clone()
        target = (CORRECTION if correction else STEP) * torch.linalg.vector_norm(force)
        sketch = self._sketch
        y = r if sketch is None else sketch.solve(r, shift)
        p, ry = y, torch.dot(r, y)
        for _ in range(self.depth):
            kp = self.product(p)
            curve = torch.dot(p, kp) + shift * torch.dot(p, p)
            if not bool(curve > 0):
                break
            step = ry / curve
            x, kx = x + step * p, kx + step * kp
            r = r - step * (kp + shift * p)
            if bool(torch.linalg.vector_norm(r) <= target):
                break
            y = r if sketch is None else sketch.solve(r, shift)
            ry, before = torch.dot(r, y), ry
            p = y + (ry / before) * p
        self._solutions.append((-x, -kx / self.beta))
        return -x
