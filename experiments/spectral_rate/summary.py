"""What came of it: ratios to the tuned rate, verdicts on what was predicted, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from jumpstart.report import plots
from jumpstart.report.records import Row

from ..common import legend_below, plain_ticks, spread
from .arms import ARMS
from .problems import CHANGES, KINDS, PROBLEMS

PREDICTIONS = {
    "edge": "largest stable rate over 2/λmax(BK): within 0.5 and 2 in every problem",
    "loss": "held-out loss over the tuned rate's, full batch: at most 1.1 in every problem",
    "carried": "held-out loss over the tuned rate's, carried over: at most 1 in the median of problems and changes",
}
HEADS = {
    "kind": "training", "change": "changed", "problem": "problem", "arm": "arm", "median": "held-out loss over tuned",
    "min": "lowest", "max": "highest", "loss": "held-out loss", "diverged": "ended above the start",
}  # fmt: skip
VERDICTS = {"claim": "claim", "measured": "measured", "verdict": "verdict", "said": "said before"}
NARROW, ABOVE = 2.0, 1.1


def _same(rows: Sequence[Row], **keys: Any) -> list[Row]:
    return [row for row in rows if row["part"] == "runs" and all(row[k] == v for k, v in keys.items())]


def ratios(rows: Sequence[Row], kind: str, change: str, name: str, arm: str) -> list[float]:
    """Held-out loss over the tuned rate's on the same seed."""
    mine, tuned = (_same(rows, kind=kind, change=change, problem=name, arm=a) for a in (arm, "tuned"))
    base = {row["seed"]: row["held-out loss"] for row in tuned}
    return [row["held-out loss"] / base[row["seed"]] for row in mine]


def lines(rows: Sequence[Row]) -> list[Row]:
    found = []
    for kind, change in [*((kind, "") for kind in KINDS), *(("full batch", change) for change in CHANGES)]:
        for name in PROBLEMS:
            for arm in ARMS:
                same = _same(rows, kind=kind, change=change, problem=name, arm=arm)
                if same:
                    found.append({
                        "kind": kind, "change": change, "problem": name, "arm": arm,
                        "loss": median(row["held-out loss"] for row in same),
                        "diverged": sum(not row["training loss"] < row["start"] for row in same),
                        **spread(ratios(rows, kind, change, name, arm)),
                    })  # fmt: skip
    return found


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """Whether what was predicted came, from the rows alone."""
    edges = {n: median(r["edge"] for r in rows if r["part"] == "edges" and r["problem"] == n) for n in PROBLEMS}
    plain = {name: median(ratios(rows, "full batch", "", name, "spectrum")) for name in PROBLEMS}
    each = [ratios(rows, "full batch", c, name, "spectrum") for c in CHANGES for name in PROBLEMS]
    carried = [median(found) for found in each if found]
    found = (
        ("edge", edges, all(1 / NARROW <= v <= NARROW for v in edges.values())),
        ("loss", plain, all(v <= ABOVE for v in plain.values())),
        ("carried", {"median": median(carried)}, median(carried) <= 1),
    )
    return [
        {
            "claim": claim, "said": PREDICTIONS[claim], "values": values, "verdict": "held" if held else "refuted",
            "measured": ", ".join(f"{name} {value:.3g}" for name, value in values.items()),
        }
        for claim, values, held in found
    ]  # fmt: skip


def picture(rows: Sequence[Row]) -> Any:
    """Held-out loss relative to the tuned rate's, each training and each change."""
    plt = plots.pyplot()
    panels = [(k, "") for k in KINDS if _same(rows, kind=k)]
    panels += [("full batch", c) for c in CHANGES if _same(rows, change=c)]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.3 * len(panels), 3.6), sharey=True, layout="constrained")
    for axis, (kind, change) in zip(axes, panels, strict=True):
        axis.axhline(1, color="#999999", linewidth=0.8)
        for k, (colour, arm) in enumerate(zip(plots.COLOURS, ARMS[1:], strict=False)):
            for i, name in enumerate(PROBLEMS):
                found = ratios(rows, kind, change, name, arm)
                middle = median(found)
                x = i + 0.16 * (k - 1.5)
                axis.plot([x, x], [min(min(found), TOP), min(max(found), TOP)], color=colour, linewidth=1)
                mark = "o" if middle < TOP else "^"
                axis.plot(x, min(middle, TOP), mark, color=colour, markersize=5, label=arm if i == 0 else None)
        axis.set_yscale("log")
        axis.set_ylim(BOTTOM, 1.1 * TOP)
        axis.set_xticks(range(len(PROBLEMS)), [name.replace(" ", "\n") for name in PROBLEMS], fontsize=7)
        axis.set_title(f"{kind}\n{change}" if change else kind, fontsize=8)
    axes[0].set_ylabel("held-out loss over that of the tuned rate")
    plain_ticks(axes[0].yaxis)
    title = "Learning rates without tuning, beside a tuned one (1); triangles: above the axis, or diverged"
    figure.suptitle(title, fontsize=9)
    legend_below(figure)
    return figure


BOTTOM, TOP = 0.6, 5.0  # of the figure
