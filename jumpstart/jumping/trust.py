"""Whether to accept a jump: scalars only, no tensors and no network. Comparisons are written so that NaN rejects."""

from __future__ import annotations

import enum
import math
import numbers
from dataclasses import dataclass

from ..errors import HorizonError, InputError
from ..utils.brief import brief


class Outcome(enum.Enum):
    """How a jump ended; the value is a sentence for people."""

    ACCEPTED = "The real loss fell, and the weights moved."
    CLIMBED = "The real loss rose, and the weights moved: a nonmonotone search goes on along its last step."
    NO_DECREASE = "No candidate lowered the real loss by enough of what was predicted, at any horizon tried."
    NOT_FINITE = "Every candidate gave a loss that is not finite: lower the learning rate or the starting horizon."
    UNSOLVED = "The linearized run could not be integrated to the tolerance: the loss is not smooth and convex."
    TOO_DEAR = "The jump would have cost more than it may, before there was a candidate."
    UNDONE = "The real loss would have fallen, but the optimizer's next step would undo it: the weights stay."
    SKIPPED = "The jump could not be tried."
    STATIONARY = "The gradient vanishes along the basis: this is a stationary point of the linearized run."

    @property
    def accepted(self) -> bool:
        """Whether the weights moved."""
        return self in (Outcome.ACCEPTED, Outcome.CLIMBED)


@dataclass(frozen=True)
class Trust:
    """The policy of a jump: how far to look, and what to believe. What a jump learns is kept elsewhere (``state``).

    Attributes:
        horizon: flow time at which the first search starts; None to read one off from the spectrum.
        floor: the least share of the predicted decrease that the real loss must deliver, 0 or more.
        growth: ratio of neighbouring positions on the search grid, above 1.
        limit: most candidates tried in one jump, at least 1.

    Raises:
        HorizonError, InputError: quoting the setting that is out of range.
    """

    horizon: float | None = None
    floor: float = 1e-4
    growth: float = 4.0
    limit: int = 24

    def __post_init__(self) -> None:
        if self.horizon is not None and not (isinstance(self.horizon, numbers.Real) and 0 < self.horizon < math.inf):
            raise HorizonError(
                f"Trust(horizon={brief(self.horizon)}): a flow time must be positive and finite, or None."
            )
        if not (isinstance(self.floor, numbers.Real) and 0 <= self.floor < math.inf):
            raise InputError(f"Trust(floor={brief(self.floor)}): a share of the predicted decrease must be 0 or more.")
        if not (isinstance(self.growth, numbers.Real) and 1 < self.growth < math.inf):
            raise InputError(f"Trust(growth={brief(self.growth)}): the ratio of neighbouring horizons must exceed 1.")
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1:
            raise InputError(f"Trust(limit={brief(self.limit)}): try at least one candidate.")

    def accepts(self, before: float, predicted: float, after: float) -> bool:
        """Whether the real loss fell, from ``before`` to ``after``, by enough of what was ``predicted``; NaN is no."""
        hoped, delivered = before - predicted, before - after
        return delivered > 0 and hoped > 0 and delivered >= self.floor * hoped


def ratio(before: float, predicted: float, after: float) -> float:
    """ρ = actual decrease / predicted decrease; NaN where nothing was predicted."""
    hoped = before - predicted
    return (before - after) / hoped if hoped > 0 else math.nan
