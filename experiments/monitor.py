"""Two uses of records along a run: when to stop, without validation data, and which architecture will test best.

python -m experiments.monitor [--quick] [--seeds N] [--out DIR]

When to stop: digits with 30% wrong targets (ten outputs, mean of squares). Stopped where ``trajectory.LeaveOneOut`` is
lowest beside the run on all samples, against stopping where a fifth of the samples, kept back, is lowest, and against
never stopping. What counts is the loss on unseen clean digits above that of the best step in hindsight. The account:
the monitor's median excess is below that of the split. Refuted otherwise.

Which architecture: eight networks, the same samples and the same number of steps at a tenth of the largest stable rate.
Spearman's correlation of the unseen loss with the effective rank of W_S at the end, and with what anybody can see:
training loss and number of weights. The account: the rank's correlation is the strongest. Refuted otherwise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jumpstart as js
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.trajectory import LeaveOneOut, Recorder

from .common import arguments, legend_below, spread
from .operators import drawn

SAMPLES, UNSEEN, NOISE = 60, 700, 0.3
STEPS, EVERY, RATE = 1200, 25, 0.3  # of the runs that are stopped, below the edge of stability; looks between steps
SPLIT = 5  # a fifth is kept back
MODES, COMPARED = 30, 300  # of the comparison: directions that are recorded, and steps
ACCOUNTS = {
    "monitor": "stopped where the left-out loss along the run is lowest, the excess is below that of a split",
    "architectures": "the unseen loss correlates most strongly with the effective rank of W_S",
}


def classes(y: Tensor, seed: int, noise: float) -> Tensor:
    """Ten outputs (n, 10), one-hot, a share of them of another class."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(y), generator=generator) < noise
    shift = torch.randint(1, 10, (len(y),), generator=generator)
    return F.one_hot(torch.where(wrong, (y + shift) % 10, y), 10).double()


def hidden(width: int, act: Callable[[], nn.Module] = nn.Tanh, depth: int = 1) -> nn.Sequential:
    layers = [part for i in range(depth) for part in (nn.Linear(64 if i == 0 else width, width), act())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def convolution(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, channels, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(9 * channels, 10),
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(64, 10)), "tanh, 8": lambda: hidden(8), "tanh, 32": lambda: hidden(32),
    "tanh, 16, 3 layers": lambda: hidden(16, depth=3), "ReLU, 32": lambda: hidden(32, nn.ReLU),
    "GELU, 32": lambda: hidden(32, nn.GELU), "convolution, 4": lambda: convolution(4),
    "convolution, 12": lambda: convolution(12),
}  # fmt: skip


def made(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build().double()


def stepped(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()


@torch.no_grad()
def loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(F.mse_loss(model(x), y))


def stopped(seed: int, quick: bool) -> Row:
    """One run with the monitor, and one on four fifths with a split; the unseen loss where each would stop."""
    n, steps = (15, 100) if quick else (SAMPLES, STEPS)
    (x, digits), (unseen, clean) = drawn(1300 + seed, n, UNSEEN)
    y, truth = classes(digits, seed, NOISE), classes(clean, 0, 0.0)

    model = made(lambda: hidden(32), seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    left_out = LeaveOneOut(js.supervised(model, x, y, "mse"), optimizer=optimizer, every=2)
    course: list[tuple[float, float]] = [(left_out.risk(), loss(model, unseen, truth))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the row has ``strayed``
        for step in range(1, steps + 1):
            stepped(model, x, y, optimizer)
            left_out.step()
            if step % EVERY == 0:
                course.append((left_out.risk(), loss(model, unseen, truth)))

    kept = n - n // SPLIT
    other = made(lambda: hidden(32), seed)
    optimizer = torch.optim.SGD(other.parameters(), lr=RATE)
    split = [(loss(other, x[kept:], y[kept:]), loss(other, unseen, truth))]
    for step in range(1, steps + 1):
        stepped(other, x[:kept], y[:kept], optimizer)
        if step % EVERY == 0:
            split.append((loss(other, x[kept:], y[kept:]), loss(other, unseen, truth)))
    best = min(real for _, real in course)
    chosen = {"monitor": min(course)[1], "split": min(split)[1], "never stopped": course[-1][1]}
    return {
        "part": "monitor", "seed": seed, "best in hindsight": best, "strayed": left_out.strayed,
        "course": [[records_digits(a), records_digits(b)] for a, b in course],
        **{name: value / best - 1 for name, value in chosen.items()},
    }  # fmt: skip


def records_digits(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def largest_rate(objective: js.Objective) -> float:
    """2 / λ_max of the Gauss–Newton matrix at the start: beyond it steps diverge."""
    return 2.0 / float(js.solve(objective, basis="krylov", depth=20).spectrum[0])


def compared(seed: int, quick: bool) -> list[Row]:
    """Every architecture on the same samples."""
    n, steps = (10, 20) if quick else (SAMPLES, COMPARED)
    (x, digits), (unseen, clean) = drawn(1700 + seed, n, UNSEEN)
    y, truth = classes(digits, seed, 0.0), classes(clean, 0, 0.0)
    rows = []
    for name, build in ARCHITECTURES.items():
        model = made(build, seed)
        objective = js.supervised(model, x, y, "mse")
        rate = 0.1 * largest_rate(objective)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        recorder = Recorder(objective, optimizer=optimizer, modes=MODES, every=10)
        for _ in range(steps):
            stepped(model, x, y, optimizer)
            recorder.step()
        found = recorder.operators()
        rows.append(
            {
                "part": "architectures", "seed": seed, "architecture": name, "unseen loss": loss(model, unseen, truth),
                "effective rank": found.effective_rank, "training loss": loss(model, x, y), "rate": rate,
                "weights": sum(p.numel() for p in model.parameters()), "identities": found.error,
            }
        )  # fmt: skip
    return rows


SIGHTS = ("effective rank", "training loss", "weights")


def correlations(rows: list[Row]) -> list[Row]:
    """Spearman's correlation of the unseen loss with each sight, a seed at a time."""
    found = []
    for sight in SIGHTS:
        by_seed = []
        for seed in sorted({row["seed"] for row in rows}):
            own = [row for row in rows if row["seed"] == seed]
            statistic: Any = scipy.stats.spearmanr([r[sight] for r in own], [r["unseen loss"] for r in own])
            by_seed.append(float(statistic.statistic))
        found.append({"sight": sight, **spread(by_seed), "strength": abs(median(by_seed))})
    return found


def excesses(rows: list[Row]) -> list[Row]:
    """The unseen loss above the best step's, a line for each way to stop."""
    return [{"stopped by": way, **spread([row[way] for row in rows])} for way in ("monitor", "split", "never stopped")]


def verdicts(stops: list[Row], sights: list[Row]) -> dict[str, str]:
    excess = {line["stopped by"]: line["median"] for line in stops}
    strength = {line["sight"]: 0.0 if math.isnan(line["strength"]) else line["strength"] for line in sights}
    rival = max(strength[name] for name in SIGHTS[1:])
    return {
        "monitor": "held" if excess["monitor"] < excess["split"] else "refuted",
        "architectures": "held" if strength[SIGHTS[0]] > rival else "refuted",
    }


def picture(rows: list[Row]) -> Any:
    figure, axes = plots.pyplot().subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    course = next(row["course"] for row in rows if row["part"] == "monitor")
    steps = [EVERY * i for i in range(len(course))]
    for i, (name, colour) in enumerate((("left out, along the run", plots.COLOURS[0]), ("unseen", plots.COLOURS[1]))):
        axes[0].plot(steps, [pair[i] for pair in course], color=colour, label=name)
    axes[0].set(xlabel="steps", ylabel="mean of squares", yscale="log")
    axes[0].set_title("30% wrong targets: the monitor beside the unseen loss", fontsize=9)
    own = [row for row in rows if row["part"] == "architectures" and row["seed"] == 0]
    axes[1].plot([r["effective rank"] for r in own], [r["unseen loss"] for r in own], "o", color=plots.COLOURS[2])
    for r in own:
        axes[1].annotate(r["architecture"], (r["effective rank"], r["unseen loss"]), fontsize=7, xytext=(3, 3),
                         textcoords="offset points")  # fmt: skip
    axes[1].set(xlabel="effective rank of W_S", ylabel="unseen loss")
    axes[1].set_title("Architectures: rank of what was learned, and the unseen loss", fontsize=9)
    legend_below(figure, 2)
    return figure


def main() -> None:
    asked = arguments("monitor", __doc__, 5)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for seed in range(asked.seeds):
        rows += [stopped(seed, asked.quick), *compared(seed, asked.quick)]
        if asked.progress:
            print(f"seed {seed} of {asked.seeds}", flush=True)
    stops = excesses([row for row in rows if row["part"] == "monitor"])
    sights = correlations([row for row in rows if row["part"] == "architectures"])
    about = {
        "quick": asked.quick, "accounts": ACCOUNTS, "verdicts": verdicts(stops, sights), "monitor": stops,
        "architectures": sights,
    }  # fmt: skip
    path = records.write(asked.out, "monitor", about, rows, range(asked.seeds))
    for lines in (stops, sights):
        print("\n" + records.table(lines, {key: key for key in lines[0]}))
    print(about["verdicts"])
    plots.save(picture(rows), asked.out / "monitor.png")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
