"""Learning rates of the first-order rivals, chosen on seeds that no reported figure uses (100 and up).

python -m experiments.pinn.tuning [--quick] [--seeds N] [--out DIR] [--problems lshape]

Those of the race for time budgets, damping and cutoffs among them, are chosen by experiments.pinn.hyperparameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from jumpstart.comparison.compare import compare
from jumpstart.report import records
from jumpstart.report.records import Row

from ..common import Arguments, arguments, spread
from . import rivals
from .problems import PROBLEMS

FIRST = 100
SECONDS = 6.0  # a run; reported ones are longer
RATES = {
    "Adam": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "AdamW": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "SOAP": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
}
NOWHERE = 0.9  # an error at which a problem has hardly begun to be solved
DECAY = 1e-5  # AdamW's weight decay; larger ones were worse on Poisson's equation


def contender(name: str, problem: Any, rate: float, seconds: float) -> Any:
    """A first-order rival at a rate, which a cosine takes to 1% over its time."""
    if name == "AdamW":
        return rivals.adamw(problem, rate, DECAY, decay=seconds)
    return {"Adam": rivals.adam, "SOAP": rivals.soap}[name](problem, rate, decay=seconds)


def chosen(rows: list[Row], problem: str, name: str) -> float:
    """The rate with the lowest median error; with the lowest loss where no rate gets anywhere yet."""
    here = [row for row in rows if row["problem"] == problem and row["contender"] == name]
    rates = sorted({row["rate"] for row in here})

    def median(rate: float, key: str) -> float:
        return spread([r[key] for r in here if r["rate"] == rate])["median"]

    found = min(rates, key=lambda rate: median(rate, "error"))
    return found if median(found, "error") < NOWHERE else min(rates, key=lambda rate: median(rate, "loss"))


def kept(settings: Arguments) -> list[Row]:
    """Rows of problems that are not run anew."""
    if len(settings.problems) == len(PROBLEMS):
        return []
    return [row for row in records.read(settings.out)["rows"] if row["problem"] not in settings.problems]


def run(settings: Arguments) -> tuple[list[Row], list[int]]:
    seconds = 0.2 if settings.quick else SECONDS
    seeds = [FIRST + i for i in range(settings.seeds)]
    rows = kept(settings)
    for problem in [PROBLEMS[name] for name in settings.problems][: 1 if settings.quick else None]:
        for seed in seeds:
            contenders = {
                f"{name} {rate:g}": contender(name, problem, rate, seconds)
                for name, rates in RATES.items()
                for rate in rates[: 1 if settings.quick else None]
            }
            report = compare(
                problem.network(seed, "torch"), problem.objective, contenders, seconds=seconds, name=problem.name,
                evaluate=lambda model, problem=problem: {"error": problem.error(model)}, seed=seed,
                progress=settings.progress,
            )  # fmt: skip
            for label in report.contenders:
                name, rate = label.split()
                errors = [e for e in report.curve(label, y="error")[1] if math.isfinite(e)]
                rows.append(
                    {
                        "problem": problem.name, "seed": seed, "contender": name, "rate": float(rate),
                        "error": min(errors, default=math.inf), "loss": min(report.curve(label)[1], default=math.inf),
                    }
                )  # fmt: skip
    return sorted(rows, key=lambda row: list(PROBLEMS).index(row["problem"])), seeds


def main() -> None:
    settings = arguments("pinn.tuning", __doc__, seeds=2, problems=PROBLEMS)
    torch.set_num_threads(1)
    rows, seeds = run(settings)
    edges = [
        f"{name} on {problem}"
        for problem in dict.fromkeys(row["problem"] for row in rows)
        for name, rates in RATES.items()
        if chosen(rows, problem, name) in (rates[0], rates[-1])
    ]
    best = [
        {"problem": problem, **{name: chosen(rows, problem, name) for name in RATES}}
        for problem in dict.fromkeys(row["problem"] for row in rows)
    ]
    path = records.write(
        settings.out, "pinn.tuning", {"seconds": SECONDS, "chosen": best, "at the edge of the grid": edges,
        "run anew": settings.problems}, rows, seeds,
    )  # fmt: skip
    print(records.table(best, {key: key for key in best[0]}))
    print(f"at the edge of the grid: {', '.join(edges) or 'none'}")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
