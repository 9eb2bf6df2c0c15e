"""Point 7, its cost: seconds of leave-one-out at 30 horizons, in units of one gradient evaluation of the same network.

python -m experiments.endpoint.cost [--quick] [--seeds N] [--out DIR]   (by itself; point 7 ends with it)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import jumpstart as js
from jumpstart.report import records

from ..common import Arguments, arguments
from .data import SETTINGS, split
from .linearity import sentences

Row = dict[str, Any]
HORIZONS = 30
DECADES = 4.0  # of horizons, from a tenth of the fastest mode's relaxation time on
TOLERANCE = 1e-4


def cases(args: Arguments) -> list[tuple[str, int]]:
    if args.quick:
        return [("digits", 12)]
    small = [("energy", 64), ("energy", 256), ("mnist parity", 64), ("mnist parity", 256), ("digits", 32)]
    return [*small, ("sentence encoder", 64), ("sentence encoder", 256)]


def objective(name: str, n: int, seed: int) -> js.Objective:
    torch.manual_seed(seed)
    if name == "sentence encoder":
        case = sentences(n)
        return js.supervised(case.model, *case.train, loss=case.loss, params=case.params, chunk=64)
    setting = SETTINGS[name]
    x, y, _, _ = split(setting, n, 0.2, seed)
    return js.supervised(setting.model(x), x, y, loss=setting.loss)


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The result, and the median of seconds."""
    found, seconds = None, []
    for _ in range(repeats):
        begun = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - begun)
    return found, statistics.median(seconds)


def one(name: str, n: int, seed: int) -> Row:
    task = objective(name, n, seed)
    theta = task.theta()
    repeats = 1 if name == "sentence encoder" else 5
    task.gradient(theta)
    _, gradient = timed(lambda: task.gradient(theta), 2 if repeats == 1 else 5)
    solution, solved = timed(lambda: js.solve(task, basis="dense"), repeats)
    first = 0.1 / float(solution.spectrum[0])
    t = first * torch.logspace(0, DECADES, HORIZONS, dtype=torch.float64)
    before = solution.lin.ledger.gradient_evaluations
    _, left = timed(lambda: solution.risk(t, tolerance=TOLERANCE), repeats)
    return {
        "setting": f"{name}, {task.loss.__class__.__name__}", "n": n, "seed": seed, "outputs": solution.lin.u.numel(),
        "parameters": task.space.size, "gradient seconds": gradient, "solve seconds": solved,
        "leave-one-out seconds": left,
        "solve / gradient": solved / gradient, "leave-one-out / gradient": left / gradient,
        "network passes": solution.lin.ledger.gradient_evaluations - before,
    }  # fmt: skip


def run(args: Arguments) -> list[Row]:
    """One thread; nothing else may run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [one(name, n, 0) for name, n in cases(args)]
    finally:
        torch.set_num_threads(threads)
    records.write(args.out / "cost", "endpoint.cost", {"quick": args.quick, "horizons": HORIZONS}, rows, [0])
    heads = (
        "setting",
        "n",
        "gradient seconds",
        "solve / gradient",
        "leave-one-out seconds",
        "leave-one-out / gradient",
    )
    print(records.table(rows, {head: head for head in heads}))
    return [
        {"point": 7, "check": f"leave-one-out at {HORIZONS} horizons / one gradient, {row['setting']}, n {row['n']}",
         "value": row["leave-one-out / gradient"], "limit": 1.0, "above": False,
         "holds": row["leave-one-out / gradient"] <= 1.0}
        for row in rows
    ]  # fmt: skip


if __name__ == "__main__":
    run(arguments("endpoint.cost", __doc__, seeds=1))
