"""A table, verdicts on what was predicted, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from jumpstart.report import plots
from jumpstart.report.records import Row

from ..common import legend_below, spread
from .runs import AGAIN, BACK, SPARSITIES, WAYS, ZERO
from .scores import SCORES

PREDICTIONS = {
    "zero": "accuracy, mean over sparsities, to zero: channel above magnitude on the median seed",
    "trained": "the same where training goes on after pruning",
    "back": "back to the start: channel above movement (how far each weight came) on the median seed",
    "random": "to zero: channel above random pruning on every seed",
}
PAIRS = {
    "zero": (ZERO, "magnitude"), "trained": (AGAIN, "magnitude"), "back": (BACK, "movement"),
    "random": (ZERO, "random"),
}  # fmt: skip
HEADS = {
    "way": "pruned weights go", "score": "ranked by", **{f"at {s:g}": f"{s:.0%} gone" for s in SPARSITIES},
    "mean": "mean", "min": "lowest", "max": "highest",
}  # fmt: skip
VERDICTS = {"claim": "claim", "measured": "channel less the rival", "verdict": "verdict", "said": "said before"}


def _same(rows: Sequence[Row], way: str, name: str) -> list[Row]:
    return sorted((r for r in rows if r["way"] == way and r["score"] == name), key=lambda r: r["seed"])


def lines(rows: Sequence[Row]) -> list[Row]:
    """Medians over seeds at each sparsity; and of the mean over sparsities, with its range."""
    found = []
    for way in WAYS:
        for name in SCORES:
            same = _same(rows, way, name)
            means = spread([mean(row["accuracy"]) for row in same])
            at = {f"at {s:g}": median(row["accuracy"][i] for row in same) for i, s in enumerate(SPARSITIES)}
            found.append({"way": way, "score": name, **at, "mean": means.pop("median"), **means})
    return found


def verdicts(rows: Sequence[Row]) -> list[Row]:
    found = []
    for claim, (way, rival) in PAIRS.items():
        pairs = zip(_same(rows, way, "channel"), _same(rows, way, rival), strict=True)
        gains = [mean(a["accuracy"]) - mean(b["accuracy"]) for a, b in pairs]
        held = min(gains) > 0 if claim == "random" else median(gains) > 0
        found.append({
            "claim": claim, "said": PREDICTIONS[claim], "verdict": "held" if held else "refuted", "gains": gains,
            "measured": f"{median(gains):+.3f} ({min(gains):+.3f} to {max(gains):+.3f})",
        })  # fmt: skip
    return found


def picture(rows: Sequence[Row]) -> Any:
    """Medians over seeds of held-out accuracy against the share of weights that are gone."""
    plt = plots.pyplot()
    figure, axes = plt.subplots(1, len(WAYS), figsize=(3.2 * len(WAYS), 3.7), sharey=True, layout="constrained")
    whole = median(row["unpruned"] for row in rows)
    for axis, way in zip(axes, WAYS, strict=True):
        axis.axhline(whole, color="#999999", linewidth=0.8, label="nothing pruned")
        for colour, name in zip(plots.COLOURS, SCORES, strict=False):
            same = _same(rows, way, name)
            ys = [median(row["accuracy"][i] for row in same) for i in range(len(SPARSITIES))]
            style = "-" if name.startswith("channel") else "--"
            axis.plot(range(len(ys)), ys, style, marker="o", markersize=3, color=colour, label=name, linewidth=1.4)
        axis.set_xticks(range(len(SPARSITIES)), [f"{s:.0%}" for s in SPARSITIES])
        axis.set(title=way, xlabel="share of weights pruned")
    axes[0].set_ylabel("held-out accuracy")
    figure.suptitle("Digits: weights pruned by what they did in the signal channel, beside other rankings", fontsize=10)
    legend_below(figure, 7)
    return figure
