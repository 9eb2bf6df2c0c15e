"""What of an objective a jump may move now, and in which metric: what the optimizer holds and has a rate for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..linearization.metric import MetricLike, held, metric_of, restrict
from ..objectives.objective import Objective
from ..optim import adapters
from ..utils.brief import brief


class Reach:
    """Of an optimizer, the parameters that were asked for (None for all), and the metric ("optimizer" for its own).

    Raises:
        InputError: a metric of another name.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, params: Any, metric: MetricLike | str) -> None:
        if isinstance(metric, str) and metric != "optimizer":
            raise InputError(f"metric={brief(metric)}: the only name is 'optimizer', the wrapped optimizer's own.")
        self.optimizer, self.params = optimizer, params
        self.metric: MetricLike = optimizer if isinstance(metric, str) else metric
        self._part: tuple[Objective, Objective] | None = None  # an objective, and the same for what moves of it

    def chosen(self, objective: Objective) -> Objective:
        """The objective for the parameters that were asked for, all of which the optimizer must hold."""
        if not isinstance(objective, Objective):
            raise InputError(f"the objective's function returned {type(objective).__name__}, not a js.Objective.")
        chosen = objective if self.params is None else objective.subset(self.params)
        held(self.optimizer, chosen.model, chosen.space)
        return chosen

    def moving(self, whole: Objective) -> Objective | None:
        """The objective for the parameters that the optimizer moves now; None if there are none."""
        groups = held(self.optimizer, whole.model, whole.space)
        frozen = set()
        if whole.params is None:  # parameters that were asked for by name are another matter
            frozen = {name for name, p in whole.model.named_parameters() if not p.requires_grad}
        names = tuple(name for name in whole.space.names if name not in frozen and adapters.moves(groups[name]))
        if not names or names == whole.space.names:
            return whole if names else None
        if self._part is None or self._part[0] is not whole or self._part[1].space.names != names:
            self._part = whole, whole.subset(Names(frozenset(names)))
        return self._part[1]

    def metric_for(self, whole: Objective, objective: Objective) -> MetricLike:
        """The metric, for the parameters that move."""
        asked = self.metric
        if asked is None or isinstance(asked, torch.optim.Optimizer) or objective is whole:
            return asked
        return restrict(metric_of(asked, whole), whole.space, objective.space.names)


@dataclass(frozen=True)
class Names:
    """Selects parameters by their exact names, for :meth:`Objective.subset`."""

    names: Collection[str]

    def __call__(self, name: str, parameter: nn.Parameter) -> bool:
        return name in self.names
