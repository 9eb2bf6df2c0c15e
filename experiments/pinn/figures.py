"""Pictures of the races: error against time, and solutions with their error fields."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jumpstart import fit
from jumpstart.report.plots import COLOURS, pyplot
from jumpstart.report.records import Row

from .problems import PROBLEMS
from .race import JUMPS


def races(rows: list[Row], init: str = "torch") -> Any:
    """Error against seconds for all contenders, a panel a problem: median over seeds, range for jumps."""
    plt = pyplot()
    names = list(dict.fromkeys(row["problem"] for row in rows if row["init"] == init))
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure, axes = plt.subplots(down, across, figsize=(3.3 * across, 2.7 * down + 0.5), squeeze=False)
    labels = list(dict.fromkeys(row["contender"] for row in rows))
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        _curves(axis, [r for r in rows if (r["problem"], r["init"]) == (name, init)], labels)
        axis.set(xscale="log", yscale="log", title=PROBLEMS[name].title if len(PROBLEMS[name].title) < 34 else name)
        axis.title.set_fontsize(8)
        axis.grid(alpha=0.25, linewidth=0.5)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    for row in axes:
        row[0].set_ylabel("relative L² error")
    handles, names_ = axes[0][0].get_legend_handles_labels()
    columns = 4 if across > 1 else 2
    figure.legend(handles, names_, loc="lower center", ncol=columns, frameon=False, fontsize=8)
    below = 0.25 if across == 1 else 0.12 if down == 1 else 0.07
    figure.tight_layout(rect=(0, below, 1, 1))
    return figure


def headline(rows: list[Row], names: Sequence[str]) -> Any:
    """The same for a few problems, side by side, to be read at the width of a page: README's picture."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(names), figsize=(2.8 * len(names), 3.4), squeeze=False)
    labels = list(dict.fromkeys(row["contender"] for row in rows))
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if (row["problem"], row["init"]) == (name, "torch")]
        end = max(row["seconds"][-1] for row in own if row["contender"] == JUMPS)
        _curves(axis, own, labels, width=1.4)
        axis.set(xscale="log", yscale="log", xlim=(0.02, end), xlabel="seconds")
        axis.set_title(PROBLEMS[name].title.split(",")[0])
        axis.grid(alpha=0.25, linewidth=0.5)
    axes[0][0].set_ylabel("relative L² error")
    handles, found = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, found, loc="lower center", ncol=len(found) // 2, frameon=False, fontsize=10)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    return figure


def _curves(axis: Any, rows: list[Row], labels: Sequence[str], width: float = 1.1) -> None:
    """One panel: each contender's median over seeds, jumps with their range."""
    for colour, label in zip(itertools.cycle(COLOURS), labels, strict=False):
        own = [row for row in rows if row["contender"] == label]
        if not own:
            continue
        end = max(row["seconds"][-1] for row in own)
        grid = np.geomspace(min(row["seconds"][min(1, len(row["seconds"]) - 1)] for row in own) + 1e-3, end, 80)
        curves = np.array([[_best(row, t) for t in grid] for row in own])
        ours = label == JUMPS
        axis.plot(
            grid, np.median(curves, axis=0), color=colour, label=label, linewidth=2 * width if ours else width,
            zorder=3 if ours else 2, linestyle="-" if ours else (0, (4, 1.2)),
        )  # fmt: skip
        if ours and len(own) > 1:
            axis.fill_between(grid, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)


def _best(row: Row, seconds: float) -> float:
    found = [e for t, e in zip(row["seconds"], row["error"], strict=True) if t <= seconds and np.isfinite(e)]
    return min(found, default=row["error"][0])


def solutions(names: list[str], seed: int, seconds: dict[str, float]) -> Any:
    """Reference, what jumps found, and the error, for each problem; a fit each."""
    plt = pyplot()
    figure, axes = plt.subplots(len(names), 3, figsize=(8.4, 2.3 * len(names)), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        problem = PROBLEMS[name]
        model = problem.network(seed, "torch")
        fit(problem.objective(model), budget=seconds[name], progress=False)
        x, y, exact, found = (np.asarray(t) for t in problem.field(model))
        top = float(np.nanmax(np.abs(exact)))
        for axis, values, title in (
            (row[0], exact, "reference"), (row[1], found, "jumps"), (row[2], np.abs(found - exact), "error"),
        ):  # fmt: skip
            signed = title != "error"
            mesh = axis.pcolormesh(
                x, y, values.T, cmap="RdBu_r" if signed else "viridis", vmin=-top if signed else None,
                vmax=top if signed else None, shading="nearest", rasterized=True,
            )  # fmt: skip
            bar = figure.colorbar(mesh, ax=axis)
            bar.ax.tick_params(labelsize=6)
            axis.set_title(f"{name}: {title}" if title == "reference" else title, fontsize=8)
            axis.tick_params(labelsize=6)
    figure.tight_layout()
    return figure
