"""``Skipping``: a stand-in that skips nothing, until the room ``skipping`` is there."""

from __future__ import annotations

from typing import Any, ClassVar

from ..jumping.jump import JumpResult
from .actions import Action


class Skipping(Action):
    name: ClassVar[str] = "skip"
    OPTIONS: ClassVar[frozenset[str]] = frozenset({"tolerance", "scheduler"})

    def __init__(self, optimizer: Any, objective: Any, skip: Any = "auto", at: Any = None, **options: Any) -> None:
        super().__init__(optimizer)

    def after_step(self, taken: int, limit: int | None) -> None:
        return None

    def not_tried(self, cause: str) -> JumpResult:
        return JumpResult.skipped(cause)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def check(self, state: Any) -> None:
        return None

    def load_state_dict(self, state: Any) -> None:
        return None
