"""Benign overfitting: noise that is fitted to the end, and hardly seen at the queries; over the level of the noise.

python -m experiments.benign_overfitting [--quick] [--seeds N] [--out DIR]

60 samples whose targets depend on two of their numbers; the others, the tail, have a total variance of 2 between them,
however many they are: 20, 150 or 1000. A tanh network with 6 hidden units fits the targets and Gaussian noise in them.
Of few numbers in the tail each is seen again at the queries; of many none is, and what was fitted by them stays unseen
(Bartlett et al., arXiv:1906.11300, for linear regression). Every run has a twin without noise; both are recorded.

ACCOUNT was written before the runs, and the settings were chosen on seeds 100 and 101, for training errors near zero
and a tail with a small excess alone. Two readings of "the noise ends in the reservoir" are told apart: trapped (not
learned), and invisible (learned, and not seen).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from jumpstart.report import plots
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from .anatomy import Claim, Task, Training, banded, concluded, faithful, judged, paired, ranked, seldom, told
from .common import arguments, legend_below, spread

SAMPLES, QUERIES, TRUE, WIDTH = 60, 100, 2, 6
TAILS, VARIANCE = (20, 150, 1000), 2.0
LEVELS = (0.5, 1.0, 2.0)  # standard deviation of the noise; that of the true targets is about 0.85
SPREAD = 0.25  # of the first layer's weights at the start
TRAINING = Training(250, every=2, until=1e-12)
ACCOUNT = (
    Claim("fitted", "noise learned with the longest tail, lowest of all levels and seeds: it is overfitting", 0.95),
    Claim("benign", "excess of the test error over the variance of the noise, longest tail, median", most=0.3),
    Claim("contrast", "share of the noise passed on to queries, shortest tail over longest, medians", 3.0),
    Claim("size", "excess over seen noise, longest tail, median", 0.5, 2.0),
    Claim("level", "longest tail: share passed on, largest over smallest of the levels' medians", most=2.0),
    Claim("forecast", "rank correlation of what clean runs' operators pass on of the noise with the excess", 0.8),
    Claim("trapped", "noise in the reservoir, longest tail less shortest: it is trapped there", 0.1),
    Claim("invisible", "invisible share of the noise, longest tail less shortest: it is hidden there", 0.1),
)


def drawn(tail: int, seed: int) -> Task:
    """With noise of level 1."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.cat([torch.ones(TRUE), torch.full((tail,), (VARIANCE / tail) ** 0.5)]).double()
    x, q = (torch.randn(n, TRUE + tail, generator=draw, dtype=torch.float64) * scale for n in (SAMPLES, QUERIES))
    true = lambda z: (torch.sin(1.5 * z[:, 0]) + 0.5 * z[:, 1])[:, None]  # noqa: E731
    return Task(x, true(x), torch.randn(SAMPLES, 1, generator=draw, dtype=torch.float64), q, true(q))


def model(tail: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    first = nn.Linear(TRUE + tail, WIDTH).double()
    nn.init.normal_(first.weight, std=SPREAD)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(WIDTH, 1).double())


def middle(rows: Sequence[Row], key: str) -> float:
    return median(row[key] for row in rows)


def measured(rows: Sequence[Row]) -> dict[str, float]:
    """What the claims are about; of faithful operators."""
    told, rows = faithful(rows, "foretold"), faithful(rows, "seen")
    tails = sorted({row["tail"] for row in rows})
    few, many = ([row for row in rows if row["tail"] == tail] for tail in (tails[0], tails[-1]))
    levels = [middle([row for row in many if row["level"] == level], "passed") for level in {r["level"] for r in many}]
    return {
        "fitted": min(row["learned"] for row in many),
        "benign": median(row["excess"] / row["variance"] for row in many),
        "contrast": middle(few, "passed") / middle(many, "passed"),
        "size": median(row["excess"] / row["seen"] for row in many),
        "level": max(levels) / min(levels),
        "forecast": ranked([row["foretold"] for row in told], [row["excess"] for row in told]),
        **{name: middle(many, key) - middle(few, key) for name, key in (("trapped", "reservoir"), ("invisible",) * 2)},
    }


COLUMNS = {
    "tail": "tail", "level": "noise", "loss": "training loss", "test": "test error", "clean": "without noise",
    "excess": "excess", "seen": "noise seen", "foretold": "foretold by the clean run", "passed": "share passed on",
    "true learned": "true learned", "learned": "noise learned", "reservoir": "noise in the reservoir",
    "invisible": "noise invisible", "quadrature": "operators' error",
}  # fmt: skip


def summarized(rows: Sequence[Row]) -> list[Row]:
    """A line for each tail and level: medians over seeds, and the ranges of the excess and what foretells it."""
    found = []
    for tail, level in dict.fromkeys((row["tail"], row["level"]) for row in rows):
        same = [row for row in rows if (row["tail"], row["level"]) == (tail, level)]
        line: Row = {"tail": tail, "level": level}
        line |= {key: middle(same, key) for key in COLUMNS if key not in line}
        line["ranges"] = {key: spread([row[key] for row in same]) for key in ("test", "excess", "seen", "foretold")}
        found.append(line)
    return found


def page(content: Row) -> str:
    """For docs/trajectory.md."""
    return told(content, COLUMNS)


def picture(rows: Sequence[Row]) -> Any:
    """Against the level of the noise, a colour a tail: training and test error, excess and forecast, shares."""
    figure, axes = plots.pyplot().subplots(1, 3, figsize=(11.5, 4.4), layout="constrained")
    for tail, colour in zip(sorted({row["tail"] for row in rows}), plots.COLOURS, strict=False):
        own, name = [row for row in rows if row["tail"] == tail], f"{tail} numbers in the tail"
        line = {"color": colour, "linewidth": 1.5, "marker": "."}
        banded(axes[0], own, "level", "test", label=name, **line)
        banded(axes[0], own, "level", "clean", linestyle=":", **line)
        banded(axes[1], own, "level", "excess", **line)
        banded(axes[1], faithful(own, "foretold"), "level", "foretold", linestyle="--", **line)
        for key, style in (("learned", "-"), ("invisible", "--"), ("reservoir", ":")):
            banded(axes[2], own, "level", key, linestyle=style, **line)
    axes[0].set(yscale="log", ylabel="mean squared error at queries", title="test error (dotted: without noise)")
    axes[1].set_yscale("symlog", linthresh=0.1)  # an excess may be below zero
    axes[1].set(ylabel="mean squared error", title="excess made by the noise\n(dashed: foretold by the clean run)")
    axes[2].set(ylim=(-0.03, 1.03), ylabel="share of the noise",
                title="learned (solid), invisible (dashed),\nin the reservoir (dotted)")  # fmt: skip
    figure.suptitle("Benign overfitting: noise in the targets of a network, learned, and seen at queries or not")
    for axis in axes:
        axis.set_xlabel("standard deviation of the noise")
    legend_below(figure, 3)
    return figure


def main() -> None:
    asked = arguments("benign_overfitting", __doc__, 3)
    torch.set_num_threads(1)
    rows: list[Row] = []
    tails, levels = ((8, 60), LEVELS[:2]) if asked.quick else (TAILS, LEVELS)
    training = replace(TRAINING, steps=50) if asked.quick else TRAINING
    with counter("tails", asked.seeds * len(tails), asked.progress) as count:
        for seed in range(asked.seeds):
            for tail in tails:
                task = drawn(tail, seed)
                tasks = [replace(task, noise=level * task.noise) for level in levels]
                found = paired(partial(model, tail, seed), tasks, training)
                rows += [
                    {"tail": tail, "level": level, "seed": seed, **row}
                    for level, row in zip(levels, found, strict=True)
                ]
                count(f"tail {tail}, seed {seed}")
    about = {
        "samples": SAMPLES, "queries": QUERIES, "width": WIDTH, "tail variance": VARIANCE,
        "training": vars(training), "account": [claim.told() for claim in ACCOUNT], "left out": seldom(rows),
    }  # fmt: skip
    verdicts = judged(ACCOUNT, measured(rows))
    concluded(
        "benign_overfitting", asked, about, rows, range(asked.seeds), verdicts, summarized(rows), COLUMNS, picture,
        note=seldom(rows),
    )  # fmt: skip


if __name__ == "__main__":
    main()
