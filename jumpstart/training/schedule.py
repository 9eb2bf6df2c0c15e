"""When to jump: schedules, and the back-off of jumps that do not pay. Classes, so that the wrapper can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..utils.brief import brief

Schedule = int | Iterable[int] | Callable[[int], bool] | None  # None: as the action sees fit


@dataclass(frozen=True)
class Every:
    period: int

    def __call__(self, step: int) -> bool:
        return step % self.period == 0


@dataclass(frozen=True)
class Among:
    steps: frozenset[int]

    def __call__(self, step: int) -> bool:
        return step in self.steps


def schedule(at: int | Iterable[int] | Callable[[int], bool]) -> Callable[[int], bool]:
    """Whether a step is due, as a function of its number.

    Raises:
        InputError: quotes what is no schedule.
    """
    if callable(at):
        return at
    if isinstance(at, int) and not isinstance(at, bool):
        if at < 1:
            raise InputError(f"at={brief(at)}: jump every so many steps, at least 1 (or () for never).")
        return Every(at)
    if isinstance(at, bool) or not isinstance(at, Iterable):
        raise InputError(f"at={brief(at)}: give a period, step numbers, a function of the step, or () for never.")
    chosen = frozenset(at)
    if wrong := [step for step in chosen if isinstance(step, bool) or not isinstance(step, int) or step < 1]:
        raise InputError(f"at={sorted(map(str, wrong))[:5]}: give step numbers, from 1.")
    return Among(chosen)


@dataclass
class BackOff:
    """After each jump that failed or did not pay twice as many due steps go by as after the one before.

    Attributes:
        failures: in a row. waiting: due steps still to go by.
    """

    failures: int = 0
    waiting: int = 0
    LONGEST = 30  # doublings

    def ready(self) -> bool:
        """Asked at a due step: whether this one is taken."""
        if self.waiting:
            self.waiting -= 1
            return False
        return True

    def learn(self, paid: bool) -> None:
        """From a jump that was tried."""
        self.failures = 0 if paid else min(self.failures + 1, self.LONGEST)
        self.waiting = 2**self.failures - 1

    @classmethod
    def read(cls, state: Any) -> BackOff:
        """From ``vars``.

        Raises:
            InputError: these are no counts.
        """
        wrong = not isinstance(state, dict) or set(state) != {"failures", "waiting"}
        if wrong or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in state.values()):
            raise InputError(f"this is no back-off of jumps: {state!r:.80}.")
        return cls(**state)
