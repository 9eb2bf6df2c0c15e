"""The reduced flow ċ = −Eᵀ∇Φ(u₀ + E c) − H c − h: the one object that every answer is read off from.

Squared loss has a closed form; other convex losses are integrated by a fourth-order exponential Rosenbrock method
with an embedded error estimate. No network evaluation is spent here. Source: docs/theory.md, sections 2 and 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .basis import Basis, rounding
from .errors import FlowError
from .horizon import Parsed, Steps, Times, phi
from .losses import Loss, require_convex

TOLERANCE = 1e-8  # local error of the Rosenbrock steps, relative to the displacement
SETTLED = 1e-11  # the end of the run for losses that are not quadratic: the gradient has fallen by this factor

STEPS = 3000  # of the integration from one horizon to the next, at most; smooth losses take tens
_STUCK = "the reduced flow cannot be integrated to its tolerance; the loss must be convex and twice differentiable"


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

    def filter(self, horizon: Parsed) -> Tensor:
        """φ(Λ, t) (T, k). A rate lost to rounding moves no further than one at the floor: noise · t is bounded."""
        filters = phi(self.rates, horizon)
        if self.floor == 0:
            return filters
        return torch.where(self.rates == 0, filters.clamp_max(1 / self.floor), filters)


class ReducedFlow:
    """The frozen (linearized) training run inside a basis.

    Args:
        basis: directions and their images E.
        loss: Φ with its targets.
        u: u₀, the outputs at c = 0.
        tolerance: local error of the integration for losses that are not quadratic.
    """

    def __init__(self, basis: Basis, loss: Loss, u: Tensor, tolerance: float = TOLERANCE) -> None:
        self.basis, self.loss, self.tolerance = basis, loss, tolerance
        self.images = basis.images.flatten(1).double()  # (k, N)
        self.shape = u.shape
        self.u = u.detach().double()
        self._loss = loss.to(self.u)
        self.k = basis.size
        self.slope = self.gradient(torch.zeros(self.k, dtype=torch.float64, device=u.device))  # b = −ċ(0)
        self._scale = 0.0
        self.start = self.modes_at(self.u)
        self._scale = float(self.start.rates.max()) if self.k else 0.0
        self.gates = torch.ones_like(self.start.rates)
        # Points that the integration has come by: flow time, coefficients, next step size.
        self._reached = [(0.0, torch.zeros_like(self.slope), 0.1 / self._scale if self._scale > 0 else 1.0)]

    # -- pieces ------------------------------------------------------------------------------------------------

    def outputs(self, c: Tensor) -> Tensor:
        """Linearized outputs u₀ + E c (…, *outputs) in float64, for coefficients c (…, k)."""
        return self.u + (c @ self.images).reshape(*c.shape[:-1], *self.shape)

    def predicted(self, c: Tensor) -> Tensor:
        """Φ of the linearized outputs, one number for each row of c."""
        return self._loss.value(self.outputs(c))

    def gradient(self, c: Tensor) -> Tensor:
        """Eᵀ∇Φ(u₀ + E c) + H c + h, shaped like c."""
        g = self._loss.grad(self.outputs(c)).reshape(*c.shape[:-1], -1) @ self.images.T
        if self.basis.decay is not None:
            assert self.basis.drift is not None
            g = g + c @ self.basis.decay + self.basis.drift
        return g

    def modes_at(self, u: Tensor) -> Modes:
        """Modes of the reduced curvature where the outputs are u.

        Raises:
            NonConvexError: the loss curves down along some direction.
        """
        if self.k == 0:
            return Modes(self.images.new_zeros(0), None)
        flat = self.basis.decay is None or bool(_is_scalar(self.basis.decay))
        if self._loss.curvature is not None and self.basis.squares is not None and flat:
            shift = 0.0 if self.basis.decay is None else float(self.basis.decay[0, 0])
            return Modes(self._loss.curvature * self.basis.squares.double() + shift, None)
        images = self.images.reshape(self.k, *self.shape)
        if self._loss.known_convex:  # a Gram matrix: semidefinite however small the curvature has become
            half = self._loss.sqrt_t(u, images).reshape(self.k, -1)
            matrix = half @ half.T
        else:
            matrix = self.images @ self._loss.hvp(u, images).reshape(self.k, -1).T
        if self.basis.decay is not None:
            matrix = matrix + self.basis.decay
        rates, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
        if not self._loss.known_convex:
            require_convex(rates, "the loss, restricted to the basis,", self._scale)
        # Below rounding a rate is zero: at t = ∞ it would otherwise move the weights by noise / noise.
        floor = rounding(self.basis.images.dtype, self.k) * max(float(rates.max()), 0.0)
        return Modes(torch.where(rates > floor, rates, torch.zeros_like(rates)), vectors, floor)

    # -- answers -----------------------------------------------------------------------------------------------

    def at(self, horizon: Parsed) -> Tensor:
        """Coefficients c (T, k) at each horizon, gated if a gate is set."""
        if self._loss.quadratic:
            b = self.start.into(self.slope)
            c = self.start.out(-self.start.filter(horizon) * b)
        elif isinstance(horizon, Steps):
            c = self._descend(horizon)[None]
        else:
            c = self._integrate(horizon)
        if bool((self.gates == 1).all()):
            return c
        return self.start.out(self.start.into(c) * self.gates)

    def response(self, g: Tensor, horizon: Parsed, c: Tensor | None = None, decayed: Tensor | None = None) -> Tensor:
        """−V φ(Λ, t) Vᵀ Eᵀ g: how the flow answers a gradient g (outputs' shape) met on the way, (T, k).

        With g = B ½ f''[δ, δ] this is the second-order correction, with g = ∇Φ(u_new) a reuse of the
        factorization (docs/theory.md, equations 11 and 13). ``c`` says where the curvature is taken, the start by
        default; ``decayed`` are the coefficients of the point where g was met, whose weight decay is answered too.
        """
        modes = self.start if c is None or self._loss.quadratic else self.modes_at(self.outputs(c))
        pushed = self.images @ g.double().reshape(-1)
        if decayed is not None and self.basis.decay is not None:
            assert self.basis.drift is not None
            pushed = pushed + self.basis.decay @ decayed + self.basis.drift
        answer = modes.out(-modes.filter(horizon) * modes.into(pushed))
        if bool((self.gates == 1).all()):
            return answer
        return self.start.out(self.start.into(answer) * self.gates)

    def scores(self) -> Tensor:
        """(k, n): what each sample contributes to the gradient along each mode at the start, s_ki = e_ki · g_i."""
        g = self._loss.grad(self.u)
        by_sample = (
            (self.images.reshape(self.k, *self.shape) * g).flatten(2).sum(2) if self.u.dim() > 1 else (self.images * g)
        )
        return by_sample if self.start.vectors is None else self.start.vectors.T @ by_sample

    def curve(self, u: Tensor, v: Tensor) -> Tensor:
        """B(u) v in the outputs' space, for v shaped like u."""
        return self._loss.hvp(u.double(), v.double())

    # -- integration -------------------------------------------------------------------------------------------

    def _descend(self, horizon: Steps) -> Tensor:
        """Gradient descent on the frozen model, step for step."""
        c = torch.zeros_like(self.slope)
        for _ in range(horizon.count):
            c = c - horizon.lr * self.gradient(c)
        return c

    def _integrate(self, horizon: Times) -> Tensor:
        order = sorted(range(len(horizon.values)), key=lambda i: horizon.values[i])
        out = torch.zeros(len(order), self.k, dtype=self.slope.dtype, device=self.slope.device)
        if not order:
            return out
        # Resume from the furthest point already reached: a search over horizons integrates the run once.
        first = horizon.values[order[0]]
        t, c, step = max((point for point in self._reached if point[0] <= first), key=lambda point: point[0])
        for i in order:
            c, t, step = self._advance(c, t, horizon.values[i], step)
            out[i] = c
            if all(point[0] != t for point in self._reached):
                self._reached.append((t, c, step))
        return out

    def _advance(self, c: Tensor, t: float, end: float, step: float) -> tuple[Tensor, float, float]:
        """From t to ``end`` by exponential Rosenbrock steps of order 4 (Hochbruck, Ostermann & Schweitzer 2009)."""
        floor = SETTLED * float(torch.linalg.vector_norm(self.slope))
        for _ in range(STEPS):
            if t >= end:
                return c, t, step
            f = -self.gradient(c)
            if float(torch.linalg.vector_norm(f)) <= floor:
                return c, end, step
            modes = self.modes_at(self.outputs(c))
            while True:
                h = min(step, end - t)
                new, error = self._step(c, f, modes, h)
                scale = torch.maximum(torch.linalg.vector_norm(new), torch.linalg.vector_norm(new - c))
                ratio = float(error / (self.tolerance * scale).clamp_min(1e-300))
                grow = 0.9 * max(ratio, 1e-10) ** -0.25 if math.isfinite(ratio) else 0.1
                if ratio <= 1:
                    break
                step = h * max(0.1, min(grow, 0.9))
                if step <= 1e-14 * t or step < 1e-290:
                    raise FlowError(f"{_STUCK} (the step shrank to nothing at flow time {t:.3g} of {end:.3g})")
            t, c = t + h, new
            grown = h * min(5.0, max(grow, 0.2))
            step = grown if h == step else max(step, grown)  # a step cut short by the horizon says little
            if step > 1e250:
                return c, end, step
        raise FlowError(f"{_STUCK} ({STEPS} steps reach flow time {t:.3g} of {end:.3g})")

    def _step(self, c: Tensor, f: Tensor, modes: Modes, h: float) -> tuple[Tensor, Tensor]:
        """One step of exprb43 in the eigenbasis: the new point and the embedded error estimate."""
        z = -h * modes.rates
        p1, p3, p4 = exponential_functions(z)
        half = exponential_functions(0.5 * z)[0]
        f_hat = modes.into(f)

        def surplus(y: Tensor) -> Tensor:
            """N(c + y) − N(c) in modes, where N is the flow less its linear part at c."""
            return modes.into(-self.gradient(c + modes.out(y)) - f) + modes.rates * y

        d2 = surplus(0.5 * h * half * f_hat)
        d3 = surplus(h * p1 * (f_hat + d2))
        third = h * (p1 * f_hat + p3 * (16 * d2 - 2 * d3))
        correction = h * p4 * (-48 * d2 + 12 * d3)
        return c + modes.out(third + correction), torch.linalg.vector_norm(correction)


def exponential_functions(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ₁, φ₃, φ₄ at z ≤ 0, where φ₀ = e^z and φ_{k+1}(z) = (φ_k(z) − 1/k!)/z; Taylor series near zero."""
    small = z.abs() < 1
    near = torch.where(small, z, torch.zeros_like(z))
    far = torch.where(small, -torch.ones_like(z), z)
    recurrence = [torch.exp(far)]
    for k in range(4):
        recurrence.append((recurrence[-1] - 1 / math.factorial(k)) / far)

    p4 = torch.zeros_like(near)
    for j in range(18, -1, -1):
        p4 = p4 * near + 1 / math.factorial(j + 4)
    # Upwards the recurrence is stable where |z| < 1.
    p3 = near * p4 + 1 / 6
    p1 = near * (near * p3 + 1 / 2) + 1
    p1, p3, p4 = (torch.where(small, p, recurrence[k]) for p, k in ((p1, 1), (p3, 3), (p4, 4)))
    return p1, p3, p4


def _is_scalar(matrix: Tensor) -> Tensor:
    return (matrix == matrix[0, 0] * torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)).all()
