"""``Jumper``: jumps that remember. What was learned belongs to it, not to its caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..linearization.metric import MetricLike
from ..objectives.objective import Objective, require_objective
from ..utils.brief import brief
from .conditions import Conditions
from .jump import JumpResult, move
from .settings import Settings
from .state import Memory

_SAME: Any = object()


class Jumper:
    """Jumps along one objective, each going on from the last; what :func:`jumpstart.fit` and the wrappers use.

    Where the Jacobian of a squared loss is formed anyway, a jump tries one horizon, a little longer than the last
    (search "levenberg-marquardt"); elsewhere it searches around the last one.

    Args:
        objective: what to descend. Assign ``jumper.objective`` to go on with other data for the same weights.
        metric: as for :func:`jumpstart.jump`.
        keep: how many past displacements to keep in the next Krylov basis; 0 for none.
        options: all others of :func:`jumpstart.jump`, and two that only a jumper has. ``nonmonotone``: let the loss
            rise along the last step, in a Levenberg–Marquardt search; whoever asks for it keeps the best weights. May
            be switched on and off between jumps. ``penalty_pays``: let a fall of weight decay's penalty pay for a rise
            of the training loss; for whoever wants their sum lowest, and keeps the best weights by it.

    Raises:
        InputError and its kinds: for options that are unknown, out of range or without effect.

    Example:
        >>> from jumpstart import Jumper, supervised
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> jumper = Jumper(supervised(model, x, (3 * x).sin()))
        >>> while not (result := jumper.jump()).actual < 1e-3:
        ...     assert result.accepted
    """

    OPTIONS: ClassVar[frozenset[str]] = Settings.names()

    def __init__(
        self,
        objective: Objective,
        *,
        metric: MetricLike = None,
        keep: int = 0,
        **options: Any,
    ) -> None:
        require_objective(objective, "Jumper")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
            raise InputError(f"Jumper(keep={brief(keep)}): give a number of displacements to keep, 0 or more.")
        if keep and options.get("directions") is not None:
            raise InputError("Jumper: keep= fills directions by itself: give one of them.")
        self.settings = Settings.of(options, "Jumper")
        if keep:
            replace(self.settings, directions=torch.empty(0, 0))  # refused where they would be ignored
        self.metric, self.keep = metric, keep
        self.memory = Memory()
        self._kept: list[Tensor] = []
        self._objective = self._subset(objective)
        self._known = _Identity(self._objective)

    def _subset(self, objective: Objective) -> Objective:
        params = self.settings.params
        return objective if params is None else objective.subset(params)

    @property
    def objective(self) -> Objective:
        """What is descended, with the parameters that move."""
        return self._objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        require_objective(objective, "Jumper.objective")
        if objective is self._objective:
            return
        if objective.model is not self._objective.model:
            raise InputError(f"Jumper.objective: it is of another model: {_REMEDY}")
        objective = self._subset(objective)
        self._known.require_parameters(objective)
        if type(objective.loss) is not type(self._objective.loss):
            raise InputError(
                f"Jumper.objective: its loss is {type(objective.loss).__name__}, not "
                f"{type(self._objective.loss).__name__}: {_REMEDY}"
            )
        # Losses of other data say nothing here, and a preconditioner of other outputs is useless.
        self.memory = self.memory.restarted()
        if objective.shape != self._objective.shape:
            self.memory = replace(self.memory, sketch=None)
        self._objective, self._known = objective, _Identity(objective)

    @property
    def nonmonotone(self) -> bool:
        """Whether the loss may rise along the last step."""
        return self.settings.nonmonotone

    @nonmonotone.setter
    def nonmonotone(self, flag: bool) -> None:
        self.settings = replace(self.settings, nonmonotone=flag)

    def jump(self, metric: MetricLike = _SAME, conditions: Conditions | None = None) -> JumpResult:
        """One jump from the present weights; see :func:`jumpstart.jump`.

        Args:
            metric: in another metric than the jumper's, this time.
            conditions: what this jump must meet besides the fall of its own loss (judges, a last look, a budget).

        Raises:
            InputError: the objective has changed its parameters, its loss or its outputs since the last jump; nothing
                has moved.
        """
        self._known.require(self._objective)
        settings = self.settings
        if self.keep:
            settings = replace(settings, directions=self._directions())
        chosen = self.metric if metric is _SAME else metric
        result, self.memory = move(self._objective, settings, self.memory, chosen, True, conditions)
        if self.keep and result.directions is not None:
            self._kept = [*self._kept, result.directions][-self.keep :]
        return result

    def _directions(self) -> Tensor:
        """(r, P) displacements kept so far."""
        return torch.cat(self._kept) if self._kept else torch.empty(0, self._objective.space.size)

    def forget(self) -> None:
        """Start the next search from scratch, and take the objective's loss and outputs as they are now.

        Raises:
            InputError: the model's parameters have changed, which asks for a new objective.
        """
        self._objective.require_current()
        self.memory, self._kept, self._known = Memory(), [], _Identity(self._objective)

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as tensors and plain numbers by name."""
        kept = torch.cat(self._kept) if self._kept else None
        return replace(self.memory, directions=kept).state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state``, a ``state_dict()``, was taken.

        Raises:
            InputError: this is no memory, or one of another number of parameters.
        """
        memory, space = Memory.from_state(state), self._objective.space
        for name in ("heading", "directions"):
            vector = getattr(memory, name)
            if vector is not None and vector.shape[-1:] != (space.size,):
                raise InputError(
                    f"this memory of jumps is about {tuple(vector.shape)} parameters, the objective has {space.size}."
                )
            if vector is not None:
                memory = replace(memory, **{name: vector.to(space.device, space.dtype)})
        self._kept = (
            list(memory.directions.split(1))[-self.keep :] if memory.directions is not None and self.keep else []
        )
        self.memory = replace(memory, directions=None)

    def __repr__(self) -> str:
        horizon = self.memory.horizon
        return f"Jumper(horizon={'none yet' if horizon is None else format(horizon, '.3g')})"


class _Identity:
    """What of an objective must stay as it is between jumps."""

    def __init__(self, objective: Objective) -> None:
        self.space = _described(objective)
        self.loss, self.curvature, self.count = type(objective.loss), objective.loss.curvature, objective.shape

    def require(self, objective: Objective) -> None:
        """Raise if the objective is no longer what it was."""
        objective.require_current()
        self.require_parameters(objective)
        loss = objective.loss
        if type(loss) is not self.loss or loss.curvature != self.curvature:
            raise InputError(
                f"the objective's loss has changed since the last jump, from {self.loss.__name__} to "
                f"{type(loss).__name__} or to another scale: {_REMEDY}"
            )
        if objective.shape != self.count:
            raise InputError(
                f"the objective's outputs have changed since the last jump, from {tuple(self.count)} to "
                f"{tuple(objective.shape)}: {_REMEDY}"
            )

    def require_parameters(self, objective: Objective) -> None:
        """Raise if the weights that move are others."""
        here = _described(objective)
        if here != self.space:
            gone = [name for name, _ in self.space if name not in dict(here)]
            new = [name for name, _ in here if name not in dict(self.space)]
            raise InputError(
                f"the objective moves other parameters than before (gone: {gone[:4]}, new: {new[:4]}): {_REMEDY}"
            )


_REMEDY = "make a new Jumper, js.Jumper(objective)."


def _described(objective: Objective) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters that move."""
    return [(name, tuple(shape)) for name, shape in zip(objective.space.names, objective.space.shapes, strict=True)]
