"""Leave-one-out along the real run, against runs that really leave each sample out, and against the frozen kernel.

python -m experiments.left_out [--quick] [--seeds N] [--out DIR]

Digits from scratch, full-batch gradient descent, three networks. At a few numbers of steps: the training loss, the
mean loss of samples in runs that really were without them (n runs), what ``trajectory.LeaveOneOut`` says beside one
run, what ``solve(...).risk`` says before it, and the loss on digits never seen. The account: carried along the real run
the estimate is nearer to the truth than with the kernel of the start. Refuted for a network where the median over seeds
of |log(estimate / truth)| at the last number of steps is not smaller than the frozen kernel's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jumpstart as js
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.trajectory import LeaveOneOut

from .common import arguments, legend_below, plain_ticks, spread
from .operators import drawn

NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(64, 10)), 0.3),
    "tanh, 2 layers": (lambda: nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10)), 0.3),
    "convolution": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 10)
        ),
        0.3,
    ),
}  # name -> network, learning rate
SAMPLES, TEST = 50, 800
MARKS = (20, 60, 180, 540)  # steps
WAYS = ("along the run", "kernel of the start", "training loss")
ACCOUNT = "along the real run the estimate is nearer to real left-out runs than with the kernel of the start"


def made(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[name][0]().double()


def trained(name: str, seed: int, x: Tensor, y: Tensor, left: int | None, marks: tuple[int, ...]) -> list[Tensor]:
    """Outputs of sample ``left`` after so many steps without it; the others keep their share of the mean."""
    model, kept = made(name, seed), torch.ones(len(x), dtype=torch.bool)
    kept[left] = False
    optimizer = torch.optim.SGD(model.parameters(), lr=NETWORKS[name][1])
    found = []
    for step in range(1, marks[-1] + 1):
        optimizer.zero_grad()
        (F.cross_entropy(model(x[kept]), y[kept], reduction="sum") / len(x)).backward()
        optimizer.step()
        if step in marks:
            found.append(model(x[[left]]).detach()[0])
    return found


def run(name: str, seed: int, quick: bool) -> list[Row]:
    """A row for each number of steps."""
    (x, y), (unseen, classes) = drawn(700 + seed, 12 if quick else SAMPLES, TEST)
    marks = MARKS[:2] if quick else MARKS
    outputs = [trained(name, seed, x, y, i, marks) for i in range(len(x))]
    real = [float(F.cross_entropy(torch.stack([own[k] for own in outputs]), y)) for k in range(len(marks))]

    rate = NETWORKS[name][1]
    model = made(name, seed)
    objective = js.supervised(model, x, y, "cross_entropy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of horizons beyond trust, which is what is asked here
        frozen = [js.solve(objective).risk(js.steps(count, lr=rate)) for count in marks]
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        left_out = LeaveOneOut(objective, optimizer=optimizer)
        rows: list[Row] = []
        for step in range(1, marks[-1] + 1):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            left_out.step()
            if step in marks:
                with torch.no_grad():
                    seen, held = (float(F.cross_entropy(model(a), b)) for a, b in ((x, y), (unseen, classes)))
                k = len(rows)
                rows.append(
                    {
                        "network": name, "seed": seed, "steps": step, "training loss": seen, "real": real[k],
                        "along the run": left_out.risk(), "kernel of the start": frozen[k], "unseen digits": held,
                        "strayed": left_out.strayed,
                    }
                )  # fmt: skip
    return rows


def away(row: Row, way: str) -> float:
    """|log(estimate / truth)|; ∞ for an estimate that is none."""
    ratio = row[way] / row["real"] if row[way] is not None else math.nan
    return abs(math.log(ratio)) if ratio > 0 and math.isfinite(ratio) else math.inf


def summarized(rows: list[Row]) -> list[Row]:
    """A line for each network and number of steps: medians over seeds, and the account's verdict at the last."""
    found = []
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        last = max(row["steps"] for row in own)
        for steps in sorted({row["steps"] for row in own}):
            same = [row for row in own if row["steps"] == steps]
            line: Row = {"network": name, "steps": steps}
            for key in ("real", *WAYS, "unseen digits"):
                line[key] = spread([math.inf if row[key] is None else row[key] for row in same])["median"]
            off = {way: spread([away(row, way) for row in same])["median"] for way in WAYS[:2]}
            line["off, along"], line["off, start"] = off[WAYS[0]], off[WAYS[1]]
            if steps == last:
                line["account"] = "held" if off[WAYS[0]] < off[WAYS[1]] else "refuted"
            found.append(line)
    return found


def picture(rows: list[Row]) -> Any:
    """Losses against steps, a panel a network, the first seed."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    size = (4.2 * len(names), 4.2)
    figure, axes = plots.pyplot().subplots(1, len(names), figsize=size, squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["network"] == name and row["seed"] == 0]
        for key, colour in zip(("real", *WAYS, "unseen digits"), plots.COLOURS, strict=False):
            label = "runs without each sample" if key == "real" else key
            axis.plot([r["steps"] for r in own], [r[key] for r in own], "o-", color=colour, label=label)
        axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="cross-entropy")
        axis.set_title(f"Leave-one-out of a run from scratch: {name}", fontsize=9)
        axis.set_xticks([r["steps"] for r in own], [str(r["steps"]) for r in own])
        axis.minorticks_off()
        plain_ticks(axis.yaxis)
    legend_below(figure, 5)
    return figure


HEADS = {
    "network": "network", "steps": "steps", "real": "runs without each sample", "along the run": "along the run",
    "kernel of the start": "kernel of the start", "training loss": "training loss", "unseen digits": "unseen digits",
    "off, along": "\\|log ratio\\|, along the run", "off, start": "of the start", "account": "account",
}  # fmt: skip


def main() -> None:
    asked = arguments("left_out", __doc__, 3, NETWORKS)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for seed in range(asked.seeds):
        for name in asked.problems[:1] if asked.quick else asked.problems:
            rows += run(name, seed, asked.quick)
            if asked.progress:
                print(f"seed {seed}, {name}", flush=True)
    lines = summarized(rows)
    about = {"quick": asked.quick, "account": ACCOUNT, "samples": SAMPLES, "summary": lines}
    path = records.write(asked.out, "left_out", about, rows, range(asked.seeds))
    print(records.table(lines, {key: key for line in lines for key in line}))
    plots.save(picture(rows), asked.out / "left_out.png")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
