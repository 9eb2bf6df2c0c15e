"""Forecasts of the step of generalization, fitted on other runs, and how far they are off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

import numpy as np

from jumpstart.report import plots
from jumpstart.report.records import Row

from ..common import legend_below, plain_ticks

PUBLISHED = 0.177  # mean error of the first-passage law over 26 runs of its authors (arXiv:2605.18845)
# What every forecast but the first two may choose between, on the fitted runs, one left out at a time.
CHOICES: dict[str, tuple[str, ...]] = {
    "settings": (),
    "norm": ("norm then", "norm", "norm's growth"),
    "spectrum": ("effective rank", "largest eigenvalue", "transfer"),
    "held-out accuracy": ("held-out then",),
}
SHARE = " + share"  # the same, knowing also the share of the table: after a first look, no part of the predictions
CHOICES |= {name + SHARE: own for name, own in CHOICES.items()}
FORECASTS = ("constant", "first passage", *CHOICES)
PREDICTIONS = {
    "norm": "mean error of the forecast by the spectrum below those by the norm and by first passage",
    "settings": "at most 0.9 times that by rate, decay and step of memorizing alone",
    "published": f"below {PUBLISHED:.1%}",
}
HEADS = {
    "forecast": "forecast", "by": "by", "mean error": "mean error", "median error": "median error",
    "largest error": "largest error", "left out": "on fitted runs, left out", "runs": "runs",
}  # fmt: skip
VERDICTS = {"claim": "claim", "measured": "measured", "verdict": "verdict", "said": "said before"}


def usable(rows: Sequence[Row]) -> list[Row]:
    """Runs that generalized, and later than the forecast."""
    return [r for r in rows if r["generalized"] and r.get("moment") and r["generalized"] > r["moment"]]


def features(row: Row, statistic: str | None, share: bool) -> list[float]:
    """A constant, what anybody knows of a run that has memorized, and one statistic."""
    known = [1.0, math.log(1 / (row["rate"] * row["decay"])), math.log(row["memorized"])]
    known += [math.log(row["share"])] if share else []
    if statistic is None:
        return known
    if statistic == "held-out then":
        return [*known, row[statistic]]
    value = row["norm"] / row["norm before"] if statistic == "norm's growth" else row[statistic]
    return [*known, math.log(value)]


def foretold(name: str, statistic: str | None, fitted: Sequence[Row], row: Row) -> float:
    """The step at which ``row`` generalizes, by what the fitted runs did."""
    if name == "constant":
        return math.exp(mean(math.log(r["generalized"]) for r in fitted))
    if name == "first passage":  # T − T_mem = (log V_mem − log V*) / (2κ·rate·decay), in relative least squares
        design = [_passage(r) for r in fitted]
        wanted = [(r["generalized"] - r["memorized"]) / r["generalized"] for r in fitted]
        weighed = np.array(design) / np.array([[r["generalized"]] for r in fitted])
        return row["memorized"] + float(np.array(_passage(row)) @ np.linalg.lstsq(weighed, np.array(wanted))[0])
    share = name.endswith(SHARE)
    design = np.array([features(r, statistic, share) for r in fitted])
    wanted = np.log([r["generalized"] for r in fitted])
    return float(np.exp(np.array(features(row, statistic, share)) @ np.linalg.lstsq(design, wanted)[0]))


def _passage(row: Row) -> list[float]:
    slow = 1 / (row["rate"] * row["decay"])
    return [slow * math.log(row["norm then"]), slow]


def off(told: float, row: Row) -> float:
    return abs(told / row["generalized"] - 1)


def left_out(name: str, statistic: str | None, fitted: Sequence[Row]) -> float:
    """Mean error on fitted runs, each foretold by the others."""
    return mean(off(foretold(name, statistic, [r for r in fitted if r is not row], row), row) for row in fitted)


def chosen(fitted: Sequence[Row]) -> dict[str, str | None]:
    """Of each kind the statistic that does best on the fitted runs."""
    return {name: min(CHOICES.get(name) or (None,), key=lambda s, n=name: left_out(n, s, fitted)) for name in FORECASTS}


def lines(fitted: Sequence[Row], rows: Sequence[Row], picked: dict[str, str | None]) -> list[Row]:
    found = []
    for name in FORECASTS:
        told = [foretold(name, picked[name], fitted, row) for row in rows]
        errors = [off(t, row) for t, row in zip(told, rows, strict=True)]
        found.append({
            "forecast": name, "by": picked[name] or "", "mean error": mean(errors), "median error": median(errors),
            "largest error": max(errors), "left out": left_out(name, picked[name], fitted), "runs": len(rows),
            "told": told, "errors": errors,
        })  # fmt: skip
    return found


def verdicts(table: Sequence[Row]) -> list[Row]:
    errors = {line["forecast"]: line["mean error"] for line in table}
    mine, own = errors["spectrum"], {line["forecast"]: line["errors"] for line in table}
    nearer = sum(a < b for a, b in zip(own["spectrum"], own["norm"], strict=True))
    held = {
        "norm": mine < min(errors["norm"], errors["first passage"]), "settings": mine <= 0.9 * errors["settings"],
        "published": mine < PUBLISHED,
    }  # fmt: skip
    measured = {
        "norm": f"{mine:.1%}; norm {errors['norm']:.1%}, first passage {errors['first passage']:.1%}; nearer "
        f"than the norm's in {nearer} of {len(own['norm'])} runs",
        "settings": f"{mine:.1%}; settings {errors['settings']:.1%}", "published": f"{mine:.1%}",
    }  # fmt: skip
    return [
        {"claim": c, "said": PREDICTIONS[c], "measured": measured[c], "verdict": "held" if ok else "refuted"}
        for c, ok in held.items()
    ]


def picture(rows: Sequence[Row], table: Sequence[Row]) -> Any:
    """The foretold against the real step, and errors."""
    plt = plots.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.9), layout="constrained")
    real = [row["generalized"] for row in rows]
    left.plot([min(real), max(real)], [min(real), max(real)], color="#999999", linewidth=0.8)
    colours = dict(zip([name for name in FORECASTS if not name.endswith(SHARE)], plots.COLOURS, strict=False))
    for line in table:
        colour = colours[line["forecast"].removesuffix(SHARE)]
        if line["forecast"] in ("first passage", "settings", "norm", "spectrum"):
            left.plot(real, line["told"], "o", color=colour, markersize=4, label=line["forecast"])
        right.barh(line["forecast"], line["mean error"], color=colour)
    left.set(xscale="log", yscale="log", xlabel="step of generalization", ylabel="foretold")
    left.set_ylim(0.4 * min(real), 2.5 * max(real))
    plain_ticks(left.xaxis)
    plain_ticks(left.yaxis)
    right.axvline(PUBLISHED, color="#999999", linewidth=0.8, linestyle="--", label="published, on its authors' runs")
    right.invert_yaxis()
    right.set_xlabel("mean relative error")
    figure.suptitle("Modular addition: when will a run that has memorized generalize?", fontsize=10)
    legend_below(figure)
    return figure
