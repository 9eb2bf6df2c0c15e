"""Figures. Measuring is not drawing: everything here is drawn from records, and matplotlib is optional."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import JumpstartError

if TYPE_CHECKING:
    from .diagnostics import Report

# Okabe & Ito's palette, told apart by people who do not see all colours.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        JumpstartError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise JumpstartError("figures need matplotlib: pip install 'jumpstart[plots]'.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    return plt


def comparison(report: Report) -> Any:
    """Loss against gradient evaluations and against seconds, and each further metric against seconds."""
    plt = pyplot()
    metrics = list(report.settings.get("metrics", []))
    panels = [("gradient_evaluations", "loss"), ("seconds", "loss"), *(("seconds", key) for key in metrics)]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.2), squeeze=False)
    for axis, (x, y) in zip(axes[0], panels, strict=True):
        values: list[float] = []
        for i, contender in enumerate(report.contenders):
            xs, ys = report.curve(contender, x, y)
            # Jumps in full lines, what they are measured against dashed.
            style = "-" if "jump" in contender else (0, (4, 1.5))
            axis.plot(xs, ys, color=COLOURS[i % len(COLOURS)], linestyle=style, label=contender, linewidth=1.4)
            values += [v for v in ys if math.isfinite(v)]
        if values and min(values) > 0 and max(values) > 20 * min(values):
            axis.set_yscale("log")
        axis.set_xlabel(x.replace("_", " "))
        axis.set_ylabel(y)
        axis.grid(alpha=0.25, linewidth=0.5)
    figure.suptitle(report.name, fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = min(4, len(labels))
    below = 0.09 * -(-len(labels) // columns)
    figure.legend(handles, labels, loc="lower center", ncol=columns, frameon=False)
    figure.tight_layout(rect=(0, below, 1, 1))
    return figure


def history(rows: list[dict[str, Any]]) -> Any:
    """Loss, best loss and error of a fit against seconds."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.8, 3.2))
    for key, colour in (("loss", COLOURS[1]), ("error", COLOURS[0])):
        found = [(row["seconds"], row[key]) for row in rows if row.get(key) is not None and row[key] > 0]
        if found:
            axis.plot(*zip(*found, strict=True), color=colour, label=key, linewidth=1.4)
    axis.set(xlabel="seconds", yscale="log")
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.legend(frameon=False)
    figure.tight_layout()
    return figure


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure and close it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    pyplot().close(figure)
    return target
