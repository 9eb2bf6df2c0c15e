"""One skip of m steps against really taking them, on one random problem.

Miss is the distance of held-out outputs from those of the real run, relative to how far these moved. A skip that stops
early is held against the real run after as many steps. Rivals always take all m. ``later`` is the miss when both have
really taken ten more steps: what the optimizer's state after the skip is worth. Gradient evaluations are of the
objective, which has all training samples; seconds, the processor's, are those of the call alone.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

import jumpstart as js
from jumpstart.report.records import Row

from ..random_problems.networks import Tally
from ..random_problems.problems import Problem
from ..random_problems.runs import Losses, Run, recorded
from . import rivals

START = 20  # steps before the skip
STEPS, TOY = (5, 10, 20, 40, 80, 160), (5, 20)
LATER = 10
SKIP, LINE, NOISE = "skip", "last update, repeated", "another order"


@dataclass
class Path:
    """A real run after each of its steps, the start first."""

    held: list[Tensor] = field(default_factory=list)
    losses: list[Losses] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def look(self, run: Run) -> None:
        self.held.append(run.held_out())
        self.losses.append(run.losses())
        self.seconds.append(run.seconds)

    def against(self, run: Run, steps: int) -> Row:
        """How far a run is from this one after as many steps."""
        here, there = run.held_out(), self.held[steps]
        train, held = run.losses().above(self.losses[steps], self.losses[0])
        return {"miss": _ratio(here - there, there - self.held[0]), "train": train, "held": held}

    @property
    def finite(self) -> bool:
        return all(math.isfinite(losses.train) and math.isfinite(losses.held) for losses in self.losses)


def measure(of: Problem, replica: int, steps: Sequence[int] = STEPS, **options: Any) -> Row:
    """Every arm at every number of steps: a row whose entry "arms" has a list of results an arm.

    ``options`` are those of :func:`jumpstart.skip`.
    """
    run = Run.start(of, replica)
    for _ in range(START - 1):
        run.step()
    before = rivals.flat(run.model)
    run.step()
    row: Row = {**of.told, "replica": replica, "diverged": not run.finite, "arms": {}}
    real = take(run.clone(), max(steps) + LATER)
    if row["diverged"] or not real.finite:
        return row | {"diverged": True}
    row["stepping"] = [real.seconds[m] - real.seconds[0] for m in steps]
    arms: dict[str, Callable[[], list[Row]]] = {
        SKIP: lambda: [skipped(run, real, m, options) for m in steps],
        LINE: lambda: repeated(run, real, before, steps),
    }
    if not of.full:
        arms[NOISE] = lambda: reordered(run, real, replica + 1, steps)
    if rivals.applies(run):
        for way in rivals.names(of):
            arms[way] = lambda way=way: linearized(run, real, way, steps)
    order = list(arms)
    random.Random(of.number).shuffle(order)  # who goes first is nobody's advantage
    found = {arm: arms[arm]() for arm in order}
    return row | {"arms": {arm: found[arm] for arm in arms}}


def take(run: Run, count: int) -> Path:
    path = Path()
    path.look(run)
    for _ in range(count):
        run.step()
        path.look(run)
    return path


def skipped(run: Run, real: Path, m: int, options: dict[str, Any]) -> Row:
    """The library's skip, and ten real steps after it."""
    twin = run.clone()
    objective = twin.objective()
    before, begun = Tally.samples, time.process_time()
    with recorded() as said:
        try:
            result = js.skip(objective, twin.optimizer, steps=m, **options)
        except Exception as error:  # a fault of the library is a result
            return {"asked": m, "error": f"{type(error).__name__}: {error}"[:300]}
    seconds, samples = time.process_time() - begun, run.problem.samples
    row: Row = {
        "asked": m, "steps": result.steps, "outcome": result.outcome.name, "windows": result.windows,
        "evaluations": result.gradient_evaluations, "dense": result.dense_work,
        "passes": (Tally.samples - before) / samples, "seconds": seconds,
    }  # fmt: skip
    if said:
        row["warnings"] = said
    if result.steps:
        row |= real.against(twin, result.steps)
        for _ in range(result.steps):
            next(twin.batches)  # the loop's data have gone on
        for _ in range(LATER):
            twin.step()
        row["later"] = real.against(twin, result.steps + LATER)["miss"]
    return row


def repeated(run: Run, real: Path, before: Tensor, steps: Sequence[int]) -> list[Row]:
    """θ + m (θ − what it was a step ago)."""
    theta = rivals.flat(run.model)
    return [{"asked": m, "steps": m, **moved(run, theta + m * (theta - before), real, m)} for m in steps]


def linearized(run: Run, real: Path, way: str, steps: Sequence[int]) -> list[Row]:
    """The optimizer's own recursion on the linearization at the start."""
    begun, theta = time.process_time(), rivals.flat(run.model)
    found = rivals.frozen(run, way, steps)
    seconds = time.process_time() - begun  # of the longest, all on the way to it
    rows = [{"asked": m, "steps": m, **moved(run, theta + d, real, m)} for m, d in zip(steps, found, strict=True)]
    return [*rows[:-1], rows[-1] | {"seconds": seconds}]


def reordered(run: Run, real: Path, order: int, steps: Sequence[int]) -> list[Row]:
    """The real run on other minibatches: what no skip could know."""
    twin, rows = run.clone(order), []
    for m in range(1, max(steps) + 1):
        twin.step()
        if m in steps:
            rows.append({"asked": m, "steps": m, **real.against(twin, m)})
    return rows


def moved(run: Run, theta: Tensor, real: Path, m: int) -> Row:
    """How far a model with these weights is from the real run after m steps."""
    twin = run.clone()
    with torch.no_grad():
        vector_to_parameters(theta, twin.model.parameters())
    return real.against(twin, m)


def _ratio(a: Tensor, b: Tensor) -> float:
    """|a| / |b| in float64; infinite where a is not finite."""
    top, bottom = float(a.double().norm()), float(b.double().norm())
    return top / max(bottom, 1e-300) if math.isfinite(top) else math.inf
