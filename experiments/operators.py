"""Operators along real runs: do the identities hold, does a readout hold on moves it has not seen, what does it cost.

python -m experiments.operators [--quick] [--seeds N] [--out DIR]

Identities: three networks, three losses, halved rates over the same flow time; the error has to fall by the order of
the quadrature. Coupling: a network fits pixels to whether a digit is above four; a readout of one run, on one half of
the samples, tells the moves at test points of a run on the other half. Refuted if the error of the moves is above half,
or if moves permuted among the samples do as well in 1 of 20. Cost: a step with and without the recorder; few modes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jumpstart as js
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.trajectory import Coupling, Recorder, coupling

from .common import arguments, legend_below, spread

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss, "logistic": F.binary_cross_entropy_with_logits, "cross_entropy": F.cross_entropy,
}  # fmt: skip
NETWORKS: dict[str, Callable[[int], nn.Sequential]] = {
    "tanh, 2 layers": lambda c: nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, c)),
    "GELU and LayerNorm": lambda c: nn.Sequential(nn.Linear(64, 10), nn.LayerNorm(10), nn.GELU(), nn.Linear(10, c)),
    "convolution": lambda c: nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(36, c)
    ),
}
RATES = (0.04, 0.02, 0.01)
TIME = 1.0  # flow time of the identities' runs
SAMPLES, TEST = 40, 20
COUPLED = 100  # samples of each half
STEPS, RATE = 4000, 0.02  # of the coupling's runs: the loss has come down, below the edge of stability
REFUTED_ERROR, REFUTED_CHANCE = 0.5, 0.05
OTHER = "a run on other samples"
ACCOUNT = "a readout of one half of the samples tells the moves at test points in a run on the other half"


def digits() -> tuple[Tensor, Tensor]:
    """8×8 digits of scikit-learn's: (1797, 64) in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return torch.tensor(found.data / 16).double(), torch.tensor(found.target).long()


def drawn(seed: int, *counts: int) -> list[tuple[Tensor, Tensor]]:
    """Disjoint samples, so many each."""
    x, y = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [(x[order[end - n : end]], y[order[end - n : end]]) for end, n in zip(ends, counts, strict=True)]


def targets(loss: str, y: Tensor) -> Tensor:
    """Above four or not, as 1 and 0 (or −1) in a column; of cross-entropy three classes."""
    above = (y > 4).double()[:, None]
    return y % 3 if loss == "cross_entropy" else above if loss == "logistic" else 2 * above - 1


def made(name: str, loss: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return NETWORKS[name](3 if loss == "cross_entropy" else 1).double()


class Training:
    """Full-batch gradient descent of a network, with a recorder beside it if one is asked for."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, loss: str, rate: float) -> None:
        self.model, self.x, self.y, self.loss = model, x, y, LOSSES[loss]
        self.objective = js.supervised(model, x, y, loss)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=rate)

    def steps(self, count: int, recorder: Recorder | None = None) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            self.loss(self.model(self.x), self.y).backward()
            self.optimizer.step()
            if recorder is not None:
                recorder.step()


def identities(seed: int, quick: bool) -> list[Row]:
    """A row for each network, loss, rate and order."""
    (x, y), (queries, _) = drawn(seed, SAMPLES, TEST)
    rows = []
    for name in list(NETWORKS)[: 1 if quick else None]:
        for loss in LOSSES:
            for order in (2, 4):
                for rate in RATES[: 2 if quick else None]:
                    run = Training(made(name, loss, seed), x, targets(loss, y), loss, rate)
                    recorder = Recorder(run.objective, queries, optimizer=run.optimizer, order=order)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", RuntimeWarning)  # of coarse steps: the rows say it
                        run.steps(round((0.4 if quick else TIME) / rate), recorder)
                    found = recorder.operators()
                    values, vectors = torch.linalg.eigh(found.action)
                    moved = (found.transfer @ vectors).square().sum(0)
                    bound = found.reach * values
                    lost = None
                    if loss == "mse":
                        lost = torch.eye(SAMPLES).double() - found.propagator
                        lost = float((found.displacement - SAMPLES / 2 * lost).norm() / found.displacement.norm())
                    rows.append(
                        {
                            "part": "identities", "seed": seed, "network": name, "loss": loss, "order": order,
                            "rate": rate, **{f"off, {k}": v for k, v in found.identities.items()},
                            "D = B⁻¹(I − P)": lost,
                            "beyond the bound": float((moved - bound * (1 + 1e-9)).clamp_min(0).max()),
                        }
                    )  # fmt: skip
    return rows


def orders(rows: list[Row]) -> list[Row]:
    """A line for each network, loss and order of quadrature: by what power of the rate each identity's error falls."""
    found = []
    for name in NETWORKS:
        for loss in LOSSES:
            for order in (2, 4):
                own = [r for r in rows if (r["network"], r["loss"], r["order"]) == (name, loss, order)]
                if not own:
                    continue
                smallest = min(r["rate"] for r in own)
                last = [r for r in own if r["rate"] == smallest]
                before = [r for r in own if r["rate"] == 2 * smallest]
                line: Row = {"network": name, "loss": loss, "order": order}
                for key in ("gradient", "loss", "outputs", "queries"):
                    falls = [math.log2(b[f"off, {key}"] / a[f"off, {key}"]) for a, b in zip(last, before, strict=True)]
                    line[f"{key}, falls as"] = spread(falls)["median"]
                line["largest error"] = max(v for r in last for key, v in r.items() if key.startswith("off, "))
                found.append(line)
    return found


def coupled(seed: int, quick: bool) -> tuple[list[Row], dict[str, Coupling]]:
    """Readouts judged: on their own run, on its second half, and on a run on other samples."""
    n, steps = (20, 60) if quick else (COUPLED, STEPS)
    (x, y), (other, other_y), (queries, _) = drawn(500 + seed, n, n, 80)
    one = Training(made("tanh, 2 layers", "mse", seed), x, targets("mse", y), "mse", RATE)
    every = max(1, steps // 500)
    first = Recorder(one.objective, queries, optimizer=one.optimizer, every=every)
    start = [one.model(z).detach() for z in (x, queries)]
    one.steps(steps // 2, first)
    half, middle = first.operators(), [one.model(z).detach() for z in (x, queries)]
    one.steps(steps // 2, first)
    whole, end = first.operators(), [one.model(z).detach() for z in (x, queries)]

    two = Training(made("tanh, 2 layers", "mse", seed), other, targets("mse", other_y), "mse", RATE)
    begun = [two.model(z).detach() for z in (x, queries)]
    two.steps(steps)
    ended = [two.model(z).detach() for z in (x, queries)]
    found = {
        "its own run": coupling(whole.readout(), end[0] - start[0], end[1] - start[1]),
        "second half of the run, by the first": coupling(half.readout(), end[0] - middle[0], end[1] - middle[1]),
        OTHER: coupling(whole.readout(), ended[0] - begun[0], ended[1] - begun[1]),
    }
    return [
        {
            "part": "coupling", "seed": seed, "judged on": name, "correlation": c.correlation, "error": c.error,
            "permuted, highest": float(c.permuted.max()), "chance": c.chance, "rank": whole.rank(),
            "effective rank": whole.effective_rank, "identities": whole.error,
            "holds": c.error <= REFUTED_ERROR and c.chance <= REFUTED_CHANCE,
        }
        for name, c in found.items()
    ], found  # fmt: skip


def costs(seed: int, quick: bool) -> list[Row]:
    """A step with and without a recorder; memory of its columns; what few modes say against all."""
    (x, y), (queries, _) = drawn(900 + seed, 40 if quick else 150, TEST)
    steps = 10 if quick else 60

    def run(**options: Any) -> tuple[float, Recorder | None]:
        training = Training(made("tanh, 2 layers", "mse", seed), x, targets("mse", y), "mse", RATES[0])
        recorder = Recorder(training.objective, queries, optimizer=training.optimizer, **options) if options else None
        training.steps(2, recorder)
        begun = time.perf_counter()
        training.steps(steps, recorder)
        return (time.perf_counter() - begun) / steps, recorder

    bare = min(run()[0] for _ in range(3))
    exact: Tensor | None = None
    rows = []
    for name, options in {
        "all directions": {"every": 1}, "all, every 10th step": {"every": 10}, "8 modes": {"modes": 8},
        "8 modes, every 10th step": {"modes": 8, "every": 10}, "order 4": {"order": 4},
    }.items():  # fmt: skip
        seconds, recorder = run(**options)
        assert recorder is not None
        found = recorder.operators()
        moved = found.transfer @ found.coordinates(found.gradient)
        exact = moved if exact is None else exact
        rows.append(
            {
                "part": "costs", "seed": seed, "recorder": name, "times a bare step": seconds / bare,
                "MiB": sum(t.numel() * t.element_size() for t in recorder.columns.tensors().values()) / 2**20,
                "off from all": float((moved - exact).norm() / exact.norm()), "identities": found.error,
            }
        )  # fmt: skip
    return rows


def summarized(rows: list[Row], part: str, by: str, keys: tuple[str, ...]) -> list[Row]:
    """Medians and ranges over seeds."""
    own = [row for row in rows if row["part"] == part]
    found = []
    for name in dict.fromkeys(row[by] for row in own):
        same = [row for row in own if row[by] == name]
        line: Row = {by: name, "runs": len(same)}
        for key in keys:
            s = spread([float(row[key]) for row in same])
            shown = [records.show(s[k]) for k in ("median", "min", "max")]
            line[key] = shown[0] if len(same) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"
        if part == "coupling":
            line["holds"] = f"{sum(row['holds'] for row in same)}/{len(same)}"
        found.append(line)
    return found


COUPLING = ("correlation", "error", "permuted, highest", "chance")
COSTS = ("times a bare step", "MiB", "off from all", "identities")


def picture(rows: list[Row], found: dict[str, Coupling]) -> Any:
    """The identities' errors against the rate, and predicted against real moves at test points."""
    figure, axes = plots.pyplot().subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    own = [r for r in rows if r["part"] == "identities" and r["seed"] == 0]
    for order, colour in zip((2, 4), plots.COLOURS, strict=False):
        for i, (name, loss) in enumerate(dict.fromkeys((r["network"], r["loss"]) for r in own)):
            line = [r for r in own if (r["network"], r["loss"], r["order"]) == (name, loss, order)]
            label = f"order {order}" if i == 0 else None
            axes[0].plot(
                [r["rate"] for r in line], [r["off, queries"] for r in line], "o-", color=colour, lw=1, label=label
            )
    axes[0].set(xscale="log", yscale="log", xlabel="learning rate", ylabel="relative error")
    axes[0].set_title("What the operators say of the moves at test points, against the run", fontsize=9)
    for (name, c), colour in zip(found.items(), plots.COLOURS[2:], strict=False):
        axes[1].plot(c.real, c.predicted, ".", color=colour, label=f"{name}: r = {c.correlation:.3f}")
    axes[1].axline((0, 0), slope=1, color="0.6", lw=1)
    axes[1].set(xlabel="real move of the output at a test point", ylabel="told by the readout")
    axes[1].set_title("A readout on moves that it has seen, and has not", fontsize=9)
    legend_below(figure, 3)
    return figure


def main() -> None:
    asked = arguments("operators", __doc__, 5)
    torch.set_num_threads(1)
    rows: list[Row] = []
    shown: dict[str, Coupling] = {}
    for seed in range(asked.seeds):
        if seed < 2:
            rows += identities(seed, asked.quick)
        new, found = coupled(seed, asked.quick)
        shown = shown or found
        rows += new + costs(seed, asked.quick)
        if asked.progress:
            print(f"seed {seed} of {asked.seeds}", flush=True)
    parts = {
        "identities": orders([r for r in rows if r["part"] == "identities"]),
        "coupling": summarized(rows, "coupling", "judged on", COUPLING),
        "costs": summarized(rows, "costs", "recorder", COSTS),
    }
    about = {"quick": asked.quick, "account": ACCOUNT, "refuted above": [REFUTED_ERROR, REFUTED_CHANCE], **parts}
    path = records.write(asked.out, "operators", about, rows, range(asked.seeds))
    for lines in parts.values():
        print("\n" + records.table(lines, {key: key for key in lines[0]}))
    plots.save(picture(rows, shown), asked.out / "operators.png")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
