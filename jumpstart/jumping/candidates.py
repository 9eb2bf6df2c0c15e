"""One jump: from a reduced flow to weights that the real loss agrees with. It decides nothing about the next.

Every candidate is a displacement from θ₀, pulled back at θ₀ and judged on the true loss. Nothing here writes to the
model. Source: docs/theory.md, section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..flow.basis import Basis
from ..flow.horizon import Times
from ..flow.reduced_flow import ReducedFlow
from ..linearization.linearize import Linearization
from ..losses.base import Loss
from ..surrogate.damped_cg import Iterative
from ..surrogate.damped_cholesky import Resolvent
from ..utils.line_search import Best, search
from .trust import Outcome, Trust

CHORD_GAIN = 0.8  # a reuse of the factorization must leave at most this share of the loss, or it is the last
GEODESIC = 0.5  # largest ‖δ₂‖/‖δ₁‖ at which the second-order correction is believed (Transtrum & Sethna 2012)

PROBE = 0.1  # how far along the step its bend is probed (the same authors' choice)


@dataclass(frozen=True)
class Candidate:
    """A displacement and what the real network answers there.

    Attributes:
        horizon: flow time; for scaled full steps the end of the run. scale: the share of the step taken.
        coefficients: (k,) the displacement in the basis. displacement: δθ (P,).
        outputs: real u. loss: real Φ (with the decay's penalty). predicted: the model's Φ.
        corrected: whether the second-order correction is part of it. first: the displacement without it.
    """

    horizon: float
    scale: float
    coefficients: Tensor
    displacement: Tensor
    outputs: Tensor
    loss: float
    predicted: float
    corrected: bool
    first: Tensor


@dataclass(frozen=True)
class Proposal:
    """A linearized problem that candidates are drawn from: pay once, query many."""

    lin: Linearization
    loss: Loss
    basis: Basis | Resolvent | Iterative
    flow: ReducedFlow | Resolvent | Iterative
    second_order: bool
    exact: bool = False

    def penalty(self, theta: Tensor) -> float:
        """The loss that weight decay descends along with Φ."""
        return self.basis.metric.penalty(theta)

    def before(self) -> float:
        """Loss at θ₀."""
        return float(self.loss.value(self.lin.u)) + self.penalty(self.lin.theta)

    def measure(self, displacement: Tensor) -> tuple[Tensor, float]:
        """Real outputs and loss at θ₀ + δ; one forward pass."""
        theta = self.lin.theta + displacement
        u = self.lin.outputs(theta)
        loss = float(self.loss.value(u)) + self.penalty(theta)
        return u, loss if bool(torch.isfinite(displacement).all()) else math.nan

    def candidate(self, c: Tensor, horizon: float, scale: float = 1.0, bend: Tensor | None = None) -> Candidate:
        """The candidate scale·c, with the second-order correction where it is small enough.

        Args:
            c: (k,) coefficients at flow time ``horizon``.
            bend: ½ f''[δ, δ] along the unscaled δ if it is known already; it grows with scale².
        """
        c = scale * c
        displacement = first = self.basis.displacement(c)
        corrected = False
        predicted = float(self.flow.predicted(c))
        if self.basis.metric.decays:
            predicted += self.penalty(self.lin.theta + displacement)
        if self.second_order:
            bent = self.bend(displacement, c) if bend is None else scale**2 * bend
            push = self.flow.curve(self.flow.outputs(c), bent)
            c2 = self.flow.response(push, Times((horizon,), True), c)[0]
            small = self.flow.length(c2) <= GEODESIC * self.flow.length(c)
            if bool(small) and self.resolved(bent, 1.0 if bend is None else scale):
                displacement, corrected, c = displacement + self.basis.displacement(c2), True, c + c2
        u, loss = self.measure(displacement)
        return Candidate(horizon, scale, c, displacement, u, loss, predicted, corrected, first)

    def resolved(self, bent: Tensor, scale: float) -> bool:
        """Whether a bend taken by a difference stands above the rounding that the division by PROBE² magnifies."""
        noise = scale**2 * torch.finfo(self.lin.u.dtype).eps / PROBE**2 * torch.linalg.vector_norm(self.lin.u)
        return self.exact or bool(torch.linalg.vector_norm(bent) > 3 * noise)

    def bend(self, displacement: Tensor, c: Tensor) -> Tensor:
        """½ f''[δ, δ]: what the outputs do along δ = Qc that the linearization misses, to second order.

        By a difference along δ, whose linear part is known already: one forward pass instead of a jvp of a jvp,
        with an error of third order in δ (docs/decisions/0006).
        """
        if self.exact:
            return 0.5 * self.lin.second(displacement)
        ahead = self.lin.outputs(self.lin.theta + PROBE * displacement)
        linear = self.flow.u + PROBE * (self.flow.outputs(c) - self.flow.u)
        return ((ahead.double() - linear) / PROBE**2).to(ahead.dtype)

    def reuse(self, start: Candidate, count: int) -> tuple[Candidate, int]:
        """Further corrections with the same factorization (chord steps), as long as each gains enough."""
        best, done = start, 0
        for _ in range(count):
            g = self.loss.grad(best.outputs)
            c = best.scale * self.flow.response(g, Times((best.horizon,), True), decayed=best.coefficients)[0]
            displacement = best.displacement + self.basis.displacement(c)
            u, loss = self.measure(displacement)
            if not loss < best.loss:
                break
            enough = loss < CHORD_GAIN * best.loss
            c = best.coefficients + c
            best, done = replace(best, coefficients=c, displacement=displacement, outputs=u, loss=loss), done + 1
            if not enough:
                break
        return best, done


@dataclass(frozen=True)
class Attempt:
    """The best candidate of a search, how it was found, and the verdict on it; ``promised`` is the largest decrease
    that a candidate promised."""

    outcome: Outcome
    best: Candidate | None
    before: float
    candidates: int
    corrections: int
    trust: Trust
    promised: float = 0.0


def attempt(proposal: Proposal, trust: Trust, *, family: str = "horizon", reuse: int = 2) -> Attempt:
    """Search horizons (to land) or scales of the full step (to travel) on the real loss, correct, and judge.

    The weights are not written; the caller does that where the outcome is ACCEPTED.
    """
    before, flow = proposal.before(), proposal.flow
    if not bool(torch.linalg.vector_norm(flow.slope) > 0):
        return Attempt(Outcome.STATIONARY, None, before, 0, 0, trust)
    seen: dict[float, Candidate] = {}
    end = _full_horizon(proposal)
    full = flow.at(Times((end,), True))[0] if family == "scale" else None
    bend = (
        proposal.bend(proposal.basis.displacement(full), full) if full is not None and proposal.second_order else None
    )

    promised = 0.0

    def evaluate(position: float) -> float:
        nonlocal promised
        if full is not None:
            found = proposal.candidate(full, end, position, bend)
        else:
            found = proposal.candidate(flow.at(Times((position,), True))[0], position)
        promised = max(promised, before - found.predicted)
        # Only the best is kept: candidates hold vectors of the parameters' size.
        kept = next(iter(seen.values()), None)
        if kept is None or found.loss < kept.loss or math.isnan(kept.loss):
            seen.clear()
            seen[position] = found
        return found.loss

    start = trust.scale if full is not None else min(trust.horizon or flow.opening(), max(end, 1e-280))
    if full is None and trust.limit == 1 and trust.horizon is not None:
        start = trust.horizon
    top = 1.0 if full is not None else math.inf
    result: Best = search(evaluate, start, before, trust.growth, trust.limit, top)
    best = seen.get(result.position)
    if best is None or not best.loss < math.inf:
        return Attempt(Outcome.NOT_FINITE, None, before, result.tried, 0, _shrunk(trust, result, full), promised)
    corrections = 0
    if best.loss < before and reuse:
        best, corrections = proposal.reuse(best, reuse)
    if not trust.accepts(before, best.predicted, best.loss):
        return Attempt(
            Outcome.NO_DECREASE, best, before, result.tried, corrections, _shrunk(trust, result, full), promised
        )
    state = trust.after(scale=result.position) if full is not None else trust.after(horizon=result.position)
    return Attempt(Outcome.ACCEPTED, best, before, result.tried, corrections, state, promised)


def _shrunk(trust: Trust, result: Best, full: Tensor | None) -> Trust:
    smaller = max(min(result.position, result.last), 1e-280)
    return trust.after(scale=smaller) if full is not None else trust.after(horizon=smaller)


def _full_horizon(proposal: Proposal) -> float:
    """The end of the linearized run, short of modes below rounding, which an infinite horizon would follow."""
    top = proposal.flow.fastest
    return torch.finfo(proposal.lin.u.dtype).eps ** -0.9 / top if top > 0 else 1.0
