"""A sequence of tasks, one network: does it go on learning? AdamW beside its isometry term, with and without a gate.

python -m experiments.isometry [--quick] [--seeds N] [--minutes M] [--tuning] [--out DIR]

Digits (scikit-learn), the pixels permuted anew for each task; nobody tells the optimizer. What counts is the accuracy
on a task's held-out samples after its epochs, averaged over the last fifth of the tasks. Rates, decays and strengths
are chosen on another seed, by that average, from grids of the same size. One thread; seconds of the process.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jumpstart.optim import GatedAdamW
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from .common import arguments, spread
from .pages import machine, markdown

FIRST = 100  # seed of the tuning
TASKS, EPOCHS, BATCH, TRAIN, WIDTH = 60, 8, 32, 500, 64
TOY = {"tasks": 3, "epochs": 1}
RATES = (1e-3, 3e-3, 1e-2)
LEVELS = (0.003, 0.03, 0.3)  # of decay, and of isometry
# What an arm's level is, and whether it is gated.
ARMS: dict[str, tuple[str | None, str | None]] = {
    "AdamW": (None, None),
    "AdamW, decay": ("weight_decay", None),
    "AdamW, isometry": ("isometry", None),
    "gated, hard": (None, "hard"),
    "gated, isometry": ("isometry", "hard"),
}


def network(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16 - 0.3, torch.tensor(found.target).long()


def run(arm: str, rate: float, level: float, seed: int, tasks: int, epochs: int) -> Row:
    """One sequence: held-out accuracy after each task."""
    x, y = digits()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model, (name, rule) = network(), ARMS[arm]
    options: dict[str, Any] = {"weight_decay": 0.0, **({} if name is None else {name: level})}
    optimizer = GatedAdamW(model.parameters(), lr=rate, rule=rule, **options)  # with rule=None it is torch's AdamW
    accuracies, begun = [], time.process_time()
    for _ in range(tasks):
        pixels, order = torch.randperm(64, generator=generator), torch.randperm(len(x), generator=generator)
        train, held = order[:TRAIN], order[TRAIN : 2 * TRAIN]
        for _ in range(epochs):
            for rows in train[torch.randperm(TRAIN, generator=generator)].split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows][:, pixels]), y[rows]).backward()
                optimizer.step()
        with torch.no_grad():
            accuracies.append(float((model(x[held][:, pixels]).argmax(1) == y[held]).float().mean()))
    last = accuracies[-max(1, tasks // 5) :]
    return {
        "arm": arm, "rate": rate, "level": level, "seed": seed, "first": accuracies[0], "last": sum(last) / len(last),
        "seconds": time.process_time() - begun, "accuracies": accuracies,
    }  # fmt: skip


def grid(arm: str) -> list[tuple[float, float]]:
    """Rates and levels; arms without a level try as many rates."""
    if ARMS[arm][0] is None:
        return [(rate * factor, 0.0) for rate in RATES for factor in (0.6, 1.0, 1.6)]
    return list(itertools.product(RATES, LEVELS))


def picture(rows: Sequence[Row]) -> Any:
    """Accuracy after each task, medians of seeds."""
    plt = plots.pyplot()
    figure, axis = plt.subplots(figsize=(7.2, 3.6))
    for colour, arm in zip(plots.COLOURS, ARMS, strict=False):
        curves = [row["accuracies"] for row in rows if row["arm"] == arm]
        if curves:
            middle = torch.tensor(curves).median(0).values.tolist()
            axis.plot(range(1, len(middle) + 1), middle, color=colour, label=arm, linewidth=1.4)
    axis.set_xlabel("task")
    axis.set_ylabel("held-out accuracy after it")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def page(content: dict[str, Any]) -> str:
    """For docs/gates.md."""
    rows = [
        {
            "": row["arm"], "rate": row["rate"], "level": row["level"] or "", "first task": row["first"]["median"],
            "last fifth": f"{row['last']['median']:.3f} ({row['last']['min']:.3f} to {row['last']['max']:.3f})",
            "seconds": row["seconds"]["median"],
        }
        for row in content["settings"]["summary"]
    ]  # fmt: skip
    return (
        f"{markdown(rows)}\n\n![accuracy after each task](results/isometry/isometry.png)\n\n"
        f"<sub>{machine(content)}</sub>"
    )


def main() -> None:
    asked = arguments("isometry", __doc__, 3, tuned=True)
    torch.set_num_threads(1)
    tasks, epochs = (TOY["tasks"], TOY["epochs"]) if asked.quick else (TASKS, EPOCHS)
    begun, chosen, tried = time.monotonic(), {}, []
    with counter("isometry", len(ARMS) * (asked.seeds + (1 if asked.quick else 9)), asked.progress) as count:
        for arm in ARMS:
            found = []
            for rate, level in grid(arm)[4:5] if asked.quick else grid(arm):
                found.append(run(arm, rate, level, FIRST, tasks, epochs))
                count(f"{arm}, tuning")
            best = max(found, key=lambda row: row["last"])
            chosen[arm] = best["rate"], best["level"]
            tried += [{key: row[key] for key in ("arm", "rate", "level", "last")} for row in found]
        rows: list[Row] = []
        for seed in range(0 if asked.tuning else asked.seeds):
            if (time.monotonic() - begun) / 60 > asked.minutes:
                break
            for arm in ARMS:
                rows.append(run(arm, chosen[arm][0], chosen[arm][1], seed, tasks, epochs))
                count(arm)
    summary = [
        {
            "arm": arm, "rate": chosen[arm][0], "level": chosen[arm][1],
            **{key: spread([row[key] for row in rows if row["arm"] == arm]) for key in ("first", "last", "seconds")},
        }
        for arm in ARMS if rows
    ]  # fmt: skip
    settings = {
        "quick": asked.quick, "tasks": tasks, "epochs": epochs, "batch": BATCH, "train": TRAIN, "tuning": tried,
        "summary": summary,
    }  # fmt: skip
    path = records.write(asked.out, "isometry", settings, rows, range(asked.seeds))
    shown = [
        {**row, **{f"{key}, median": row[key]["median"] for key in ("first", "last", "seconds")}} for row in summary
    ]
    columns = {
        "arm": "", "rate": "rate", "level": "level", "first, median": "first task", "last, median": "last fifth",
        "seconds, median": "seconds",
    }  # fmt: skip
    print(records.table(shown, columns))
    drawn, trouble = plots.drawn(lambda: picture(rows), asked.out / "isometry.png")
    print(f"written: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"))


if __name__ == "__main__":
    main()
