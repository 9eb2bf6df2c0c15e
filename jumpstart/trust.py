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


@dataclass(frozen=True)
class Best:
    """The best point of a one-dimensional search: position on the grid, and loss there."""

    position: float
    loss: float
    tried: int
    last: float = math.nan  # where the search ended


def search(evaluate, start: float, before: float, growth: float, limit: int, top: float = math.inf) -> Best:
    """Look for the lowest loss on a geometric grid around ``start``, going on as long as it falls.

    Climbs first; where the first point does not improve on ``before``, shrinks until one does, ever faster.

    Args:
        evaluate: position -> loss; may be NaN.
        top: positions beyond it are not tried.

    Returns:
        the best position found; its loss is infinite if every loss was NaN.
    """
    tried = 0

    def ask(position: float) -> float:
        nonlocal tried
        tried += 1
        loss = evaluate(position)
        return loss if loss < math.inf else math.inf

    position = min(start, top)
    best = Best(position, ask(position), 1)
    if not best.loss < before:
        factor = growth
        while tried < limit and not best.loss < before and position > 1e-280:
            position /= factor
            factor = min(factor * growth, 1e8)
            loss = ask(position)
            if loss < best.loss:
                best = Best(position, loss, tried)
        if not best.loss < before:
            return replace(best, tried=tried, last=position)
    for direction in (growth, 1 / growth):
        moved = False
        while tried < limit:
            position = min(best.position * direction, top)
            if position == best.position:
                break
            loss = ask(position)
            if not loss < best.loss:
                break
            best, moved = Best(position, loss, tried), True
        if moved:
            break
    return replace(best, tried=tried, last=position)
