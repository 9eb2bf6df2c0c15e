"""The stages of a fit, as a table: descend, climb, approach, land, restart; and the run that goes through them."""

from __future__ import annotations

import enum
import math
import numbers
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ..errors import InputError, NonFiniteError
from ..flow.horizon import FARTHEST
from ..jumping.jump import JumpResult
from ..jumping.jumper import Jumper
from ..jumping.settings import LEVENBERG_MARQUARDT
from ..jumping.trust import Outcome
from ..linearization.metric import MetricLike, metric_of
from ..objectives.objective import Objective
from ..objectives.pure import module_mode
from ..objectives.residual import Residuals
from ..utils.autodiff import normal
from ..utils.guard import guarded
from ..utils.interrupts import uninterrupted
from ..utils.progress import shown
from .collocation import Collocation, placed, replaced, what_parted
from .settings import FitSettings
from .state import FitState, Stage

REFUSED = 3  # rejections in a row after which something else is tried
CALM = 0.01  # a run of ``patience`` jumps that takes less than this share off the loss has stagnated
LAND_HORIZON = 5.0  # times 1/loss: where landing starts its search
KICK = 0.03  # size of the first perturbation of a restart, relative to each tensor's own root mean square
CAUTION = 20  # jumps after which a fit may climb at the latest (these three: seeds 100 to 105)
DESCENT = 0.01  # or once the loss is this share of the first
LANDING = 0.6  # share of the budget after which a nonmonotone fit goes back to the best weights and climbs no more
LATER = 0.85  # the same on points that move: landing from the weights lowest on others takes a few jumps
WATCH = 0.1  # share of the time that may go into calls of ``error``
LOST = 3.0  # times the lowest loss on unseen points, beyond which an approach has lost what it found
DEAR = 25  # jumps that landing may take in any case, where 15% of the budget is less: points are renewed in these
RECENT = 20  # jumps whose time says what the next take
APPROACH, BRIEF = 10, 3  # jumps after which an approach is judged: after two looks at unseen points, or by the loss
LONGER = 4  # times the patience with a climb on points that move: what it gains shows when it lands
ROUNDING = 1e3  # times the precision of a number: residuals of this size, relative to the first, are nothing


class Event(enum.Enum):
    """What happens to a fit."""

    DOWN = "the loss has come down, or enough jumps have been made to"
    LATE = "most of the budget is spent"
    STUCK = "jumps are refused, or the loss no longer falls"
    LOWER = "an approach has led lower than anything before"
    HIGHER = "an approach has not"
    STILL = "the gradient vanishes"
    BROKEN = "derivatives are not finite where the weights are"


class Action(enum.Enum):
    """What is done about it; ``NONE`` goes on."""

    NONE = enum.auto()
    CLIMB = enum.auto()
    APPROACH = enum.auto()
    LAND = enum.auto()
    RESTART = enum.auto()


# What an event leads to in each stage. Everything that is not listed goes on as before.
TRANSITIONS: dict[tuple[Stage, Event], Action] = {
    (Stage.DESCEND, Event.DOWN): Action.CLIMB,
    (Stage.DESCEND, Event.STUCK): Action.CLIMB,
    (Stage.DESCEND, Event.LATE): Action.LAND,
    (Stage.DESCEND, Event.STILL): Action.RESTART,
    (Stage.DESCEND, Event.BROKEN): Action.LAND,
    (Stage.CLIMB, Event.STUCK): Action.APPROACH,
    (Stage.CLIMB, Event.LATE): Action.APPROACH,
    (Stage.CLIMB, Event.STILL): Action.RESTART,
    (Stage.CLIMB, Event.BROKEN): Action.LAND,
    (Stage.APPROACH, Event.LOWER): Action.CLIMB,
    (Stage.APPROACH, Event.HIGHER): Action.LAND,
    (Stage.APPROACH, Event.BROKEN): Action.LAND,
    (Stage.LAND, Event.STUCK): Action.RESTART,
    (Stage.LAND, Event.STILL): Action.RESTART,
    (Stage.LAND, Event.BROKEN): Action.RESTART,
}


class FitRun:
    """One fit on its way: the state, and what is done to it.

    Every step makes the next state apart; ``state`` is assigned once it is whole, so that whatever interrupts a step
    finds the run before or after it. The model and the jumper are told what the state says before each jump.

    Args:
        objective: with the parameters that move.
        options: of jumps, as for :class:`jumpstart.Jumper`. moving: whether drawn points may be renewed.
    """

    def __init__(
        self,
        objective: Objective,
        settings: FitSettings,
        error: Callable[[nn.Module], float] | None,
        metric: MetricLike,
        options: dict[str, Any],
        progress: bool | None = None,
        moving: bool = True,
    ) -> None:
        self.objective, self.settings, self.error = objective, settings, error
        self.metric, self.progress, self.moving = metric, progress, moving
        self.jumper = Jumper(objective, metric=metric, penalty_pays=True, **options)
        implicit = options.get("search") == LEVENBERG_MARQUARDT
        squared = objective.loss.quadratic
        self.climbs = settings.nonmonotone and implicit and squared and self.jumper.settings.may_climb
        self.points = Collocation.of(objective, settings, options.get("memory_limit"), moving)
        self.state = FitState.at(objective.theta())
        self.held: Tensor | None = self.state.theta  # what the model holds
        self.watched, self.last_error = 0.0, None
        self.own = math.nan  # the loss, of the terms that ``generalization`` is about

    # -- state -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From the present weights on."""
        start = self.value(self.state.theta)
        if not math.isfinite(start):
            raise NonFiniteError(
                f"fit: the loss is {start} at the present weights, though the outputs are finite: start from "
                "smaller weights, or scale inputs and targets."
            )
        stage = Stage.DESCEND if self.climbs else Stage.LAND
        self.state = replace(self.state, loss=start, best_loss=start, start=start, stage=stage)

    def resume(self, state: FitState) -> None:
        """From a state that an earlier run left behind."""
        self.state = state if state.stage is Stage.LAND or self.climbs else self._landed(state)

    def mismatch(self, state: FitState) -> str:
        """What is wrong with the losses of a state that a file told of; empty if they are what they are here."""
        eps = torch.finfo(self.objective.space.dtype).eps
        floor = (ROUNDING * eps) ** 2 * abs(state.start)
        for name, theta, told in (("loss", state.theta, state.loss), ("best_loss", state.best, state.best_loss)):
            here = self.value(theta)
            # Rounding moves residuals, and with them the square root of a loss.
            close = eps**0.5 * abs(told) + 2 * math.sqrt(abs(told) * floor) + floor
            if not (abs(here - told) <= close or here == told):
                return f"{name} is {told:.6g} in the file, and {here:.6g} at its weights here."
        return ""

    def value(self, theta: Tensor) -> float:
        """What jumps descend: Φ and the penalty of weight decay, at weights θ (P,)."""
        metric = metric_of(self.metric, self.objective, self.jumper.settings.weight_decay)
        return self.objective.value(theta) + metric.penalty(theta)

    def write(self, theta: Tensor) -> None:
        """Put weights θ (P,) into the model."""
        with uninterrupted():
            self.held = None  # known, if this fails
            self.objective.space.write(self.objective.model, theta)
            self.held = theta

    def place(self, state: FitState) -> None:
        """Put a state's weights into the model, if they are not there."""
        if self.held is not state.theta:
            self.write(state.theta)

    # -- what is done ------------------------------------------------------------------------------------------

    def jump(self, state: FitState) -> tuple[JumpResult, FitState]:
        """One jump from a state, and the state after it; the best weights are kept."""
        self.place(state)
        self.jumper.memory, self.jumper.nonmonotone = state.memory, state.stage is Stage.CLIMB
        with shown(self.progress):
            result = self.jumper.jump()
        # Refusals shorten the next horizon, and what it predicts: the largest since the loss last fell counts.
        predicted = max(state.predicted, result.predicted_decrease / max(abs(result.before), 1e-300))
        state = replace(
            state, memory=self.jumper.memory, jumps=state.jumps + 1, seconds=state.seconds + result.seconds,
            cost=state.cost + result.gradient_evaluations, predicted=predicted,
        )  # fmt: skip
        if result.accepted:
            theta = self.held = self.objective.space.read(self.objective.model)
            state = replace(state, accepted=state.accepted + 1, refused=0, theta=theta, loss=result.actual)
            if state.loss < state.best_loss:
                state = replace(state, best=theta, best_loss=state.loss, reach=result.horizon)
        else:
            state = replace(state, refused=state.refused + 1)
        row = {
            "jump": state.jumps, "seconds": state.seconds, "gradient_evaluations": state.cost, "loss": state.loss,
            "best": state.best_loss, "horizon": result.horizon, "outcome": result.outcome.name,
            "stage": state.stage.name, "candidates": result.candidates, "basis": result.basis, "modes": result.modes,
        }  # fmt: skip
        perhaps = {
            "before": result.before, "predicted": result.predicted, "actual": result.actual,
            "next_horizon": state.memory.horizon or math.nan, "max_rate": result.max_rate, "trace": result.trace,
        }  # fmt: skip
        row |= {name: value for name, value in perhaps.items() if not math.isnan(value)}
        return result, replace(state, history=[*state.history, row])

    def watch(self) -> None:
        """Add ``error`` of the model as it is to the last row, if that has not taken too much time so far."""
        if self.error is None or self.watched > WATCH * self.state.seconds:
            return
        found = self.measure()
        *rows, last = self.state.history
        self.state = replace(self.state, history=[*rows, {**last, "error": found}])

    @guarded(lambda self, **_: self.objective.model)
    def measure(self) -> float | None:
        """``error`` of the model as it is.

        Raises:
            InputError: it is no number.
        """
        if self.error is None:
            return None
        begun = time.perf_counter()
        with torch.no_grad(), module_mode(self.objective.model, False):
            found = self.error(self.objective.model)
        self.watched += self.objective.elapsed(begun)
        self.last_error = _number(found)
        return self.last_error

    def shown(self) -> str:
        """What stands beside the progress bar."""
        error = "" if self.last_error is None else f", error {self.last_error:.2e}"
        unseen = f", unseen {self.state.unseen:.2e}" if self.state.unseen < math.inf else ""
        return f"loss {self.state.best_loss:.2e}{unseen}{error}"

    def use(self, points: Any) -> None:
        """Other collocation points, on which the state's losses were measured already."""
        if points is not None:
            self.objective = self.jumper.objective = self.objective.resampled(points)  # type: ignore[attr-defined]

    def resampled(self, state: FitState, points: Any) -> FitState:
        """The state on other collocation points: losses are compared on these from now on."""
        if points is None:
            return state
        begun = time.perf_counter()
        return self.moved(state, self.objective.resampled(points), begun)  # type: ignore[attr-defined]

    def return_to(self, state: FitState) -> None:
        """The collocation points of a state, and their weights, on which its losses were measured."""
        if self.points is not None:
            self.objective = self.jumper.objective = replaced(state, self.objective) or self.objective  # type: ignore[arg-type]

    def level(self, state: FitState) -> float:
        """The loss that a tolerance is about: on points never trained on, where there are any."""
        return state.kept_unseen if self.points is not None and self.points.decides else state.best_loss

    def answer(self) -> Tensor:
        """The weights that the fit is for; of the last jumps too, after which nobody has looked at unseen points.

        The state knows nothing of this look, so that a run goes on as if it had not been interrupted here.
        """
        state = self.state
        if self.points is None or not self.points.decides or not state.history or "unseen" in state.history[-1]:
            return state.answer
        latest = {self.points.loss(theta): theta for theta in (state.theta, state.best)}
        return latest[min(latest)] if min(latest) < state.kept_unseen else state.answer

    def generalization(self, answer: Tensor) -> float | None:
        """The loss at the answer on points that nothing was chosen by, if there is a way to ask."""
        if self.points is not None:
            return self.points.fresh(answer)
        pair = self.objective.between(answer) if isinstance(self.objective, Residuals) else None
        if pair is None:
            return None
        found, self.own = pair
        return found

    def residuals(self) -> list[dict[str, Any]]:
        """Where each term is large at the weights that the model holds; one forward pass."""
        return [found.row() for found in self.objective.maps()] if isinstance(self.objective, Residuals) else []

    def parted(self, generalization: float | None) -> str:
        """What is to be said of a fit whose loss says nothing of the equation; empty if there is nothing."""
        if generalization is None or (self.points is not None and self.points.moves):
            return ""
        own = self.own if self.points is None else self.objective.drawn_loss(self.answer())  # type: ignore[attr-defined]
        return what_parted(generalization, own, self.state.start, self.points is not None)

    def looked(self, state: FitState) -> FitState:
        """The state with the loss on points never trained on; on other points where the two have parted."""
        if self.points is None or not self.points.due(state):
            return state
        begun = time.perf_counter()
        state, other = self.points.looked(state, self.objective)
        seconds = state.seconds + self.objective.elapsed(begun)
        state = replace(state, seconds=seconds)
        if other is None:
            return state
        return replace(self.moved(state, other, time.perf_counter()), **placed(other))

    def moved(self, state: FitState, objective: Objective, begun: float) -> FitState:
        """The state on another objective of the same weights; its making, since ``begun``, is counted."""
        heading = state.memory.heading
        self.jumper.memory = state.memory
        self.objective = self.jumper.objective = objective
        # What was reached on other points says nothing here.
        memory, before = self.jumper.memory, state.best_loss
        state = replace(state, loss=self.value(state.theta), best_loss=self.value(state.best))
        if state.stage is Stage.APPROACH and state.kept is None and before > 0:  # what it is judged by, weighed anew
            state = replace(state, mark=state.mark * state.best_loss / before)
        if not state.loss < math.inf:
            state = replace(state, theta=state.best, loss=state.best_loss)
        elif state.loss < state.best_loss:
            state = replace(state, best=state.theta, best_loss=state.loss)
        if state.stage is Stage.CLIMB:
            memory = replace(memory, best=state.best_loss, heading=heading)
        state = replace(state, memory=memory, seconds=state.seconds + self.objective.elapsed(begun))
        if state.stage is Stage.APPROACH or (state.kept is not None and state.stage is not Stage.LAND):
            return state  # patience is about points that do not move
        return replace(state, mark=state.reached, since=state.jumps)

    # -- events ------------------------------------------------------------------------------------------------

    def down(self, state: FitState) -> bool:
        """Whether the loss has come down, or there have been jumps enough."""
        return state.jumps >= CAUTION or 0 <= state.best_loss <= DESCENT * state.start

    def late(self, state: FitState) -> bool:
        """Whether most of the budget is gone."""
        budget = self.settings.budget
        spent = max(state.seconds / budget if budget else 0.0, state.jumps / self.settings.limit)
        if self.points is None or not self.points.moves:
            return spent >= LANDING
        if spent < LANDING or spent >= LATER or not budget:
            return spent >= LATER
        recent = state.history[-RECENT:]
        pace = (state.seconds - recent[0]["seconds"]) / max(len(recent) - 1, 1)
        return budget - state.seconds <= DEAR * pace

    def followed(self, state: FitState) -> FitState:
        """What follows from the last jump; ``ended`` if that leads nowhere any more."""
        if state.last == Outcome.STATIONARY.name:
            if state.best_loss == 0:  # a restart could only lose
                return replace(state, ended=True)
            if state.stage is Stage.APPROACH:
                return self._approached(state)
            after = self.met(state, Event.STILL)
            if after is None:
                return replace(state, ended=True)
            state = after
        if state.stage is Stage.APPROACH:
            return self._approached(state)
        if state.mark - state.reached > CALM * abs(state.mark) or math.isinf(state.mark):
            state = replace(state, since=state.jumps, mark=state.reached, predicted=0.0)
        # Jumps have been refused too often in a row, or the loss has hardly fallen for ``patience`` jumps.
        climbing = state.stage is Stage.CLIMB and state.kept is not None
        patience = self.settings.patience * (LONGER if climbing else 1)
        if state.refused >= REFUSED or state.jumps - state.since >= patience:
            after = self.met(state, Event.STUCK)
            return replace(state, ended=True) if after is None else after
        return state

    def met(self, state: FitState, event: Event) -> FitState | None:
        """What the table makes of an event; None where that leads nowhere any more: all restarts are used up."""
        action = TRANSITIONS.get((state.stage, event), Action.NONE)
        if action is Action.CLIMB:
            memory = state.memory.restarted(state.best_loss)
            return replace(state, stage=Stage.CLIMB, refused=0, since=state.jumps, memory=memory)
        if action is Action.APPROACH and self.moving:
            memory = state.memory.restarted()
            horizon = min(LAND_HORIZON / state.loss, FARTHEST) if state.loss > 0 else None
            memory = replace(memory, horizon=horizon, scale=1.0)
            mark = state.reached
            return replace(state, stage=Stage.APPROACH, refused=0, since=state.jumps, mark=mark, memory=memory)
        if action in (Action.APPROACH, Action.LAND):
            return self._landed(state)
        return self._restarted(state) if action is Action.RESTART else state

    def _approached(self, state: FitState) -> FitState:
        """What follows from an approach, once it is over: a climb from there, or a landing from the best weights."""
        looks = self.points if self.points is not None and self.points.decides else None
        made = state.jumps - state.since
        over = made >= (BRIEF if looks is None else APPROACH) and (looks is None or looks.due(state))
        if not over and state.refused < REFUSED and state.last != Outcome.STATIONARY.name:
            return state
        if looks is not None and not looks.due(state):  # nobody has looked at where it has come to
            state = replace(state, unseen=looks.loss(state.theta))
            if state.unseen < state.kept_unseen:
                state = replace(state, kept=state.theta, kept_unseen=state.unseen)
        lower = state.mark - state.reached > CALM * abs(state.mark)
        if lower and self.late(state):
            if looks is not None and state.unseen > LOST * state.kept_unseen:
                return self._landed(state)
            if looks is not None:
                state = replace(state, best=state.theta, best_loss=state.loss)
            # It is the landing.
            return replace(state, stage=Stage.LAND, refused=0, since=state.jumps, mark=state.loss)
        after = self.met(state, Event.LOWER if lower else Event.HIGHER)
        assert after is not None
        return after

    def _landed(self, state: FitState) -> FitState:
        memory = state.memory.restarted()
        if state.kept is not None:
            state = replace(state, best=state.kept, best_loss=self.value(state.kept))
        if state.stage is not Stage.DESCEND and not state.best.equal(state.theta):
            # Damping in proportion to the loss, as where the search comes down all the way; or what led here.
            best = state.best_loss
            horizon = min(max(LAND_HORIZON / best, state.reach), FARTHEST) if best > 0 else None
            memory = replace(memory, horizon=horizon, scale=1.0)
        state = replace(state, stage=Stage.LAND, theta=state.best, loss=state.best_loss, memory=memory)
        return replace(state, refused=0, since=state.jumps, mark=state.best_loss)

    def _restarted(self, state: FitState) -> FitState | None:
        """Go on from the best weights, perturbed."""
        if state.restarts >= self.settings.restarts:
            return None
        noise = normal(state.best.shape, self.settings.seed + state.restarts).to(state.best)
        sizes = self.objective.space.sizes
        size = torch.cat([t.square().mean().sqrt().expand(t.numel()) for t in state.best.split(sizes)])
        size = torch.where(size > 0, size, size.mean())
        theta = state.best + KICK * 2.0**state.restarts * size * noise
        loss = self.value(theta)
        state = replace(state, restarts=state.restarts + 1, refused=0, since=state.jumps)
        if loss < math.inf:
            memory = replace(state.memory, horizon=None, scale=1.0)
            state = replace(state, theta=theta, loss=loss, mark=loss, memory=memory)
        return state

    # -- the end -----------------------------------------------------------------------------------------------

    def cause(self) -> str:
        """What probably stands in the way: the linearized problem itself, rounding, or the network's curvature."""
        state = self.state
        eps = torch.finfo(self.objective.space.dtype).eps
        if abs(state.best_loss) <= (ROUNDING * eps) ** 2 * max(abs(state.start), 1e-300):
            return f"The loss is at the rounding of {self.objective.space.dtype}: there is nothing left to gain."
        if state.last in (Outcome.NOT_FINITE.name, Outcome.UNSOLVED.name):
            return f"Of the last jump: {Outcome[state.last].value}"
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


def _number(found: Any) -> float:
    """What ``error`` returned as a number; NaN is one.

    Raises:
        InputError: it is none.
    """
    plain: Any = found
    if isinstance(found, (numpy.ndarray, numpy.generic, Tensor)):
        if math.prod(found.shape) != 1:
            raise InputError(f"fit: error= returned numbers of shape {tuple(found.shape)}: return one, such as a norm.")
        plain = found.reshape(-1).tolist()[0]
    if not isinstance(plain, numbers.Real):
        raise InputError(f"fit: error= returned {type(plain).__name__} {plain!r:.60}: return one real number.")
    return float(plain)
