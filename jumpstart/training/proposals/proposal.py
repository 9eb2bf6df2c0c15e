"""The contract of a proposal: what it would cost, what it needs to have seen, which weights may be better."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...objectives.objective import Objective
from ...utils.brief import brief
from ...utils.cost import Ledger
from ..acceptance import improves

Weights = dict[int, Tensor]  # place among the optimizer's parameters -> a copy


@dataclass(frozen=True)
class Here:
    """Where a loop stands when a proposal is asked for.

    Attributes:
        objective: on the samples that the proposal is made from. theta: present weights (P,). outputs, loss: there.
        seen: weights (P,) that the proposal kept, the oldest first.
        exact: whether these samples are all that is trained.
        ledger: of what it costs.
    """

    objective: Objective
    theta: Tensor
    outputs: Tensor
    loss: float
    seen: Sequence[Tensor]
    ledger: Ledger
    exact: bool = True

    def at(self, theta: Tensor) -> Tensor:
        """The outputs at other weights; one forward pass."""
        self.ledger.forwards += 1
        return self.objective.outputs(theta)

    def value(self, theta: Tensor) -> float:
        """The loss at other weights, one forward pass; of a few samples of many, pessimistically.

        The lowest point on a few samples lies far beyond that of all: what counts is how far their change, with its
        noise, is sure to be a fall.
        """
        u = self.at(theta)
        if self.exact:
            return float(self.objective.loss.value(u))
        return self.loss + improves(self._losses(self.outputs), self._losses(u)).bound

    def _losses(self, u: Tensor) -> Tensor:
        """By sample (n,), in float64."""
        losses = self.objective.loss.to(u.double()).per_sample(u.double()).reshape(-1)
        return losses * len(losses)


@dataclass(frozen=True)
class Candidate:
    """Weights θ + displacement (P,), their :meth:`Here.value`, and words for people."""

    displacement: Tensor
    loss: float
    what: str


class Proposal(ABC):
    """Weights that may be better than those where a loop is, found without its steps.

    It says what asking costs (:meth:`cost`), keeps what it must have seen (:meth:`wants`, :meth:`keep`), and proposes
    displacements with their losses (:meth:`propose`). Whether one is accepted is not its business: the best of them is
    judged on samples of its own (``proposing``).

    Args:
        every: steps between tries.
    """

    name: ClassVar[str]

    def __init__(self, every: int) -> None:
        self.every = counted("every", every)
        self.kept: list[tuple[int, Weights]] = []  # by step, the oldest first

    @abstractmethod
    def cost(self) -> float:
        """Gradient evaluations of the objective that a try is expected to take, up to its candidates' losses."""

    def wants(self, step: int, due: Callable[[int], bool]) -> bool:
        """Whether the weights after this step are to be kept, where ``due`` says whether a later one is a try's."""
        return False

    def keep(self, step: int, weights: Weights) -> None:
        """Keep the weights after a step, and forget what no try will need."""
        self.kept.append((step, weights))

    def ready(self, step: int) -> bool:
        """Whether all is there for a try after this step."""
        return True

    def seen(self) -> list[Weights]:
        """The weights to be shown at a try."""
        return [weights for _, weights in self.kept]

    @abstractmethod
    def propose(self, here: Here) -> list[Candidate]:
        """Candidates; none where nothing is better."""

    def moves(self, left: int | None) -> bool:
        """Whether weights that are better may be taken now, so many steps before the end of the run."""
        return True

    def last(self, left: int | None) -> bool:
        """Whether it is to be tried now because the run ends."""
        return False

    def forget(self) -> None:
        """The weights moved by other means than the loop's steps: what was seen belongs to another run."""
        self.kept = []

    def fresh(self) -> Proposal:
        """The same, having seen nothing, for a loop of its own."""
        twin = copy.copy(self)
        twin.forget()
        return twin

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [(step, weights.copy()) for step, weights in self.kept]}

    def check(self, state: Any) -> None:
        """Raise where this is no state of a proposal.

        Raises:
            InputError: as said.
        """
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise InputError(f"this is no state of the action {self.name!r}: it holds {brief(state)}.")
        rows = state["kept"]
        if not isinstance(rows, list) or not all(len(row) == 2 and is_weights(row[1]) for row in rows):
            raise InputError(f"this is no state of the action {self.name!r}: kept={brief(rows)}.")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = [(int(step), copied(weights)) for step, weights in state["kept"]]


def counted(name: str, value: Any, least: int = 1) -> int:
    """A count.

    Raises:
        InputError: quotes what is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={brief(value)}: give a whole number of at least {least}.")
    return value


def is_weights(value: Any) -> bool:
    """Whether these are weights as they are kept."""
    return isinstance(value, dict) and all(
        isinstance(key, int) and isinstance(tensor, Tensor) for key, tensor in value.items()
    )


def copied(weights: Weights) -> Weights:
    """Weights of their own: what was loaded may be loaded again."""
    return {key: tensor.detach().clone() for key, tensor in weights.items()}


@torch.no_grad()
def present(optimizer: torch.optim.Optimizer) -> Weights:
    """A copy of the weights that an optimizer holds and that are trained."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {place: p.detach().clone() for place, p in enumerate(parameters) if p.requires_grad}
