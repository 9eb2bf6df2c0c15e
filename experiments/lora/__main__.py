"""LoRA fine-tuning of two pretrained models: time to tuned AdamW's best validation loss, and which action earns it.

python -m experiments.lora [--quick] [--seeds N] [--problems a,b] [--out DIR]

Rates and schedules: ``python -m experiments.lora.tuning``, whose choices this reads. Seconds are this process's own, on
one thread, looks at the validation loss left out; gradient evaluations count what actions cost as well. AdamW runs
first; the target is its median best loss over seeds, and every other run ends where it is reached.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from jumpstart.errors import JumpstartError
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments, legend_below, plain_ticks, spread
from .loops import ACTIONS, run
from .tasks import TASKS, TOY, Problem
from .tuning import FOLDER, SCHEDULE, looked, lowest, reached

ADAMW = "AdamW"
BESIDE = ("EMA", "LAWA")  # of AdamW's own run
CONTENDERS = (ADAMW, "Fast Forward", "schedule-free", "LP-FT", "fit_head", *ACTIONS)


def settings(task: str, names: list[str]) -> dict[str, tuple[float, str]]:
    """Rate and schedule by contender, as tuned; what wraps AdamW's loop has AdamW's."""
    if task in TOY:
        return dict.fromkeys(names, (1e-2, SCHEDULE))
    rows = [row for row in records.read(FOLDER)["settings"]["choices"] if row["task"] == task]
    found = {row["contender"]: (row["rate"], row["schedule"]) for row in rows}
    if untuned := [name for name in names if name not in found and name not in ACTIONS]:
        raise JumpstartError(f"{task}: {untuned} are not tuned: python -m experiments.lora.tuning --problems {task}")
    return {name: found.get(name, found[ADAMW]) for name in names}


def contenders(problem: Problem, quick: bool) -> list[str]:
    """Those that there are: heads need one that is trained, schedule-free AdamW its package."""
    without = set() if problem.head else {"LP-FT", "fit_head", "head"}
    if quick:
        without.add("schedule-free")
    return [name for name in CONTENDERS if name not in without]


def raced(task: str, problem: Problem, seeds: range, quick: bool, count: Any) -> list[Row]:
    """AdamW on all seeds, which sets the target, then everybody else, interleaved."""
    rows: list[Row] = []
    chosen = settings(task, contenders(problem, quick))

    def one(name: str, seed: int, target: float) -> None:
        rate, schedule = chosen[name]
        found = run(problem, name, rate, schedule, seed, problem.steps, looked(problem), problem.reported, target)
        for kind, curve in found["curves"].items():
            best = lowest(curve)
            rows.append({
                "task": task, "contender": kind, "seed": seed, "rate": rate, "schedule": schedule, "best": best[3],
                "best at": best[:3], "curve": curve, "told": found["told"] if kind == name else [],
                "earned": found["earned"] if kind == name else 0.0,
            })  # fmt: skip
        count(f"{task}, {name}")

    for seed in seeds:
        one(ADAMW, seed, -math.inf)
    target = spread([row["best"] for row in rows if row["contender"] == ADAMW])["median"]
    for seed in seeds:
        for name in contenders(problem, quick)[1:]:
            one(name, seed, target)
    for row in rows:
        row["target"], row["reached"] = target, reached(row["curve"], target)
    return rows


def middle(values: list[float]) -> float | None:
    """Median, None where that is beyond all bounds."""
    found = spread(values)["median"]
    return found if math.isfinite(found) else None


def summarized(rows: list[Row]) -> list[Row]:
    """For each task and contender: how often the target was reached, and median steps, gradients and seconds to it.

    A run that does not reach it counts as infinite. ``faster`` is AdamW's median over its own.
    """
    found: list[Row] = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        base = None
        for name in dict.fromkeys(row["contender"] for row in own):
            same = [row for row in own if row["contender"] == name]
            to = [row["reached"] or [math.inf] * 3 for row in same]
            steps, gradients, seconds = (middle([point[i] for point in to]) for i in range(3))
            base = seconds if name == ADAMW else base
            found.append({
                "task": task, "contender": name, "runs": len(same), "target": same[0]["target"],
                "reached": sum(row["reached"] is not None for row in same),
                "best": spread([row["best"] for row in same])["median"],
                "steps": steps, "gradients": gradients, "seconds": seconds,
                "faster": base / seconds if base is not None and seconds else None,
                "steps earned": spread([row["earned"] for row in same])["median"],
            })  # fmt: skip
    return found


COLUMNS = {
    "task": "task", "contender": "", "reached": "reached", "runs": "of", "best": "best loss, median", "steps": "steps",
    "gradients": "gradient evaluations", "seconds": "seconds", "faster": "times faster than AdamW",
}  # fmt: skip


def picture(rows: list[Row]) -> Any:
    """Validation loss against seconds, one seed of each contender."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    across = min(2, len(tasks))
    figure, axes = plots.pyplot().subplots(
        -(-len(tasks) // across), across, figsize=(5.2 * across, 3.6 * -(-len(tasks) // across)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    names = list(dict.fromkeys(row["contender"] for row in rows))
    first = min(row["seed"] for row in rows)
    for axis, task in zip(axes.flat, tasks, strict=False):
        own = [row for row in rows if row["task"] == task and row["seed"] == first]
        for row in own:
            at = names.index(row["contender"])
            colour, style = plots.COLOURS[at % len(plots.COLOURS)], ("-", "--", ":")[at // len(plots.COLOURS) % 3]
            marker = "o" if len(row["curve"]) == 1 else None
            axis.plot(
                [point[2] for point in row["curve"]], [point[3] for point in row["curve"]],
                color=colour, linestyle=style, marker=marker, linewidth=1.4, label=row["contender"],
            )  # fmt: skip
        axis.axhline(own[0]["target"], color="grey", linewidth=1, label="AdamW's best")
        axis.set(title=task, xlabel="seconds", xscale="log")
        plain_ticks(axis.xaxis)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"validation loss, seed {first}")
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    legend_below(figure, 7)
    return figure


def main() -> None:
    asked = arguments("lora", __doc__, 3, TASKS)
    torch.set_num_threads(1)
    tasks = TOY if asked.quick else {name: TASKS[name] for name in asked.problems}
    kept = asked.out / records.NAME
    rows: list[Row] = records.read(asked.out)["rows"] if kept.is_file() and not asked.quick else []
    with counter("lora", len(tasks) * asked.seeds * len(CONTENDERS), asked.progress) as count:
        for task, make in tasks.items():
            new = raced(task, make(), range(asked.seeds), asked.quick, count)
            rows = [row for row in rows if row["task"] != task] + new
    summary = summarized(rows)
    path = records.write(asked.out, "lora", {"quick": asked.quick, "summary": summary}, rows, range(asked.seeds))
    print(records.table(summary, COLUMNS))
    drawn, trouble = plots.drawn(lambda: picture(rows), asked.out / "lora.png")
    print(f"written: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"))


if __name__ == "__main__":
    main()
