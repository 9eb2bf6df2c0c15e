"""``Proposing``: the action that asks for a proposal, judges it, and keeps account of what it was worth."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import BudgetError, InputError
from ...objectives.objective import Objective
from ...skipping.skip import repeatable
from ...utils.brief import brief
from ...utils.cost import CALL, ELEMENTS, FORWARD, Ledger, loop_step, rate
from ...utils.guard import guarded
from ..pace import BUDGET, OVERDRAFT, Pace, require_budget
from ..samples import Samples, Sampling
from ..schedule import Schedule, schedule
from .judgement import Judgement, decay_of, judged
from .moments import following
from .proposal import Candidate, Here, Proposal, Weights, copied, is_weights, present
from .result import ProposalOutcome, ProposalResult

WARM = 5  # steps before anything is compared: moments must have something in them
JUDGING = 4 * FORWARD  # the judge at three weights, and what the optimizer's moments would do

log = logging.getLogger("jumpstart")


class Proposing(Sampling):
    """After a step, weights that may be better than where the loop is.

    A try costs forward passes, and moves the weights where the loss falls on samples that the proposal was not made
    from (:mod:`.judgement`). What that is worth is told in steps of the loop: the fall, over what a step took off the
    same samples' loss since the last try. What loses is tried ever less, and all proposals of a wrapper together lose
    no more than a share of the run, or a few steps where that is more.

    Args:
        optimizer: the wrapped one.
        objective: what the loop descends: all of its training data, or :func:`jumpstart.from_loader`'s samples; or a
            function that returns an objective of other samples at each call.
        proposal: where better weights are looked for; copied.
        at: steps after which it may be tried; None for the proposal's own period.
        batch: rows of the loop's minibatches, in the objective's units; None for as many as the objective's, where a
            loader does not say it.
        budget: share of the run that tries which lose may take.
        params: which of the objective's parameters move; None for all.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"batch", "budget", "params"})

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        objective: Objective | Callable[[], Objective],
        proposal: Proposal,
        at: Schedule = None,
        *,
        batch: int | None = None,
        budget: float = BUDGET,
        params: Any = None,
    ) -> None:
        super().__init__(optimizer)
        self.samples = Samples(optimizer, objective, batch, params)
        require_budget(budget)
        self.name = proposal.name  # type: ignore[misc]
        self.proposal, self.budget = proposal.fresh(), budget
        self._due = schedule(proposal.every if at is None else at)
        self.pace = Pace()
        self.beside: Sequence[Proposing] = ()  # others, with which the budget is shared
        self._mark: tuple[int, Weights] | None = None  # step and weights of the last try
        self._copies = 0  # made since then

    # ---- around a step ------------------------------------------------------------------------------------------

    def after_step(self, taken: int, limit: int | None) -> ProposalResult | None:
        if self._mark is None:
            if taken >= WARM:
                self._mark = taken, present(self.optimizer)
            return self._kept(taken)
        self._kept(taken)
        last = self.proposal.last(limit)
        if not (last or self._due(taken)) or not self.proposal.ready(taken) or not self._affordable(taken, last):
            return None
        objective = self.samples.reach.moving(self.samples.given())
        if objective is None:
            return None
        result = self._try(objective, taken, limit)
        self.pace.learn(result.saved, taken)
        if self.pace.failures > 1:
            log.info("%s", self.pace.words(self.name))
        self._mark = taken, present(self.optimizer)
        if result.accepted:
            self.proposal.forget()
        return self.book(result)

    def _kept(self, taken: int) -> None:
        """Show the proposal the weights, if it wants to see them."""
        if self.proposal.wants(taken, lambda step: self._due(step) and self._affordable(step, False)):
            self.proposal.keep(taken, present(self.optimizer))
            self._copies += 1

    def moved(self, taken: int) -> None:
        super().moved(taken)
        self.proposal.forget()
        self._mark = taken, present(self.optimizer)

    # ---- what it may cost ---------------------------------------------------------------------------------------

    @property
    def price(self) -> float:
        return (self.proposal.cost() + JUDGING + self.samples.draws) * self.samples.rate

    def _left(self, taken: int) -> float:
        """What a try may lose, in steps: of what is left to all; after the first, of what is left of an equal share."""
        whole = max(OVERDRAFT, self.budget * taken)
        left = whole - self.pace.lost - sum(other.pace.lost for other in self.beside)
        if self.pace.tries:
            left = min(left, whole / (1 + len(self.beside)) - max(0.0, self.pace.lost - self.pace.saved))
        return left

    def _affordable(self, taken: int, last: bool) -> bool:
        return (last or taken >= self.pace.wait) and self.price <= self._left(taken)

    # ---- a try --------------------------------------------------------------------------------------------------

    def _flat(self, objective: Objective, weights: Weights) -> Tensor:
        """Kept weights as a vector (P,) of the objective's."""
        places = {id(p): at for at, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"])}
        names = dict(objective.model.named_parameters())
        return objective.space.flatten({name: weights[places[id(names[name])]] for name in objective.space.names})

    def _try(self, objective: Objective, taken: int, limit: int | None) -> ProposalResult:
        begun = time.perf_counter()
        ledger = Ledger(allowance=self._left(taken) / self.samples.rate)
        result = _attempt(self, objective, ledger, taken, limit)
        spent = self.samples.rate * (ledger.spent + self.samples.draws)
        return replace(
            result,
            gradient_evaluations=ledger.gradient_evaluations,
            dense_work=ledger.dense,
            cost=spent,
            seconds=time.perf_counter() - begun,
        )

    def best(self, objective: Objective, ledger: Ledger) -> tuple[Here, list[Candidate]]:
        """What is proposed at the present weights, the best first."""
        theta = objective.theta()
        work, _ = repeatable(objective, theta)
        ledger.step_seconds = loop_step(work, theta, len(objective.space.names))
        copies = len(objective.space.names) * rate(CALL, theta.device) + len(theta) / rate(ELEMENTS, theta.device)
        ledger.charge((self._copies + 1) * copies)
        self._copies = 0
        seen = [self._flat(objective, weights) for weights in self.proposal.seen()]
        ledger.forwards += 1
        u = objective.outputs(theta)
        here = Here(objective, theta, u, float(objective.loss.value(u)), seen, ledger, self.samples.whole)
        return here, sorted(self.proposal.propose(here), key=lambda candidate: candidate.loss)

    def judge(self, here: Here, target: Tensor, taken: int) -> Judgement:
        """On the objective itself where it is all that is trained, else on other samples."""
        objective = here.objective
        judge = objective if self.samples.whole else self.samples.judge(objective)
        assert self._mark is not None
        mark = self._flat(objective, self._mark[1])
        share, metric = judge.shape[0] / objective.shape[0], decay_of(self.optimizer, objective)
        steps = taken - self._mark[0]
        return judged(judge, (here.theta, target, mark), steps, metric, self.samples.whole, share, here.ledger)

    # ---- the contract -------------------------------------------------------------------------------------------

    def parameters_added(self) -> None:
        self.proposal.forget()
        self._mark = None

    def not_tried(self, cause: str) -> ProposalResult:
        return ProposalResult(self.name, ProposalOutcome.UNTRIED, cause=cause)

    def broke_off(self, cause: str) -> ProposalResult:
        self.pace.learn(-self.price, self.taken)
        return self.failed(cause)

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "rows": self.samples.rows,
            "copies": self._copies,
            "pace": self.pace.state_dict(),
            "mark": None if self._mark is None else (self._mark[0], copied(self._mark[1])),
            "proposal": self.proposal.state_dict(),
            "objective": self.samples.state_dict(),
        }

    def check(self, state: Any) -> None:
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise InputError(f"this is no state of the action {self.name!r}: it holds {brief(state)}.")
        for name in ("taken", "rows", "copies"):
            if isinstance(state[name], bool) or not isinstance(state[name], int) or state[name] < 0:
                raise InputError(f"this is no state of the action {self.name!r}: {name}={brief(state[name])}.")
        mark = state["mark"]
        if mark is not None and not (len(mark) == 2 and isinstance(mark[0], int) and is_weights(mark[1])):
            raise InputError(f"this is no state of the action {self.name!r}: mark={brief(mark)}.")
        Pace.read(state["pace"])
        self.proposal.check(state["proposal"])

    def load_state_dict(self, state: Any) -> None:
        if state is None:
            self.taken = self._copies = 0
            self.pace, self._mark = Pace(), None
            self.proposal.forget()
            return
        self.check(state)
        self.samples.load_state_dict(state["objective"])
        self.taken, self.samples.rows, self._copies = state["taken"], state["rows"], state["copies"]
        self.pace = Pace.read(state["pace"])
        self._mark = None if state["mark"] is None else (state["mark"][0], copied(state["mark"][1]))
        self.proposal.load_state_dict(state["proposal"])


@guarded(lambda proposing, objective, *_, **__: objective.model)
def _attempt(
    proposing: Proposing, objective: Objective, ledger: Ledger, taken: int, limit: int | None
) -> ProposalResult:
    """Propose, judge, move; one way into the network for all of it."""
    objective.require_current()
    name = proposing.name
    try:
        here, found = proposing.best(objective, ledger)
    except BudgetError as error:
        return ProposalResult(name, ProposalOutcome.DEAR, cause=f"({error})")
    result = ProposalResult(name, ProposalOutcome.NOTHING, candidates=len(found), before=here.loss)
    if not found or not found[0].loss < here.loss:
        return result
    best = found[0]
    target = here.theta + best.displacement
    judgement = proposing.judge(here, target, taken)
    gained = -judgement.change / judgement.stepped if judgement.stepped > 0 else math.inf
    result = replace(
        result,
        outcome=judgement.outcome,
        what=best.what,
        proposed=best.loss,
        change=judgement.change,
        error=judgement.error,
        samples=judgement.samples,
        stepped=judgement.stepped,
    )
    if not judgement.outcome.accepted:
        return result
    if not proposing.proposal.moves(limit):
        return replace(result, outcome=ProposalOutcome.BETTER)
    follow, moments = following(proposing.optimizer, objective, here.theta, target, (here.loss, best.loss), ledger)
    objective.move(here.theta, target, follow)
    return replace(result, gained=min(gained, float(taken)), moments=moments)
