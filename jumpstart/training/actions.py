"""What may follow a step of a wrapped optimizer: one contract, and one place where its trouble ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from ..distributed.optimizers import current
from ..distributed.wrapped import entry
from ..errors import InputError
from ..utils.borrowed import generators, rewind
from ..utils.fallback import described
from ..utils.warn import warn

KEPT = 1000  # results


class Recent(list):
    """A list that forgets its oldest results, so that a long run does not collect them."""

    def append(self, result: Any) -> None:
        super().append(result)
        del self[: max(0, len(self) - KEPT)]


class Action(ABC):
    """May move the weights between the steps of an optimizer, and says what came of it.

    The wrapper calls :meth:`prepare` before each step and :meth:`follow` after it; neither raises. What a subclass
    writes are ``before_step`` and ``after_step``, which may.

    Attributes:
        name: what state_dict() and the log call it. OPTIONS: the keywords that it takes besides optimizer, objective
            and ``at``.
        optimizer: the wrapped one. results: the last thousand. count: of all of them.
        skipped: steps credited so far; a search has none.
        taken: steps of the optimizer, as far as the action was told.
    """

    name: ClassVar[str]
    OPTIONS: ClassVar[frozenset[str]]
    optimizer: torch.optim.Optimizer

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.results: list[Any] = Recent()
        self.count = self.taken = 0

    @property
    def skipped(self) -> int:
        return 0

    @property
    def source(self) -> Any:
        """What jumps go along: an objective, or a function that returns it."""
        return getattr(self, "objective", None)

    def due(self, taken: int) -> bool:
        """Whether there may be something to do around the step of that number. Asked before every step: a few
        comparisons, nothing that can fail."""
        return True

    def passed(self, taken: int) -> None:
        """A step was taken that was not due."""
        self.taken = taken

    def before_step(self) -> None:  # noqa: B027  # most have nothing to do here
        """Called before the wrapped step, when the loop's gradients are there (with a closure, its last call's)."""

    @abstractmethod
    def after_step(self, taken: int, limit: int | None) -> Any:
        """What follows a step: the result of what was tried, booked, or None.

        Args:
            taken: steps so far. limit: effective steps left of the run, 0 at its end; None where nobody knows.
        """

    def parameters_added(self) -> None:  # noqa: B027  # nothing to do where they are read anew each time
        """The optimizer has got another group of parameters."""

    def now(self, taken: int) -> Any:
        """Act at once, whatever it costs: for whoever calls ``jump()`` by hand.

        Raises:
            InputError: this action is not asked for by hand.
        """
        raise InputError(
            "jump() by hand is for JumpOptimizer(…, search=True); by hand steps are skipped with "
            "js.skip(objective, optimizer)."
        )

    def moved(self, taken: int) -> None:
        """Another action has moved the weights after this step, and this one was not asked."""
        self.taken = taken

    @property
    def price(self) -> float:
        """What a try that fails is expected to cost, in steps of the loop."""
        return 0.0

    @property
    def expected(self) -> float:
        """What the next try is expected to bring, in steps: what those before brought in the mean, or a loss of its
        price; 0 where nobody counts."""
        pace: Any = getattr(self, "pace", None)
        if pace is None:
            return 0.0
        return (pace.saved - pace.lost) / pace.tries if pace.tries else -self.price

    def told(self, result: Any) -> list[tuple[str, Any]]:
        """What ``prepare`` or ``follow`` returned, as names of actions and results."""
        return [] if result is None else [(self.name, result)]

    @abstractmethod
    def not_tried(self, cause: str) -> Any:
        """A result that says that it could not be tried, and why."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""

    @abstractmethod
    def check(self, state: Any) -> None:
        """Raise InputError where ``state`` is none of its own; nothing changes."""

    @abstractmethod
    def load_state_dict(self, state: Any) -> None:
        """Go on where ``state_dict`` was taken; checked before anything changes. None starts afresh."""

    def book(self, result: Any) -> Any:
        """Keep a result, and count it."""
        self.results.append(result)
        self.count += 1
        return result

    def failed(self, cause: str) -> Any:
        """Book a try that came to nothing, and say why."""
        result = self.book(self.not_tried(cause))
        warn(f"jump not tried after step {self.taken}: {cause}", RuntimeWarning)
        return result

    def broke_off(self, cause: str) -> Any:
        """``before_step`` or ``after_step`` raised; random generators are back where they were."""
        return self.failed(cause)

    # The loop is the user's: whatever goes wrong is said, counted and left behind.

    def prepare(self) -> Any:
        """``before_step``, without trouble: the result of what failed, or None."""
        return self._untroubled(self.before_step)

    def follow(self, taken: int, limit: int | None = None) -> Any:
        """``after_step``, without trouble."""
        self.taken = taken
        return self._untroubled(lambda: self.after_step(taken, limit))

    def _untroubled(self, call: Callable[[], Any]) -> Any:
        drawn = generators(p for group in self.optimizer.param_groups for p in group["params"])
        try:
            # All processes go on, or none.
            with entry(getattr(self.source, "world", None), self.name), current(self.optimizer):
                return call()
        except Exception as error:
            for generator, state in drawn:
                rewind(generator, state)
            return self.broke_off(described(error))
