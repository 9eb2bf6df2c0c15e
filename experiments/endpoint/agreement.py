"""Point 1: train and test outputs at several horizons against neural-tangents' closed form, the same numbers in."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.ntk import train_kernel

from ..common import Arguments
from .problem import Problem, Row, Size, make, relative, row
from .rival import Rival, interpreter

TIMES = (0.1, 1.0, 10.0, 100.0, 1e3)
EPS = 2.0**-52
Answers = Callable[[float], tuple[Any, Any]]


def problems(quick: bool) -> dict[str, tuple[Size, bool]]:
    """Random inputs of 20 numbers, as in the timings; orthogonal ones; and inputs that lie close together."""
    if quick:
        return {"random inputs": (Size(16, 12, 2, 4, 5), False)}
    return {
        "random inputs, c 1": (Size(128, 256, 1), False),
        "random inputs, c 10": (Size(128, 128, 10), False),
        "orthogonal inputs, c 1": (Size(512, 64, 1, inputs=100), True),
        "orthogonal inputs, c 10": (Size(512, 64, 10, inputs=100), True),
        "inputs of one number, c 1": (Size(128, 32, 1, inputs=1), False),
    }


def run(settings: Arguments) -> list[Row]:
    python = interpreter()
    if python is None:
        return []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, Rival(python) as rival:
        for name, (size, orthogonal) in problems(settings.quick).items():
            for seed in range(settings.seeds):
                found = compare(make(size, seed, orthogonal), rival, Path(folder))
                rows += [row(1, f"{name}: {what}", **more, seed=seed) for what, more in found.items()]
    return rows


def compare(problem: Problem, rival: Rival, folder: Path) -> dict[str, dict]:
    """Relative differences of K and of the outputs at finite horizons (the worst of them) and at the end."""
    problem.export(folder / "in.npz")
    rival.ask("load", path=str(folder / "in.npz"))
    for query in (False, True):
        rival.ask("compile", how="default", query=query)
    rival.ask("kernel", how="default", save=str(folder / "k.npy"))
    rival.ask("solve", how="default")
    objective = problem.objective()
    k = train_kernel(linearize(objective), Metric())
    spectrum = torch.linalg.eigvalsh(k)
    condition = float(spectrum[-1] / spectrum[0].clamp_min(EPS * spectrum[-1]))
    found: dict[str, dict] = {
        "condition number of K": {"value": condition},
        "K": {"value": relative(k, np.load(folder / "k.npy")), "limit": 1e-10},
    }
    # Rounding in K is magnified by its condition number: where that alone exceeds the limit, there is none.
    limit = 1e-8 if condition * EPS < 1e-8 else None
    ours = at(js.solve(objective, basis="dense"), problem)

    def theirs(t: float) -> tuple[Any, Any]:
        rival.ask("predict", times=None if math.isinf(t) else t, save=str(folder / "out.npz"))
        arrays = np.load(folder / "out.npz")
        return arrays["train"], arrays["test"]

    def note(what: str, one: Answers, two: Answers, times: tuple[float, ...], **more: Any) -> None:
        worst = np.max([[relative(a, b) for a, b in zip(one(t), two(t), strict=True)] for t in times], axis=0)
        for side, value in zip(("train", "test"), worst, strict=True):
            finite = bool(np.isfinite(value))
            name = f"{side} outputs, {what}" + ("" if finite else ": neural-tangents says NaN")
            found[name] = {"value": float(value) if finite else 1.0, **more}

    finite = f"t {TIMES[0]:g} to {TIMES[-1]:g}"
    note(finite, ours, theirs, TIMES, limit=limit)
    note("t ∞", ours, theirs, (math.inf,), limit=limit, condition=condition)
    if limit is None:  # which of the two is further off? The SVD of J knows modes that drown in K's rounding.
        exact = at(js.solve(objective, basis=lambda problem: js.bases.dense(problem, route="svd")), problem)
        note(f"{finite}, jumpstart against the SVD of J", ours, exact, TIMES)
        note(f"{finite}, neural-tangents against the SVD of J", theirs, exact, TIMES)
    return found


def at(solution: js.Solution, problem: Problem) -> Answers:
    """Its train and test outputs as a function of the horizon."""
    return lambda t: (solution.outputs(t), solution.predict(problem.q, t))
