"""The stages of a fit, as a table: descend, climb, land, restart; and the run that goes through them."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, NonFiniteError
from ..jumping.jump import JumpResult
from ..jumping.jumper import Jumper
from ..jumping.settings import LEVENBERG_MARQUARDT
from ..jumping.state import Memory
from ..jumping.trust import Outcome
from ..linearization.metric import MetricLike, metric_of
from ..objectives.objective import Objective
from ..objectives.pure import module_mode
from ..utils.autodiff import normal
from ..utils.progress import shown

REFUSED = 3  # rejections in a row after which something else is tried
CALM = 0.01  # a run of ``patience`` jumps that takes less than this share off the loss has stagnated
LAND_HORIZON = 500.0  # times 1/loss: where landing starts its search
KICK = 0.03  # size of the first perturbation of a restart, relative to each tensor's own root mean square
CAUTION = 20  # jumps after which a fit may climb at the latest (these three: seeds 100 to 105)
DESCENT = 0.01  # or once the loss is this share of the first
LANDING = 0.6  # share of the budget after which a nonmonotone fit goes back to the best weights and climbs no more
WATCH = 0.1  # share of the time that may go into calls of ``error``


class Stage(enum.Enum):
    """Where a fit is; the value is a sentence."""

    DESCEND = "The loss has to fall at every jump, until it has come down: only then may it rise on the way."
    CLIMB = "The loss may rise along the last step; the best weights are kept."
    LAND = "From the best weights on, the loss has to fall at every jump."


class Event(enum.Enum):
    """What happens to a fit."""

    DOWN = "the loss has come down, or enough jumps have been made to"
    LATE = "most of the budget is spent"
    STUCK = "jumps are refused, or the loss no longer falls"
    STILL = "the gradient vanishes"
    BROKEN = "derivatives are not finite where the weights are"


class Action(enum.Enum):
    """What is done about it; ``NONE`` goes on."""

    NONE = enum.auto()
    CLIMB = enum.auto()
    LAND = enum.auto()
    RESTART = enum.auto()


# What an event leads to in each stage. Everything that is not listed goes on as before.
TRANSITIONS: dict[tuple[Stage, Event], Action] = {
    (Stage.DESCEND, Event.DOWN): Action.CLIMB,
    (Stage.DESCEND, Event.STUCK): Action.CLIMB,
    (Stage.DESCEND, Event.LATE): Action.LAND,
    (Stage.DESCEND, Event.STILL): Action.RESTART,
    (Stage.DESCEND, Event.BROKEN): Action.LAND,
    (Stage.CLIMB, Event.STUCK): Action.LAND,
    (Stage.CLIMB, Event.LATE): Action.LAND,
    (Stage.CLIMB, Event.STILL): Action.RESTART,
    (Stage.CLIMB, Event.BROKEN): Action.LAND,
    (Stage.LAND, Event.STUCK): Action.RESTART,
    (Stage.LAND, Event.STILL): Action.RESTART,
    (Stage.LAND, Event.BROKEN): Action.RESTART,
}


@dataclass(frozen=True)
class FitSettings:
    """How a fit goes about it; see :func:`jumpstart.fit` for what each means.

    Raises:
        InputError: quoting what is out of range, or that nothing says when to stop.
    """

    budget: float | None = None
    jumps: float | None = None
    tolerance: float | None = None
    every: int = 1
    patience: int = 40
    nonmonotone: bool = True
    restarts: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget is None and self.jumps is None and self.tolerance is None:
            raise InputError("fit: say when to stop, with budget= (seconds), jumps= or tolerance= (loss).")
        for name in ("budget", "jumps"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 < value < math.inf)
            ):
                raise InputError(f"fit: {name}={value!r} must be positive and finite.")
        if self.jumps is not None and self.jumps % 1:
            raise InputError(f"fit: jumps={self.jumps!r}: give a whole number.")
        if self.tolerance is not None and not (
            isinstance(self.tolerance, (int, float)) and math.isfinite(self.tolerance)
        ):
            raise InputError(f"fit: tolerance={self.tolerance!r} is a loss to stop at, or None.")
        if not isinstance(self.nonmonotone, bool):
            raise InputError(f"fit: nonmonotone={self.nonmonotone!r}: give True or False.")
        for name, least in (("every", 1), ("patience", 1), ("restarts", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"fit: {name}={value!r}: give a whole number of at least {least}.")

    @property
    def limit(self) -> float:
        """Most jumps."""
        return math.inf if self.jumps is None else self.jumps


@dataclass
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
    history: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def at(theta: Tensor) -> FitState:
        """The start of a fit at weights θ, before anything is measured."""
        return FitState(theta, theta.clone())

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
    def from_flat(table: dict[str, Any], size: int) -> FitState:
        """What ``flat`` gave, for ``size`` parameters.

        Raises:
            InputError: a value that no fit can have; named.
        """
        table = dict(table)
        for name, value in table.items():
            if not _possible(name, value, size):
                raise InputError(f"{name}={value!r:.60} is nothing that a fit of {size} parameters leaves behind.")
        memory = {name: table.pop(name) for name in Memory().state_dict() if name not in ("best", "horizon")}
        memory |= {"best": table.pop("best_met"), "horizon": table.pop("next_horizon")}
        stage, best = Stage[table.pop("stage")], table.pop("best_theta")
        return FitState(**table, best=best, stage=stage, memory=Memory.from_state(memory))


COUNTS = ("jumps", "accepted", "refused", "restarts", "since")


def _possible(name: str, value: Any, size: int) -> bool:
    """Whether a flat state can hold this; what memory holds is checked by itself."""
    if name in ("theta", "best_theta"):
        return isinstance(value, Tensor) and value.shape == (size,) and bool(torch.isfinite(value).all())
    if name in COUNTS:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if name in ("loss", "best_loss", "start", "seconds", "cost", "reach", "mark", "predicted"):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if name == "stage":
        return value in Stage.__members__
    return isinstance(value, list) if name == "history" else True


class FitRun:
    """One fit on its way: the state, and what is done to it.

    Args:
        objective: with the parameters that move.
        options: of jumps, as for :class:`jumpstart.Jumper`.
    """

    def __init__(
        self,
        objective: Objective,
        settings: FitSettings,
        error: Callable[[nn.Module], float] | None,
        metric: MetricLike,
        options: dict[str, Any],
        progress: bool | None = None,
    ) -> None:
        self.objective, self.settings, self.error = objective, settings, error
        self.metric, self.progress = metric, progress
        self.jumper = Jumper(objective, metric=metric, **options)
        implicit = options.get("search") == LEVENBERG_MARQUARDT
        squared = objective.loss.curvature is not None
        self.climbs = settings.nonmonotone and implicit and squared and self.jumper.settings.may_climb
        self.state = FitState.at(objective.theta())
        self.watched, self.last_error = 0.0, None
        self.last: JumpResult | None = None

    # -- state -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From the present weights on."""
        state = self.state
        state.loss = state.best_loss = state.start = self.value(state.theta)
        if not math.isfinite(state.start):
            raise NonFiniteError(
                f"fit: the loss is {state.start} at the present weights, though the outputs are finite: start from "
                "smaller weights, or scale inputs and targets."
            )
        state.stage = Stage.DESCEND if self.climbs else Stage.LAND

    def resume(self, state: FitState) -> None:
        """From a state that an earlier run left behind."""
        self.state = state
        self.write(state.theta)
        self.jumper.memory = state.memory
        if state.stage is not Stage.LAND and not self.climbs:
            self.perform(Action.LAND)
        self.jumper.nonmonotone = state.stage is Stage.CLIMB

    def value(self, theta: Tensor) -> float:
        """What jumps descend: Φ and the penalty of weight decay, at weights θ (P,)."""
        metric = metric_of(self.metric, self.objective, self.jumper.settings.weight_decay)
        return self.objective.value(theta) + metric.penalty(theta)

    def write(self, theta: Tensor) -> None:
        """Put weights θ (P,) into the model."""
        self.objective.space.write(self.objective.model, theta)

    # -- what is done ------------------------------------------------------------------------------------------

    def jump(self) -> JumpResult:
        """One jump from the present weights; the best are kept."""
        state = self.state
        with shown(self.progress):
            result = self.last = self.jumper.jump()
        state.memory, state.jumps = self.jumper.memory, state.jumps + 1
        state.seconds, state.cost = state.seconds + result.seconds, state.cost + result.gradient_evaluations
        if result.accepted:
            state.accepted, state.refused, state.loss = state.accepted + 1, 0, result.actual
            state.theta = self.objective.space.read(self.objective.model)
            if state.loss < state.best_loss:
                state.best, state.best_loss, state.reach = state.theta, state.loss, result.horizon
        else:
            state.refused += 1
        # Refusals shorten the next horizon, and what it predicts: the largest since the loss last fell counts.
        state.predicted = max(state.predicted, result.predicted_decrease / max(abs(result.before), 1e-300))
        self._record(result)
        return result

    def _record(self, result: JumpResult) -> None:
        state = self.state
        row = {
            "jump": state.jumps, "seconds": state.seconds, "gradient_evaluations": state.cost, "loss": state.loss,
            "best": state.best_loss, "horizon": result.horizon, "outcome": result.outcome.name,
            "stage": state.stage.name,
        }  # fmt: skip
        if self.error is not None and self.watched <= WATCH * state.seconds:
            begun = time.perf_counter()
            row["error"] = self.last_error = self.measure()
            self.watched += time.perf_counter() - begun
        state.history.append(row)

    def measure(self) -> float | None:
        """``error`` of the model as it is."""
        if self.error is None:
            return None
        with torch.no_grad(), module_mode(self.objective.model, False):
            return float(self.error(self.objective.model))

    def shown(self) -> str:
        """What stands beside the progress bar."""
        error = "" if self.last_error is None else f", error {self.last_error:.2e}"
        return f"loss {self.state.best_loss:.2e}{error}"

    def resample(self, points: Any) -> None:
        """Other collocation points: losses are compared on these from now on."""
        if points is None:
            return
        state, begun = self.state, time.perf_counter()
        self.objective = self.jumper.objective = self.objective.resampled(points)  # type: ignore[attr-defined]
        state.loss, state.best_loss = self.value(state.theta), self.value(state.best)
        if not state.loss < math.inf:
            state.theta, state.loss = state.best, state.best_loss
            self.write(state.best)
        elif state.loss < state.best_loss:
            state.best, state.best_loss = state.theta, state.loss
        # What was reached on other points says nothing here.
        state.mark = self.reached
        if state.stage is Stage.CLIMB:
            self.remember(replace(state.memory, best=state.best_loss))
        state.seconds += time.perf_counter() - begun

    def remember(self, memory: Memory) -> None:
        """What the next jump goes on from."""
        self.state.memory = self.jumper.memory = memory

    # -- events ------------------------------------------------------------------------------------------------

    @property
    def reached(self) -> float:
        """The loss that patience is measured by: the best; on landing, the present one."""
        return self.state.loss if self.state.stage is Stage.LAND else self.state.best_loss

    def down(self) -> bool:
        """Whether the loss has come down, or there have been jumps enough."""
        state = self.state
        return state.jumps >= CAUTION or 0 <= state.best_loss <= DESCENT * state.start

    def late(self) -> bool:
        """Whether most of the budget is gone."""
        budget, state = self.settings.budget, self.state
        return max(state.seconds / budget if budget else 0.0, state.jumps / self.settings.limit) >= LANDING

    def stuck(self) -> bool:
        """Whether jumps have been refused too often in a row, or the loss has hardly fallen for ``patience`` jumps."""
        state, reached = self.state, self.reached
        if state.mark - reached > CALM * abs(state.mark) or math.isinf(state.mark):
            state.since, state.mark, state.predicted = state.jumps, reached, 0.0
        return state.refused >= REFUSED or state.jumps - state.since >= self.settings.patience

    def meet(self, event: Event) -> bool:
        """Do what the table says about an event; False where that leads nowhere any more."""
        return self.perform(TRANSITIONS.get((self.state.stage, event), Action.NONE))

    def perform(self, action: Action) -> bool:
        """False for a restart when all are used up."""
        if action is Action.CLIMB:
            self._climb()
        elif action is Action.LAND:
            self._land()
        elif action is Action.RESTART:
            return self._restart()
        return True

    def _climb(self) -> None:
        state = self.state
        state.stage, state.refused, state.since = Stage.CLIMB, 0, state.jumps
        self.remember(state.memory.restarted(state.best_loss))
        self.jumper.nonmonotone = True

    def _land(self) -> None:
        state = self.state
        climbing = state.stage is Stage.CLIMB
        state.stage, state.theta, state.loss = Stage.LAND, state.best, state.best_loss
        state.refused, state.since, state.mark = 0, state.jumps, state.best_loss
        memory = state.memory.restarted()
        if climbing:
            # Damping in proportion to the loss, as where the search comes down all the way; or what led here.
            horizon = max(LAND_HORIZON / state.loss, state.reach) if state.loss > 0 else None
            memory = replace(memory, horizon=horizon, scale=1.0)
        self.remember(memory)
        self.jumper.nonmonotone = False
        self.write(state.theta)

    def _restart(self) -> bool:
        """Go on from the best weights, perturbed."""
        state, space = self.state, self.objective.space
        if state.restarts >= self.settings.restarts:
            return False
        noise = normal(state.best.shape, self.settings.seed + state.restarts).to(state.best)
        size = torch.cat([t.square().mean().sqrt().expand(t.numel()) for t in state.best.split(space.sizes)])
        size = torch.where(size > 0, size, size.mean())
        theta = state.best + KICK * 2.0**state.restarts * size * noise
        loss = self.value(theta)
        state.restarts, state.refused, state.since = state.restarts + 1, 0, state.jumps
        if loss < math.inf:
            state.theta, state.loss, state.mark = theta, loss, loss
            self.remember(replace(state.memory, horizon=None, scale=1.0))
            self.write(theta)
        return True

    # -- the end -----------------------------------------------------------------------------------------------

    def cause(self) -> str:
        """What probably stands in the way: the linearized problem itself, rounding, or the network's curvature."""
        state, last = self.state, self.last
        eps = torch.finfo(self.objective.space.dtype).eps
        if abs(state.best_loss) <= (1e3 * eps) ** 2 * max(abs(state.start), 1e-300):
            return f"The loss is at the rounding of {self.objective.space.dtype}: there is nothing left to gain."
        if last is not None and last.outcome in (Outcome.NOT_FINITE, Outcome.UNSOLVED):
            return f"Of the last jump: {last.outcome.value}"
        share = self._worst_term()
        if not state.predicted > 0.1:
            return (
                "Even the linearized problem cannot lower the loss: a local minimum, a network too small, or terms "
                f"that contradict each other.{share}"
            )
        return (
            "The linearized problem could lower the loss, but the network bends away from it, or is not "
            f"finite there: a poor start (another seed), inputs of unequal scale, or float32 at its limit.{share}"
        )

    def _worst_term(self) -> str:
        if not hasattr(self.objective, "terms"):
            return ""
        self.write(self.state.best)
        terms: Sequence[Any] = self.objective.terms()  # type: ignore[attr-defined]
        worst = max(terms, key=lambda term: term.share)
        return f" {worst.share:.0%} of the loss is {worst.name!r}."
