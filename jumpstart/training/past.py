"""What a loop has gone through: weights of its last steps and the gradients there, which cost a skip nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..skipping.forecast import SECANTS
from ..utils.brief import brief

NUMBERS = 2**24  # held at most, beyond one point: 64 MiB in float32
FEWEST = 3  # points that a rehearsal needs: with fewer, next to nothing is known of how gradients change


def held(size: int) -> int:
    """How many points of so many weights are held."""
    return max(1, min(SECANTS, NUMBERS // max(1, 2 * size)))


class Past:
    """The newest points of a run, in steps that follow each other.

    Attributes:
        points: (weights (P,), gradient (P,)) pairs, newest last. taken: the step that the newest gradient is of.
    """

    def __init__(self) -> None:
        self.points: list[tuple[Tensor, Tensor]] = []
        self.taken = 0

    def add(self, theta: Tensor, gradient: Tensor, taken: int) -> None:
        """The gradient that step number ``taken`` is about to be taken along; a gap before it starts afresh."""
        if taken != self.taken + 1 or (self.points and self.points[-1][0].shape != theta.shape):
            self.points = []
        self.taken = taken
        if not bool(torch.isfinite(gradient).all()):
            self.points = []
            return
        self.points = [*self.points, (theta, gradient)][-held(theta.numel()) :]

    @property
    def tells(self) -> bool:
        """Whether it says how gradients change."""
        return len(self.points) >= FEWEST

    def clear(self) -> None:
        self.points = []

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "points": [list(point) for point in self.points]}

    @classmethod
    def read(cls, state: Any) -> Past:
        """What ``state_dict`` gave.

        Raises:
            InputError: it is none.
        """
        if not isinstance(state, dict) or set(state) != {"taken", "points"}:
            raise InputError(f"this is no past of a run: {brief(state)}.")
        pairs = state["points"]
        shapes = {v.shape for pair in pairs for v in pair if isinstance(v, Tensor)}
        if len(shapes) > 1 or any(len(pair) != 2 or not all(isinstance(v, Tensor) for v in pair) for pair in pairs):
            raise InputError(f"this is no past of a run: its points are {brief(pairs)}.")
        found = cls()
        found.taken, found.points = state["taken"], [(theta, gradient) for theta, gradient in pairs]
        return found
