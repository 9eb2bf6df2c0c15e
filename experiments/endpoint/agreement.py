"""Point 1: train and test outputs at several horizons against neural-tangents' closed form, the same numbers in."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch

import jumpstart as js
from jumpstart.kernel import train_kernel
from jumpstart.linearize import linearize
from jumpstart.metric import Metric

from ..common import Arguments
from .problem import Problem, Row, Size, make, relative, row
from .rival import Rival, interpreter

TIMES = (0.1, 1.0, 10.0, 100.0, 1e3)
EPS = 2.0**-52


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
    solution = js.solve(objective, basis="dense")
    spectrum = torch.linalg.eigvalsh(k)
    condition = float(spectrum[-1] / spectrum[0]) if spectrum[0] > 0 else math.inf
    found: dict[str, dict] = {
        "condition number of K": {"value": condition},
        "K": {"value": relative(k, np.load(folder / "k.npy")), "limit": 1e-10},
    }

    def difference(t: float | None) -> tuple[float, float]:
        rival.ask("predict", times=t, save=str(folder / "out.npz"))
        theirs = np.load(folder / "out.npz")
        end = math.inf if t is None else t
        return (
            relative(solution.outputs(end), theirs["train"]),
            relative(solution.predict(problem.q, end), theirs["test"]),
        )

    finite = [difference(t) for t in TIMES]
    for at, side in enumerate(("train", "test")):
        found[f"{side} outputs, t {TIMES[0]:g} to {TIMES[-1]:g}"] = {"value": max(d[at] for d in finite), "limit": 1e-8}
    # At the end rounding is magnified by the condition number: where that alone exceeds the limit, there is none.
    limit = 1e-8 if condition * EPS < 1e-8 else None
    for side, value in zip(("train", "test"), difference(None), strict=True):
        value = value if math.isfinite(value) else math.inf
        found[f"{side} outputs, t ∞"] = {"value": value, "limit": limit, "condition": condition}
    return found
