"""Grokking, by its operators: what of the true targets and of wrong labels is learned, and what is seen, over time.

python -m experiments.grokking_anatomy [--quick] [--seeds N] [--out DIR]

The product of two of 20 signs from 100 samples, 5 of them with the wrong sign; a ReLU network of 64 units whose
outputs cancel at the start, squared loss, full-batch SGD with momentum and weight decay. The training set is memorized
in some fifty steps, while held-out accuracy is near chance; it rises several times as many steps later. The run is
recorded from its start, and looked at on the way.

ACCOUNT was written before the runs; the settings were chosen on seeds 100 to 103 for the delay alone. (A first run had
10 wrong signs: held-out accuracy came to 90% on one seed of three, the same claims were refuted, and it was dropped.)
The account: grokking is a channel that opens to the queries late. So memorizing and generalizing look alike to W_S,
which is of the training outputs, and differ in G_Q; wrong labels leave what queries see, or the channel itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jumpstart.report import plots
from jumpstart.report.records import Row
from jumpstart.trajectory import Operators
from jumpstart.utils.progress import counter

from .anatomy import Claim, Task, Training, anatomy, banded, concluded, judged, kernel, ranked, recorded, told
from .common import arguments, legend_below, spread

SAMPLES, QUERIES, SIGNS, WRONG, UNITS = 100, 200, 20, 0.05, 32
TRAINING = Training(1500, share=0.15, momentum=0.9, decay=0.05)
LOOKS = 40
MEMORIZED, GROKKED = 0.99, 0.9  # accuracies: on the training set with its wrong labels, and held out
ACCOUNT = (
    Claim("delay", "steps to 90% held out over steps to memorize, median: it is grokking", 3.0),
    Claim("same W_S", "true targets learned, at the end less when memorized, median: as good as nothing", most=0.1),
    Claim("opens", "cosine of the true targets' effect with the answers, at the end less when memorized, median", 0.2),
    Claim("hides", "share of wrong labels passed on to queries, at the end over when memorized, median", most=0.5),
    Claim("trapped", "from memorizing on: rank correlation of noise not learned with test error, median", -1, -0.7),
    Claim("turns", "cosine of the kernel when memorized with that at the end, median: it has turned", most=0.9),
)  # fmt: skip


def signs(seed: int, samples: int = SAMPLES) -> Task:
    draw = torch.Generator().manual_seed(seed)
    x, q = (2.0 * torch.randint(0, 2, (n, SIGNS), generator=draw).double() - 1 for n in (samples, QUERIES))
    true = x[:, :2].prod(1, keepdim=True)
    wrong = torch.randperm(samples, generator=draw)[: round(WRONG * samples)]
    noise = torch.zeros_like(true)
    noise[wrong] = -2 * true[wrong]
    return Task(x, true, noise, q, q[:, :2].prod(1, keepdim=True))


def model(seed: int, units: int = UNITS) -> nn.Module:
    """Each unit has a twin of the opposite sign, so that outputs are zero at the start."""
    torch.manual_seed(seed)
    first, last = nn.Linear(SIGNS, 2 * units).double(), nn.Linear(2 * units, 1).double()
    with torch.no_grad():
        first.weight.normal_(0, SIGNS**-0.5)
        last.weight.normal_(0, (2 * units) ** -0.5)
        first.weight[units:] = first.weight[:units]
        last.weight[:, units:] = -last.weight[:, :units]
        first.bias.zero_()
        last.bias.zero_()
    return nn.Sequential(first, nn.ReLU(), last)


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(((net(x) * y) > 0).double().mean())


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def effects(operators: Operators, task: Task, displaced: Tensor) -> Row:
    """What the true part of the start's gradient did to the queries, against the answers; what decay did by itself."""
    g = operators.gradient
    true = g + 2 / len(task.true) * task.noise.reshape(-1)
    rest = displaced + operators.transfer @ g
    return {
        "aligned": cosine(-operators.transfer @ true, task.answers.reshape(-1)),
        "rest": float(rest.norm() / displaced.norm()),
    }


def run(seed: int, training: Training, looks: int, units: int = UNITS) -> Row:
    task, net = signs(seed), model(seed, units)
    at = {round(step) for step in np.geomspace(5, training.steps, looks)}
    y, course, kernels = task.targets(True), [], []
    with torch.no_grad():
        begin = net(task.queries)
    for look in recorded(net, task, True, training, at):
        kernels.append(kernel(net, task))
        displaced = (net(task.queries) - begin).detach().reshape(-1)
        course.append(
            {
                "step": look.step,
                "loss": look.loss,
                "test": look.test,
                "train accuracy": accuracy(net, task.x, y),
                "accuracy": accuracy(net, task.queries, task.answers),
                **anatomy(look.operators, task.noise),
                **effects(look.operators, task, displaced),
            }
        )
    there = first(course, "train accuracy", MEMORIZED)
    return {
        "seed": seed, "course": course, "memorized": None if there is None else course[there]["step"],
        "grokked": reached(course, "accuracy", GROKKED),
        "turned": cosine(kernels[-1 if there is None else there], kernels[-1]),
    }  # fmt: skip


def first(course: Sequence[Row], key: str, level: float) -> int | None:
    return next((i for i, look in enumerate(course) if look[key] >= level), None)


def reached(course: Sequence[Row], key: str, level: float) -> int | None:
    """The step at which a level is first seen."""
    at = first(course, key, level)
    return None if at is None else course[at]["step"]


def since(row: Row) -> list[Row]:
    """Looks from memorizing on."""
    return [look for look in row["course"] if row["memorized"] is not None and look["step"] >= row["memorized"]]


def measured(rows: Sequence[Row]) -> dict[str, float]:
    """What the claims are about; runs that never memorize count for none, those that never grok for no delay."""
    kept = [since(row) for row in rows if len(since(row)) > 2]
    if not kept:
        return {claim.name: float("nan") for claim in ACCOUNT}
    change = lambda key: median(looks[-1][key] - looks[0][key] for looks in kept)  # noqa: E731
    delays = [row["grokked"] / row["memorized"] for row in rows if row["grokked"] and row["memorized"]]
    return {
        "delay": median(delays) if len(delays) == len(rows) else float("nan"),
        "same W_S": change("true learned"), "opens": change("aligned"),
        "hides": median(looks[-1]["passed"] / looks[0]["passed"] for looks in kept),
        "trapped": median(ranked([k["trapped"] for k in looks], [k["test"] for k in looks]) for looks in kept),
        "turns": median(row["turned"] for row in rows if len(since(row)) > 2),
    }  # fmt: skip


COLUMNS = {
    "look": "", "step": "step", "train accuracy": "training accuracy", "accuracy": "held out", "test": "test error",
    "true learned": "true learned", "learned": "noise learned", "reservoir": "noise in the reservoir",
    "invisible": "noise invisible", "passed": "noise passed on", "aligned": "true part with the answers",
    "rank": "modes half learned", "rest": "by decay itself", "quadrature": "operators' error",
}  # fmt: skip


def summarized(rows: Sequence[Row]) -> list[Row]:
    """When it has memorized, when it has grokked, and at the end: medians over seeds, and ranges."""
    found = []
    for name in ("memorized", "grokked", "end"):
        looks = []
        for row in rows:
            step = row["course"][-1]["step"] if name == "end" else row[name]
            looks += [look for look in row["course"] if look["step"] == step]
        if looks:
            line: Row = {"look": f"{name} ({len(looks)}/{len(rows)})"}
            line |= {key: median(look[key] for look in looks) for key in COLUMNS if key != "look"}
            found.append(
                line | {"ranges": {key: spread([look[key] for look in looks]) for key in COLUMNS if key != "look"}}
            )
    return found


def page(content: Row) -> str:
    """For docs/trajectory.md."""
    return told(content, COLUMNS)


def picture(rows: Sequence[Row]) -> Any:
    """Over time: accuracy; what is learned; what the queries see of it. Medians and ranges over seeds."""
    looks = [look for row in rows for look in row["course"]]
    figure, axes = plots.pyplot().subplots(1, 3, figsize=(11.5, 4.2), layout="constrained")
    panels = (
        ("it memorizes, and much later it generalizes", "accuracy",
         (("train accuracy", "training, with wrong labels", 7), ("accuracy", "held out", 6))),
        ("what W_S says: shares learned", "share",
         (("true learned", "true targets learned", 2), ("learned", "wrong labels learned", 0),
          ("reservoir", "wrong labels in the reservoir", 1))),
        ("what G_Q says: what queries see", "cosine, or ratio",
         (("aligned", "cosine of the true part's effect with the answers", 4),
          ("passed", "wrong labels passed on to queries", 3), ("invisible", "share of wrong labels invisible", 5))),
    )  # fmt: skip
    for axis, (title, label, curves) in zip(axes, panels, strict=True):
        for key, name, colour in curves:
            banded(axis, looks, "step", key, color=plots.COLOURS[colour], label=name, linewidth=1.6)
        for name, style in (("memorized", ":"), ("grokked", "--")):
            steps = [row[name] for row in rows if row[name]]
            if steps:
                axis.axvline(median(steps), color="grey", linewidth=0.9, linestyle=style, label=f"{name}, median")
        axis.set(xscale="log", xlabel="steps", ylabel=label, title=title, ylim=(-0.03, 1.05))
    axes[2].set_ylim(-0.03, None)
    figure.suptitle("Grokking: what is learned of true targets and of wrong labels, and what queries see of it")
    legend_below(figure, 4)
    return figure


def main() -> None:
    asked = arguments("grokking_anatomy", __doc__, 3)
    torch.set_num_threads(1)
    training, looks, units = (replace(TRAINING, steps=80), 12, 4) if asked.quick else (TRAINING, LOOKS, UNITS)
    rows: list[Row] = []
    with counter("runs", asked.seeds, asked.progress) as count:
        for seed in range(asked.seeds):
            rows.append(run(seed, training, looks, units))
            count(f"seed {seed}")
    about = {
        "samples": SAMPLES, "queries": QUERIES, "signs": SIGNS, "wrong": WRONG,
        "units": 2 * units, "training": vars(training), "account": [claim.told() for claim in ACCOUNT],
    }  # fmt: skip
    verdicts = judged(ACCOUNT, measured(rows))
    concluded(
        "grokking_anatomy", asked, about, rows, range(asked.seeds), verdicts, summarized(rows), COLUMNS, picture,
    )  # fmt: skip


if __name__ == "__main__":
    main()
