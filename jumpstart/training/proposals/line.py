"""``Line``: further along the last updates, for a few forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from ...utils.cost import FORWARD
from .proposal import Candidate, Here, Proposal, Weights, counted

FURTHEST = 2.0**12  # multiples of what was walked
TYPICAL = 6  # forward passes: the start, four along the line, the lowest point of a parabola


class Line(Proposal):
    """Further along the mean of the last updates, as far as the loss falls: what Fast Forward does in LoRA.

    A step of their sum is tried, then twice as far, and so on while the loss falls; then the lowest point of the
    parabola through the last three, which on a quadratic is the minimum along the line. Where already the first is
    higher, the start of the updates takes its place: after a loop that oscillates the lowest point lies behind.

    Args:
        every: steps between tries. span: updates whose mean is gone along.
    """

    name: ClassVar[str] = "line"

    def __init__(self, every: int = 6, span: int = 4) -> None:
        super().__init__(every)
        self.span = counted("span", span)

    def cost(self) -> float:
        return TYPICAL * FORWARD

    def wants(self, step: int, due: Callable[[int], bool]) -> bool:
        return due(step + self.span)

    def keep(self, step: int, weights: Weights) -> None:
        self.kept = [row for row in self.kept if row[0] > step - self.span]
        super().keep(step, weights)

    def ready(self, step: int) -> bool:
        return any(at == step - self.span for at, _ in self.kept)

    def seen(self) -> list[Weights]:
        return super().seen()[:1]

    def propose(self, here: Here) -> list[Candidate]:
        walked = here.theta - here.seen[0]
        if not bool((walked != 0).any()):
            return []
        at, losses = [0.0, 1.0], [here.loss, here.value(here.theta + walked)]
        if not losses[1] < losses[0]:
            at, losses = [-1.0, *at], [here.value(here.seen[0]), *losses]
        while losses[-1] < losses[-2] and at[-1] < FURTHEST:
            at.append(2 * at[-1])
            losses.append(here.value(here.theta + at[-1] * walked))
        lowest = vertex(at[-3:], losses[-3:])
        if lowest is not None and lowest not in at:
            at.append(lowest)
            losses.append(here.value(here.theta + lowest * walked))
        found = [(loss, t) for t, loss in zip(at, losses, strict=True) if t and math.isfinite(loss)]
        if not found:
            return []
        loss, t = min(found)
        way = "further" if t > 0 else "back"
        return [Candidate(t * walked, loss, f"{abs(t) * self.span:.3g} updates {way}")]


def vertex(at: Sequence[float], values: Sequence[float]) -> float | None:
    """Where the parabola through three points is lowest, between the outer two; None where it has no such place."""
    (a, b, c), (fa, fb, fc) = at, values
    if not all(math.isfinite(value) for value in values):
        return None
    left, right = (fb - fa) / (b - a), (fc - fb) / (c - b)
    bend = (right - left) / (c - a)
    if not bend > 0:
        return None
    return min(max(0.5 * (a + b) - 0.5 * left / bend, a), c)
