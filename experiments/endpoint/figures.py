"""Pictures of the endpoint's measurements, drawn from the rows."""

from __future__ import annotations

from typing import Any

from jumpstart.report import plots

from .machine import slope
from .problem import Row


def draw(rows: list[Row]) -> dict[str, Any]:
    """Every figure for which there are rows, by file name."""
    drawn = {"kernels": kernels(rows), "scale": scale(rows)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def kernels(rows: list[Row]) -> Any:
    """Bars of seconds for each contender at each size, logarithmic, whiskers from smallest to largest."""
    rows = [row for row in rows if row["point"] == 2 and "contender" in row]
    if not rows:
        return None
    plt = plots.pyplot()
    sizes = list(dict.fromkeys(row["check"].split(":")[0] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure, axis = plt.subplots(figsize=(1.6 + 2.2 * len(sizes), 3.4))
    wide = 0.8 / len(names)
    for at, name in enumerate(names):
        here = [(i, r) for i, size in enumerate(sizes) for r in rows if r["check"] == f"{size}: seconds, {name}"]
        heights = [r["value"] for _, r in here]
        reach = [[r["value"] - r["min"] for _, r in here], [r["max"] - r["value"] for _, r in here]]
        places = [i + wide * (at + 0.5) - 0.4 for i, _ in here]
        ours = name.startswith("jumpstart")
        axis.bar(
            places, heights, wide, yerr=reach, ecolor="#555555", error_kw={"linewidth": 0.8},
            color=plots.COLOURS[at], hatch=None if ours else "//", edgecolor="white",
            label=name if ours else f"neural-tangents, {name}",
        )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylabel("seconds (median, range)")
    axis.set_xticks(range(len(sizes)), sizes)
    axis.grid(axis="y", alpha=0.25, linewidth=0.5)
    axis.legend(frameon=False, fontsize=8)
    figure.suptitle("Dense kernel, float64, one thread", fontsize=10)
    figure.tight_layout()
    return figure


def scale(rows: list[Row]) -> Any:
    """Seconds and gibibytes against the number of outputs, with their slopes."""
    rows = [row for row in rows if row["point"] == 5]
    if not rows:
        return None
    plt = plots.pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
    for axis, what in zip(axes, ("seconds", "GiB at peak"), strict=True):
        here = [row for row in rows if row["check"].endswith(f": {what}")]
        sizes, values = [float(row["outputs"]) for row in here], [row["value"] for row in here]
        axis.loglog(sizes, values, "o-", color=plots.COLOURS[0], label=f"slope {slope(sizes, values):.2f}")
        if what != "seconds":
            grown = [row["value"] - row["before_gib"] for row in here]
            if min(grown) > 0:
                label = f"above that before the solve, slope {slope(sizes, grown):.2f}"
                axis.loglog(sizes, grown, "o--", color=plots.COLOURS[1], label=label)
        axis.set_xticks(sizes, [f"{size / 1000:g}k" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("outputs (samples × 10)")
        axis.set_ylabel(what)
        axis.grid(alpha=0.25, linewidth=0.5, which="both")
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(f"Krylov basis of depth {rows[0]['depth']}, CNN, float32, one thread", fontsize=10)
    figure.tight_layout()
    return figure
