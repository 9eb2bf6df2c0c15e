"""What a skip did."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class SkipOutcome(enum.Enum):
    """How a skip ended; the value is a sentence for people."""

    SKIPPED = "The weights and the optimizer's state are where the steps would have led."
    SHORT = "Fewer steps than asked for were skipped: the next ones would have cost as much as taking them."
    DEAR = "Nothing moved: the steps would have cost as much as taking them."
    MISSED = "Nothing moved: the network's outputs at the end are not those that the gradients led to."
    ROSE = "Nothing moved: the training loss would rise along the way."
    NOT_FINITE = "Nothing moved: the loss or its gradient is not finite along the way."
    REFUSED = "Nothing moved: the loss of other data does not fall by more than its noise."
    UNTRIED = "Nothing moved: the skip could not be tried."

    @property
    def accepted(self) -> bool:
        """Whether the weights moved."""
        return self in (SkipOutcome.SKIPPED, SkipOutcome.SHORT)


@dataclass(frozen=True)
class SkipResult:
    """What a skip did; printed, it is a sentence.

    Attributes:
        outcome: a :class:`SkipOutcome`; its value is a sentence.
        asked, steps: optimizer steps asked for, and skipped in fact (0 if nothing moved).
        before: training loss at the start; predicted: at the end, by the gradients;
            actual: at the end, measured.
        miss: how far the training outputs at the end are from those that the outputs met on the way lead to, relative
            to how far they moved.
        error: largest difference between predicted and corrected weights in a window, relative to their movement.
        windows: stretches that one real gradient each was taken for.
        gradient_evaluations: what it cost (``jumpstart.utils.cost``). dense_work: of the virtual steps and all else
            beside the network, in steps of a loop. cost: both together, in steps of the loop, without what is asked
            once of a model. seconds: what it took.
        cause: why it could not be tried, in words; empty otherwise.
    """

    outcome: SkipOutcome
    asked: int
    steps: int = 0
    before: float = math.nan
    predicted: float = math.nan
    actual: float = math.nan
    miss: float = math.nan
    error: float = math.nan
    windows: int = 0
    gradient_evaluations: float = 0.0
    dense_work: float = 0.0
    cost: float = 0.0
    seconds: float = 0.0
    cause: str = ""

    @property
    def accepted(self) -> bool:
        """Whether anything moved."""
        return self.outcome.accepted

    @property
    def saved(self) -> float:
        """Steps of the loop that were not taken, less what the skip cost; negative where it did not pay."""
        return self.steps - self.cost

    @classmethod
    def untried(cls, cause: str, asked: int = 0) -> SkipResult:
        """Of a skip that could not be tried."""
        return cls(SkipOutcome.UNTRIED, asked, cause=cause)

    def __str__(self) -> str:
        spent = f"{self.gradient_evaluations:.3g} gradient evaluations, {self.seconds:.3g} s"
        if not self.accepted:
            return f"Skipped none of {self.asked} steps. {self.outcome.value} {self.cause or f'({spent})'}"
        of = "" if self.steps == self.asked else f" of {self.asked}"
        return (
            f"Skipped {self.steps}{of} steps: loss now {self.actual:.4g} (predicted {self.predicted:.4g}, outputs "
            f"within {self.miss:.1%} of their movement; {self.windows} windows, {spent})."
        )
