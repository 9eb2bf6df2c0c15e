"""A search for the lowest value along a line: scalars only, no tensors and no network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Best:
    """The best point of a one-dimensional search: position on the grid, and loss there."""

    position: float
    loss: float
    tried: int
    last: float = math.nan  # where the search ended


def search(
    evaluate: Callable[[float], float],
    start: float,
    before: float,
    growth: float,
    limit: int,
    top: float = math.inf,
    spent: Callable[[], bool] = lambda: False,
) -> Best:
    """Look for the lowest loss on a geometric grid around ``start``, going on as long as it falls.

    Climbs first; where the first point does not improve on ``before``, shrinks until one does, ever faster.

    Args:
        evaluate: position -> loss; may be NaN.
        top: positions beyond it are not tried. spent: whether no further position may be tried.

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
        while tried < limit and not best.loss < before and position > 1e-280 and not spent():
            position /= factor
            factor = min(factor * growth, 1e8)
            loss = ask(position)
            if loss < best.loss:
                best = Best(position, loss, tried)
        if not best.loss < before:
            return replace(best, tried=tried, last=position)
    for direction in (growth, 1 / growth):
        moved = False
        while tried < limit and not spent():
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
