"""Point 4: train and test outputs at a hundred further horizons, from the eigenvectors that each side has kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jumpstart as js

from ..common import Arguments
from . import machine
from .problem import Problem, Row, Size, make, relative, row
from .rival import Rival, interpreter

REPETITIONS = 9
HORIZONS = 100
JUMPSTART, EAGER, JITTED = "jumpstart", "neural-tangents", "neural-tangents, jitted"


def run(settings: Arguments) -> list[Row]:
    sizes = (Size(16, 12, 2),) if settings.quick else (Size(512, 256, 1), Size(512, 128, 10))
    python, rows = interpreter(), []
    for size in sizes:
        problem = make(size, 0)
        if python is None:
            rows += report(size, measure(problem, None, settings))
            continue
        with tempfile.TemporaryDirectory() as folder, Rival(python) as rival:
            problem.export(Path(folder) / "in.npz")
            rival.ask("load", path=str(Path(folder) / "in.npz"))
            for query in (False, True):
                rival.ask("compile", how="structured", query=query)
            rival.ask("kernel", how="structured")
            rival.ask("solve", how="structured")
            rows += report(size, measure(problem, rival, settings, Path(folder) / "out.npz"), not settings.quick)
    return rows


def times(turn: int) -> torch.Tensor:
    """A hundred horizons from 0.1 to 1000, others every turn, so that no answer is at hand."""
    return torch.logspace(-1, 3, HORIZONS, dtype=torch.float64) * (1 + 0.001 * turn)


def measure(problem: Problem, rival: Rival | None, settings: Arguments, saved: Path | None = None) -> dict[str, Any]:
    """Seconds of every repetition, in turn, and the difference between the answers."""
    solution = js.solve(problem.objective(), basis="dense")

    def ours(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return solution.outputs(t), solution.predict(problem.q, t)

    ours(times(-1))  # theirs has the kernel of the query points already; now ours has, too
    found: dict[str, list[float]] = {}
    error = None
    if rival is not None:
        for jit in (False, True):
            rival.ask("predict", times=times(-1).tolist(), jit=jit, save=str(saved))
            theirs = np.load(str(saved))
            answers = [(a, theirs[side]) for a, side in zip(ours(times(-1)), ("train", "test"), strict=True)]
            error = max(relative(a, b) for a, b in answers)
    for turn in range(2 if settings.quick else REPETITIONS):
        t = times(turn)
        found.setdefault(JUMPSTART, []).append(machine.timed(lambda t=t: ours(t))[1])
        if rival is not None:
            for name, jit in ((EAGER, False), (JITTED, True)):
                found.setdefault(name, []).append(rival.ask("predict", times=t.tolist(), jit=jit)["seconds"])
    return {"seconds": found, "error": error}


def report(size: Size, measured: dict[str, Any], promised: bool = False) -> list[Row]:
    """Seconds of each, and their ratios, which at toy size promise nothing."""
    at: dict[str, Any] = {"width": size.width, "samples": size.samples, "outputs": size.outputs}
    found: dict[str, list[float]] = measured["seconds"]
    rows = []
    for name, spent in found.items():
        what = f"{size}: seconds for {HORIZONS} horizons, {name}"
        rows.append(row(4, what, machine.median(spent), contender=name, **machine.spread(spent), **at))
    for name in (EAGER, JITTED) if EAGER in found else ():
        value = machine.median(found[JUMPSTART]) / machine.median(found[name])
        rows.append(row(4, f"{size}: {HORIZONS} horizons, jumpstart / {name}", value, 1.0 if promised else None, **at))
    if measured["error"] is not None:
        rows.append(row(4, f"{size}: outputs at them against neural-tangents", measured["error"], 1e-8, **at))
    return rows
