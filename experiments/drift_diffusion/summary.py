"""Exponents, ratios, verdicts on what was predicted, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from jumpstart.report import plots
from jumpstart.report.records import Row

from ..common import legend_below, spread
from .runs import GROUPS

PREDICTIONS = {
    "batch": "variance falls as 1/b: exponent within -1.2 and -0.8, each group",
    "rate": "variance grows as the rate, at the same flow time: exponent within 0.8 and 1.2, each group",
    "time": "variance grows as T where little is learned (reservoir): exponent of the last two doublings 0.8 to 1.2",
    "saturated": "variance no longer grows as T where all is learned (channel): that exponent below 0.5",
    "drift": "mean displacement in the channel is off the full batch's by at most 10%, middle batch",
    "predicted": "variance over that of per-sample gradients carried by recorded operators: 0.75 to 1.33, each group, "
    "middle batch",
}
BANDS = {
    "batch": (-1.2, -0.8), "rate": (0.8, 1.2), "time": (0.8, 1.2), "saturated": (-np.inf, 0.5), "drift": (0.0, 0.1),
    "predicted": (0.75, 1 / 0.75),
}  # fmt: skip
TANGENT = "tangent"  # variance over that of tangent runs: nothing was predicted of it
ASKED = {"time": ("reservoir",), "saturated": ("channel",), "drift": ("channel",)}  # of all groups otherwise
HEADS = {"claim": "claim", "group": "modes", "median": "median", "min": "lowest", "max": "highest", "told": "told"}
LABELS = {
    "channel": "channel: half learned and more", "between": "between", "reservoir": "reservoir: less than 5% learned",
}  # fmt: skip
VERDICTS = {"claim": "claim", "measured": "measured", "verdict": "verdict", "said": "said before"}


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of log y against log x, by least squares."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def chosen(rows: Sequence[Row], **keys: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in keys.items())]


def middle(rows: Sequence[Row]) -> int:
    """The batch size of which rates are varied as well."""
    batches = sorted({row["batch"] for row in rows if row["slower"] == 1})
    return batches[len(batches) // 2]


def _slope(rows: Sequence[Row], by: Callable[[Row], float], key: str) -> float | None:
    xs = [by(row) for row in rows]
    return exponent(xs, [row[key] for row in rows]) if len(set(xs)) > 1 else None


def _found(rows: Sequence[Row], claim: str, key: str) -> float | None:
    """A claim's number, of one group's rows of one seed; ``key`` is "variance", or "predicted" for what was told."""
    end, b = max(row["time"] for row in rows), middle(rows)
    plain = chosen(rows, slower=1)
    if claim == "batch":
        return _slope(chosen(plain, time=end), lambda row: row["batch"], key)
    if claim == "rate":
        return _slope(chosen(rows, time=end, batch=b), lambda row: 1 / row["slower"], key)
    if claim == TANGENT:
        return (last := chosen(plain, time=end, batch=b)[0])["variance"] / last["tangent"]
    if claim in ("time", "saturated"):
        return _slope([r for r in chosen(plain, batch=b) if r["time"] >= end / 4], lambda row: row["time"], key)
    last = chosen(plain, time=end, batch=b)[0]
    return last["off"] if claim == "drift" else last["variance"] / last["predicted"]


def lines(rows: Sequence[Row]) -> list[Row]:
    """A line for each claim and group: over seeds, and what the propagated covariance says of it."""
    found = []
    for claim in (*BANDS, TANGENT):
        for group in ASKED.get(claim, GROUPS):
            seeds = sorted({row["seed"] for row in rows if row["group"] == group})
            own = [chosen(rows, seed=seed, group=group) for seed in seeds]
            values = [v for same in own if (v := _found(same, claim, "variance")) is not None]
            told = [v for same in own if (v := _found(same, claim, "predicted")) is not None]
            if values:
                line: Row = {"claim": claim, "group": group, **spread(values)}
                found.append(line | ({"told": median(told)} if claim in ("time", "saturated") else {}))
    return found


def verdicts(table: Sequence[Row]) -> list[Row]:
    """Whether what was predicted came: the median of every group that is asked lies within the band."""
    found = []
    for claim, (low, high) in BANDS.items():
        same = chosen(table, claim=claim)
        found.append({
            "claim": claim, "said": PREDICTIONS[claim],
            "verdict": "held" if same and all(low <= line["median"] <= high for line in same) else "refuted",
            "measured": ", ".join(f"{line['group']} {line['median']:.2g}" for line in same),
        })  # fmt: skip
    return found


def _panel(axis: Any, rows: Sequence[Row], by: str) -> None:
    """Medians over seeds of the variance for each group: dots are measured, lines are predicted."""
    for colour, group in zip(plots.COLOURS, GROUPS, strict=False):
        xs = sorted({row[by] for row in rows})
        same = [[row for row in rows if row["group"] == group and row[by] == x] for x in xs]
        kept = [(x, part) for x, part in zip(xs, same, strict=True) if part]
        xs = [x for x, _ in kept]
        real = [median(r["variance"] for r in part) for _, part in kept]
        axis.plot(xs, real, "o", color=colour, label=LABELS[group])
        told = [median(r["predicted"] for r in part) for _, part in kept]
        axis.plot(xs, told, color=colour, linewidth=1, label="predicted (lines)" if group == GROUPS[-1] else None)
    _logarithmic(axis, [row[by] for row in rows])


def _logarithmic(axis: Any, xs: Sequence[float]) -> None:
    """Both axes, with ticks where something was measured."""
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(sorted(set(xs)), [f"{x:g}" for x in sorted(set(xs))])
    axis.xaxis.set_minor_locator(NullLocator())


def picture(rows: Sequence[Row]) -> Any:
    """Variance against batch size, time and rate; mean displacement beside that of the full batch."""
    plt = plots.pyplot()
    figure, axes = plt.subplots(1, 4, figsize=(11.5, 3.5), layout="constrained")
    end, b, plain = max(row["time"] for row in rows), middle(rows), chosen(rows, slower=1)
    _panel(axes[0], chosen(plain, time=end), "batch")
    axes[0].set(title="variance between runs", xlabel="batch size b")
    _panel(axes[1], chosen(plain, batch=b), "time")
    axes[1].set(title=f"variance, b = {b}", xlabel="steps T")
    for colour, group in zip(plots.COLOURS, GROUPS, strict=False):
        same = [(x, chosen(plain, batch=b, group=group, time=x)) for x in sorted({row["time"] for row in plain})]
        curve = [(x, median(row["tangent"] for row in part)) for x, part in same if part]
        label = "tangent runs (dotted)" if group == GROUPS[-1] else None
        axes[1].plot(*zip(*curve, strict=True), ":", color=colour, linewidth=1.2, label=label)
    rated = [{**row, "share": 1 / row["slower"]} for row in chosen(rows, time=end, batch=b)]
    for row in rated:
        row["predicted"] *= row["share"]  # first order: at the same flow time
    _panel(axes[2], rated, "share")
    axes[2].set(title=f"variance, b = {b}, same flow time", xlabel="rate over the base rate")
    for colour, group in zip(plots.COLOURS, GROUPS, strict=False):
        same = chosen(plain, batch=b, group=group)
        xs = sorted({row["time"] for row in same})
        for key, style in (("drift", "o"), ("full batch", "-")):
            ys = [median(row[key] for row in chosen(same, time=x)) for x in xs]
            axes[3].plot(xs, ys, style, color=colour)
    axes[3].set(title=f"mean displacement (b = {b});\nlines: full batch", xlabel="steps T")
    _logarithmic(axes[3], [row["time"] for row in plain])
    figure.suptitle("Minibatch runs from one start, by modes of the full-batch run's W_S", fontsize=10)
    legend_below(figure)
    return figure
