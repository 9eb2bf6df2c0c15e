"""What a proposal came to."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class ProposalOutcome(enum.Enum):
    """How a proposal ended; the value is a sentence for people."""

    MOVED = "The weights moved."
    BETTER = "Nothing moved: better weights were found, and were only to be looked at."
    NOT_BEYOND_NOISE = "Nothing moved: on samples of their own the weights are no better, beyond noise."
    DECAYED = "Nothing moved: the loss would fall, and weight decay would take it back."
    NOTHING = "Nothing moved: no better weights were found."
    DEAR = "Nothing moved: the work would exceed the budget."
    UNTRIED = "Nothing moved: it could not be tried."

    @property
    def accepted(self) -> bool:
        """Whether the weights moved."""
        return self is ProposalOutcome.MOVED


@dataclass(frozen=True)
class ProposalResult:
    """What a proposal came to; printed, it is a sentence.

    Attributes:
        action: the proposal's name. outcome: a :class:`ProposalOutcome`. what: the weights that were proposed, in
            words.
        candidates: weights that were measured, the best of which was judged.
        before, proposed: loss of the samples that the proposal was made from, at the start and of the best;
            pessimistically, where they are a few of many.
        change, error: of the loss of the samples that judge, and its standard error; 0 where the objective is fixed
            and judges itself. samples: how many judge.
        stepped: what a step of the loop took off that loss since the last try, in the mean.
        gained: steps of the loop's that the change is worth; as many as were taken, at most.
        gradient_evaluations, dense_work: what it cost (``jumpstart.utils.cost``), of the objective. cost: both
            together, in steps of the loop.
        moments: "keep", or "reset" where they would have undone it.
        cause: why it could not be tried, in words; empty otherwise.
    """

    action: str
    outcome: ProposalOutcome
    what: str = ""
    candidates: int = 0
    before: float = math.nan
    proposed: float = math.nan
    change: float = math.nan
    error: float = math.nan
    samples: int = 0
    stepped: float = math.nan
    gained: float = 0.0
    gradient_evaluations: float = 0.0
    dense_work: float = 0.0
    cost: float = 0.0
    seconds: float = 0.0
    moments: str = ""
    cause: str = ""

    @property
    def accepted(self) -> bool:
        return self.outcome.accepted

    @property
    def saved(self) -> float:
        """Steps of the loop that the change is worth, less what it cost; negative where it did not pay."""
        return self.gained - self.cost

    def __str__(self) -> str:
        spent = f"{self.cost:.3g} steps' worth of work"
        if math.isnan(self.change):
            return f"{self.outcome.value} {self.cause or f'({spent})'}"
        noise = f" ± {self.error:.2g}" if self.error else ""
        worth = f", worth {self.gained:.3g} steps" if self.accepted else ""
        return f"{self.outcome.value} {self.what}: loss {self.change:+.3g}{noise}{worth}, for {spent}."
