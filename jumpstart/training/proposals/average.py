"""``Average``: the mean of what the weights have lately been, tried as a candidate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from ...errors import InputError
from ...utils.brief import brief
from ...utils.cost import FORWARD
from .proposal import Candidate, Here, Proposal, Weights, copied, counted, is_weights

ADOPT = ("end", "always", "never")


class Average(Proposal):
    """The mean of the last weights (LAWA) and their exponential moving average, of weights kept at intervals.

    By default they are evaluated and told during the run, and taken only at its end, if they beat the present weights
    there: a loop that goes on at the same rate leaves an average again.

    Args:
        every: steps between tries. interval: steps between the weights that are averaged. last: how many the plain
            mean has. decay: of the moving average, an interval. adopt: "end" (as told by ``optimizer.steps(total)``),
            "always", or "never".
    """

    name: ClassVar[str] = "average"

    def __init__(
        self, every: int = 50, interval: int = 10, last: int = 6, decay: float = 0.8, adopt: str = "end"
    ) -> None:
        super().__init__(every)
        self.interval, self.latest = counted("interval", interval), counted("last", last, 2)
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay < 1:
            raise InputError(f"decay={brief(decay)}: give a number between 0 and 1.")
        if adopt not in ADOPT:
            raise InputError(f"adopt={brief(adopt)} is none of {ADOPT}.")
        self.decay, self.adopt = float(decay), adopt
        self.moving: Weights = {}

    def cost(self) -> float:
        return 3 * FORWARD

    def wants(self, step: int, due: Callable[[int], bool]) -> bool:
        return step % self.interval == 0

    @torch.no_grad()
    def keep(self, step: int, weights: Weights) -> None:
        super().keep(step, weights)
        del self.kept[: -self.latest]
        if self.moving.keys() != weights.keys():
            self.moving = copied(weights)
        else:
            for place, tensor in self.moving.items():
                tensor.lerp_(weights[place], 1 - self.decay)

    def ready(self, step: int) -> bool:
        return len(self.kept) >= 2

    def seen(self) -> list[Weights]:
        return [*super().seen(), self.moving]

    def propose(self, here: Here) -> list[Candidate]:
        *last, moving = here.seen
        mean = torch.stack([theta.double() for theta in last]).mean(0).to(here.theta)
        found = []
        for theta, what in ((mean, f"the mean of {len(last)} weights"), (moving, "the moving average")):
            found.append(Candidate(theta - here.theta, here.value(theta), what))
        return [candidate for candidate in found if math.isfinite(candidate.loss)]

    def moves(self, left: int | None) -> bool:
        return self.adopt == "always" or (self.adopt == "end" and left == 0)

    def last(self, left: int | None) -> bool:
        return self.adopt == "end" and left == 0

    def forget(self) -> None:
        super().forget()
        self.moving = {}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "moving": self.moving and copied(self.moving)}

    def check(self, state: Any) -> None:
        super().check(state)
        if not is_weights(state["moving"]):
            raise InputError(f"this is no state of the action {self.name!r}: moving={brief(state['moving'])}.")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.moving = copied(state["moving"])
