"""How each contender's rate and schedule were chosen, on a seed and validation samples that no reported figure uses.

python -m experiments.lora.tuning [--problems a,b] [--contenders a,b] [--out DIR]

Two runs for each. The choice is the run that comes first to the best loss that AdamW has in its own two;
where none does, the one that ends lowest. What wraps AdamW's loop (the library's actions) takes AdamW's rate and
schedule as they are.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from jumpstart.report import records
from jumpstart.report.records import Row

from ..common import names
from .loops import run
from .tasks import TASKS, Problem

SEED = 100
SCHEDULE = "linear"  # to zero at the end of a run
RATES = {"fit_head": (3e-4, 1e-3), "LP-FT": (3e-4, 1e-3)}  # from a head on, steps are smaller
OTHERS = (1e-3, 3e-3)
TUNED = ("AdamW", "Fast Forward", "schedule-free", "fit_head", "LP-FT")
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "lora" / "tuning"
LOOKS = 8  # at the validation loss, in a run


def looked(problem: Problem) -> int:
    """Steps between looks."""
    return max(1, problem.steps // LOOKS)


def reached(curve: list[Any], target: float) -> list[float] | None:
    """Steps, gradient evaluations and seconds to a loss; None where it is not reached."""
    return next((list(point[:3]) for point in curve if point[3] <= target), None)


def lowest(curve: list[Any]) -> list[float]:
    return min(curve, key=lambda point: point[3] if math.isfinite(point[3]) else math.inf)


def grid(contender: str) -> list[tuple[float, str]]:
    return [(rate, SCHEDULE) for rate in RATES.get(contender, OTHERS)]


def tuned(problem: Problem, contender: str, target: float) -> list[Row]:
    rows = []
    for rate, schedule in grid(contender):
        found = run(problem, contender, rate, schedule, SEED, problem.steps, looked(problem), problem.tuning, target)
        for name, curve in found["curves"].items():
            best = lowest(curve)
            rows.append({
                "contender": name, "rate": rate, "schedule": schedule, "seed": SEED, "best": best[3],
                "best at": best[:3], "curve": curve,
            })  # fmt: skip
    return rows


def choices(rows: list[Row]) -> list[Row]:
    """For each task, and of each contender, the run that is first at AdamW's best, else the lowest."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        target = min(row["best"] for row in own if row["contender"] == "AdamW")
        for contender in dict.fromkeys(row["contender"] for row in own):
            same = [row for row in own if row["contender"] == contender]

            def order(row: Row, target: float = target) -> tuple[float, float]:
                at = reached(row["curve"], target)
                return (math.inf if at is None else at[2], row["best"])

            best = min(same, key=order)
            at = reached(best["curve"], target)
            found.append({
                "task": task, "contender": contender, "rate": best["rate"], "schedule": best["schedule"],
                "best": best["best"], "target": target, "steps to target": at and at[0],
                "seconds to target": at and at[2],
            })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.lora.tuning", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--problems", default="", help="tasks, with commas; the rows of others are kept")
    parser.add_argument("--contenders", default="", help="with commas; the rows of others are kept")
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args()
    tasks = names(parser, "problems", asked.problems, TASKS) or tuple(TASKS)
    contenders = names(parser, "contenders", asked.contenders, TUNED) or TUNED
    torch.set_num_threads(1)
    rows: list[Row] = records.read(asked.out)["rows"] if (asked.out / records.NAME).is_file() else []
    rows = [row for row in rows if row["schedule"] == SCHEDULE]
    for task in tasks:
        problem = TASKS[task]()
        for contender in contenders:
            if contender in RATES and not problem.head:
                continue
            known = [row["best"] for row in rows if (row["task"], row["contender"]) == (task, "AdamW")]
            new = tuned(problem, contender, min(known) if known and contender != "AdamW" else -math.inf)
            replaced = {row["contender"] for row in new}
            rows = [row for row in rows if row["task"] != task or row["contender"] not in replaced]
            rows += [{"task": task, **row} for row in new]
            records.write(asked.out, "lora, tuning", {"choices": choices(rows)}, rows, [SEED])
    found = choices(rows)
    print(records.table(found, {key: key for key in found[0]}))


if __name__ == "__main__":
    main()
