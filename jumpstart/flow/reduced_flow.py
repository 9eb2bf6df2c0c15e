"""The reduced flow ċ = −Eᵀ∇Φ(u₀ + E c) − H c − h: the one object that every answer is read off from.

Squared loss has a closed form; other convex losses are integrated by an exponential method (``exponential``). No
network evaluation is spent here. Source: docs/theory.md, sections 2 and 3.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import FlowError, NonFiniteError
from ..gating import Gate, moments
from ..linalg.etdrk4 import FlowPoint, Integrator, Modes
from ..linearization.problem import LinearizedProblem
from ..losses.base import Loss, require_convex
from ..losses.weighted import weighted
from ..utils.cost import EIGEN, Work
from .basis import Basis, rounding
from .horizon import Parsed, Steps, Times, filters
from .run import LinearizedRun

FLOW_TOLERANCE = 1e-8  # local error of the integration, relative to the displacement
STEP_CALLS, MODES_CALLS = 120, 20  # operations of a step of the integration, and of its modes
EIGH_FLOPS = 25.0  # eigh of a k×k matrix costs about this many k³
SETTLED = 1e-11  # the end of the run for losses that are not quadratic: the gradient has fallen by this factor


class ReducedFlow(LinearizedRun):
    """The frozen (linearized) training run inside a basis, by its modes.

    Args:
        basis: directions and their images E.
        loss: Φ with its targets.
        tolerance: local error of the integration for losses that are not quadratic.
        gate: damps modes (at the start) whose per-sample contributions do not agree.
        start: the modes at u₀, where they are known already.

    Raises:
        NonFiniteError: the gradient is not finite.
    """

    def __init__(
        self,
        basis: Basis,
        loss: Loss,
        tolerance: float = FLOW_TOLERANCE,
        gate: Gate | None = None,
        start: Modes | None = None,
    ) -> None:
        self.basis, self.tolerance, self.gate = basis, tolerance, gate
        self.problem = LinearizedProblem(basis.lin, loss, basis.metric)
        self.kind, self.route, self.size = basis.kind, basis.route, basis.size
        self.supports_leave_out, self.is_krylov = basis.supports_leave_out, basis.is_krylov
        self.images = basis.images.flatten(1).double()  # (k, N)
        self.shape = basis.lin.u.shape
        self.u = basis.lin.u.detach().double()
        self.loss = loss.to(self.u)
        self.initial_gradient = self.gradient(self.u.new_zeros(self.size))  # b = −ċ(0)
        if not bool(torch.isfinite(self.initial_gradient).all()):
            raise NonFiniteError(
                "the gradient holds NaN or infinity at the present weights, though the outputs do not."
            )
        self._scale = 0.0
        self.start = self.modes_at(self.u) if start is None else start
        self._scale = self.max_rate
        # (k,) factors of the modes at the start: 1 where nothing is gated (docs/theory.md, section 6).
        self.gates = torch.ones_like(self.start.rates) if gate is None else gate(*moments(self.scores()))
        self._integrator: Integrator | None = None
        self._reached = [self.origin()]

    # -- what if: the same run under another condition; whatever else it is under stays ------------------------

    def _twin(self, basis: Basis | None = None, loss: Loss | None = None) -> ReducedFlow:
        loss = self.problem.loss if loss is None else loss
        return ReducedFlow(self.basis if basis is None else basis, loss, self.tolerance, self.gate)

    def within(self, basis: Basis) -> ReducedFlow:
        """In another basis."""
        return self._twin(basis)

    def with_targets(self, targets: Tensor) -> ReducedFlow:
        """Towards other targets (of the same shape)."""
        u = self.problem.lin.u
        loss = self.problem.loss.with_targets(targets).to(u)
        loss.check(u)
        # A Krylov remainder bounds runs from the gradient that it was built from, and no others.
        return self._twin(replace(self.basis, remainder=None), loss)

    def reweighted(self, weights: Tensor) -> ReducedFlow:
        """With sample i counting w_i times, weights (n,) ≥ 0; weights upon weights multiply."""
        return self._twin(loss=weighted(self.problem.loss, weights, self.problem.lin.u))

    def without(self, samples: Tensor) -> ReducedFlow:
        """Without some samples, by index (m,); the others count as before (no renormalization)."""
        weights = self.u.new_ones(self.u.shape[0])
        weights[samples.to(weights.device)] = 0
        return self.reweighted(weights)

    def damped(self, rate: float) -> ReducedFlow:
        """With a pull ``rate``·(θ − θ₀)/D back to the start; rates add up."""
        return self._twin(self.basis.damped(rate))

    def gated(self, gate: Gate | None) -> ReducedFlow:
        """With its modes gated by another rule, or by none."""
        return ReducedFlow(self.basis, self.problem.loss, self.tolerance, gate, self.start)

    # -- pieces ------------------------------------------------------------------------------------------------

    def outputs(self, c: Tensor) -> Tensor:
        """Linearized outputs u₀ + E c (…, *outputs) in float64, for coefficients c (…, k)."""
        return self.u + (c @ self.images).reshape(*c.shape[:-1], *self.shape)

    def predicted_loss(self, c: Tensor) -> Tensor:
        """Φ of the linearized outputs, one number for each row of c."""
        return self.loss.value(self.outputs(c))

    def gradient(self, c: Tensor, present: Tensor | None = None, shifts: Tensor | None = None) -> Tensor:
        """Eᵀ∇Φ(u₀ + E c) + H c + h, shaped like c (…, k).

        Args:
            present: (…, n) factors of the samples' own gradients, 0 where a sample is left out of that row's run.
            shifts: (…, n, …) how far from u₀ each row's run starts.
        """
        u = self.outputs(c)
        g = self.loss.grad(u if shifts is None else u + shifts)
        if present is not None:
            g = g.reshape(*present.shape, -1) * present[..., None]
        g = g.reshape(*c.shape[:-1], -1) @ self.images.T
        if self.basis.decay is not None:
            assert self.basis.decay_force is not None
            g = g + c @ self.basis.decay + self.basis.decay_force
        return g

    def modes_at(self, u: Tensor) -> Modes:
        """Modes of the reduced curvature where the outputs are u.

        Raises:
            NonConvexError: the loss curves down along some direction.
        """
        if self.size == 0:
            return Modes(self.images.new_zeros(0), None)
        flat = self.basis.decay is None or bool(_is_scalar(self.basis.decay))
        if self.loss.curvature is not None and self.basis.squares is not None and flat:
            shift = 0.0 if self.basis.decay is None else float(self.basis.decay[0, 0])
            return Modes(self.loss.curvature * self.basis.squares.double() + shift, None)
        n = self.u.numel()
        self._charge(2.0 * self.size**2 * n, 2.0 * self.size * n, MODES_CALLS, EIGH_FLOPS * self.size**3)
        images = self.images.reshape(self.size, *self.shape)
        if self.loss.known_convex:  # a Gram matrix: semidefinite however small the curvature has become
            half = self.loss.sqrt_t(u, images).reshape(self.size, -1)
            matrix = half @ half.T
        else:
            matrix = self.images @ self.loss.hvp(u, images).reshape(self.size, -1).T
        if self.basis.decay is not None:
            matrix = matrix + self.basis.decay
        rates, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
        if not self.loss.known_convex:
            require_convex(rates, "the loss, restricted to the basis,", self._scale)
        # Below rounding a rate is zero: at t = ∞ it would otherwise move the weights by noise / noise.
        floor = rounding(self.basis.lin.u.dtype, self.size) * max(float(rates.max()), 0.0)
        return Modes(torch.where(rates > floor, rates, torch.zeros_like(rates)), vectors, floor)

    # -- answers -----------------------------------------------------------------------------------------------

    def coefficients(self, horizon: Parsed) -> Tensor:
        """Coefficients c (T, k) at each horizon, gated if a gate is set."""
        if self.is_closed(horizon):
            c = self._closed(horizon)
        elif isinstance(horizon, Steps):
            c = self._descend(horizon)[None]
        else:
            c = self._integrate(horizon)
        return self.through_gates(c)

    def is_closed(self, horizon: Parsed) -> bool:
        """Whether the run has a closed form that far; a curvature that turns out not to be constant is none."""
        if self.loss.presumed:
            c = self._closed(horizon)
            if not self.loss.holds(self.outputs(torch.cat([0.5 * c, c]))):
                self.loss = self.loss.as_general()
        return self.loss.quadratic

    def _closed(self, horizon: Parsed) -> Tensor:
        return self.start.out(-filters(self.start, horizon) * self.start.into(self.initial_gradient))

    def through_gates(self, c: Tensor) -> Tensor:
        """Coefficients (…, k) after the gates on the modes at the start, if any is set."""
        if bool((self.gates == 1).all()):
            return c
        return self.start.out(self.start.into(c) * self.gates)

    def response(self, g: Tensor, horizon: Parsed, c: Tensor | None = None, decayed: Tensor | None = None) -> Tensor:
        """−V φ(Λ, t) Vᵀ Eᵀ g: how the flow answers a gradient g (outputs' shape) met on the way, (T, k).

        With g = B ½ f''[δ, δ] this is the second-order correction, with g = ∇Φ(u_new) a reuse of the
        factorization (docs/theory.md, equations 11 and 13). ``c`` says where the curvature is taken, the start by
        default; ``decayed`` are the coefficients of the point where g was met, whose weight decay is answered too.
        """
        modes = self.start if c is None or self.loss.quadratic else self.modes_at(self.outputs(c))
        pushed = self.images @ g.double().reshape(-1)
        if decayed is not None and self.basis.decay is not None:
            assert self.basis.decay_force is not None
            pushed = pushed + self.basis.decay @ decayed + self.basis.decay_force
        return self.through_gates(modes.out(-filters(modes, horizon) * modes.into(pushed)))

    def scores(self) -> Tensor:
        """(k, n): what each sample contributes to the gradient along each mode at the start, s_ki = e_ki · g_i."""
        g = self.loss.grad(self.u)
        images = self.images.reshape(self.size, *self.shape)
        by_sample = (images * g).flatten(2).sum(2) if self.u.dim() > 1 else images * g
        return by_sample if self.start.vectors is None else self.start.vectors.T @ by_sample

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """B(u) v in the outputs' space, for v shaped like u."""
        return self.loss.hvp(u.double(), v.double())

    # -- integration -------------------------------------------------------------------------------------------

    def _descend(self, horizon: Steps) -> Tensor:
        """Gradient descent on the frozen model, step for step."""
        c = before = torch.zeros_like(self.initial_gradient)
        for _ in range(horizon.count):
            c, before = c - horizon.lr * self.gradient(c) + horizon.momentum * (c - before), c
        return c

    def _integrate(self, horizon: Times) -> Tensor:
        order = sorted(range(len(horizon.values)), key=lambda i: horizon.values[i])
        out = torch.zeros(len(order), self.size, dtype=self.initial_gradient.dtype, device=self.initial_gradient.device)
        if not order:
            return out
        if self._integrator is None:
            run = weakref.proxy(self)  # as in ``integrator``
            self._integrator = self.integrator(lambda c: -run.gradient(c), self.tolerance, SETTLED)
        # Resume from the furthest point already reached: a search over horizons integrates the run once.
        first = horizon.values[order[0]]
        state = max((point for point in self._reached if point.time <= first), key=lambda point: point.time)
        for i in order:
            try:
                state = self._integrator.advance(state, horizon.values[i])
            except FlowError:  # what was reached serves a shorter horizon
                self._reach(self._integrator.reached)
                raise
            out[i] = state.rows[0]
            self._reach(state)
        return out

    def _reach(self, state: FlowPoint | None) -> None:
        if state is not None and all(point.time != state.time for point in self._reached):
            self._reached.append(state)

    def _charge(self, flops: float, writes: float, calls: int, factored: float = 0.0) -> None:
        """Book work on the reduced problem: products, numbers written, operations, flops of eigenvectors."""
        device = self.u.device
        eigen = EIGEN.get(device.type, EIGEN["cpu"])
        work = Work(flops, writes, calls).seconds(torch.float64, device) + factored / eigen
        self.problem.lin.ledger.charge(work)

    def integrator(self, force: Callable[[Tensor], Tensor], tolerance: float, settled: float) -> Integrator:
        """For rows of coefficients that obey ``force``, the last of which is this flow itself, as long as that lives.

        Args:
            settled: rest is where forces have fallen by this factor.
        """
        # Where B has moved is told by its action on one fixed vector of signs.
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, self.u.shape, generator=generator, device="cpu") * 2.0 - 1.0
        signs = signs.to(self.u)
        run = weakref.proxy(self)  # which keeps the integrator: a circle would keep graphs until the collector comes
        return Integrator(
            force,
            lambda c: run.modes_at(run.outputs(c)),
            lambda c: run.loss.hvp(run.outputs(c), signs),
            tolerance,
            settled * float(torch.linalg.vector_norm(self.initial_gradient)),
            self._rounding(),
            lambda: run._charge_step(),
        )

    def _charge_step(self) -> None:
        """A step of the integration: five forces, each through the images and back, and its changes of basis."""
        k, n = self.size, self.u.numel()
        self._charge(5 * 4.0 * k * n + 10 * 2.0 * k * k, 5 * 8.0 * (k + n), STEP_CALLS)

    def _rounding(self) -> float:
        """Length of what rounding makes of a force that cancels between samples."""
        g = self.loss.grad(self.u).reshape(-1).abs()
        return 8 * torch.finfo(torch.float64).eps * float(torch.linalg.vector_norm(self.images.abs() @ g))

    def origin(self, rows: int = 1) -> FlowPoint:
        """Where every integration starts."""
        return FlowPoint(0.0, self.initial_gradient.new_zeros(rows, self.size), 0.1 * self.timescale())

    def timescale(self) -> float:
        """Relaxation time of the fastest mode, 1 where nothing relaxes."""
        return 1 / self.max_rate if self.max_rate > 0 else 1.0

    @property
    def max_rate(self) -> float:
        """The largest rate at the start, 0 where there is none."""
        return float(self.start.rates.max()) if self.size else 0.0

    @property
    def known_rates(self) -> tuple[float, float]:
        return self.max_rate, float(self.start.rates.sum())

    @property
    def max_horizon(self) -> float:
        """A horizon at which every mode above rounding has relaxed: an infinite one would follow those below it."""
        return torch.finfo(self.problem.lin.u.dtype).eps ** -0.9 * self.timescale()

    def displacement(self, c: Tensor) -> Tensor:
        """δθ (P,) for coefficients c (k,)."""
        return self.basis.displacement(c)

    def initial_horizon(self) -> float:
        """Where the run has made half of the progress it makes over a long grid: a start for a search over horizons."""
        times = [self.timescale() * 4.0**j for j in range(12)]
        rows = []
        for t in times:
            try:
                rows.append(self.coefficients(Times.at(t))[0])
            except FlowError:  # as far as the run can be followed, or the budget lasts
                break
        if not rows:
            return times[0]
        losses = self.predicted_loss(torch.stack(rows))
        now = float(self.predicted_loss(torch.zeros_like(self.initial_gradient)))
        half = now - 0.5 * (now - float(losses.min()))
        return next((t for t, loss in zip(times, losses.tolist(), strict=False) if loss <= half), times[0])

    def length(self, c: Tensor) -> Tensor:
        """‖z − z₀‖ for coefficients c: the directions are orthonormal."""
        return torch.linalg.vector_norm(c)


def _is_scalar(matrix: Tensor) -> Tensor:
    return (matrix == matrix[0, 0] * torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)).all()
