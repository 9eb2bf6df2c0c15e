"""Whether to accept a jump, and how far to try next: scalars only, no tensors and no network.

Comparisons are written so that NaN rejects.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace


class Outcome(enum.Enum):
    """How a jump ended; the value is a sentence for people."""

    ACCEPTED = "The real loss fell, and the weights moved."
    CLIMBED = "The real loss rose, and the weights moved: a bold march goes on in the direction of its last step."
    NO_DECREASE = "No candidate lowered the real loss by enough of what was promised, at any horizon tried."
    NOT_FINITE = "Every candidate gave a loss that is not finite: lower the learning rate or the starting horizon."
    UNSOLVED = "The linearized run could not be integrated to the tolerance: the loss is not smooth and convex."
    STATIONARY = "The gradient vanishes along the basis: this is a stationary point of the linearized run."

    @property
    def accepted(self) -> bool:
        """Whether the weights moved."""
        return self in (Outcome.ACCEPTED, Outcome.CLIMBED)


@dataclass(frozen=True)
class Trust:
    """What one jump tells the next.

    Attributes:
        horizon: flow time that was last accepted; None before the first jump.
        scale: fraction of the full step that was last accepted, for the search over scales.
        floor: the least share of the predicted decrease that the real loss must deliver.
        growth: ratio of neighbouring horizons on the search grid.
        limit: most candidates tried in one jump.
    """

    horizon: float | None = None
    scale: float = 1.0
    floor: float = 1e-4
    growth: float = 4.0
    limit: int = 24

    def accepts(self, before: float, predicted: float, after: float) -> bool:
        """Whether the real loss fell by enough of what was promised; NaN anywhere is a no."""
        promised, delivered = before - predicted, before - after
        return delivered > 0 and promised > 0 and delivered >= self.floor * promised

    def ratio(self, before: float, predicted: float, after: float) -> float:
        """ρ = actual decrease / predicted decrease; NaN where nothing was promised."""
        promised = before - predicted
        return (before - after) / promised if promised > 0 else math.nan

    def after(self, horizon: float | None = None, scale: float | None = None) -> Trust:
        """The state for the next jump."""
        return replace(self, horizon=horizon or self.horizon, scale=scale or self.scale)
