"""Error along the run, at the end against the rate, and against the misfit to the noisy samples."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from jumpstart.report import plots
from jumpstart.report.records import Row

from ..common import legend_below, plain_ticks
from .contenders import ADAMW, EARLY, EMA, FACTORS, Setting, control, gates, names
from .summary import ERROR, MISFIT, curves, ends, slower
from .tasks import Task


def along(found: Sequence[Sequence[Sequence[float]]], *which: int) -> list[list[float]]:
    """Medians of some entries of each point, over curves."""
    return [[median(point[i] for point in at) for i in which] for at in zip(*found, strict=True)]


def picture(task: Task, rows: Sequence[Row], choices: Row) -> Any:
    figure, axes = plots.pyplot().subplots(
        len(task.levels), 3, figsize=(12.5, 3.4 * len(task.levels) + 0.6), squeeze=False, layout="constrained"
    )
    for (run, rate, frontier), level in zip(axes, task.levels, strict=True):
        here, chosen = [row for row in rows if row["level"] == level], choices[f"{level:g}"]
        best, _ = slower(task, here)
        lines = {name: Setting(**chosen[name]) for name in (ADAMW, *gates(task), EMA) if name in names(task)}
        shown: list[float] = []
        for colour, (name, setting) in zip(plots.COLOURS, lines.items(), strict=False):
            points = along(curves(here, name, setting), 0, ERROR, MISFIT)
            values = [task.shown(p[1]) for p in points]
            shown += values[len(values) // 3 :]
            run.plot([p[0] for p in points], values, color=colour, label=name, linewidth=1.3)
            frontier.plot([p[2] for p in points], values, color=colour, linewidth=1.3)
            factors = sorted(control(task) if name == ADAMW else task.factors or FACTORS)
            if name != EMA:
                at_end = [task.shown(median(ends(here, name, Setting(factor)))) for factor in factors]
                rate.plot(factors, at_end, "o-", color=colour, markersize=3, linewidth=1.3)
        slow = along(curves(here, ADAMW, best), 0, ERROR, MISFIT)
        values = [task.shown(p[1]) for p in slow]
        shown += values[len(values) // 3 :]
        run.plot(
            [p[0] for p in slow],
            values,
            "--",
            color="grey",
            label=f"{ADAMW}, {best.factor:g} of the rate, at noise {level:g}",
        )
        frontier.plot([p[2] for p in slow], values, "--", color="grey")
        early = task.shown(median(ends(here, EARLY, Setting(**chosen[EARLY]))))
        for axis in (run, rate, frontier):
            axis.axhline(early, color="grey", linewidth=0.8, linestyle=":", label=EARLY if axis is run else None)
            axis.set(xscale="log", ylabel=task.unit)
            axis.tick_params(axis="x", labelsize=8)
            plain_ticks(axis.xaxis)
        run.set(xlabel="step", title=f"noise {level:g}: along the run")
        rate.set(xlabel="rate, of the base rate", title="at the end of runs at each rate")
        frontier.set(xlabel="misfit to the noisy samples", title="along the run, at equal misfit")
        low, high = min(shown), max(shown)
        frontier.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        run.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    legend_below(figure, 4)
    return figure
