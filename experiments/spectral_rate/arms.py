"""Where rates come from: the spectrum, tuning on other seeds, trials on the run's own start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import jumpstart as js
from jumpstart.linalg.lanczos import lanczos
from jumpstart.linearization.linearize import linearize
from jumpstart.report.records import Row

from .problems import CHANGES, KINDS, PROBLEMS, Problem, Rate, problem, trained

FIRST, TUNERS = 100, 2  # seeds of the tuning
DEPTH, TRIAL = 8, 3
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
GRID = tuple(2.0**k for k in range(-8, 4))
PROBES = GRID[::2]  # six rates for three steps each: 18 gradients, as 8 products of JᵀBJ are about 16
FACTORS = (0.5, 1.0, 2.0)
EDGES = tuple(2.0 ** (k / 2) for k in range(-4, 7))  # of the critical rate
ARMS = ("tuned", "spectrum", "per layer", "trials", "0.01")


def critical(p: Problem) -> tuple[float, list[float]]:
    """2/λmax(BK) at the start, and for each layer alone, divided by the number of layers."""
    objective = js.supervised(p.model, p.x, p.y, p.loss)
    lin, loss, space = linearize(objective), objective.loss, objective.space
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(space.size, generator=generator, dtype=torch.float64)
    owner = torch.cat([torch.full((n,), i // 2) for i, n in enumerate(space.sizes)])  # a weight and its bias

    def largest(mask: Tensor) -> float:
        found = lanczos(lambda v: mask * lin.vjp(loss.hvp(lin.u, lin.jvp(mask * v))), mask * start, DEPTH)
        return float(torch.linalg.eigvalsh(found.matrix())[-1])

    layers = len(space.sizes) // 2
    each = [2 / (layers * largest((owner == i).double())) for i in range(layers)]
    return 2 / largest(torch.ones_like(start)), each


def scaled(rate: Rate, factor: float) -> Rate:
    return [factor * r for r in rate] if isinstance(rate, list) else factor * rate


def best_trial(make: Callable[[], Problem], kind: str, seed: int) -> float:
    """The rate with the lowest loss after a few steps from this very start."""
    return min(PROBES, key=lambda rate: trained(make(), rate, kind, seed, TRIAL)[1])


def offered(arm: str, p: Problem, make: Callable[[], Problem], kind: str, seed: int) -> tuple[Rate, Sequence[float]]:
    """A rate that an arm makes of the start, and factors of it that may be chosen between."""
    if arm == "trials":
        return best_trial(make, kind, seed), FACTORS
    if arm in ("spectrum", "per layer"):
        return scaled(critical(p)[arm == "per layer"], 1 + KINDS[kind][1]), SHARES
    return (1.0, GRID) if arm == "tuned" else (0.01, (1.0,))


def chosen(kind: str, quick: bool, steps: int) -> dict[str, dict[str, float]]:
    """For each arm the factor for each problem: the same for all, but for "tuned"."""
    seeds = range(FIRST, FIRST + (1 if quick else TUNERS))
    found: dict[str, dict[str, float]] = {}
    for arm in ARMS:
        table: dict[str, dict[float, list[float]]] = {}
        for name in PROBLEMS:
            table[name] = {}
            for seed in seeds:
                make = lambda name=name, seed=seed: problem(name, seed, quick)  # noqa: E731
                rate, factors = offered(arm, make(), make, kind, seed)
                for factor in factors[:: 4 if quick else 1]:
                    trained(p := make(), scaled(rate, factor), kind, seed, steps)
                    table[name].setdefault(factor, []).append(p.value())
        means = {n: {f: math.log(sum(v) / len(v)) for f, v in own.items()} for n, own in table.items()}
        if arm == "tuned":
            found[arm] = {name: min(own, key=own.__getitem__) for name, own in means.items()}
        else:  # relative to each problem's own best, so that none outweighs the others
            low = {name: min(own.values()) for name, own in means.items()}
            joint = min(means[PROBLEMS[0]], key=lambda f: sum(means[n][f] - low[n] for n in PROBLEMS))
            found[arm] = dict.fromkeys(PROBLEMS, joint)
    return found


def reported(
    kind: str, change: str, seed: int, factors: dict[str, dict[str, float]], told: dict[str, Any]
) -> list[Row]:
    """All arms on one seed of all problems."""
    rows: list[Row] = []
    for name in PROBLEMS:
        make = lambda name=name: problem(name, seed, told["quick"], **CHANGES.get(change, {}))  # noqa: E731
        for arm in ARMS:
            rate, _ = offered(arm, make(), make, kind, seed)
            rate = scaled(rate, factors[arm][name])
            start, end = trained(p := make(), rate, kind, seed, told["steps"])
            rows.append({
                "part": "runs", "kind": kind, "change": change, "problem": name, "arm": arm, "seed": seed,
                "rate": rate, "start": start, "training loss": end, "held-out loss": p.value(),
            })  # fmt: skip
    return rows


def edge(name: str, seed: int, quick: bool, steps: int) -> Row:
    """The largest of EDGES times the critical rate at which the run and all slower ones end below their start."""
    rate, last = critical(problem(name, seed, quick))[0], 0.0
    for factor in EDGES:
        start, end = trained(problem(name, seed, quick), factor * rate, "full batch", seed, steps)
        if end > start:
            break
        last = factor
    return {"part": "edges", "problem": name, "seed": seed, "critical": rate, "edge": last}
