"""How far jumps leave what gradient flow keeps, and whether leading them back pays.

python -m experiments.balance [--quick] [--seeds N] [--out DIR]

Rectified networks on smooth regression. The flow keeps ‖before‖² + bias² − ‖behind‖² of every unit; so does a jump's
first order, and it leaves it by squares of its displacement. Told is the largest change over units, as a share of the
mean of ‖before‖² + bias² + ‖behind‖². First, one jump along the linearized run against gradient steps over the same
flow time. Then forty jumps as they are, and with ``keep_balance=True``, from two starts: torch's, and one whose first
layer is five times as large as torch's, and the last as much smaller.

ACCOUNT was written after a look at three other seeds (0 to 2), on which "pays" had not held; seeds here begin at 100.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.report import plots
from jumpstart.report.records import Row
from jumpstart.trajectory import balance
from jumpstart.utils.progress import counter

from .anatomy import Claim, concluded, judged, told
from .common import arguments, legend_below

INPUTS, FIRST = 4, 100
SCALES = {"torch's start": 1.0, "unbalanced start": 5.0}
PLAIN, KEPT = "as they are", "balance kept"
ACCOUNT = (
    Claim("second order", "one jump: power of the flow time by which the change of balance grows, median", 1.6, 2.1),
    Claim("steps", "gradient steps over the same flow time: change over the jump's, longest time, median", most=0.2),
    Claim("pays", "loss after the jumps with the balance kept over that without, median of starts and seeds", most=0.9),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """``times`` are flow times in units of 1/λmax of the curvature; steps are of a twentieth of that."""

    samples: int = 200
    width: int = 32
    jumps: int = 40
    times: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    step: float = 0.05


TOY = Size(12, 4, 3, (1.0, 3.0))


def network(width: int, scale: float, seed: int) -> nn.Sequential:
    """Two hidden layers; the first is multiplied with ``scale``, the last divided by it: the same function."""
    torch.manual_seed(seed)
    sizes = (INPUTS, width, width, 1)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())][:-1]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for i, factor in ((0, scale), (4, 1 / scale)):
            model.get_parameter(f"{i}.weight").mul_(factor)
        model.get_parameter("0.bias").mul_(scale)
    return model


def change(model: nn.Module, kept: dict[str, Tensor], size: float) -> float:
    """The largest over units, as a share of the mean size."""
    return max(float((balance(model)[name] - value).abs().max()) for name, value in kept.items()) / size


def typical(model: nn.Sequential) -> float:
    """The mean of ‖before‖² + bias² + ‖behind‖² over units."""
    found = []
    for before, behind in ((0, 2), (2, 4)):
        first, bias = model.get_parameter(f"{before}.weight"), model.get_parameter(f"{before}.bias")
        last = model.get_parameter(f"{behind}.weight")
        found.append(first.square().sum(1) + bias.square() + last.square().sum(0))
    return float(torch.cat(found).detach().mean())


def measured(size: Size, seed: int) -> list[Row]:
    """Rows of both parts."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size.samples, INPUTS, generator=generator, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    rows: list[Row] = []
    for start, scale in SCALES.items():
        model = network(size.width, scale, seed)
        kept, unit = balance(model), typical(model)
        rows += [{"seed": seed, "start": start, **row} for row in _once(model, x, y, kept, unit, size)]
        for name in (PLAIN, KEPT):
            twin = copy.deepcopy(model)
            jumper = js.Jumper(js.supervised(twin, x, y, "mse"), keep_balance=name == KEPT)
            for jump in range(1, size.jumps + 1):
                found = jumper.jump()
                rows.append({
                    "part": "jumps", "seed": seed, "start": start, "jumps": name, "jump": jump,
                    "loss": found.actual if found.accepted else found.before, "change": change(twin, kept, unit),
                })  # fmt: skip
    return rows


def _once(model: nn.Sequential, x: Tensor, y: Tensor, kept: dict[str, Tensor], unit: float, size: Size) -> list[Row]:
    """One jump of each flow time, and steps over it."""
    rows, lin = [], linearize(js.supervised(model, x, y, "mse"))
    unit_time = len(x) / (2 * float(torch.linalg.matrix_norm(lin.jacobian(), 2).square()))
    for time in size.times:
        jumped, stepped = copy.deepcopy(model), copy.deepcopy(model)
        found = js.jump(js.supervised(jumped, x, y, "mse"), horizon=time * unit_time)
        optimizer = torch.optim.SGD(stepped.parameters(), lr=size.step * unit_time)
        for _ in range(round(time / size.step)):
            optimizer.zero_grad()
            nn.functional.mse_loss(stepped(x), y).backward()
            optimizer.step()
        rows.append({
            "part": "once", "time": time, "accepted": found.accepted,
            "jump": change(jumped, kept, unit) if found.accepted else None, "steps": change(stepped, kept, unit),
        })  # fmt: skip
    return rows


def power(rows: list[Row]) -> float:
    """Of the flow time, by least squares in logarithms, of the accepted jumps of one start and seed."""
    pairs = [(math.log(row["time"]), math.log(row["jump"])) for row in rows if row["accepted"]]
    if len(pairs) < 2:
        return math.nan
    xs, ys = torch.tensor(pairs, dtype=torch.float64).T
    xs, ys = xs - xs.mean(), ys - ys.mean()
    return float((xs @ ys) / (xs @ xs))


def judgements(rows: list[Row]) -> dict[str, float]:
    """What the claims are about."""
    once = [row for row in rows if row["part"] == "once"]
    runs = sorted({(row["start"], row["seed"]) for row in rows})
    powers = [power([row for row in once if (row["start"], row["seed"]) == run]) for run in runs]
    longest = [
        max(
            (row for row in once if (row["start"], row["seed"]) == run and row["accepted"]), key=lambda row: row["time"]
        )
        for run in runs
        if any(row["accepted"] for row in once if (row["start"], row["seed"]) == run)
    ]
    return {
        "second order": median([p for p in powers if math.isfinite(p)] or [math.nan]),
        "steps": median([row["steps"] / row["jump"] for row in longest] or [math.nan]),
        "pays": median(last(rows, *run, KEPT)["loss"] / last(rows, *run, PLAIN)["loss"] for run in runs),
    }


def last(rows: list[Row], start: str, seed: int, name: str) -> Row:
    """The row of the last jump."""
    own = [r for r in rows if (r["part"], r["start"], r["seed"], r.get("jumps")) == ("jumps", start, seed, name)]
    return max(own, key=lambda row: row["jump"])


COLUMNS = {
    "start": "start", "jumps": "jumps", "first": "balance changed by the first jump", "change": "by all of them",
    "loss": "loss after all", "lowest": "lowest", "highest": "highest",
}  # fmt: skip


def summarized(rows: list[Row]) -> list[Row]:
    """A line a start and kind: medians over seeds."""
    found = []
    seeds = sorted({row["seed"] for row in rows})
    for start in SCALES:
        for name in (PLAIN, KEPT):
            ends = [last(rows, start, seed, name) for seed in seeds]
            first = [r for r in rows if r.get("jumps") == name and r["start"] == start and r["jump"] == 1]
            losses = sorted(row["loss"] for row in ends)
            found.append({
                "start": start, "jumps": name, "first": median(row["change"] for row in first),
                "change": median(row["change"] for row in ends), "loss": median(losses), "lowest": losses[0],
                "highest": losses[-1],
            })  # fmt: skip
    return found


def page(content: Row) -> str:
    """For docs/trajectory.md."""
    return told(content, COLUMNS)


def picture(rows: list[Row]) -> Any:
    """The change of balance by one jump and by steps over the same time; losses with and without."""
    figure, axes = plots.pyplot().subplots(1, 3, figsize=(11.5, 4.0), layout="constrained")
    seeds = sorted({row["seed"] for row in rows})
    for axis, start in zip(axes, SCALES, strict=False):
        own = [row for row in rows if row["part"] == "once" and row["start"] == start]
        for i, key in enumerate(("jump", "steps")):
            for seed in seeds:
                line = [(row["time"], row[key]) for row in own if row["seed"] == seed and row[key] is not None]
                label = ("one jump", "gradient steps")[i] if seed == seeds[0] else None
                axis.plot(*zip(*line, strict=True), color=plots.COLOURS[i], linewidth=1.2, label=label)
        axis.set(xscale="log", yscale="log", xlabel="flow time · λmax", title=start)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("largest change of balance, as a share")
    for i, name in enumerate((PLAIN, KEPT)):
        for seed in seeds:
            own = [r for r in rows if r.get("jumps") == name and r["seed"] == seed and r["start"] == "torch's start"]
            label = f"jumps, {name}" if seed == seeds[0] else None
            axes[2].plot([r["jump"] for r in own], [r["loss"] for r in own], color=plots.COLOURS[i + 2], label=label)
    axes[2].set(yscale="log", xlabel="jumps", title="loss, torch's start")
    figure.suptitle("What gradient flow keeps, and how far jumps leave it")
    legend_below(figure, 4)
    return figure


def main() -> None:
    asked = arguments("balance", __doc__, 5)
    torch.set_num_threads(1)
    size, rows = TOY if asked.quick else Size(), []
    seeds = range(FIRST, FIRST + asked.seeds)
    with counter("balance", asked.seeds, asked.progress) as count:
        for seed in seeds:
            rows += measured(size, seed)
            count(f"seed {seed}")
    concluded(
        "balance", asked, {**vars(size), "account": [claim.told() for claim in ACCOUNT]}, rows, seeds,
        judged(ACCOUNT, judgements(rows)), summarized(rows), COLUMNS, picture,
    )  # fmt: skip


if __name__ == "__main__":
    main()
