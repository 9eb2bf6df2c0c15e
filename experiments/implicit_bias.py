"""Implicit bias: the kernel's modes at the start, filled one after the other, against flow time.

python -m experiments.implicit_bias [--quick] [--seeds N] [--out DIR]

40 samples of a smooth function of two numbers with noise; a tanh network of 100 units, less its own outputs at the
start and times a scale: the larger that is, the less the weights and the kernel move (Chizat et al., arXiv:1812.07956).
Plain gradient descent in full batches. The share of mode i that is learned is 1 − vᵢᵀ P vᵢ, P the propagator of the run
as it went; had the kernel stood still it would be 1 − (1 − ηβλᵢ)ᵏ after k steps, or 1 − exp(−βλᵢt), β = 2/n.

ACCOUNT was written before the runs; the settings were chosen on seed 100 for test errors that fall and then rise, and a
kernel that stands still at one end of the scales and moves at the other. A first run took steps of half the stable
rate: where the kernel nearly trebles these are past the edge of stability, and the operators were not of the run. The
rate is lower now, and a run is told up to where its operators are off by 5%.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jumpstart.report import plots
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from .anatomy import (
    FAITHFUL,
    Claim,
    Look,
    Task,
    Training,
    anatomy,
    concluded,
    judged,
    kernel,
    ranked,
    recorded,
    smooth,
    told,
)
from .common import arguments, legend_below, spread

SAMPLES, QUERIES, INPUTS, NOISE, WIDTH = 40, 100, 2, 0.5, 100
SCALES = {"standing": 10.0, "moving": 1.0, "moving far": 0.1}
TRAINING = Training(5000, share=0.2, momentum=0.0, every=4)
LOOKS = 60
FEW = 2  # steps, before which times to half are not told apart
SHOWN = 8  # modes in the picture
ACCOUNT = (
    Claim("order", "rank correlation of eigenvalues with times at which modes are half learned, worst run", -1, -0.9),
    Claim("forecast", "standing kernel: time to half over the frozen kernel's, median over modes", 0.8, 1.25),
    Claim("sooner", "kernel moving far: the same, for it grows along what is learned", most=0.8),
    Claim("spread", "kernel moving far: modes later than the frozen kernel says, share of them", most=0.1),
    Claim("true first", "at the lowest test error: true targets less noise learned, lowest median of scales", 0.3),
    Claim("trapped", "at the lowest test error: noise in the reservoir, lowest median of scales", 0.5),
)  # fmt: skip


class Centred(nn.Module):
    """A network less what it was at the start, times a scale."""

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.start, self.scale = net, copy.deepcopy(net).requires_grad_(False), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (self.net(x) - self.start(x))


def model(scale: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Centred(nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).double(), scale)


def when(times: Sequence[float], shares: Sequence[float], level: float = 0.5) -> float | None:
    """The first time at which a share is reached, between looks on a logarithmic axis; None if it never is."""
    for i, share in enumerate(shares):
        if share >= level:
            if i == 0:
                return times[0]
            part = (level - shares[i - 1]) / (share - shares[i - 1])
            return math.exp((1 - part) * math.log(times[i - 1]) + part * math.log(times[i]))
    return None


def run(name: str, seed: int, task: Task, training: Training, looks: int) -> Row:
    """One run: the share of every mode at every look, beside the frozen kernel's, and where the noise is."""
    net = model(SCALES[name], seed)
    values, vectors = (found.flip(-1) for found in torch.linalg.eigh(kernel(net, task)))
    rate, beta = training.rate(net, task), 2 / len(task.x)
    at = sorted({round(step) for step in np.geomspace(1, training.steps, looks)})
    looked: list[Look] = list(recorded(net, task, True, training, at))
    found = list(itertools.takewhile(lambda look: look.operators.error <= FAITHFUL, looked))
    at, moved = [look.step for look in found], kernel(net, task)
    shares = [(1 - (vectors * (look.operators.propagator @ vectors)).sum(0)).tolist() for look in found]
    frozen = [(1 - (1 - rate * beta * values).pow(step)).tolist() for step in at]
    half = [when(at, [row[i] for row in shares]) for i in range(len(values))]
    half_frozen = [when(at, [row[i] for row in frozen]) for i in range(len(values))]
    course = [
        {"time": rate * look.step, "loss": look.loss, "test": look.test,
         **anatomy(look.operators, task.noise)}
        for look in found
    ]  # fmt: skip
    return {
        "kernel": name, "seed": seed, "rate": rate, "told": at[-1], "eigenvalues": values, "steps": at, "half": half,
        "frozen half": half_frozen, "modes": [row[:SHOWN] for row in shares], "frozen": [row[:SHOWN] for row in frozen],
        "course": course, "moved": float(torch.linalg.matrix_norm(moved) / values.norm()),
        "turned": overlap(moved, vectors, values),
    }  # fmt: skip


def overlap(moved: Tensor, vectors: Tensor, values: Tensor) -> float:
    """Cosine between the kernel at the end and at the start, as matrices: 1 where it has only grown."""
    start = vectors * values @ vectors.T
    return float((moved * start).sum() / (moved.norm() * start.norm()))


def ratios(row: Row) -> list[float]:
    """Time to half over the frozen kernel's, of the modes that got there in both; the first steps resolve none."""
    return [a / b for a, b in zip(row["half"], row["frozen half"], strict=True) if a and b and min(a, b) > FEW]


def best(row: Row) -> Row:
    """The look of the lowest test error."""
    return min(row["course"], key=lambda look: look["test"])


def order(row: Row) -> float:
    """Rank correlation of eigenvalues with times to half, of the modes that get there after a few steps."""
    pairs = [
        (value, time)
        for value, time in zip(row["eigenvalues"].tolist(), row["half"], strict=True)
        if time and time > FEW
    ]
    return ranked(*zip(*pairs, strict=True)) if len(pairs) > 2 else math.nan


def measured(rows: Sequence[Row]) -> dict[str, float]:
    """What the claims are about."""
    by = {name: [row for row in rows if row["kernel"] == name] for name in SCALES}
    gained = {name: median([r for row in own for r in ratios(row)] or [math.nan]) for name, own in by.items()}
    far = [r for row in by["moving far"] for r in ratios(row)]
    return {
        "order": max(order(row) for row in rows), "forecast": gained["standing"], "sooner": gained["moving far"],
        "spread": sum(r > 1 for r in far) / len(far) if far else math.nan,
        "true first": min(
            median(best(row)["true learned"] - best(row)["learned"] for row in own) for own in by.values()
        ),
        "trapped": min(median(best(row)["reservoir"] for row in own) for own in by.values()),
    }  # fmt: skip


COLUMNS = {
    "kernel": "kernel", "moved": "size of the kernel, end over start", "turned": "cosine with the start",
    "filled": "modes half learned", "order": "order", "ratio": "time to half over frozen",
    "lowest": "lowest test error", "last": "at the end", "true": "true learned there",
    "noise": "noise learned there", "reservoir": "noise in the reservoir there", "quadrature": "operators' error",
}  # fmt: skip


def summarized(rows: Sequence[Row]) -> list[Row]:
    """A line a scale: medians over seeds."""
    found = []
    for name in SCALES:
        own = [row for row in rows if row["kernel"] == name]
        every = [r for row in own for r in ratios(row)]
        line: Row = {"kernel": name, "moved": median(row["moved"] for row in own)}
        line |= {"turned": median(row["turned"] for row in own), "order": median(order(row) for row in own)}
        line["filled"] = median(sum(time is not None for time in row["half"]) for row in own)
        line |= {"ratio": median(every) if every else None, "ratios": spread(every) if every else None}
        line |= {"lowest": median(best(row)["test"] for row in own)}
        line |= {"last": median(row["course"][-1]["test"] for row in own)}
        for key, of in (("true", "true learned"), ("noise", "learned"), ("reservoir", "reservoir")):
            line[key] = median(best(row)[of] for row in own)
        line["quadrature"] = max(row["course"][-1]["quadrature"] for row in own)
        found.append(line)
    return found


def page(content: Row) -> str:
    """For docs/trajectory.md."""
    return told(content, COLUMNS)


def picture(rows: Sequence[Row]) -> Any:
    """A column a scale, of the first seed: modes filled, above; errors and where the noise is, below."""
    figure, axes = plots.pyplot().subplots(2, len(SCALES), figsize=(11.5, 7.0), layout="constrained", sharey="row")
    shades = plots.pyplot().get_cmap("viridis")
    for (above, below), name in zip(axes.T, SCALES, strict=True):
        row = next(row for row in rows if row["kernel"] == name)
        for i in range(SHOWN):
            colour = shades(i / SHOWN)
            above.plot(row["steps"], [r[i] for r in row["modes"]], color=colour, linewidth=1.5, label=f"mode {i + 1}")
            above.plot(row["steps"], [r[i] for r in row["frozen"]], color=colour, linewidth=1.0, linestyle=":")
        course = row["course"]
        for key, label, colour in (("true learned", "true targets learned", 2), ("learned", "noise learned", 0),
                                   ("reservoir", "noise in the reservoir", 1), ("test", "test error", 6)):  # fmt: skip
            below.plot(row["steps"], [look[key] for look in course], color=plots.COLOURS[colour], label=label)
        below.axvline(row["steps"][course.index(best(row))], color="grey", linestyle=":", label="lowest test error")
        above.set(xscale="log", ylim=(-0.1, 1.15), title=f"kernel {name}\nmodes filled (dotted: kernel frozen)")
        below.set(
            xscale="log", xlabel="steps of gradient descent", title="what is learned of the noise", ylim=(0, 1.05)
        )
    axes[0][0].set_ylabel("share of the mode learned")
    axes[1][0].set_ylabel("share, or mean squared error")
    figure.suptitle("Implicit bias: modes of the kernel at the start fill one after the other; first seed")
    legend_below(figure, 7)
    return figure


def main() -> None:
    asked = arguments("implicit_bias", __doc__, 3)
    torch.set_num_threads(1)
    training, looks = (replace(TRAINING, steps=60), 15) if asked.quick else (TRAINING, LOOKS)
    rows: list[Row] = []
    with counter("runs", asked.seeds * len(SCALES), asked.progress) as count:
        for seed in range(asked.seeds):
            task = smooth(SAMPLES, QUERIES, INPUTS, NOISE, seed)
            for name in SCALES:
                rows.append(run(name, seed, task, training, looks))
                count(f"kernel {name}, seed {seed}")
    about = {
        "samples": SAMPLES, "queries": QUERIES, "inputs": INPUTS, "noise": NOISE, "width": WIDTH,
        "scales": SCALES, "training": vars(training), "account": [claim.told() for claim in ACCOUNT],
    }  # fmt: skip
    verdicts = judged(ACCOUNT, measured(rows))
    concluded(
        "implicit_bias", asked, about, rows, range(asked.seeds), verdicts, summarized(rows), COLUMNS, picture,
    )  # fmt: skip


if __name__ == "__main__":
    main()
