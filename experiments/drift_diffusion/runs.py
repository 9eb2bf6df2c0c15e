"""What minibatch runs do by modes of the full-batch run's W_S, and what recorded operators say that they do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jumpstart.linearization.linearize import linearize
from jumpstart.report.records import Row
from jumpstart.trajectory import Recorder

from .problem import Problem, Size

CHANNEL, RESERVOIR = 0.5, 0.05  # share learned: eigenvalue of W_S times 2·curvature, above and below
GROUPS = ("channel", "between", "reservoir")
POINTS = 6  # times at which runs are looked at, each twice the one before


def times(steps: int) -> list[int]:
    """Numbers of steps, the last is ``steps``."""
    return sorted({max(1, steps >> k) for k in range(POINTS)})


@dataclass(frozen=True)
class Recorded:
    """The full-batch run: ``modes`` of W_S (n, n) and ``shares`` learned (n,), displacements ``moved`` (times, n),
    ``predicted`` covariances (times) of the outputs for batches of one, the operators' own ``error``, and the largest
    rate·λmax(BK) on the way, 2 where the run itself becomes unstable.
    """

    modes: Tensor
    shares: Tensor
    moved: Tensor
    predicted: list[Tensor]
    error: float
    sharpest: float


def full_batch(problem: Problem, steps: int) -> Recorded:
    """The full-batch run, recorded.

    C ← S C Sᵀ + rate² J Σ Jᵀ, S the propagator recorded over the step (for squared loss that of outputs as well), Σ the
    covariance of per-sample gradients on the full-batch run.
    """
    problem.rewind()
    whole = Recorder(problem.objective, lr=problem.rate)
    n = len(problem.x)
    covariance, first = torch.zeros(n, n, dtype=torch.float64), problem.objective.outputs(problem.start).reshape(-1)
    moved, predicted, looks, sharpest = [], [], times(steps), 0.0
    for step in range(1, steps + 1):
        lin = linearize(problem.objective)
        jacobian, off = lin.jacobian(), lin.u.reshape(-1) - problem.y.reshape(-1)
        one = Recorder(problem.objective, lr=problem.rate)
        problem.descend(problem.rate)
        for recorder in (one, whole):
            recorder.step()
        kernel = jacobian @ jacobian.T
        sharpest = max(sharpest, problem.rate * problem.curvature * float(torch.linalg.eigvalsh(kernel)[-1]))
        kicks = kernel * (2 * off)  # of the outputs, by each sample's gradient
        kicks = kicks - kicks.mean(1, keepdim=True)
        s = one.operators().propagator
        covariance = s @ covariance @ s.T + problem.rate**2 * kicks @ kicks.T / n
        if step in looks:
            moved.append(problem.objective.outputs(problem.objective.theta()).reshape(-1) - first)
            predicted.append(covariance.clone())
    operators = whole.operators()
    values, modes = torch.linalg.eigh(operators.dissipation)
    shares = values * 2 * problem.curvature
    return Recorded(modes, shares, torch.stack(moved), predicted, operators.error, sharpest)


def groups(shares: Tensor) -> dict[str, Tensor]:
    """Which modes (n,) belong to what."""
    channel, reservoir = shares >= CHANNEL, shares < RESERVOIR
    return dict(zip(GROUPS, (channel, ~channel & ~reservoir, reservoir), strict=True))


def measured(problem: Problem, size: Size, seed: int) -> list[Row]:
    """Mean squared displacement and variance of each group of modes, for batches, rates and times."""
    run = full_batch(problem, size.steps)
    modes = run.modes
    first = problem.objective.outputs(problem.start).reshape(-1)
    within = groups(run.shares)
    rows: list[Row] = []
    middle = size.batches[len(size.batches) // 2]
    tangents = (problem.tangents(middle, times(size.steps), size.runs, 7000 + seed) @ modes).var(1)  # (times, n)
    settings = [(b, 1) for b in size.batches] + [(middle, s) for s in size.slower[1:]]
    for batch, slower in settings:
        looks = times(size.steps) if slower == 1 else [size.steps]
        steps = [slower * t for t in looks]
        found = problem.minibatches(batch, problem.rate / slower, steps, size.runs, 1000 * seed + 10 * batch + slower)
        for look, outputs in zip(looks, found, strict=True):
            at = times(size.steps).index(look)
            drift, spread = (outputs.mean(0) - first) @ modes, (outputs @ modes).var(0)
            full, told = run.moved[at] @ modes, (modes.T @ run.predicted[at] @ modes).diagonal() / batch
            for group, mask in within.items():
                if bool(mask.any()):
                    known = batch == middle and slower == 1
                    rows.append({
                        "seed": seed, "batch": batch, "slower": slower, "steps": look * slower, "time": look,
                        "group": group, "modes": int(mask.sum()), "error": run.error, "sharpest": run.sharpest,
                        "tangent": float(tangents[at][mask].sum()) if known else None,
                        **_sums(drift[mask], full[mask], spread[mask], told[mask], size.runs),
                    })  # fmt: skip
    return rows


def _sums(drift: Tensor, full: Tensor, spread: Tensor, told: Tensor, runs: int) -> dict[str, Any]:
    """``off``: of the mean displacement from the full batch's, what the runs' number explains taken off."""
    chance = float(spread.sum()) / runs
    off = float((drift - full).square().sum()) - chance
    return {
        "drift": float(drift.norm()), "full batch": float(full.norm()), "variance": float(spread.sum()),
        "predicted": float(told.sum()), "off": math.sqrt(max(off, 0.0)) / float(full.norm()),
        "chance": math.sqrt(chance) / float(full.norm()),
    }  # fmt: skip
