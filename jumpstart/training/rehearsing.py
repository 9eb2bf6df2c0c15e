"""When a loop's past is kept and rehearsed on, before a first skip and after one that failed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..objectives.objective import Objective
from ..skipping.rehearsal import Rehearsal, rehearse
from ..skipping.skip import Skipper
from ..utils.brief import brief
from .past import FEWEST, Past, held

COST = 1.0  # steps' worth of work that a rehearsal takes, about


class Rehearsing:
    """What the loop has gone through, and the rehearsal that is under way.

    Attributes:
        past: weights and gradients. running: the rehearsal, or None.
    """

    def __init__(self) -> None:
        self.past = Past()
        self.running: Rehearsal | None = None
        self._newest: tuple[Objective, Tensor] | None = (
            None  # whose gradient was noted before the step, and the gradient
        )

    def note(self, objective: Objective, theta: Tensor, gradient: Tensor | None, taken: int) -> None:
        """The gradient (P,) at weights θ (P,) that step number ``taken`` is about to be taken along, None for none."""
        if gradient is None or (self.running is not None and self.running.start.shape != theta.shape):
            self.forget()
        if gradient is not None:
            self.past.add(theta, gradient, taken)
            self._newest = objective, gradient

    def noted(self) -> tuple[Objective, Tensor] | None:
        """What was noted before the step, once."""
        found, self._newest = self._newest, None
        return found

    def forget(self) -> None:
        self.past.clear()
        self.running = self._newest = None

    def possible(self, size: int) -> bool:
        """Whether so many weights leave room for a past."""
        return held(size) >= FEWEST

    def begin(self, skipper: Skipper, taken: int, lost: float) -> bool:
        """Rehearse from the weights noted last; False where no skip could pay. ``lost`` was spent before."""
        self.running = rehearse(skipper, self.past.points, taken)
        if self.running is not None:
            self.running.cost += lost
        return self.running is not None

    def end(self) -> float:
        """Over: what it has cost, in steps."""
        cost, self.running = 0.0 if self.running is None else self.running.cost, None
        return cost

    def before(self, theta: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """The points before the newest, where that is of these weights."""
        points = self.past.points
        return tuple(points[:-1]) if points and torch.equal(points[-1][0], theta) else ()

    def state_dict(self) -> dict[str, Any]:
        return {"past": self.past.state_dict(), "running": None if self.running is None else self.running.state_dict()}

    @classmethod
    def read(cls, state: Any) -> Rehearsing:
        """What ``state_dict`` gave.

        Raises:
            InputError: it is none.
        """
        if not isinstance(state, dict) or set(state) != {"past", "running"}:
            raise InputError(f"this is no state of skips: rehearsing={brief(state)}.")
        found, known = cls(), state["running"]
        found.past, found.running = Past.read(state["past"]), None if known is None else Rehearsal.read(known)
        return found
