"""Back to what gradient flow keeps: the end of a jump, moved along weights that are the same function."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from ..linearization.problem import LinearizedProblem
from ..objectives.balance import NONE, Pair, balances, pairs, rebalanced
from ..objectives.objective import Objective
from ..utils.warn import warn
from .candidates import Candidate

SAME = 1e4  # times the rounding of the weights: outputs within it are of the same function


def kept_by_flow(objective: Objective, problem: LinearizedProblem) -> list[Pair]:
    """Layers whose balance the flow keeps, of weights that all move.

    Raises:
        InputError: there are none, or the flow is another one that keeps nothing of them.
    """
    metric = problem.metric
    if metric.decays or metric.root is not None:
        raise InputError(
            "keep_balance=True: plain gradient flow keeps the balance of a unit's weights; weight decay and an "
            "optimizer's metric do not. Leave it out with them."
        )
    found = [pair for pair in pairs(objective.model) if set(pair.weights) <= set(objective.space.names)]
    if not found:
        raise InputError(f"keep_balance=True: {NONE} All their weights have to move.")
    return found


def balanced(objective: Objective, problem: LinearizedProblem, best: Candidate, layers: list[Pair]) -> Candidate:
    """The candidate with the balance of the start if the real outputs are the same there; else as it is, and a warning.

    One forward pass.
    """
    space, theta = objective.space, problem.lin.theta
    start, end = space.unflatten(theta), space.unflatten(theta + best.displacement)
    changed: dict[str, Tensor] = rebalanced(end, layers, balances(start, layers))
    displacement = space.flatten({**end, **changed}).detach() - theta
    outputs, training, loss = problem.measure(displacement)
    eps = max(torch.finfo(start[name].dtype).eps for name in changed)
    off, size = (
        float(torch.linalg.vector_norm(v)) for v in (outputs - best.outputs, torch.cat([outputs, problem.lin.u]))
    )
    if not off <= SAME * eps * size:
        warn(
            f"keep_balance=True: with the balance of before the outputs differ by {off / size:.2g} of their size: "
            "something besides the next layer reads a unit (or the weights are too coarse). The jump stays unbalanced.",
            RuntimeWarning,
        )
        return best
    return replace(best, displacement=displacement, outputs=outputs, training=training, loss=loss)
