"""``skip``: put weights and optimizer where the optimizer's next steps would lead, for a few gradient evaluations.

The optimizer is replayed on a forecast of the gradient, window by window: predict a window, take the real gradient at
its end, replay the window with that gradient in the forecast, and believe as much of it as the two agree on. That is a
predictor and a corrector of the discrete dynamics itself, so that momentum, second moments, weight decay and the
schedule are the optimizer's own. Source: docs/theory.md, section 10; decision docs/decisions/0024.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..distributed.optimizers import current
from ..distributed.wrapped import entry, whole
from ..errors import InputError
from ..linearization.consistency import require_repeatable
from ..objectives.objective import Objective, require_finite_outputs
from ..optim import adapters
from ..optim.twin import Changes
from ..utils.brief import brief
from ..utils.cost import FORWARD, Ledger, Work
from ..utils.guard import guarded
from ..utils.warn import warn
from .buffers import refreshed
from .replay import Replay, Scheduler, inside, require_scheduler
from .result import SkipOutcome, SkipResult
from .windows import OPENING, OWN_WINDOWS, TOLERANCE, Conditions, Walk


class Skipper:
    """Skips along one objective, with a memory of how long a window may be.

    Args:
        objective: whose gradient the loop's steps follow: all of the training data, or a large batch of it. May be
            assigned to, for other data of the same model.
        optimizer: the loop's own, any of torch's that needs no closure.
        tolerance: largest difference of predicted and corrected weights over a window, relative to their movement.
        scheduler: a learning-rate scheduler that the loop steps after every optimizer step: its rates are followed, and
            it is moved on by as many steps. None keeps the rates, and leaves schedulers alone.
        clip: the norm that the loop clips gradients to (``clip_grad_norm_``), None for none.

    Raises:
        InputError and its kinds: what cannot be skipped with, quoted.

    Example:
        >>> from jumpstart import Skipper, supervised
        >>> _ = torch.manual_seed(0)
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> objective = supervised(model, x, (3 * x).sin())
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        >>> Skipper(objective, optimizer).skip(20).steps
        20
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"tolerance", "scheduler", "clip"})

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        tolerance: float = TOLERANCE,
        scheduler: Scheduler | None = None,
        clip: float | None = None,
    ) -> None:
        if not isinstance(objective, Objective):
            raise InputError(f"skip needs a js.Objective (see js.supervised), got {type(objective).__name__}.")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(f"skip replays a torch optimizer, got {type(optimizer).__name__}.")
        require_options(tolerance, scheduler, clip, optimizer)
        self.objective, self.optimizer = objective, whole(optimizer)
        self.tolerance, self.scheduler, self.clip = tolerance, scheduler, clip
        self.window = OPENING

    def skip(self, steps: int = 20, conditions: Conditions | None = None) -> SkipResult:
        """Skip up to so many ``steps`` of the optimizer, from the present weights and its present state.

        Args:
            conditions: what it must meet besides (``jumping.conditions``); None for nothing.

        Returns:
            A :class:`SkipResult`. Unless it is accepted, weights, optimizer, scheduler and random state are as before.

        Raises:
            InputError and its kinds: before anything has changed.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps={brief(steps)}: give a number of optimizer steps, at least 1.")
        return _skip(self.objective, self, steps, conditions or Conditions())

    def __repr__(self) -> str:
        return f"Skipper({type(self.optimizer).__name__}, window={self.window})"


def require_options(tolerance: Any, scheduler: Any, clip: Any, optimizer: torch.optim.Optimizer) -> None:
    """Raise for options out of range, quoting them."""
    for name, value in (("tolerance", tolerance), ("clip", clip)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
        if not number and not (name == "clip" and value is None):
            raise InputError(f"{name}={brief(value)}: give a positive number{' or None' if name == 'clip' else ''}.")
    require_scheduler(scheduler, optimizer)


def skip(objective: Objective, optimizer: torch.optim.Optimizer, steps: int = 20, **options: Any) -> SkipResult:
    """Skip so many steps of an optimizer: weights and its state are then where those steps would have led.

    One skip without memory; in a loop use :class:`jumpstart.Skipper` or :class:`jumpstart.JumpOptimizer`.

    Args:
        objective: what the steps are taken on. optimizer: whose steps. steps: how many.
        options: of :class:`jumpstart.Skipper` (tolerance, scheduler, clip).

    Returns:
        A :class:`SkipResult`. Unless it is accepted, nothing has changed.

    Raises:
        InputError and its kinds: before anything has changed.
    """
    return Skipper(objective, optimizer, **options).skip(steps)


@guarded(lambda objective, *_, **__: objective.model)
def _skip(objective: Objective, skipper: Skipper, steps: int, conditions: Conditions) -> SkipResult:
    with entry(objective.world, "a skip"), current(skipper.optimizer):
        return _skipped(objective, skipper, steps, conditions)


def _skipped(objective: Objective, skipper: Skipper, steps: int, conditions: Conditions) -> SkipResult:
    begun = time.perf_counter()
    objective.require_current()
    ledger = Ledger()
    theta = objective.theta()
    objective.require_equal("the weights to skip from", theta)
    require_held(skipper.optimizer, objective)
    replay = Replay(skipper.optimizer, objective, skipper.scheduler, skipper.clip, conditions.noise, conditions.behind)
    work, once = repeatable(objective, theta)
    walk = Walk(objective, replay, skipper.tolerance, ledger, conditions.rate, work)
    least, target, buffers = walk.prices.least, theta, []
    if least > steps:  # no window could pay, so nothing is asked
        result = SkipResult(SkipOutcome.DEAR, steps)
    else:
        result = walk.verdict(walk.go(steps, max(skipper.window, least), conditions.known))
        target = replay.theta.clone()
        skipper.window = walk.window
    if result.accepted and conditions.approve is not None:
        cause = conditions.approve(result, theta, target.clone(), ledger)
        if cause:
            result = replace(result, outcome=SkipOutcome.REFUSED, steps=0, cause=cause)
    if result.accepted:
        buffers = refreshed(objective, target, result.steps)
        ledger.forwards += bool(buffers)
        objective.move(theta, target, _Follow(replay, skipper.scheduler, buffers))
    dense = ledger.dense + walk.prices.own * (ledger.gradients + OWN_WINDOWS)
    return replace(
        result,
        asked=steps,
        seconds=objective.elapsed(begun),
        gradient_evaluations=ledger.gradient_evaluations + once,
        dense_work=dense,
        cost=conditions.rate * ledger.gradient_evaluations + dense,
    )


def require_held(optimizer: torch.optim.Optimizer, objective: Objective) -> None:
    """Raise where the optimizer does not hold all that the objective moves, or asks to be told of moves."""
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    present = dict(objective.model.named_parameters())
    if missing := [name for name in objective.space.names if id(present[name]) not in own]:
        raise InputError(
            f"the optimizer {type(optimizer).__name__} does not hold {missing[:5]} and never moves them: restrict the "
            "objective with params=[…] to what it trains."
        )
    if adapters.listeners(optimizer):
        raise InputError(f"the steps of {type(optimizer).__name__} cannot be skipped: use search=True.")
    moved = {id(present[name]) for name in objective.space.names}
    others = [
        p for group in optimizer.param_groups if adapters.moves(group) for p in group["params"] if p.requires_grad
    ]
    if left := sum(p.grad is not None and bool((p.grad != 0).any()) for p in others if id(p) not in moved):
        warn(
            f"{left} parameter{'' if left == 1 else 's'} of the {type(optimizer).__name__} with a gradient "
            f"{'is' if left == 1 else 'are'} not the objective's: over skipped steps they stay where they are.",
            RuntimeWarning,
        )


def repeatable(objective: Objective, theta: Tensor) -> tuple[Work, float]:
    """The work of a forward pass, and what it took to find out, in gradient evaluations.

    Asked once for the model's modes is whether there is one function at all. That is no cost of this skip: a resumed
    run asks again, and must decide as if it had not.
    """
    modes, once = tuple(module.training for module in objective.model.modules()), 0.0
    known = objective.consistent.repeats.get(modes)
    if known is None:
        objective.prepare(theta)
        u = objective.outputs(theta)
        require_finite_outputs(u)
        work, _, _ = require_repeatable(objective.net, u, lambda: objective.outputs(theta))
        work = work if objective.shards is None else objective.shards.work(work)
        objective.consistent.repeats[modes] = known = work, len(u)
        once = 2 * FORWARD
    work, rows = known
    share = objective.shape[0] / rows
    return Work(work.flops * share, work.elements * share, work.calls), once


class _Follow:
    """What follows the move of the weights: the optimizer's state, buffers and the scheduler's, or none of them."""

    def __init__(self, replay: Replay, scheduler: Scheduler | None, buffers: list[tuple[Tensor, Tensor]]) -> None:
        self.changes: Changes = replay.replica.changes()
        self.changes.writes += buffers
        self.back = self.changes.reverse()
        self.scheduler = scheduler
        self.state = {} if replay.scheduler is None else replay.scheduler.state_dict()

    def __call__(self) -> None:
        kept = [] if self.scheduler is None else inside(self.scheduler)
        try:
            self.changes.apply()
            if self.scheduler is not None:
                self.scheduler.load_state_dict(self.state)
        except BaseException:
            self.back.apply()
            for held, attributes in kept:
                held.__dict__.clear()
                held.__dict__.update(attributes)
            raise
