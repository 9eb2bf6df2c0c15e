"""The command line of both experiments: tune, or run and report."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from .. import rivals
from ..common import Arguments, arguments
from ..random_problems.ledger import Ledger, rounded, sources
from . import choices, contenders, figures, runs, summary, tasks
from .contenders import ADAMW, CONTENDERS, FACTORS, Setting, names
from .tasks import Task

RESULTS = Path(__file__).resolve().parent.parent.parent / "docs" / "results"
FIRST = 100  # seed of the tuning
SEEDS = 3
TOY = 12  # steps of a quick run


def done(task: Task, asked: Arguments, ledger: Ledger, jobs: Sequence[choices.Job], end: float) -> list[Row] | None:
    """Rows of jobs, those that are there already and the others; None if the time was up before the last."""
    with counter(task.name, len(jobs), asked.progress) as count:
        for job in jobs:
            name, setting, level, seed, split = job
            if key(task, job) not in ledger:
                if time.monotonic() > end:
                    return None
                ledger.add(key(task, job), runs.row(task, name, setting, level, seed, split))
            count(f"{name}, {setting}")
    return [ledger.rows[key(task, job)] for job in jobs]


def key(task: Task, job: choices.Job) -> str:
    name, setting, level, seed, split = job
    return f"{task.name}, {task.steps}: {name}; {setting}; {level:g}; {seed}; {'80%' if split else 'all'}"


def settings(task: Task) -> Row:
    return {"steps": task.steps, "batch": task.batch, "rate": task.rate, "levels": task.levels,
            "factors": task.factors or FACTORS}  # fmt: skip


def tune(task: Task, asked: Arguments, ledger: Ledger, end: float) -> None:
    seeds = [FIRST + i for i in range(asked.seeds)]
    rows = done(task, asked, ledger, choices.tuning(task, seeds), end)
    if rows is None:
        sys.exit(f"no choice in {asked.minutes:g} minutes: the same command goes on from here.")
    chosen = choices.choose(task, rows)
    last = [
        {**{k: v for k, v in row.items() if k != "curves"}, "average": float(name) if name else None,
         "error": curve[-1][2], "validation": curve[-1][4], "lowest validation": min(point[4] for point in curve)}
        for row in rows for name, curve in row["curves"].items()
    ]  # fmt: skip
    path = records.write(asked.out, task.name, {**settings(task), "choices": chosen}, rounded(last), seeds)
    for level, found in chosen.items():
        print(f"noise {level}", *(f"  {name}: {Setting(**told)}" for name, told in found.items()), sep="\n")
    print(f"written: {path}")


def chosen(task: Task, quick: bool) -> Row:
    """What the tuning chose; at toy size the first of all."""
    if not quick:
        return records.read(RESULTS / task.name / "tuning")["settings"]["choices"]
    first = {name: (CONTENDERS[name] if name in CONTENDERS else CONTENDERS[ADAMW]).settings[0] for name in names(task)}
    if contenders.EMA in first:
        first[contenders.EMA] = replace(first[contenders.EMA], average=contenders.AVERAGES[0])
    return {f"{level:g}": {name: setting.told for name, setting in first.items()} for level in task.levels}


def report(task: Task, asked: Arguments, ledger: Ledger, end: float) -> None:
    found, rows, seeds = chosen(task, asked.quick), [], []
    for seed in range(asked.seeds):
        own = done(task, asked, ledger, choices.reported(task, found, seed), end)
        if own is None:
            break
        rows += own
        seeds.append(seed)
    if not seeds:
        sys.exit(f"no seed was done in {asked.minutes:g} minutes: the same command goes on from here.")
    lines = summary.summarized(task, rows, found)
    path = records.write(
        asked.out, task.name, {**settings(task), "choices": found, "summary": rounded(lines)}, rows, seeds
    )
    print(summary.verdict(task, lines, len(seeds)))
    print(records.table(summary.told(task, lines), summary.heads(task)))
    drawn_at, trouble = plots.drawn(lambda: figures.picture(task, rows, found), asked.out / f"{task.name}.png")
    print(f"written: {path}" + (f" and {drawn_at}" if drawn_at else f"; {trouble}"))


def main(task: Task, description: str | None, toy: Task | None = None, modules: Sequence[ModuleType] = ()) -> None:
    """Tune, or run and report; a quick run is of ``toy`` where that is given, and rows come from ``modules``, too."""
    asked = arguments(task.name, description, SEEDS, tuned=True)
    torch.set_num_threads(1)
    if asked.quick:
        task = replace(toy or task, steps=TOY, levels=task.levels[:1])
    end = time.monotonic() + 60 * asked.minutes
    measuring = (runs, tasks, rivals, contenders, choices, sys.modules[task.network.__module__], *modules)
    ledger = Ledger(asked.out, sources(*measuring))
    runs.run(replace(task, steps=2), ADAMW, Setting(FACTORS[0]), task.levels[0], 0, True)  # what torch imports at first
    (tune if asked.tuning else report)(task, asked, ledger, end)
