"""What a jump must meet besides the fall of its own loss: other data that judge it, a last look, a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linearization.problem import LinearizedProblem
from ..objectives.objective import Objective
from ..surrogate import select
from ..surrogate.select import BasisLike
from ..utils.cost import EIGEN, FORWARD, PULL, PUSH, Ledger, loop_step
from .candidates import Candidate
from .settings import Settings

CONFIDENCE = 1.0  # standard errors by which a judged loss must fall: a search picks the luckiest of several horizons
PASSES = 5 * FORWARD  # forward passes of a candidate: itself, its curvature, two corrections; and one to spare

Approve = Callable[[LinearizedProblem, Candidate], Callable[[], None] | None]


@dataclass(frozen=True)
class Conditions:
    """See :meth:`jumpstart.Jumper.jump`.

    Attributes:
        judges: objectives of other data for the same weights, whose loss must fall as well.
        approve: asked before the weights move; None keeps them where they are, else what it returns is called as soon
            as they have moved, in the same stretch that no signal interrupts.
        allowance: most that the jump may cost, in steps of a training loop (:func:`step_seconds`). reserve: what of it
            is kept back for who approves.
    """

    judges: Sequence[Objective] = ()
    approve: Approve | None = None
    allowance: float = math.inf
    reserve: float = 0.0

    def search_allowance(self, objective: Objective) -> float:
        """What of the allowance is for the search: the passes of its last candidate are not in its way."""
        shares = sum(judge.shape[0] for judge in self.judges) / objective.shape[0]
        return self.allowance - self.reserve - PASSES - FORWARD * shares


class Judge:
    """Losses of other data, pessimistically: the mean change by sample, and its standard error on top.

    Args:
        objectives: at least one, all for the parameters θ (P,) at which they are asked first.
        rows: samples of the objective that is solved, of which theirs cost a share.
    """

    def __init__(self, objectives: Sequence[Objective], theta: Tensor, ledger: Ledger, rows: int) -> None:
        self.objectives, self.ledger, self.rows = tuple(objectives), ledger, rows
        for objective in self.objectives:
            objective.prepare(theta)
        self._before = self._losses(theta)
        self.before = float(self._before.sum())

    def _losses(self, theta: Tensor) -> Tensor:
        """(n,) by sample; their sum is the mean over the objectives of their losses."""
        found = []
        for objective in self.objectives:
            u = objective.outputs(theta).double()
            found.append(objective.loss.to(u).per_sample(u).reshape(-1) / len(self.objectives))
            self.ledger.forwards += len(u) / max(1, self.rows)
        return torch.cat(found)

    def __call__(self, theta: Tensor) -> float:
        """An upper estimate of the loss at θ (P,): infinite for a single sample, of which no error is known."""
        change = self._losses(theta) - self._before
        if len(change) < 2:
            return math.inf
        error = len(change) ** 0.5 * float(change.std())
        return self.before + float(change.sum()) + CONFIDENCE * error


def step_seconds(problem: LinearizedProblem) -> float:
    """What a step of a loop is predicted to take: a gradient evaluation, and the optimizer's own operations."""
    lin = problem.lin
    return loop_step(lin.work, lin.theta, len(lin.net.space.names))


def affordable(problem: LinearizedProblem, settings: Settings, damped: bool) -> tuple[BasisLike, int | None]:
    """The basis and depth that were asked for, or a Krylov basis in a dense one's place, if that alone is affordable.

    Raises:
        BudgetError: nothing that was asked for is.
    """
    ledger, basis, depth = problem.lin.ledger, settings.basis, settings.depth
    if ledger.allowance == math.inf or not isinstance(basis, str) or basis == select.MATRIX_FREE:
        return basis, depth
    plan = select.weigh(problem, basis, depth, settings.memory_limit, damped and problem.loss.curvature is not None)
    krylov = plan.depth * (PUSH + PULL)
    if plan.kind == "krylov":
        ledger.require(krylov)
        return basis, depth
    size = min(problem.jacobian.shape)
    dense = problem.lin.jacobian_pulls() * PULL + FORWARD
    dense += select.EIGH_FLOPS * size**3 / EIGEN.get(problem.lin.theta.device.type, EIGEN["cpu"]) / ledger.step_seconds
    if ledger.spent + dense <= ledger.allowance:
        return basis, depth
    if basis == "auto" and not damped and ledger.spent + krylov <= ledger.allowance:
        return "krylov", depth
    ledger.require(dense)
    return basis, depth
