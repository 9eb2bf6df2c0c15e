"""Searches: how far along a descent, and whether to accept. What displacement a position means is the descent's."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, replace

from ..errors import FlowError
from ..utils.line_search import search
from .candidates import Candidate, Descent
from .state import Memory
from .trust import Outcome, Trust

RESERVE = 2.0  # gradient evaluations' worth that another candidate takes at least


@dataclass(frozen=True)
class Found:
    """The best candidate of a search, how it was found, and the verdict on it.

    Attributes:
        tried: candidates measured. chord_steps: reuses of the factorization that were kept.
        memory: for the next jump. predicted_decrease: the largest that a candidate was predicted to bring.
    """

    outcome: Outcome
    best: Candidate | None
    before: float
    tried: int
    chord_steps: int
    memory: Memory
    predicted_decrease: float = 0.0


class Search(abc.ABC):
    """Looks along a descent; the weights are not written."""

    @abc.abstractmethod
    def __call__(self, descent: Descent, trust: Trust, memory: Memory) -> Found:
        """Search, and judge."""


@dataclass(frozen=True)
class GridSearch(Search):
    """The lowest real loss on a geometric grid of positions around the last accepted one.

    Args:
        chord_steps: how many to try from the best candidate.
    """

    chord_steps: int = 2

    def __call__(self, descent: Descent, trust: Trust, memory: Memory) -> Found:
        before = descent.problem.before
        kept = _Lowest(descent)
        result = search(
            kept.measure,
            descent.start(trust, memory),
            descent.before,
            trust.growth,
            trust.limit,
            descent.top,
            kept.spent,
        )
        best, done, hoped = kept.require(), 0, kept.predicted_decrease
        shrunk = descent.remember(memory, max(min(result.position, result.last), 1e-280))
        if best is None:
            return Found(Outcome.NOT_FINITE, None, before, result.tried, 0, shrunk, hoped)
        lowers = descent.score(best) < descent.before
        if lowers and self.chord_steps and not kept.spent():
            best, done = descent.chord(best, self.chord_steps)
        if not lowers or not trust.accepts(before, best.predicted, best.loss):
            return Found(Outcome.NO_DECREASE, best, before, result.tried, done, shrunk, hoped)
        memory = descent.remember(memory, result.position)
        return Found(Outcome.ACCEPTED, best, before, result.tried, done, memory, hoped)


@dataclass(frozen=True)
class FixedHorizon(Search):
    """One candidate at a flow time that is given.

    Args:
        horizon: positive, may be ∞. chord_steps: as for the grid.
    """

    horizon: float
    chord_steps: int = 2

    def __call__(self, descent: Descent, trust: Trust, memory: Memory) -> Found:
        before, done = descent.problem.before, 0
        best = descent.at(self.horizon)
        hoped = max(0.0, before - best.predicted)
        if math.isfinite(self.horizon):
            memory = descent.remember(memory, self.horizon)
        if not best.loss < math.inf:
            return Found(Outcome.NOT_FINITE, None, before, 1, 0, memory, hoped)
        lowers = descent.score(best) < descent.before
        if lowers and self.chord_steps:
            best, done = descent.chord(best, self.chord_steps)
        accepted = lowers and trust.accepts(before, best.predicted, best.loss)
        return Found(Outcome.ACCEPTED if accepted else Outcome.NO_DECREASE, best, before, 1, done, memory, hoped)


class _Lowest:
    """Measures candidates and keeps the best alone: they hold vectors of the parameters' size."""

    def __init__(self, descent: Descent) -> None:
        self.descent = descent
        self.predicted_decrease = 0.0
        self._best: tuple[tuple[float, float], Candidate] | None = None
        self._unsolved: FlowError | None = None

    def measure(self, position: float) -> float:
        """The score of a candidate; infinite where the run cannot be followed so far."""
        try:
            found = self.descent.at(position)
        except FlowError as error:
            self._unsolved = error
            return math.inf
        self.predicted_decrease = max(self.predicted_decrease, self.descent.problem.before - found.predicted)
        score = self.descent.score(found)
        rank = (score if score < math.inf else math.inf, found.loss if found.loss < math.inf else math.inf)
        if self._best is None or rank < self._best[0]:
            self._best = rank, found
        return score

    def spent(self) -> bool:
        """Whether the budget leaves no room for another candidate and what follows an accepted one."""
        ledger = self.descent.problem.lin.ledger
        return ledger.spent + RESERVE > ledger.allowance

    def require(self) -> Candidate | None:
        """The best candidate, None where no loss was finite.

        Raises:
            FlowError: the run could not be followed to a single one.
        """
        if self._best is None:
            assert self._unsolved is not None
            raise self._unsolved
        return self._best[1] if self._best[0][1] < math.inf else None


def stationary(before: float, memory: Memory) -> Found:
    """Nothing pulls, so there is nothing to search."""
    return Found(Outcome.STATIONARY, None, before, 0, 0, memory)


def unsolved(found: Found) -> Found:
    """The linearized run gave no answer."""
    return replace(found, outcome=Outcome.UNSOLVED)
