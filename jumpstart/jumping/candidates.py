"""Descents: which displacement belongs to a position. Whoever searches decides how far, and whether to accept.

Every candidate is a displacement from θ₀, pulled back at θ₀ and judged on the true loss. Nothing here writes to the
model. Source: docs/theory.md, section 5.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..flow.horizon import Times
from ..flow.run import LinearizedRun
from .state import Memory
from .trust import Trust

CHORD_GAIN = 0.2  # a chord step must take this share off the loss, or it is the last
GEODESIC = 0.5  # largest ‖δ₂‖/‖δ₁‖ at which geodesic acceleration is believed (Transtrum & Sethna 2012)
ROUNDING = 4.0  # machine epsilons by which a training loss must fall to have fallen, however it is computed
PROBE = 0.1  # how far along the step its curvature is probed (the same authors' choice)


@dataclass(frozen=True)
class Candidate:
    """A displacement and what the real network answers there.

    Attributes:
        horizon: flow time; for scaled full steps the end of the run. scale: the share of the step taken.
        coefficients: (k,) the displacement in the run's own terms. displacement: δθ (P,).
        outputs: real u. loss: real Φ (with the decay's penalty). predicted: the model's Φ.
        training: real Φ without the penalty. judged: an upper estimate of the loss on other data, if any judge.
        corrected: whether geodesic acceleration is part of it. first: the displacement without it.
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
    training: float
    judged: float | None = None


class Judging(Protocol):
    """A loss of other data: at θ₀, and an upper estimate at other weights."""

    before: float

    def __call__(self, theta: Tensor, /) -> float: ...


class Descent(abc.ABC):
    """A linearized run that candidates are drawn from: pay once, query many.

    Args:
        geodesic: add the second-order correction where it is small enough.
        exact: take f'' by derivatives instead of a difference.
        judge: an upper estimate of the loss on other data at weights θ, which then is what searches lower.
        trades: let a fall of the decay's penalty pay for a rise of the training loss.
    """

    def __init__(
        self,
        run: LinearizedRun,
        geodesic: bool,
        exact: bool = False,
        judge: Judging | None = None,
        trades: bool = False,
    ) -> None:
        self.run, self.problem = run, run.problem
        self.geodesic, self.exact, self.judge, self.trades = geodesic, exact, judge, trades

    @property
    def before(self) -> float:
        """What :meth:`score` is to lower."""
        return self.problem.before if self.judge is None else self.judge.before

    def score(self, candidate: Candidate) -> float:
        """What a search lowers: the loss (or that of other data), infinite where the training loss does not fall."""
        if not (self.trades or self.falls(candidate.training)):
            return math.inf
        return candidate.loss if candidate.judged is None else candidate.judged

    def falls(self, training: float) -> bool:
        """Whether the training loss alone falls, by more than rounding makes of it; NaN is a no."""
        return self.problem.training_before - training > self._noise

    @cached_property
    def _noise(self) -> float:
        """What rounding makes of the training loss, in the outputs' dtype and a loop's formula.

        Those of classes subtract numbers of the outputs' own size; a squared error keeps its digits.
        """
        problem = self.problem
        u = problem.lin.u.double()
        eps = min(torch.finfo(problem.lin.u.dtype).eps, torch.finfo(torch.float32).eps)
        size = float(u.abs().mean()) if problem.loss.correct(u) is not None else 0.0
        return ROUNDING * eps * (abs(problem.training_before) + size)

    @abc.abstractmethod
    def at(self, position: float) -> Candidate:
        """The candidate at a position of the search."""

    @abc.abstractmethod
    def start(self, trust: Trust, memory: Memory) -> float:
        """The position to begin at."""

    @abc.abstractmethod
    def remember(self, memory: Memory, position: float) -> Memory:
        """The memory after a search that ended at a position."""

    top: float = math.inf  # no position lies beyond

    @property
    def stationary(self) -> bool:
        """Whether nothing pulls."""
        return not bool(self.run.length(self.run.initial_gradient) > 0)

    def candidate(
        self, c: Tensor, horizon: float, scale: float = 1.0, curvature_term: Tensor | None = None
    ) -> Candidate:
        """The candidate scale·c, with geodesic acceleration where it is small enough.

        Args:
            c: (k,) coefficients at flow time ``horizon``.
            curvature_term: ½ f''[δ, δ] along the unscaled δ if it is known already; it grows with scale².
        """
        run, problem = self.run, self.problem
        c = scale * c
        displacement = first = run.displacement(c)
        corrected = False
        predicted = float(run.predicted_loss(c))
        if problem.metric.decays:
            predicted += problem.metric.penalty(problem.lin.theta + displacement)
        if self.geodesic:
            term = self.curvature_term(displacement, c) if curvature_term is None else scale**2 * curvature_term
            push = run.hvp(run.outputs(c), term)
            c2 = run.response(push, Times.at(horizon), c)[0]
            small = run.length(c2) <= GEODESIC * run.length(c)
            if bool(small) and self.resolved(term, 1.0 if curvature_term is None else scale):
                displacement, corrected, c = displacement + run.displacement(c2), True, c + c2
        u, training, loss = problem.measure(displacement)
        judged = None if self.judge is None else self.judge(problem.lin.theta + displacement)
        return Candidate(horizon, scale, c, displacement, u, loss, predicted, corrected, first, training, judged)

    def resolved(self, term: Tensor, scale: float) -> bool:
        """Whether a difference stands above the rounding that the division by PROBE² magnifies."""
        lin = self.problem.lin
        noise = scale**2 * torch.finfo(lin.u.dtype).eps / PROBE**2 * torch.linalg.vector_norm(lin.u)
        return self.exact or bool(torch.linalg.vector_norm(term) > 3 * noise)

    def curvature_term(self, displacement: Tensor, c: Tensor) -> Tensor:
        """½ f''[δ, δ]: what the outputs do along δ that the linearization misses, to second order.

        By a difference along δ, whose linear part is known already: one forward pass instead of a jvp of a jvp,
        with an error of third order in δ (docs/decisions/0006).
        """
        lin = self.problem.lin
        if self.exact:
            return 0.5 * lin.second(displacement)
        ahead = lin.outputs(lin.theta + PROBE * displacement)
        linear = self.run.u + PROBE * (self.run.outputs(c) - self.run.u)
        return ((ahead.double() - linear) / PROBE**2).to(ahead.dtype)

    def chord(self, start: Candidate, count: int) -> tuple[Candidate, int]:
        """Chord steps: further corrections with the same factorization, as long as each gains enough.

        None where other data judge: these corrections fit their own data further.
        """
        best, done = start, 0
        for _ in range(0 if self.judge is not None else count):
            g = self.problem.loss.grad(best.outputs)
            c = best.scale * self.run.response(g, Times.at(best.horizon), decayed=best.coefficients)[0]
            displacement = best.displacement + self.run.displacement(c)
            u, training, loss = self.problem.measure(displacement)
            if not loss < best.loss or not (self.trades or self.falls(training)):
                break
            enough = best.loss - loss > CHORD_GAIN * abs(best.loss)
            c = best.coefficients + c
            best = replace(best, coefficients=c, displacement=displacement, outputs=u, loss=loss, training=training)
            done += 1
            if not enough:
                break
        return best, done


class AlongFlow(Descent):
    """To land: positions are flow times."""

    def at(self, position: float) -> Candidate:
        return self.candidate(self.run.coefficients(Times.at(position))[0], position)

    def start(self, trust: Trust, memory: Memory) -> float:
        asked = memory.horizon or trust.horizon or self._opening()
        return min(asked, max(self.run.max_horizon, 1e-280))

    def _opening(self) -> float:
        """A flow time to start from, read off the run as far as half of the budget follows it."""
        ledger = self.problem.lin.ledger
        whole = ledger.allowance
        ledger.allowance = ledger.spent + 0.5 * (whole - ledger.spent)
        try:
            return self.run.initial_horizon()
        finally:
            ledger.allowance = whole

    def remember(self, memory: Memory, position: float) -> Memory:
        return replace(memory, horizon=position)


class Scaled(Descent):
    """To travel: positions are shares of the step to the end of the run."""

    top = 1.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._full: tuple[Tensor, Tensor | None] | None = None

    def at(self, position: float) -> Candidate:
        full, term = self._whole()
        return self.candidate(full, self.run.max_horizon, position, term)

    def _whole(self) -> tuple[Tensor, Tensor | None]:
        """The full step's coefficients and its curvature term, which all shares have in common."""
        if self._full is None:
            c = self.run.coefficients(Times.at(self.run.max_horizon))[0]
            self._full = c, self.curvature_term(self.run.displacement(c), c) if self.geodesic else None
        return self._full

    def start(self, trust: Trust, memory: Memory) -> float:
        return memory.scale

    def remember(self, memory: Memory, position: float) -> Memory:
        return replace(memory, scale=position)
