"""Whether a loop's gradients are the objective's: what a skip along the objective may follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..objectives.objective import Objective
from ..optim import adapters
from ..utils.brief import brief
from .samples import Samples
from .scale import FAR, NUMBERS, Scale

SAME = 0.02  # relative difference up to which the loop's gradient is the objective's
EXACT = 1e-3  # the same, up to which both are points of one forecast
ALONG = 0.999  # cosine from which one is the other times a number


class Following:
    """Holds the loop's gradients against the objective's.

    Attributes:
        follows: whether they are the same; None while nobody knows.
        apart: their relative difference when last compared.
        scale: the factor between them along minibatches, from all that were compared.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, samples: Samples) -> None:
        self.optimizer, self.samples = optimizer, samples
        self.reset()

    def reset(self) -> None:
        self.follows: bool | None = None
        self.apart, self.scale = 0.0, Scale()

    @property
    def exact(self) -> bool:
        """Whether both may be points of one forecast, as far as anybody knows."""
        return self.follows is not False and self.apart <= EXACT

    @property
    def surely_scaled(self) -> bool:
        """Whether a factor is more than the noise of minibatches; one that no noise was seen in is."""
        return self.scale.count == 0 or self.scale.surely(self._rate)

    def gradient(self, objective: Objective) -> Tensor | None:
        """The gradient that the step is taken along (P,), of what is to be lowered; None where a part is missing."""
        present = dict(objective.model.named_parameters())
        climbs = adapters.climbing(self.optimizer)
        found = {}
        for name in objective.space.names:
            p = present[name]
            if p.grad is not None and p.grad.is_sparse:
                return None
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            found[name] = -grad if p in climbs else grad
        return objective.space.flatten(found)

    def compare(self, loops: Tensor, own: Tensor) -> float | None:
        """The number that the loop's gradient (P,) is the objective's times, where that is another one than about 1.

        Along minibatches it is that of all that were compared: a single one is mostly noise.
        """
        dot, square = float(torch.dot(loops, own)), float(torch.dot(own, own))
        self.apart = float(torch.linalg.vector_norm(loops - own)) / square**0.5
        self.follows = self.apart <= SAME
        if self.follows:
            return None
        cosine = abs(dot) / max(square**0.5 * float(torch.linalg.vector_norm(loops)), 1e-300)
        if cosine >= ALONG:
            return dot / square
        self.scale = self.scale.including(loops, own)
        times = self.scale.times(self._rate)
        return None if 1 / FAR <= times <= FAR else times

    @property
    def _rate(self) -> float | None:
        """Rows of the objective over those of a minibatch, where it is a sample of the data itself."""
        return None if self.samples.whole else self.samples.rate

    def state_dict(self) -> dict[str, Any]:
        return {"follows": self.follows, "apart": self.apart, "scale": list(self.scale.numbers)}

    def check(self, state: Any) -> None:
        """Raise InputError unless it is what :meth:`state_dict` gave."""
        if not isinstance(state, dict) or set(state) != {"follows", "apart", "scale"}:
            raise InputError(f"this is no state of skips: following={brief(state)}.")
        if state["follows"] not in (None, True, False):
            raise InputError(f"this is no state of skips: follows={brief(state['follows'])}.")
        numbers = state["scale"]
        if not isinstance(numbers, (list, tuple)) or len(numbers) != NUMBERS or not all(map(_number, numbers)):
            raise InputError(f"this is no state of skips: scale={brief(numbers)}.")
        if not _number(state["apart"]):
            raise InputError(f"this is no state of skips: apart={brief(state['apart'])}.")

    def load_state_dict(self, state: Any) -> None:
        self.follows, self.apart = state["follows"], state["apart"]
        self.scale = Scale(tuple(map(float, state["scale"])))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
