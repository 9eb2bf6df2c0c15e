"""Whether proposed weights are taken: one rule for all proposals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import MetricError
from ...linearization.metric import Metric, metric_of
from ...objectives.objective import Objective
from ...utils.cost import Ledger
from ..acceptance import by_sample, improves
from .result import ProposalOutcome

ROUNDING = 8.0  # ε of a loss in the network's own precision


@dataclass(frozen=True)
class Judgement:
    """The change of the judge's loss and its standard error, on how many samples; what a step of the loop took off it
    since the last try, in the mean."""

    outcome: ProposalOutcome
    change: float
    error: float
    samples: int
    stepped: float


def judged(
    judge: Objective,
    weights: tuple[Tensor, Tensor, Tensor],
    steps: int,
    metric: Metric,
    exact: bool,
    share: float,
    ledger: Ledger,
) -> Judgement:
    """Compare losses by sample at present weights, at those proposed and at those of the last try.

    The best of several candidates is judged alone, on samples that chose none of them: so that one test at its own
    level is enough, and Bonferroni's correction, which would cost power on the same samples, is not needed.

    Args:
        weights: in that order, (P,) each.
        judge: an objective of other samples; with ``exact`` the one that is trained, whose loss has no noise.
        steps: of the loop since the last try. metric: whose weight decay must not take the fall back.
        share: a pass of the judge in passes of the ledger's objective.
    """
    theta, target, _ = weights
    before, after, then = (by_sample(judge, at) for at in weights)
    ledger.forwards += 3 * share
    verdict = improves(before, after)
    stepped = float((then - before).mean()) / max(1, steps)
    change, error, accepted = verdict.mean, verdict.error, verdict.accepted
    if exact:
        error = 0.0
        accepted = change < -ROUNDING * torch.finfo(theta.dtype).eps * abs(float(before.mean()))
    outcome = ProposalOutcome.MOVED if accepted else ProposalOutcome.NOT_BEYOND_NOISE
    if accepted and not change + metric.penalty(target) - metric.penalty(theta) < 0:
        outcome = ProposalOutcome.DECAYED
    return Judgement(outcome, change, error, verdict.samples, stepped)


def decay_of(optimizer: torch.optim.Optimizer, objective: Objective) -> Metric:
    """The metric whose penalty an optimizer's weight decay descends along with the loss."""
    if not any(float(group.get("weight_decay") or 0.0) for group in optimizer.param_groups):
        return Metric()
    try:
        return metric_of(optimizer, objective)
    except MetricError:  # of an optimizer that is not known there is no penalty to be known
        return Metric()
