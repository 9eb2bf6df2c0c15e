"""What is chosen, by what a user has: the misfit to a noisy validation part; and what is run with that."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from jumpstart.report.records import Row

from .contenders import ADAMW, AVERAGES, EARLY, EMA, Setting, control, names, of
from .tasks import Task

VALIDATION = 4  # of a curve's points
Job = tuple[str, Setting, float, int, bool]  # contender, setting, level, seed, whether a part is held back


def tuning(task: Task, seeds: Sequence[int]) -> list[Job]:
    """Every setting of every contender, on 80% of the samples."""
    return [
        (name, setting, level, seed, True)
        for seed in seeds
        for level in task.levels
        for name, contender in of(task).items()
        for setting in contender.settings
    ]


def choose(task: Task, rows: Sequence[Row]) -> Row:
    """The setting of each contender at each level: the lowest misfit to the validation part at the end, mean of seeds;
    of early stopping the lowest on the way.
    """
    choices: Row = {}
    for level in dict.fromkeys(row["level"] for row in rows):
        here = [row for row in rows if row["level"] == level]
        found: Row = {}
        for name in names(task):
            plain = {EMA: ADAMW, EARLY: ADAMW}.get(name, name)
            tries: dict[Setting, list[float]] = {}
            for row in (row for row in here if row["contender"] == plain):
                for average in AVERAGES if name == EMA else (None,):
                    curve = row["curves"]["" if average is None else f"{average:g}"]
                    misfits = [point[VALIDATION] for point in curve]
                    setting = Setting(row["factor"], row["decay"], average)
                    tries.setdefault(setting, []).append(min(misfits) if name == EARLY else misfits[-1])
            found[name] = min(tries, key=lambda setting: fmean(tries[setting])).told
        choices[f"{level:g}"] = found
    return choices


def reported(task: Task, choices: Row, seed: int) -> list[Job]:
    """AdamW at all rates of the control, gates at all of the grid, others as they were chosen; on all samples."""
    jobs: dict[Job, None] = {}
    for level in task.levels:
        for factor in control(task):
            jobs[ADAMW, Setting(factor), level, seed, False] = None
        for name, contender in of(task).items():
            if contender.gate:
                jobs |= {(name, setting, level, seed, False): None for setting in contender.settings}
            elif name != ADAMW:
                jobs[name, Setting(**choices[f"{level:g}"][name]), level, seed, False] = None
        if EARLY in names(task):
            jobs[ADAMW, Setting(**choices[f"{level:g}"][EARLY]), level, seed, True] = None
    return list(jobs)
