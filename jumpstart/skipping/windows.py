"""Windows of a skip: predict, ask the real network, correct, believe as much as the two agree on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..objectives.objective import Objective
from ..objectives.parameters import as_reals
from ..utils.cost import FORWARD, GRADIENT, Ledger, Work, loop_step, optimizer_step
from .forecast import SECANTS, Forecast
from .replay import Replay
from .replica import Replica
from .result import SkipOutcome, SkipResult

TOLERANCE = 0.2  # of predicted and corrected weights, relative to their movement in a window
MISS = 0.3  # of outputs, relative to their movement: further off is not believed
RISE = 0.1  # of the loss: a skip along which it rises by more has left a run at the edge of stability
OPENING = 4  # steps of a first window
LONGEST = 2.0  # a window over the last, at most
SAFETY = 0.9
SURE = 0.1  # of the tolerance: a gradient this near to its forecast needs no correction of the way to it
FLAT = 2.0  # an error that grows by less along a window is no matter of its length
FEW, LITTLE = 3, 0.5  # windows that say something, and the share of its cost in steps below which a way is not gone
MARKS = 0.75  # ratio of neighbouring steps at which a window may end
PAYS = 1.25  # steps that a window must bring for each step's worth of work, or the loop may as well take them
FORECAST_CALLS = 6  # operations of a forecast, and of moving weights in and out of the copy
OWN_CALLS = 400  # operations that a window is worth beside its passes and steps: swapped weights, secants, copies
OWN_WINDOWS = 2  # that a skip is worth beside its windows, and a rehearsal with the past that it needs


@dataclass(frozen=True)
class Conditions:
    """What a loop tells a skip.

    Attributes:
        rate: what a gradient of the objective costs in steps of the loop (its rows over those of a minibatch).
        known: weights (P,) and the objective's gradient (P,) there, where the loop has computed it already.
        behind: the loop steps its scheduler for its last step after the skip, and not before.
        noise: what minibatches add to second moments (``noise.minibatch_noise``).
        approve: asked of what was found and the weights before and after, and told where to book what that costs: why
            they must not move, or nothing.
    """

    rate: float = 1.0
    known: tuple[tuple[Tensor, Tensor], ...] = ()
    behind: bool = False
    noise: Callable[[Replica], None] | None = None
    approve: Callable[[SkipResult, Tensor, Tensor, Ledger], str | None] | None = None


@dataclass(frozen=True)
class Prices:
    """What things cost, in steps of the loop.

    Attributes:
        virtual: a virtual step. gradient: a gradient, in evaluations of one: where a batch is in parts, all of them are
            asked for outputs before each is for its gradient. rate: an evaluation.
        own: what a window takes besides, on nothing. It says whether to skip again, and not where to end a skip:
            windows grow, and who stops begins anew with short ones (docs/decisions/0026).
    """

    virtual: float
    gradient: float
    rate: float
    own: float = 0.0

    @classmethod
    def of(cls, objective: Objective, replay: Replay, work: Work, rate: float) -> Prices:
        """From the work of a forward pass and of the optimizer's own operations."""
        theta = replay.theta
        own = Work(4.0 * SECANTS * theta.numel(), 4.0 * theta.numel(), FORECAST_CALLS)
        virtual = own.seconds(theta.dtype, theta.device) + optimizer_step(theta, replay.replica.calls)
        step = loop_step(Work(work.flops / rate, work.elements / rate, work.calls), theta, len(objective.space.names))
        aside = Work(calls=OWN_CALLS).seconds(theta.dtype, theta.device)
        gradient = GRADIENT + FORWARD * objective.chunked
        return cls(virtual / max(step, 1e-12), gradient, rate, aside / max(step, 1e-12))

    @property
    def least(self) -> int:
        """The steps that a window must bring to pay; more than there can be where virtual steps are too dear."""
        left = 1 - 2 * PAYS * self.virtual
        return math.ceil(PAYS * self.rate * self.gradient / left) if left > 0 else 10**9


@dataclass(frozen=True)
class Point:
    """Where the real network was asked."""

    theta: Tensor
    loss: float
    gradient: Tensor
    outputs: Tensor  # flat

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and bool(torch.isfinite(self.gradient).all())


@dataclass(frozen=True)
class Way:
    """How far a skip has come: steps, windows, the largest error, who was asked first and last."""

    first: Point
    last: Point
    done: int = 0
    windows: int = 0
    error: float = 0.0
    trouble: SkipOutcome | None = None
    earlier: Way | None = None  # before the last window
    undo: Callable[[], None] | None = None  # what puts the copy back to there


class Walk:
    """Windows, one after the other.

    Attributes:
        forecast: of the gradient. seen: of the outputs. window: steps that the next window may have.
        prices: of virtual steps and gradients.
    """

    def __init__(
        self, objective: Objective, replay: Replay, tolerance: float, ledger: Ledger, rate: float, work: Work
    ) -> None:
        self.objective, self.replay, self.tolerance = objective, replay, tolerance
        self.ledger = ledger
        self.forecast, self.seen, self.window = Forecast(), Forecast(), OPENING
        self.prices = Prices.of(objective, replay, work, rate)
        self.chunked = objective.chunked

    def ask(self, theta: Tensor) -> Point:
        """The real network's loss, gradient and outputs."""
        self.ledger.gradients += 1
        self.ledger.forwards += self.chunked
        loss, gradient, outputs = self.objective.evaluate(theta)
        flat = as_reals(outputs).reshape(-1).to(theta.dtype)  # a forecast computes in the vector's dtype
        self.seen = self.seen.including(theta, flat)
        return Point(theta, float(loss), gradient, flat)

    def outputs(self, theta: Tensor) -> Tensor:
        """The real network's outputs alone."""
        self.ledger.forwards += 1
        return self.objective.outputs(theta)

    def go(self, steps: int, window: int, known: Iterable[tuple[Tensor, Tensor]]) -> Way:
        """As far as windows pay; the copy stands where the last one ended.

        Raises:
            NonFiniteError: the loss or its gradient is not finite at the start.
        """
        first = self.ask(self.replay.theta.clone())
        if not first.finite:
            raise NonFiniteError("the loss or its gradient is not finite at the present weights.")
        for theta, gradient in known:
            self.forecast = self.forecast.including(theta, gradient)
        self.forecast = self.forecast.including(first.theta, first.gradient)
        way, self.window = Way(first, first), window
        while way.done < steps:
            count = min(self.window, steps - way.done)
            back = self.replay.save()
            predicted = self.replay.roll(self.forecast, count, _marks(count))
            point = self.ask(predicted[count])
            self.ledger.dense += count * self.prices.virtual
            if not point.finite:
                back()
                way, self.window = replace(way, trouble=SkipOutcome.NOT_FINITE), max(1, count // 4)
                if count == 1 or self.window < self.prices.least:
                    break
                continue
            gap = relative(point.gradient - self.forecast(point.theta), point.gradient)
            self.forecast = self.forecast.including(point.theta, point.gradient)
            kept, error = (count, gap) if gap <= SURE * self.tolerance else self._corrected(back, count, predicted)
            rises = kept == count and self._rises(first.loss, point.loss)
            if kept == 0 and not rises and self._unasked(back):
                self.window = max(self.prices.least, count // 2)
                continue
            if kept == 0 or not math.isfinite(error) or rises:
                back()
                way = replace(way, trouble=SkipOutcome.DEAR if kept == 0 or rises else SkipOutcome.NOT_FINITE)
                break
            earlier = replace(way, earlier=None, undo=None)  # one is enough, and a long way would hold many copies
            way = Way(first, point, way.done + kept, way.windows + 1, max(way.error, error), None, earlier, back)
            self._resize(count, kept, error)
            if way.done < steps and self.window < self.prices.least:
                way = replace(way, trouble=SkipOutcome.DEAR)
                break
        if way.trouble is not None:
            self.window = OPENING
        return way

    def _resize(self, count: int, kept: int, error: float) -> None:
        """The next window, after so many steps of one of ``count`` were believed."""
        if kept < count:
            self.window = kept
        elif count == self.window:
            self.window = following(kept, error, self.tolerance)

    def _unasked(self, back: Callable[[], None]) -> bool:
        """Whether a window failed from a start whose gradient was a forecast; it is known then."""
        back()
        start = self.replay.theta.clone()
        if any(torch.equal(start, theta) for theta, _ in self.forecast.points):
            return False
        point = self.ask(start)
        self.forecast = self.forecast.including(point.theta, point.gradient)
        return point.finite

    def _corrected(self, back: Callable[[], None], count: int, predicted: dict[int, Tensor]) -> tuple[int, float]:
        """Replay a window with its end known: the steps that are believed, and the error estimate there."""
        back()
        self.ledger.dense += count * self.prices.virtual
        start, at, found = self.replay.theta.clone(), 0, {}
        for mark in sorted(predicted):
            self.replay.roll(self.forecast, mark - at)
            at, here = mark, self.replay.theta
            found[mark] = relative(here - predicted[mark], here - start)
        kept = believed(found, self.tolerance)
        if kept < count:
            back()
            self.replay.roll(self.forecast, kept)
            self.ledger.dense += kept * self.prices.virtual
        return kept, found.get(kept, math.inf) if bool(torch.isfinite(self.replay.theta).all()) else math.nan

    @staticmethod
    def _rises(before: float, after: float) -> bool:
        return not after <= before + RISE * abs(before)

    def verdict(self, way: Way) -> SkipResult:
        """The way as far as its end is where the gradients lead; its last window is given up where it is not."""
        found = self._judged(way)
        if not found.accepted and way.earlier is not None and way.earlier.done and way.undo is not None:
            way.undo()
            found = self._judged(replace(way.earlier, trouble=found.outcome))
        return found

    def _judged(self, way: Way) -> SkipResult:
        """Whether the outputs at the end are those that the way led to; one forward pass."""
        spent = self.prices.rate * self.ledger.gradient_evaluations + self.ledger.dense
        # For no gain no error; but what many windows have come to is not thrown away for the last one's price.
        if way.done <= (spent if way.windows < FEW else LITTLE * spent):
            trouble = way.trouble if way.done == 0 else None
            return SkipResult(trouble or SkipOutcome.DEAR, 0, before=way.first.loss, windows=way.windows)
        theta, last = self.replay.theta, way.last
        expected = self.seen(theta)
        u = self.outputs(theta)
        flat = as_reals(u).reshape(-1).to(theta.dtype)
        actual = float(self.objective.loss.value(u))
        slope = 0.5 * (last.gradient + self.forecast(theta))
        predicted = last.loss + float(torch.dot(slope, theta - last.theta))
        miss = relative(flat - expected, flat - way.first.outputs)
        outcome = SkipOutcome.SKIPPED if way.trouble is None else SkipOutcome.SHORT
        if not math.isfinite(actual):
            outcome = SkipOutcome.NOT_FINITE
        elif not miss <= MISS:
            outcome = SkipOutcome.MISSED
        elif self._rises(way.first.loss, actual):
            outcome = SkipOutcome.ROSE
        done = way.done if outcome.accepted else 0
        return SkipResult(outcome, 0, done, way.first.loss, predicted, actual, miss, way.error, way.windows)


def relative(part: Tensor, whole: Tensor) -> float:
    """‖part‖ / ‖whole‖; 0 for nothing of nothing."""
    length, of = float(torch.linalg.vector_norm(part.double())), float(torch.linalg.vector_norm(whole.double()))
    return length / of if of > 0 else (0.0 if length == 0 else math.inf)


def following(count: int, error: float, tolerance: float) -> int:
    """The window after one of so many steps: the predictor's error grows as the square of its length."""
    factor = SAFETY * (tolerance / max(error, 1e-12)) ** 0.5
    return max(1, round(count * min(LONGEST, max(0.5, factor))))


def believed(errors: dict[int, float], tolerance: float) -> int:
    """The steps of a window that are believed, from the errors at its marks.

    All of them where the error does not grow along the window: kinks of the network make such errors, and a shorter
    window would have them as well.
    """
    count = max(errors)
    if errors[count] <= FLAT * tolerance and errors[count] <= FLAT * min(errors.values()):
        return count
    return max((mark for mark, error in errors.items() if error <= tolerance), default=0)


def _marks(count: int) -> list[int]:
    """Steps of a window at which it may end, the last one among them."""
    found, at = [], float(count)
    while at >= 1:
        found.append(round(at))
        at *= MARKS
    return sorted({*found, 1})
