"""Point 2: seconds for the dense kernel, ours and neural-tangents' three ways, repetition by repetition in turn.

Ours is measured from model and inputs to K, and for K alone where the objective and its linearization are at hand;
theirs is compiled ahead of time (its seconds apart) and called with weights and inputs. One process computes at a time,
on one core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.ntk import train_kernel
from jumpstart.objectives.objective import Objective

from ..common import Arguments
from . import machine
from .problem import Problem, Row, Size, make, relative, row
from .rival import WAYS, Rival, interpreter

REPETITIONS = 9
GOAL = Size(512, 128, 10)  # where the default way is to be at least 50 times slower
WHOLE, ALONE = "jumpstart, model to K", "jumpstart, K alone"


def sizes(quick: bool) -> tuple[Size, ...]:
    return (Size(16, 12, 2),) if quick else (Size(128, 256, 1), Size(512, 256, 1), GOAL)


def run(settings: Arguments) -> list[Row]:
    python, rows = interpreter(), []
    for size in sizes(settings.quick):
        problem = make(size, 0)
        kept = problem.objective()
        first, _ = ours(problem, kept)
        if python is None:
            rows += report(size, measure(problem, kept, None, settings))
            continue
        with tempfile.TemporaryDirectory() as folder, Rival(python) as rival:
            problem.export(Path(folder) / "in.npz")
            rival.ask("load", path=str(Path(folder) / "in.npz"))
            compiled = {how: rival.ask("compile", how=how)["seconds"] for how in WAYS}
            errors = {}
            for how in WAYS:  # the first call warms up, and shows that the kernels are the same
                rival.ask("kernel", how=how, save=str(Path(folder) / "k.npy"))
                errors[how] = relative(first, np.load(Path(folder) / "k.npy"))
            rows += report(size, measure(problem, kept, rival, settings), compiled, errors, promised=not settings.quick)
    return rows


def ours(problem: Problem, kept: Objective) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """K, and seconds (clock, processor) for the whole way, and for K alone of an objective that was asked before."""
    k, *whole = machine.timed(lambda: train_kernel(linearize(problem.objective()), Metric()))
    lin = linearize(kept)
    _, *alone = machine.timed(lambda: train_kernel(lin, Metric()))
    return k, {WHOLE: (whole[0], whole[1]), ALONE: (alone[0], alone[1])}


def measure(
    problem: Problem, kept: Objective, rival: Rival | None, settings: Arguments
) -> dict[str, list[tuple[float, float]]]:
    """Seconds (clock, processor) of every repetition, the contenders taking turns."""
    found: dict[str, list[tuple[float, float]]] = {}
    for turn in range(2 if settings.quick else REPETITIONS):
        for name, spent in ours(problem, kept)[1].items():
            found.setdefault(name, []).append(spent)
        for how in WAYS if rival is not None else ():
            assert rival is not None
            answer = rival.ask("kernel", how=how)
            found.setdefault(how, []).append((answer["seconds"], answer["cpu"]))
        if settings.progress:
            last = ", ".join(f"{name} {times[-1][0]:.3g} s" for name, times in found.items())
            print(f"  turn {turn + 1}: {last}", flush=True)
    return found


def report(
    size: Size,
    found: dict[str, list[tuple[float, float]]],
    compiled: dict[str, float] | None = None,
    errors: dict[str, float] | None = None,
    promised: bool = False,
) -> list[Row]:
    """Seconds of each, then their ratios, which at toy size promise nothing."""
    at: dict[str, Any] = {"width": size.width, "samples": size.samples, "outputs": size.outputs}
    rows = []
    for name, spent in found.items():
        clock, cpu = ([pair[i] for pair in spent] for i in (0, 1))
        more: dict[str, Any] = {**machine.spread(clock), "cpu_per_second": sum(cpu) / sum(clock), "contender": name}
        if compiled and name in compiled:
            more["compile_seconds"] = compiled[name]
        rows.append(row(2, f"{size}: seconds, {name}", machine.median(clock), **more, **at))
    threads = max(r["cpu_per_second"] for r in rows)  # about one at most where everything is on one thread
    rows.append(row(2, f"{size}: processor seconds a second, most", threads, 1.1, **at))
    for name, error in (errors or {}).items():
        rows.append(row(2, f"{size}: K against {name}", error, 1e-10, **at))
    if compiled:
        first = machine.median([seconds for seconds, _ in found["structured"]]) + compiled["structured"]
        value = machine.median([seconds for seconds, _ in found[WHOLE]]) / first
        limit = 1.0 if promised else None
        rows.append(row(2, f"{size}: {WHOLE} / structured with its compilation", value, limit, **at))
    for name in (WHOLE, ALONE) if compiled else ():
        slower = ratio(found, name, "structured")
        rows.append(
            row(2, f"{size}: {name} / structured", slower.pop("median"), 1.0 if promised else None, **slower, **at)
        )
        faster = ratio(found, "default", name)
        limit = 50.0 if size == GOAL and promised else None
        rows.append(row(2, f"{size}: default / {name}", faster.pop("median"), limit, True, **faster, **at))
    return rows


def ratio(found: dict[str, list[tuple[float, float]]], one: str, two: str) -> dict[str, float]:
    """Of the medians, and the smallest and largest of neighbouring repetitions."""
    a, b = ([seconds for seconds, _ in found[name]] for name in (one, two))
    pairs = [x / y for x, y in zip(a, b, strict=True)]
    return {"median": machine.median(a) / machine.median(b), "min": min(pairs), "max": max(pairs)}
