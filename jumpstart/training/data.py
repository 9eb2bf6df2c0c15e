"""Objectives from a function: whether their data change from call to call, and which of them may judge a jump.

Data are told by digests of the tensors that an objective is made of. Where a part is a function of the network, which
shows none, its outputs at weights kept for that are among them; so that an objective whose data were exchanged under
it is noticed, too, and judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..archive.container import digest
from ..objectives.objective import Objective

GATHERED = 4  # calls, one a step: the last is solved, the others judge


class Stream:
    """What a function has given since the last jump.

    Attributes:
        changes: whether its data change from call to call; None while nobody knows.
    """

    def __init__(self, changes: bool | None = None, last: str | None = None) -> None:
        self.changes, self.last = changes, last
        self._seen: list[tuple[Objective, str]] = []
        self._calls = 0
        self._theta: Tensor | None = None

    def add(self, objective: Objective) -> None:
        """One more call."""
        if self._theta is None or self._theta.shape != (objective.space.size,):
            self._theta, self._seen = objective.theta(), []
        found = fingerprint(objective, self._theta)
        visible = all(part.data() for part in objective.parts)
        if self.last is not None and (visible or self._seen):
            self.changes = found != self.last
        self.last = found
        self._calls += 1
        if all(other != found for _, other in self._seen):
            self._seen = [*self._seen, (objective, found)][-GATHERED:]

    @property
    def ready(self) -> bool:
        """Whether enough is known for a jump, and for who judges it."""
        return self.changes is False or (bool(self.changes) and self._calls >= GATHERED)

    def judges(self, objective: Objective) -> list[Objective]:
        """Those of other data than the objective's, as they were when they came."""
        if self._theta is None:
            return []
        own = fingerprint(objective, self._theta)
        return [
            other
            for other, then in self._seen
            if other is not objective and then != own and fingerprint(other, self._theta) == then
        ]

    def forget(self) -> None:
        """After a jump: objectives hold batches."""
        self._seen, self._theta, self._calls = [], None, 0


def fingerprint(objective: Objective, theta: Tensor) -> str:
    """Of an objective's data; outputs at θ (P,) stand for what a function reads."""
    found = [digest(tensor) for part in objective.parts for tensor in part.data().values()]
    if not all(part.data() for part in objective.parts):
        found.append(digest(objective.outputs(theta)))
    return " ".join([*found, *(digest(tensor) for tensor in _tensors(objective.loss))])


def _tensors(thing: Any, depth: int = 2) -> Iterator[Tensor]:
    """The tensors that a loss holds, and the losses in it."""
    for value in vars(thing).values():
        if isinstance(value, Tensor):
            yield value
        elif depth and hasattr(value, "targets"):
            yield from _tensors(value, depth - 1)
