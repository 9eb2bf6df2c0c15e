"""``Several``: more than one action after the steps of an optimizer, the likeliest to pay first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..errors import InputError
from ..utils.brief import brief
from .actions import Action
from .proposals.proposing import Proposing
from .proposals.result import ProposalOutcome, ProposalResult


class Several(Action):
    """Asks its actions in the order of what they are expected to bring; at most one moves the weights after a step.

    That is what an action saved by a try so far, less what it lost, in steps; before its first try, what that would
    cost. Who has not moved the weights is told that they were moved.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, actions: Sequence[Action]) -> None:
        super().__init__(actions[0].optimizer)
        self.actions = tuple(actions)
        self.name = "+".join(action.name for action in self.actions)  # type: ignore[misc]
        proposing = [action for action in self.actions if isinstance(action, Proposing)]
        for action in proposing:
            action.beside = [other for other in proposing if other is not action]

    @property
    def skipped(self) -> int:
        return sum(action.skipped for action in self.actions)

    def ordered(self) -> list[Action]:
        """Those from which most is expected first; where that is equal, as they were given."""
        return sorted(self.actions, key=lambda action: -action.expected)

    def due(self, taken: int) -> bool:
        return any(action.due(taken) for action in self.actions)

    def passed(self, taken: int) -> None:
        super().passed(taken)
        for action in self.actions:
            action.passed(taken)

    def prepare(self) -> list[tuple[str, Any]]:
        found = [(action.name, action.prepare()) for action in self.actions]
        return [(name, self.book(result)) for name, result in found if result is not None]

    def after_step(self, taken: int, limit: int | None) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for action in self.ordered():
            result = action.follow(taken, limit)
            if result is None:
                continue
            found.append((action.name, self.book(result)))
            if result.accepted:
                for other in self.actions:
                    if other is not action:
                        other.moved(taken)
                break
        return found

    def told(self, result: Any) -> list[tuple[str, Any]]:
        return result if isinstance(result, list) else super().told(result)

    def parameters_added(self) -> None:
        for action in self.actions:
            action.parameters_added()

    def not_tried(self, cause: str) -> ProposalResult:
        return ProposalResult(self.name, ProposalOutcome.UNTRIED, cause=cause)

    def state_dict(self) -> dict[str, Any]:
        return {action.name: action.state_dict() for action in self.actions}

    def check(self, state: Any) -> None:
        if not isinstance(state, dict) or set(state) != {action.name for action in self.actions}:
            raise InputError(f"this is no state of the actions {self.name}: it holds {brief(state)}.")
        for action in self.actions:
            action.check(state[action.name])

    def load_state_dict(self, state: Any) -> None:
        if state is not None:
            self.check(state)
        for action in self.actions:
            action.load_state_dict(None if state is None else state[action.name])
