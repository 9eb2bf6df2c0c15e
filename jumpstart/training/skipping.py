"""``Skipping``: steps of the wrapped optimizer are skipped where that is cheaper than to take them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..distributed.optimizers import written
from ..errors import InputError
from ..objectives.objective import Objective
from ..skipping.forecast import SECANTS
from ..skipping.noise import minibatch_noise
from ..skipping.replay import clipped
from ..skipping.replica import Replica, require_kind
from ..skipping.result import SkipOutcome, SkipResult
from ..skipping.skip import Skipper, require_options
from ..skipping.windows import OPENING, TOLERANCE, Conditions
from ..utils.brief import brief
from ..utils.cost import FORWARD, GRADIENT, Ledger
from ..utils.warn import warn
from .acceptance import by_sample, improves
from .data import Stream
from .following import Following
from .pace import Pace, require_budget
from .rehearsing import COST, Rehearsing
from .samples import Samples, Sampling
from .schedule import Schedule, schedule

AUTO = "auto"
BUDGET = 0.02  # of the run, which tries may lose
WARM = 5  # steps before the first: moments must have something in them
SHARE = 0.8  # of what a sample's loss falls by that others' must fall by as well
AGAIN = 10  # tries after which that is looked at again
MEDDLING = 3  # such steps, after which it is said
MOST = 10**9  # steps of a skip
WITHOUT_END = 20  # steps, at least, where nobody knows how long the run is to be; at most as many as it has had

Known = tuple[tuple[Tensor, Tensor], ...]  # weights, and the gradient there
Approve = Callable[[SkipResult, Tensor, Tensor, Ledger], str | None]

log = logging.getLogger("jumpstart")


class Skipping(Sampling):
    """After a step, skip those that come next, if that costs less than to take them.

    Args:
        optimizer: the wrapped one.
        objective: what the loop descends: all of its training data, or a large batch of them; or a function that
            returns it for the next skip (:func:`jumpstart.from_loader`).
        skip: how many steps at once; "auto" for as many as pay, up to the end of ``optimizer.steps(total)``, or as
            many again as the run has had, and none in loops along minibatches.
        at: steps after which one may be tried; None for all.
        batch: rows of the loop's minibatches, in the objective's units. Needed where the loop's gradients are not the
            objective's; a loader says it by itself.
        budget: share of the run that tries may lose, on balance with what others saved; one that was rehearsed well is
            made in any case.
        params: which of the objective's parameters move; None for all.
        options: tolerance, scheduler, clip of :class:`jumpstart.Skipper`.
    """

    name: ClassVar[str] = "skip"
    OPTIONS: ClassVar[frozenset[str]] = Skipper.OPTIONS | {"batch", "budget", "params"}

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        objective: Objective | Callable[[], Objective],
        skip: int | str = AUTO,
        at: Schedule = None,
        *,
        batch: int | None = None,
        budget: float = BUDGET,
        params: Any = None,
        tolerance: float = TOLERANCE,
        scheduler: Any = None,
        clip: float | None = None,
    ) -> None:
        super().__init__(optimizer)
        whole = isinstance(skip, int) and not isinstance(skip, bool) and skip >= 1
        if skip != AUTO and not whole:
            raise InputError(f"skip={brief(skip)}: give a number of steps, at least 1, or 'auto'.")
        require_kind(optimizer)
        self.samples = Samples(optimizer, objective, batch, params)
        require_budget(budget)
        require_options(tolerance, scheduler, clip, optimizer)
        self.skip, self.budget = skip, budget
        self.options = {"tolerance": tolerance, "scheduler": scheduler, "clip": clip}
        self._due = schedule(1 if at is None else at)
        # Who says when is taken at his word; the loop's gradients are no points of a sample's, nor clipped ones.
        self._rehearses = at is None and self.samples.fixed and batch is None and clip is None
        self.pace, self.window, self.most = Pace(), OPENING, MOST
        self._skipped = 0
        self.following, self.rehearsing = Following(optimizer, self.samples), Rehearsing()
        self._written: list[int] | None = None  # how often each parameter was, after the last step
        self._meddling = 0  # steps before which somebody else had written to them
        self.stream = Stream()  # whether a function's data change
        self._said: set[str] = set()
        self._broke = False  # the last try raised: nothing is looked at before the next
        self._here: tuple[Objective, Tensor] | None = None  # what moves of the objective, and the weights

    @property
    def skipped(self) -> int:
        return self._skipped

    @property
    def effective(self) -> int:
        return self.taken + self._skipped

    # ---- around a step ------------------------------------------------------------------------------------------

    def due(self, taken: int) -> bool:
        if self.rehearsing.running is not None:
            return True
        if taken + 1 + SECANTS < self.pace.wait:
            return False
        return self._ready(taken, 1 + SECANTS * (self._remembers and not self._broke))

    def passed(self, taken: int) -> None:
        super().passed(taken)
        self._written = None

    def before_step(self) -> None:
        """Where the step starts from, if a skip may follow it: the loop's gradient belongs to these weights."""
        self._here = None
        taken = self.taken + 1
        if self._meddled():
            self.rehearsing.forget()
            return
        under_way = self.rehearsing.running is not None
        tries = under_way or (taken >= WARM and self._ready(taken, 0) and self._due(taken))
        if not tries and (self._broke or not self._remembers):
            return
        objective = self.samples.reach.moving(self.samples.given())
        if objective is None or not (self._remembers or self._ready(taken, 0)):
            return  # only now is it known how many samples there are
        theta, self._broke = objective.theta(), False
        if not self.samples.whole:
            self.stream.add(objective)
            if self.skip == AUTO and self.stream.changes is None:
                return  # the next call says whether its data change
        if self._remembers:
            self.rehearsing.note(objective, theta, self.following.gradient(objective), taken)
        if tries and (not self._remembers or self._rehearsed(objective, theta, taken)):
            self._here = objective, theta

    def _meddled(self) -> bool:
        """Whether somebody has written to the weights since the last step: a replay would not do that."""
        if self._written is None or self._written == self._versions():
            return False
        self._meddling += 1
        if self._meddling == MEDDLING:
            self._say(
                "the loop writes to the weights between its steps (a projection, a clamp, tied copies?): no steps are "
                "skipped after such a step, since a skip would leave that out."
            )
        return True

    def _versions(self) -> list[int]:
        """Counts of writes to each parameter, which torch keeps."""
        return written(self.optimizer)

    def follow(self, taken: int, limit: int | None = None) -> Any:
        result = super().follow(taken, limit)
        self._written = self._versions() if self.due(taken + 1) else None
        return result

    def after_step(self, taken: int, limit: int | None) -> SkipResult | None:
        if (noted := self.rehearsing.noted()) is not None:
            gradient = self.following.gradient(noted[0])
            if gradient is None or not torch.equal(gradient, noted[1]):  # a closure's, or the step has changed them
                self.rehearsing.forget()
                self.following.apart = math.inf
        if self._here is None or limit == 0:
            return None
        (objective, theta), self._here = self._here, None
        spent = self.rehearsing.end()
        known, lost = self._compared(objective, theta)
        lost += spent
        if known is None:
            self.pace.learn(-lost, taken)
            return None
        skipper = self._skipper(objective)
        conditions = Conditions(
            rate=self.samples.rate,
            known=known,
            behind=True,
            noise=self._noise(objective, known),
            approve=self._approve(objective),
        )
        result = skipper.skip(self._count(limit), conditions)
        self.window = skipper.window
        if result.accepted:
            self.rehearsing.forget()
        return self._learn(result, lost, taken, limit)

    def _skipper(self, objective: Objective) -> Skipper:
        skipper = Skipper(objective, self.optimizer, **self.options)
        skipper.window = self.window
        return skipper

    # ---- rehearsals: before the first try, and after one that failed --------------------------------------------

    @property
    def _remembers(self) -> bool:
        """Whether points of the loop are kept: where its gradients are the objective's, so far as anybody knows."""
        return self._rehearses and self.following.exact

    def _rehearsed(self, objective: Objective, theta: Tensor, taken: int) -> bool:
        """Whether a skip may be tried now: the last one went well, or one was rehearsed and would have."""
        known = self.rehearsing.running
        if known is None:
            if (self.pace.tries and not self.pace.failures) or not self.rehearsing.possible(theta.numel()):
                return True
            if self.rehearsing.past.tells:
                self._rehearse(objective, theta, taken)
            return False
        if not known.reached(theta, taken):
            return False
        if window := known.window(self.options["tolerance"]):
            self.window = window
            return True
        self.pace.learn(-self.rehearsing.end(), taken)
        return False

    def _rehearse(self, objective: Objective, theta: Tensor, taken: int) -> None:
        """Begin a rehearsal, unless the loop's gradients are none of the objective's."""
        lost = 0.0
        if self.following.follows is None:
            known, lost = self._compared(objective, theta)
            if known is None:
                self.pace.learn(-lost, taken)
                return
        if not self.rehearsing.begin(self._skipper(objective), taken, lost):
            self.pace.learn(-lost, taken)

    def _learn(self, result: SkipResult, lost: float, taken: int, limit: int | None) -> SkipResult:
        self._skipped += result.steps
        if result.outcome is SkipOutcome.REFUSED:
            self.most = max(1, result.asked // 2)
        elif result.accepted:
            self.most = min(MOST, 2 * self.most)
        self.pace.learn(result.saved - lost, taken)
        if self.pace.failures > 1:
            log.info("%s", self.pace.words(self.name))
        if result.accepted and limit is None:
            self._say(
                "this loop is not told of skipped steps and trains further than it counts: iterate over "
                "optimizer.steps(total), or end it by optimizer.effective_steps."
            )
        return self.book(result)

    # ---- what is asked, and what it may cost --------------------------------------------------------------------

    @property
    def price(self) -> float:
        """Of a try that fails: two gradients, a look at the end, the comparison; of a rehearsal, next to nothing."""
        if self._remembers and self.rehearsing.running is None and (self.pace.failures or not self.pace.tries):
            return COST
        return (2 * GRADIENT + FORWARD + (GRADIENT if self._asks() else 0.0) + self.samples.draws) * self.samples.rate

    def _ready(self, taken: int, ahead: int) -> bool:
        """Whether a try is due at this step, or at one of so many after it."""
        return self.pace.ready(taken + ahead, self.effective + 1 + ahead, self.budget, self.price)

    def _asks(self) -> bool:
        """Whether the loop's gradient is to be held against the objective's: at first, and now and then."""
        return self.following.follows is None or not self.samples.fixed or self.pace.tries % AGAIN == AGAIN - 1

    def _count(self, limit: int | None) -> int:
        most = min(self.most, max(WITHOUT_END, self.effective) if limit is None else limit)
        return most if self.skip == AUTO else min(int(self.skip), most)

    # ---- the loop's gradient and the objective's ----------------------------------------------------------------

    def _compared(self, objective: Objective, theta: Tensor) -> tuple[Known | None, float]:
        """Known gradients to start from, None where no skip would follow the loop; and what finding out has cost."""
        loops, following = self.following.gradient(objective), self.following
        before = self.rehearsing.before(theta) if self._remembers else ()
        known = self.samples.whole or self.stream.changes is False
        if not self._asks() and loops is not None and following.follows and known:
            # A clipped gradient is none of the objective's, which is what is forecast.
            return ((*before, (theta, loops)) if self.options["clip"] is None else ()), 0.0
        gradient = objective.evaluate(theta)[1]
        own = clipped(gradient, self.options["clip"])
        cost = self.samples.rate * (GRADIENT + self.samples.draws)
        if loops is not None and bool(torch.isfinite(loops).all()) and bool((own != 0).any()):
            times = following.compare(loops.double(), own.double())
            if times is not None:
                if following.surely_scaled:
                    self._say(
                        f"the loop's gradient is the objective's times {times:.3g}: no steps are skipped. Give the "
                        "objective the loop's own loss (scale and reduction) and modes, and clip= where the loop clips "
                        "gradients."
                    )
                return None, cost
        if not following.follows and self.samples.batch is None:
            self._say(
                "the loop's gradients are not the objective's (minibatches, dropout, augmentation?): no steps are "
                "skipped. Give batch=, the rows of the loop's minibatches, so that costs can be compared."
            )
            return None, cost
        other = not self.samples.whole and self.stream.changes is not False  # the very batch of each step, it may be
        if (not following.follows or other) and self.skip == AUTO:
            return None, cost  # skips along a mean take the noise of minibatches away, and hardly ever pay (0025)
        return (*(before if self._remembers else ()), (theta, gradient)), cost

    def _noise(self, objective: Objective, known: Known) -> Callable[[Replica], None] | None:
        if self.following.follows or not known:
            return None
        return minibatch_noise(self.optimizer, objective.space, objective.model, known[0][1])

    def _approve(self, objective: Objective) -> Approve | None:
        """Where the objective is a sample of the data, others must get better beyond their noise, and as much."""
        if self.samples.whole:
            return None

        def approve(result: SkipResult, before: Tensor, after: Tensor, ledger: Ledger) -> str | None:
            judge = self.samples.judge(objective)
            ledger.forwards += 2 * judge.shape[0] / objective.shape[0]
            verdict = improves(by_sample(judge, before), by_sample(judge, after))
            if not verdict.accepted:
                return str(verdict)
            if verdict.mean > SHARE * (result.actual - result.before):
                return (
                    f"{verdict}; on the samples that were skipped along it falls by {result.before - result.actual:.3g}"
                )
            return None

        return approve

    def _say(self, words: str) -> None:
        """A warning, once."""
        if words[:30] not in self._said:
            self._said.add(words[:30])
            warn(words, RuntimeWarning)

    # ---- the contract -------------------------------------------------------------------------------------------

    def parameters_added(self) -> None:
        self.following.follows = None

    def moved(self, taken: int) -> None:
        super().moved(taken)
        self._here = self._written = None
        self.rehearsing.forget()

    def not_tried(self, cause: str) -> SkipResult:
        return SkipResult.untried(cause)

    def broke_off(self, cause: str) -> SkipResult:
        self._here, self._broke = None, True
        self.rehearsing.forget()
        self.pace.learn(0.0, self.taken)
        return self.failed(cause)

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "skipped": self._skipped,
            "window": self.window,
            "most": self.most,
            "rows": self.samples.rows,
            "following": self.following.state_dict(),
            "rehearsing": self.rehearsing.state_dict(),
            "stream": [self.stream.changes, self.stream.last],
            "pace": self.pace.state_dict(),
            "objective": self.samples.state_dict(),
        }

    def check(self, state: Any) -> None:
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise InputError(f"this is no state of skips: it holds {brief(state)}.")
        for name, least in (("taken", 0), ("skipped", 0), ("window", 1), ("most", 1), ("rows", 0)):
            if isinstance(state[name], bool) or not isinstance(state[name], int) or state[name] < least:
                raise InputError(f"this is no state of skips: {name}={brief(state[name])}.")
        self.following.check(state["following"])
        Pace.read(state["pace"])
        Rehearsing.read(state["rehearsing"])

    def load_state_dict(self, state: Any) -> None:
        if state is None:
            self.taken = self._skipped = 0
            self.window, self.most, self.pace, self.rehearsing = OPENING, MOST, Pace(), Rehearsing()
            self.following.reset()
            self.stream = Stream()
            return
        self.check(state)
        self.samples.load_state_dict(state["objective"])
        self.taken, self.samples.rows = state["taken"], state["rows"]
        self._skipped, self.window, self.most = state["skipped"], state["window"], state["most"]
        self.following.load_state_dict(state["following"])
        self.stream = Stream(*state["stream"])
        self.pace, self.rehearsing = Pace.read(state["pace"]), Rehearsing.read(state["rehearsing"])
