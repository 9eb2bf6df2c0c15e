"""What a loop descends, as an action is given it: an objective, or where the next one comes from; and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import InputError
from ..objectives.objective import Consistent, Objective
from ..utils.brief import brief
from ..utils.cost import GRADIENT
from .actions import Action
from .reach import Names, Reach


class Samples:
    """Objectives of an optimizer's parameters, from one that is fixed, a loader's or a function.

    Args:
        optimizer: whose parameters they are of.
        source: an objective, or what returns one of other samples at each call (:func:`jumpstart.from_loader`).
        batch: rows of the loop's minibatches; None for what a loader says.
        params: which of the objective's parameters move; None for all.

    Attributes:
        rows: of the objective; of a function's last one.

    Raises:
        InputError: ``batch`` is no count; the objective does not fit the optimizer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        source: Objective | Callable[[], Objective],
        batch: int | None,
        params: Any,
    ) -> None:
        batch = getattr(source, "batch_size", None) if batch is None else batch
        if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
            raise InputError(f"batch={brief(batch)}: give the rows of the loop's minibatches, at least 1, or None.")
        self.source, self.batch, self.reach = source, batch, Reach(optimizer, params, None)
        self._consistent = Consistent()
        told = getattr(source, "samples", None)
        self.rows = told if isinstance(told, int) else 0
        if isinstance(source, Objective):
            self.rows = self.reach.chosen(source).shape[0]

    @property
    def fixed(self) -> bool:
        """Whether there is one objective, at each try."""
        return isinstance(self.source, Objective)

    @property
    def whole(self) -> bool:
        """Whether they are all that is trained, so that nobody else need judge."""
        return self.fixed or bool(getattr(self.source, "whole", False))

    @property
    def rate(self) -> float:
        """What a gradient of the objective costs in gradients of the loop."""
        return 1.0 if self.batch is None else self.rows / self.batch

    @property
    def draws(self) -> float:
        """What it costs to draw samples and others that judge, in gradients: loading is part of a loop's steps, too."""
        return 0.0 if self.fixed else 2 * GRADIENT

    def given(self) -> Objective:
        """The objective for the next try, of all parameters that were asked for."""
        objective = self._drawn(self.source)
        self.rows = objective.shape[0]
        return objective

    def judge(self, objective: Objective) -> Objective:
        """One of other samples, for the parameters of this one."""
        judge = self._drawn(getattr(self.source, "acceptance", self.source))
        if judge.space.names == objective.space.names:
            return judge
        return judge.subset(Names(frozenset(objective.space.names)))

    def _drawn(self, source: Any) -> Objective:
        objective = self.reach.chosen(source if isinstance(source, Objective) else source())
        if not isinstance(source, Objective):
            objective.require_alone("an objective that changes from call to call (a function, js.from_loader)")
        objective.consistent = self._consistent  # the data are new, the model is not
        return objective

    def state_dict(self) -> Any:
        """Which samples come next, where the source can tell."""
        tell = getattr(self.source, "state_dict", None)
        return tell() if callable(tell) and not self.fixed else None

    def load_state_dict(self, state: Any) -> None:
        if state is not None:
            self.source.load_state_dict(state)  # type: ignore[union-attr]


class Sampling(Action):
    """An action on samples; ``objective`` may be assigned to, for other data or parameters of the same model."""

    samples: Samples

    @property
    def objective(self) -> Objective | Callable[[], Objective]:
        return self.samples.source

    @objective.setter
    def objective(self, source: Objective | Callable[[], Objective]) -> None:
        self.samples.source = source
