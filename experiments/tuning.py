"""How the demo's settings were chosen, on seeds that no reported figure uses (100 and up).

python -m experiments.tuning [--quick] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from jumpstart.comparison.compare import compare
from jumpstart.comparison.contenders import Contender, jumped, jumps_only, stepped
from jumpstart.demo import digits, poisson
from jumpstart.objectives.objective import supervised
from jumpstart.report import records

from .common import arguments, spread

FIRST = 100
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def travelling(count: int) -> Contender:
    """Jumps that travel ``count`` times before they land."""
    return jumps_only(lambda k: {"basis": "dense", "search": "scale" if k < count else "horizon"})


def adamw(lr: float, **options: Any) -> Any:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, **options)


def main() -> None:
    settings = arguments("tuning", __doc__, seeds=3)
    torch.set_num_threads(1)
    seconds = 0.1 if settings.quick else 8.0
    rates, points = (RATES[::4], 8) if settings.quick else (RATES, 30)
    seeds = [FIRST + i for i in range(settings.seeds)]
    rows: list[records.Row] = []

    def keep(problem: str, seed: int, report: Any, measure: str) -> None:
        for contender in report.contenders:
            losses, measures = report.curve(contender)[1], report.curve(contender, y=measure)[1]
            best = {"loss": min(losses, default=math.nan), measure: min(measures, default=math.nan)}
            rows.append({"problem": problem, "seed": seed, "contender": contender, **best})

    for seed in seeds:
        x, y, held_out, labels = digits.data(seed)
        contenders = {f"AdamW {lr:g}": stepped(adamw(lr)) for lr in rates}
        for depth in (8,) if settings.quick else (8, 12):
            for second in (False, True):
                contenders[f"jumps, depth {depth}{', second order' if second else ''}"] = jumped(
                    adamw(digits.SOUND),
                    at=lambda k: k >= 20,
                    search=True,
                    basis="krylov",
                    depth=depth,
                    geodesic=second,
                    chord_steps=0,
                )
        report = compare(
            digits.network(seed), lambda m, x=x, y=y: supervised(m, x, y, "cross_entropy"), contenders, seconds=seconds,
            evaluate=lambda m, x=held_out, y=labels: {"held-out loss": float(F.cross_entropy(m(x), y))},
            name="digits", seed=seed, progress=settings.progress,
        )  # fmt: skip
        keep("digits", seed, report, "held-out loss")
        contenders = {f"AdamW {lr:g}": stepped(adamw(lr, weight_decay=0.0)) for lr in rates}
        contenders |= {f"jumps, travel {count}": travelling(count) for count in (0, 30, 60, 1000)}
        report = compare(
            poisson.network(seed), lambda m: poisson.objective(m, points, points), contenders, seconds=seconds,
            name="poisson", seed=seed,
            evaluate=lambda m: {"relative error": poisson.error(m)}, progress=settings.progress,
        )  # fmt: skip
        keep("poisson", seed, report, "relative error")
    summary = []
    for problem, measure in (("digits", "held-out loss"), ("poisson", "relative error")):
        here = [row for row in rows if row["problem"] == problem]
        for contender in dict.fromkeys(row["contender"] for row in here):
            same = [row for row in here if row["contender"] == contender]
            row: records.Row = {"problem": problem, "contender": contender}
            for key in ("loss", measure):
                found = spread([r[key] for r in same])
                row |= {f"{key}, median": found["median"], f"{key}, worst": found["max"]}
            summary.append(row)
        shown = [row for row in summary if row["problem"] == problem]
        print(f"\n{problem}, best within {seconds:g} s\n{records.table(shown, {key: key for key in shown[0]})}")
    path = records.write(settings.out, "tuning", {"seconds": seconds, "summary": summary}, rows, seeds)
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
