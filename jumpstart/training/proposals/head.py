"""``Head``: the last linear layer, solved on the features of the present network."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch

from ...errors import BudgetError, InputError
from ...utils.cost import FORWARD
from .fit_head import fitted
from .proposal import Candidate, Here, Proposal


class Head(Proposal):
    """The last linear layer's convex problem, solved; see :func:`jumpstart.fit_head`.

    Proposed where the leave-one-out loss is below the present training loss: on the samples that a head is fitted to,
    its training loss alone would say that it is better whatever it is.

    Args:
        every: steps between tries. head: the layer's name; None to find it.
    """

    name: ClassVar[str] = "head"

    def __init__(self, every: int = 20, head: str | None = None) -> None:
        super().__init__(every)
        self.head = head
        self.dense = 0.0  # work that the last try took, or was refused for

    def cost(self) -> float:
        return 3 * FORWARD + self.dense

    def propose(self, here: Here) -> list[Candidate]:
        spent = here.ledger.dense
        try:
            result = fitted(here.objective, here.theta, self.head, None, here.ledger)
        except BudgetError as error:
            self.dense = error.needed
            raise
        self.dense = here.ledger.dense - spent
        if not result.leave_one_out < here.loss:
            return []
        space, named = here.objective.space, result.named()
        if missing := set(named) - set(space.names):
            raise InputError(f"the head's {sorted(missing)} are frozen, or not among the objective's parameters.")
        pieces = space.unflatten(here.theta)
        with torch.no_grad():
            theta = space.flatten({**pieces, **{name: value.to(pieces[name]) for name, value in named.items()}})
        loss = here.value(theta)
        what = f"{result.layer!r} solved, leave-one-out loss {result.leave_one_out:.3g}"
        return [Candidate(theta - here.theta, loss, what)] if math.isfinite(loss) else []

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "dense": self.dense}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.dense = float(state["dense"])
