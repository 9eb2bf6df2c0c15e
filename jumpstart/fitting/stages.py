"""The stages of a fit: march boldly, land from the best weights, restart; and what is remembered on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..jumping.jump import JumpResult, jump
from ..jumping.levenberg_marquardt import Course
from ..jumping.trust import Outcome, Trust
from ..linalg.nystrom import Nystrom
from ..linearization.metric import metric_of
from ..objectives.objective import Objective
from ..objectives.pure import module_mode
from ..utils.autodiff import normal
from ..utils.progress import shown

REFUSED = 3  # rejections in a row after which something else is tried
CALM = 0.99  # a run of ``patience`` jumps that leaves more than this share of the loss has stagnated
LAND_HORIZON = 500.0  # times 1/loss: where landing starts its search
KICK = 0.03  # size of the first perturbation of a restart, relative to each tensor's own root mean square
CAUTION = 20  # jumps after which a march may be bold at the latest (these three: seeds 100 to 105)
DESCENT = 0.01  # or once the loss is this share of the first
LANDING = 0.6  # share of the budget after which a bold march goes back to the best weights and may no longer climb
WATCH = 0.1  # share of the time that may go into calls of ``error``


@dataclass
class State:
    """Everything that a fit needs to go on where it was interrupted: present and best weights, losses, counts."""

    theta: Tensor
    best: Tensor
    loss: float
    best_loss: float
    start: float
    trust: Trust
    seconds: float = 0.0
    cost: float = 0.0
    jumps: int = 0
    accepted: int = 0
    refused: int = 0
    restarts: int = 0
    may_climb: bool = False  # whether the fit is one that turns bold, and has not landed yet
    course: Course | None = None  # of a march that is bold already
    reach: float = 0.0  # the horizon that led to the best weights
    since: int = 0  # the jump at which patience began
    mark: float = math.inf  # the loss at that time
    history: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def at(theta: Tensor) -> State:
        """The start of a fit at weights θ, before anything is measured."""
        return State(theta, theta.clone(), math.inf, math.inf, math.inf, Trust())


class Run:
    """One fit on its way: the state, and what is done to it."""

    state: State

    def __init__(
        self,
        objective: Objective,
        state: State,
        error: Callable[[nn.Module], float] | None,
        options: dict[str, Any],
        seed: int,
        restarts: int,
        progress: bool | None = None,
    ) -> None:
        self.objective, self.state, self.error, self.options = objective, state, error, options
        self.seed, self.restarts, self.progress = seed, restarts, progress
        self.watched, self.last_error = 0.0, None
        self.promise = 0.0  # share of the loss that the linearized problem would take away
        self.sketch: Nystrom | None = None  # of the last matrix-free jump

    def value(self, theta: Tensor) -> float:
        """What jumps descend: Φ and the penalty of weight decay, at weights θ (P,)."""
        metric = metric_of(self.options.get("metric"), self.objective, self.options.get("weight_decay"))
        return self.objective.value(theta) + metric.penalty(theta)

    def jump(self) -> JumpResult:
        """One jump from the present weights; the best are kept."""
        state = self.state
        if state.jumps >= CAUTION or state.best_loss <= DESCENT * state.start:
            self.embolden()
        with shown(self.progress):
            result = jump(self.objective, trust=state.trust, course=state.course, recycle=self.sketch, **self.options)
        self.sketch = result.sketch
        state.trust, state.course, state.jumps = result.trust, result.course, state.jumps + 1
        state.seconds, state.cost = state.seconds + result.seconds, state.cost + result.gradient_evaluations
        if result.accepted:
            state.accepted, state.refused, state.loss = state.accepted + 1, 0, result.actual
            state.theta = self.objective.space.read(self.objective.model)
            if state.loss < state.best_loss:
                state.best, state.best_loss, state.reach = state.theta, state.loss, result.horizon
        else:
            state.refused += 1
        share = result.promised / result.before if result.before > 0 else 0.0
        # Refusals shorten the next horizon, and its promise: the largest since the loss last fell counts.
        self.promise = max(self.promise, share)
        row = {
            "jump": state.jumps, "seconds": state.seconds, "gradient_evaluations": state.cost, "loss": state.loss,
            "best": state.best_loss, "horizon": result.horizon, "outcome": result.outcome.name,
        }  # fmt: skip
        if self.error is not None and self.watched <= WATCH * state.seconds:
            begun = time.perf_counter()
            row["error"] = self.last_error = self.measure()
            self.watched += time.perf_counter() - begun
        state.history.append(row)
        return result

    def begin(self, bold: bool) -> None:
        """Where a fit starts that goes on from no other."""
        state = self.state
        state.loss = state.best_loss = state.start = self.value(state.theta)
        state.may_climb = bold

    def measure(self) -> float | None:
        """``error`` of the model as it is."""
        if self.error is None:
            return None
        with torch.no_grad(), module_mode(self.objective.model, False):
            return float(self.error(self.objective.model))

    def shown(self) -> str:
        return "" if self.last_error is None else f", error {self.last_error:.2e}"

    def resample(self, points: Any) -> None:
        """Other collocation points: losses are compared on these from now on."""
        if points is None:
            return
        state, begun = self.state, time.perf_counter()
        self.objective = self.objective.resampled(points)  # type: ignore[attr-defined]
        state.loss, state.best_loss = self.value(state.theta), self.value(state.best)
        if not state.loss < math.inf:
            state.theta, state.loss = state.best, state.best_loss
            self.objective.space.write(self.objective.model, state.best)
        elif state.loss < state.best_loss:
            state.best, state.best_loss = state.theta, state.loss
        # What was reached on other points says nothing here.
        state.mark = state.best_loss if state.may_climb else state.loss
        if state.course is not None:
            state.course = replace(state.course, best=state.best_loss)
        state.seconds += time.perf_counter() - begun

    def stagnant(self, patience: int) -> bool:
        """Whether jumps have been refused too often in a row, or the loss has hardly fallen for ``patience`` jumps."""
        state = self.state
        reached = state.best_loss if state.may_climb else state.loss
        if reached < CALM * state.mark:
            state.since, state.mark, self.promise = state.jumps, reached, 0.0
        return state.refused >= REFUSED or state.jumps - state.since >= patience

    def spent(self, budget: float | None, limit: float) -> float:
        """Share of the budget that is gone."""
        return max(self.state.seconds / budget if budget else 0.0, self.state.jumps / limit)

    def embolden(self) -> bool:
        """Let the loss rise from now on; False where that is so already, or no longer."""
        state = self.state
        if not state.may_climb or state.course is not None:
            return False
        state.course, state.refused, state.since = Course(state.best_loss), 0, state.jumps
        return True

    def land(self) -> bool:
        """Go on from the best weights, and no longer climb; False where that is so already."""
        state = self.state
        if not state.may_climb:
            return False
        climbing = state.course is not None
        state.may_climb, state.course, state.theta, state.loss = False, None, state.best, state.best_loss
        state.refused, state.since, state.mark = 0, state.jumps, state.best_loss
        if climbing:
            # Damping in proportion to the loss, as where a march comes down all the way; or what led here.
            state.trust = Trust(horizon=max(LAND_HORIZON / state.loss, state.reach)) if state.loss > 0 else Trust()
        self.objective.space.write(self.objective.model, state.theta)
        return True

    def restart(self) -> bool:
        """Go on from the best weights, perturbed; False once all restarts are used up."""
        state, space = self.state, self.objective.space
        if state.restarts >= self.restarts:
            return False
        noise = normal(state.best.shape, self.seed + state.restarts).to(state.best)
        size = torch.cat([t.square().mean().sqrt().expand(t.numel()) for t in state.best.split(space.sizes)])
        size = torch.where(size > 0, size, size.mean())
        theta = state.best + KICK * 2.0**state.restarts * size * noise
        loss = self.value(theta)
        state.restarts, state.refused, state.since = state.restarts + 1, 0, state.jumps
        if loss < math.inf:
            state.theta, state.loss, state.mark, state.trust = theta, loss, loss, Trust()
            space.write(self.objective.model, theta)
        return True

    def cause(self, last: JumpResult) -> str:
        """What probably stands in the way: the linearized problem itself, rounding, or the network's curvature."""
        state = self.state
        eps = torch.finfo(self.objective.space.dtype).eps
        if state.best_loss <= (1e3 * eps) ** 2 * max(state.start, 1e-300):
            return f"The loss is at the rounding of {self.objective.space.dtype}: there is nothing left to gain."
        if last.outcome in (Outcome.NOT_FINITE, Outcome.UNSOLVED):
            return f"Of the last jump: {last.outcome.value}"
        share = ""
        self.objective.space.write(self.objective.model, state.best)
        if hasattr(self.objective, "terms"):
            terms: Sequence[Any] = self.objective.terms()  # type: ignore[attr-defined]
            worst = max(terms, key=lambda term: term.share)
            share = f" {worst.share:.0%} of the loss is {worst.name!r}."
        if not self.promise > 0.1:
            return (
                "Even the linearized problem cannot lower the loss: a local minimum, a network too small, or terms "
                f"that contradict each other.{share}"
            )
        return (
            "The linearized problem could lower the loss, but the network bends away from it, or is not "
            f"finite there: a poor start (another seed), inputs of unequal scale, or float32 at its limit.{share}"
        )
