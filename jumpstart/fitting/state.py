"""Where a fit is: everything that it needs to go on. A state is never changed; the next one takes its place."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..jumping.state import Memory


class Stage(enum.Enum):
    """Where a fit is; the value is a sentence."""

    DESCEND = "The loss has to fall at every jump, until it has come down: only then may it rise on the way."
    CLIMB = "The loss may rise along the last step; the best weights are kept."
    APPROACH = "From the last weights on, the loss has to fall at every jump, to see where they lead."
    LAND = "From the best weights on, the loss has to fall at every jump."


@dataclass(frozen=True)
class FitState:
    """Everything that a fit needs to go on where it was interrupted: present and best weights, losses, counts."""

    theta: Tensor
    best: Tensor
    loss: float = math.inf
    best_loss: float = math.inf
    start: float = math.inf
    stage: Stage = Stage.DESCEND
    memory: Memory = field(default_factory=Memory)
    seconds: float = 0.0
    cost: float = 0.0
    jumps: int = 0
    accepted: int = 0
    refused: int = 0
    restarts: int = 0
    reach: float = 0.0  # the horizon that led to the best weights
    since: int = 0  # the jump at which patience began
    mark: float = math.inf  # the loss at that time
    predicted: float = 0.0  # share of the loss that the linearized problem would take away, since then
    unseen: float = math.inf  # the loss on points never trained on, when it was last measured
    kept: Tensor | None = None  # the weights where that was lowest, if it is measured at all
    kept_unseen: float = math.inf
    points: Tensor | None = None  # (Σ points · coordinates,) of terms with a domain, once they are not the first ones
    counts: list[dict[str, Any]] = field(default_factory=list)  # how many of them, a row a term
    emphasis: Tensor | None = None  # what each of them weighs, where a rule says
    renewals: int = 0
    ended: bool = False  # what follows from the last jump led nowhere: the fit was over
    history: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def at(theta: Tensor) -> FitState:
        """The start of a fit at weights θ, before anything is measured."""
        return FitState(theta, theta.clone())

    @property
    def answer(self) -> Tensor:
        """The weights that the fit is for: lowest on points never trained on, where these are measured."""
        return self.best if self.kept is None else self.kept

    @property
    def reached(self) -> float:
        """The loss that patience is measured by: the best, on points never trained on where these are looked at, since
        the others are renewed under way; on landing, the present one."""
        if self.stage is Stage.LAND:
            return self.loss
        return self.best_loss if self.kept is None else self.kept_unseen

    @property
    def last(self) -> str:
        """The name of the last jump's outcome; empty before the first."""
        return self.history[-1]["outcome"] if self.history else ""

    def flat(self) -> dict[str, Any]:
        """Tensors, plain numbers and rows of them by name, for a file."""
        table = {**vars(self), "stage": self.stage.name, **self.memory.state_dict()}
        del table["memory"], table["best"], table["horizon"]
        return {**table, "best_theta": self.best, "best_met": self.memory.best, "next_horizon": self.memory.horizon}

    @staticmethod
    def names() -> set[str]:
        """The names in a flat state."""
        return set(FitState.at(torch.empty(0)).flat())

    @staticmethod
    def from_flat(table: dict[str, Any], like: Tensor) -> FitState:
        """What ``flat`` gave, for weights ``like`` these.

        Raises:
            InputError: a value that no fit can have; named.
        """
        table = dict(table)
        for name, value in table.items():
            if not _possible(name, value, like):
                given = isinstance(value, Tensor)
                shown = f" of {tuple(value.shape)} and {value.dtype}" if given else f"={value!r:.60}"
                raise InputError(f"{name}{shown} is nothing that a fit of {like.numel()} parameters leaves behind.")
        if len(table["history"]) != table["jumps"]:
            raise InputError(f"history has {len(table['history'])} rows for {table['jumps']} jumps.")
        memory = {name: table.pop(name) for name in Memory().state_dict() if name not in ("best", "horizon")}
        memory |= {"best": table.pop("best_met"), "horizon": table.pop("next_horizon")}
        stage, best = Stage[table.pop("stage")], table.pop("best_theta")
        return FitState(**table, best=best, stage=stage, memory=Memory.from_state(memory))


COUNTS = ("jumps", "accepted", "refused", "restarts", "since", "renewals")
NUMBERS = ("loss", "best_loss", "start", "seconds", "cost", "reach", "mark", "predicted", "unseen", "kept_unseen")
WEIGHTS = ("theta", "best_theta")
PERHAPS = ("heading", "kept")  # weights, or None


def _possible(name: str, value: Any, like: Tensor) -> bool:
    """Whether a flat state can hold this; what memory holds is checked by itself."""
    if name in WEIGHTS or (name in PERHAPS and value is not None):
        alike = isinstance(value, Tensor) and (value.shape, value.dtype) == (like.shape, like.dtype)
        return alike and bool(torch.isfinite(value).all())
    if name in COUNTS:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if name in NUMBERS:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    other = OTHERS.get(name)
    return other is None or other(value)


def _rows(value: Any, key: str, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(row.get(key), kind) for row in value)


def _points(value: Any) -> bool:
    return value is None or (isinstance(value, Tensor) and value.dim() == 1 and bool(torch.isfinite(value).all()))


OTHERS: dict[str, Callable[[Any], bool]] = {
    "stage": lambda value: value in Stage.__members__,
    "history": lambda value: _rows(value, "outcome", str),
    "counts": lambda value: _rows(value, "count", int),
    "points": _points,
    "emphasis": _points,
    "ended": lambda value: isinstance(value, bool),
}
