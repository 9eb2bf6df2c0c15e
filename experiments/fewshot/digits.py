"""Few samples a class: a head solved with leave-one-out damping, beside a logistic head and AdamW with their tuning.

python -m experiments.fewshot --digits [--quick] [--seeds N] [--out DIR]

Networks are trained on half of scikit-learn's digits; 8 to 64 samples of each of the others are learned, the rest of
them is the test. Seconds hold the tuning of whoever needs it. One thread.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jumpstart as js
from jumpstart.report import records
from jumpstart.report.records import Row
from jumpstart.utils.progress import track

from ..common import arguments

SHOTS, TOY_SHOTS = (8, 16, 32, 64), (8,)
FOLDS = 5
TOY_RATES, TOY_LENGTHS = (1e-3,), (10, 20)
RATES, LENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (25, 50, 100, 200)
SKIPPED = 50  # steps of AdamW after a head: its default rate, not tuned


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) in [0, 1] and classes."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target).long()


def network(kind: str) -> nn.Sequential:
    """Of five classes."""
    if kind == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 5)
        )
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 5),
    )  # fmt: skip


def trained(model: nn.Sequential, x: Tensor, y: Tensor, rate: float, marks: tuple[int, ...]) -> list[nn.Sequential]:
    """Copies after so many full-batch steps of AdamW."""
    optimizer, found = torch.optim.AdamW(model.parameters(), rate), []
    for step in range(1, marks[-1] + 1):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step in marks:
            found.append(copy.deepcopy(model))
    return found


def folds(y: Tensor) -> list[Tensor]:
    """Which samples are held out, each class in equal shares."""
    places = torch.zeros(len(y), dtype=torch.long)
    for label in y.unique():
        rows = (y == label).nonzero()[:, 0]
        places[rows] = torch.arange(len(rows)) % FOLDS
    return [places == fold for fold in range(FOLDS)]


def head(model: nn.Sequential, x: Tensor, y: Tensor) -> nn.Sequential:
    js.fit_head(js.supervised(model, x, y, loss="cross_entropy")).apply()
    return model


def head_then_skip(model: nn.Sequential, x: Tensor, y: Tensor) -> nn.Sequential:
    """All of the network, from the head on."""
    optimizer = js.JumpOptimizer(
        torch.optim.AdamW(head(model, x, y).parameters()), js.supervised(model, x, y, loss="cross_entropy")
    )
    for _ in optimizer.steps(SKIPPED):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def logistic(model: nn.Sequential, x: Tensor, y: Tensor) -> nn.Sequential:
    """scikit-learn's, its damping by cross-validation."""
    from sklearn.linear_model import LogisticRegressionCV

    with torch.no_grad():
        features = model[:-1](x).double().numpy()
    found = LogisticRegressionCV(Cs=10, cv=FOLDS, max_iter=2000, scoring="neg_log_loss").fit(features, y.numpy())
    last = model[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.copy_(torch.tensor(found.coef_))
        last.bias.copy_(torch.tensor(found.intercept_))
    return model


def adamw(
    model: nn.Sequential, x: Tensor, y: Tensor, rates: tuple[float, ...] = RATES, lengths: tuple[int, ...] = LENGTHS
) -> nn.Sequential:
    """All of the network, rate and number of steps by cross-validation of the loss."""
    losses = np.zeros((len(rates), len(lengths)))
    for out in folds(y):
        for i, rate in enumerate(rates):
            for j, found in enumerate(trained(copy.deepcopy(model), x[~out], y[~out], rate, lengths)):
                with torch.no_grad():
                    losses[i, j] += float(F.cross_entropy(found(x[out]), y[out]))
    i, j = np.unravel_index(losses.argmin(), losses.shape)
    return trained(model, x, y, rates[i], (lengths[j],))[0]


CONTENDERS: dict[str, Callable[[nn.Sequential, Tensor, Tensor], nn.Sequential]] = {
    "head": head, "head, then skip": head_then_skip, "logistic, cross-validated": logistic, "adamw, tuned": adamw,
}  # fmt: skip


def measure(kind: str, first: bool, seed: int, quick: bool) -> list[Row]:
    """A network trained on one half of the classes, and everybody on few samples of the other."""
    shots, steps = (TOY_SHOTS, 30) if quick else (SHOTS, 300)
    contenders = CONTENDERS | ({"adamw, tuned": partial(adamw, rates=TOY_RATES, lengths=TOY_LENGTHS)} if quick else {})
    torch.manual_seed(seed)
    images, labels = digits()
    known = (labels < 5) == first
    model = trained(network(kind), images[known], labels[known] % 5, 3e-3, (steps,))[0]
    x, y = images[~known], labels[~known] % 5
    order = torch.randperm(len(y))
    rows: list[Row] = []
    for count in shots:
        chosen = torch.cat([order[y[order] == label][:count] for label in range(5)])
        rest = torch.ones(len(y), dtype=torch.bool)
        rest[chosen] = False
        torch.manual_seed(seed)
        start = copy.deepcopy(model)
        last = start[-1]
        assert isinstance(last, nn.Linear)
        last.reset_parameters()
        for name, fit in contenders.items():
            begun = time.perf_counter()
            found = fit(copy.deepcopy(start), x[chosen], y[chosen])
            seconds = time.perf_counter() - begun
            with torch.no_grad():
                u = found(x[rest])
            rows.append({
                "network": kind, "trained on": "0-4" if first else "5-9", "seed": seed, "shots": count,
                "contender": name, "accuracy": float((u.argmax(1) == y[rest]).float().mean()),
                "loss": float(F.cross_entropy(u, y[rest])), "seconds": seconds,
            })  # fmt: skip
    return rows


def summary(rows: list[Row]) -> list[Row]:
    """Means over networks, halves and seeds; how often a contender is more than a percent below the logistic head."""
    found: list[Row] = []
    table = {(r["network"], r["trained on"], r["seed"], r["shots"], r["contender"]): r for r in rows}
    for count in sorted({row["shots"] for row in rows}):
        for name in CONTENDERS:
            own = [row for row in rows if (row["shots"], row["contender"]) == (count, name)]
            below = 0
            for row in own:
                place = (row["network"], row["trained on"], row["seed"], count, "logistic, cross-validated")
                below += row["accuracy"] < table[place]["accuracy"] - 0.01
            found.append({
                "shots": count, "contender": name, "runs": len(own),
                **{key: float(np.mean([row[key] for row in own])) for key in ("accuracy", "loss", "seconds")},
                "below": below,
            })  # fmt: skip
    return found


HEADS = {
    "shots": "a class", "contender": "", "runs": "runs", "accuracy": "accuracy", "loss": "test loss",
    "seconds": "seconds", "below": "> 1% below logistic",
}  # fmt: skip


def main() -> None:
    asked = arguments("fewshot", __doc__, 3)
    torch.set_num_threads(1)
    kinds = ("mlp",) if asked.quick else ("mlp", "conv")
    jobs = [(kind, first, seed) for seed in range(asked.seeds) for kind in kinds for first in (True, False)]
    rows: list[Row] = []
    for kind, first, seed in track(jobs, label="few shots") if asked.progress else jobs:
        rows += measure(kind, first, seed, asked.quick)
    found = summary(rows)
    path = records.write(
        asked.out, "fewshot_digits", {"quick": asked.quick, "summary": found}, rows, range(asked.seeds)
    )
    print(records.table(found, HEADS))
    print(f"\nwritten: {path}")
