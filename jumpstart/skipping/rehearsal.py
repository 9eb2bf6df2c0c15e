"""A rehearsal: the optimizer's next steps, predicted from the loop's own past and held against those it then takes.

It asks the network for nothing. Points of the run whose gradients the loop has computed anyway make a forecast, on
which a copy of the optimizer is stepped; where it should have been, the loop shows a few steps later. A skip that would
fail is so found out for a tenth of its price. Source: decision docs/decisions/0025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..objectives.objective import Objective
from ..utils.brief import brief
from ..utils.guard import guarded
from .forecast import Forecast
from .replay import Replay
from .skip import Skipper, repeatable
from .windows import OWN_WINDOWS, Prices, believed, following, relative

STEPS = 4  # of a rehearsal, or as many as a window must bring to pay


@dataclass
class Rehearsal:
    """Steps as they were predicted.

    Attributes:
        first: the number of the first of them. start: weights (P,) before it.
        marks: weights (P,) that so many steps should lead to, until the loop has been there.
        least: steps that must be right for a skip to pay. count: steps that it takes.
        cost: of all this, in steps of the loop.
        errors: how far the loop went elsewhere at the marks, relative to its movement.
    """

    first: int
    start: Tensor
    marks: dict[int, Tensor]
    least: int
    count: int
    cost: float
    errors: dict[int, float] = field(default_factory=dict)

    def reached(self, theta: Tensor, taken: int) -> bool:
        """The weights before step ``taken``; whether that is where it ends."""
        after = taken - self.first
        if after in self.marks:
            self.errors[after] = relative(theta - self.marks.pop(after), theta - self.start)
        return after >= self.count

    def window(self, tolerance: float) -> int:
        """The first window of a skip; 0 where none would pay, or steps were left out."""
        kept = 0 if self.marks else believed(self.errors, tolerance)
        return 0 if kept < self.least else following(kept, self.errors[kept], tolerance)

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "marks": dict(self.marks), "errors": dict(self.errors)}

    @classmethod
    def read(cls, state: Any) -> Rehearsal:
        """What ``state_dict`` gave.

        Raises:
            InputError: it is none.
        """
        if not isinstance(state, dict) or set(state) != {found.name for found in fields(cls)}:
            raise InputError(f"this is no rehearsal of a skip: {brief(state)}.")
        start, marks = state["start"], state["marks"]
        whole = isinstance(start, Tensor) and isinstance(marks, dict)
        if not whole or any(not isinstance(theta, Tensor) or theta.shape != start.shape for theta in marks.values()):
            raise InputError(f"this is no rehearsal of a skip: start={brief(start)}, marks={brief(marks)}.")
        return cls(**{**state, "marks": dict(marks), "errors": dict(state["errors"])})


def rehearse(skipper: Skipper, points: Sequence[tuple[Tensor, Tensor]], first: int) -> Rehearsal | None:
    """Predict the optimizer's next steps, the first of which it is about to take.

    Args:
        points: weights (P,) and the loop's gradients (P,) there, the newest one of the weights as they are.
        first: what the next step's number is.

    Returns:
        None where no skip could pay, however right it were.

    Raises:
        InputError and its kinds: as for a skip.
    """
    return _rehearse(skipper.objective, skipper, points, first)


@guarded(lambda objective, *_, **__: objective.model)
def _rehearse(
    objective: Objective, skipper: Skipper, points: Sequence[tuple[Tensor, Tensor]], first: int
) -> Rehearsal | None:
    objective.require_current()
    start = points[-1][0]
    replay = Replay(skipper.optimizer, objective, skipper.scheduler)
    prices = Prices.of(objective, replay, repeatable(objective, start)[0], 1.0)
    least = prices.least
    if least > STEPS * STEPS:
        return None
    forecast = Forecast()
    for theta, gradient in points:
        forecast = forecast.including(theta, gradient)
    count = max(STEPS, least)
    marks = replay.roll(forecast, count, sorted({least, count}))
    return Rehearsal(first, start, marks, least, count, count * prices.virtual + OWN_WINDOWS * prices.own)
