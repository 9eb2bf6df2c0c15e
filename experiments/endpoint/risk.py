"""Point 7: the risk predicted before the run, without validation data, against the real run's held-out loss.

python -m experiments.endpoint --only 7
python -m experiments.endpoint.risk [--quick] [--seeds N] [--out DIR]   (by itself)
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import jumpstart as js
from jumpstart.report import plots, records

from ..common import Arguments, arguments
from . import cost
from .data import SETTINGS, available, split

Row = dict[str, Any]
SHARE = 0.2  # of the data that early stopping holds out
RANK = 256  # modes beyond which a dense basis is cut for losses that are not quadratic
LEFT = 256  # samples left out, at most, for those
TRUST = 0.2  # relative error of the training outputs up to which the linearization is trusted
POINTS = 30
RATE = 0.5  # learning rate of the real run, in units of 1/λ_max at its start
TOLERANCE = 1e-4  # of the left-out runs where they are integrated
CRITERIA = (
    "leave-one-out", "leave-one-out, trusted", "gcv", "population", "held out", "held out, then all", "last",
)  # fmt: skip
FAMILIES = ("horizon", "damping", "gate", "weights")
LOSSES = {
    "mse": nn.functional.mse_loss,
    "cross_entropy": nn.functional.cross_entropy,
    "logistic": nn.functional.binary_cross_entropy_with_logits,
}


def train(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable, lr: float, at: Tensor, watch: list[tuple[Tensor, Tensor]]
) -> list[list[float]]:
    """Full-batch gradient descent; losses on each watched set at each checkpoint."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    found: list[list[float]] = [[] for _ in watch]
    marks = set(at.tolist())
    for step in range(1, int(at.max()) + 1):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        if step in marks:
            with torch.no_grad():
                for values, (xs, ys) in zip(found, watch, strict=True):
                    values.append(float(loss(model(xs), ys)))
    return found


def solve(objective: js.Objective) -> js.Solution:
    """Every mode for squared loss; the leading ones for others, where there are many."""
    if objective.loss.quadratic or math.prod(objective.shape) <= 2 * RANK:
        return js.solve(objective, basis="dense")
    return js.solve(objective, basis=lambda problem: js.bases.dense(problem, rank=RANK))


def one(job: tuple[str, int, float, int, int, bool]) -> Row:
    """One run: predict, then train for real, with all of the data and with a share held out."""
    name, n, noise, seed, count, tune = job
    torch.set_num_threads(1)
    setting = SETTINGS[name]
    x, y, xt, yt = split(setting, n, noise, seed)
    torch.manual_seed(seed)
    model = setting.model(x)
    objective = js.supervised(model, x, y, loss=setting.loss)
    solution = solve(objective)
    lr = RATE / float(solution.spectrum[0])
    at = torch.logspace(0, math.log10(count), POINTS).round().long().unique()
    t = at.double() * lr
    options: dict[str, Any] = {"tolerance": TOLERANCE}
    options |= {} if objective.loss.quadratic or n <= LEFT else {"samples": LEFT}
    left = solution.leave_out(t, **options)
    predicted = {"leave-one-out": left.risk, "population": solution.risk(t, "population")}
    if objective.loss.quadratic:
        predicted["gcv"] = solution.risk(t, "gcv")
    linear = solution.loss(t)
    trust = solution.check(float(t[-1]), tolerance=TRUST).trust_horizon
    solution.checked = None
    loss = LOSSES[setting.loss]
    real_train, real_test = train(model, x, y, loss, lr, at, [(x, y), (xt, yt)])
    held = max(1, round(SHARE * n))
    valid, held_test = train(model, x[held:], y[held:], loss, lr, at, [(x[:held], y[:held]), (xt, yt)])
    test, loo = torch.tensor(real_test), left.risk.float()
    inside = t <= max(trust, float(t[2]))
    stop = best(torch.tensor(valid))
    chosen = {key: best(curve) for key, curve in predicted.items()}
    chosen |= {"leave-one-out, trusted": best(loo[inside]), "held out, then all": stop, "last": len(t) - 1}
    oracle = float(test.min())
    row = {
        "point": 7, "set": name, "n": n, "noise": noise, "seed": seed, "oracle": oracle,
        **{f"excess, {key}": float(test[i]) / oracle - 1 for key, i in chosen.items()},
        "excess, held out": held_test[stop] / oracle - 1,
        "correlation": correlation(loo, test), "correlation, trusted": correlation(loo[inside], test[inside]),
        "gap": float(((loo - test).abs() / test).mean()),
        "gap, trusted": float(((loo - test).abs() / test)[inside].mean()),
        "standard error": float((left.standard_error / left.risk)[chosen["leave-one-out"]]),
        "trust": trust / float(t[-1]), "modes": solution.basis.size, "left out": len(left.samples),
        "network passes": solution.lin.ledger.gradient_evaluations,
    }  # fmt: skip
    if tune:
        row |= tuning(solution, model, x, xt, yt, t, loss, options)
    if seed == 0:
        curves = {"time": t, "real test": test, "real train": real_train, "linearized train": linear, **predicted}
        row["curves"] = {key: [float(f"{float(v):.4g}") for v in curve] for key, curve in curves.items()}
    return row


def tuning(
    solution: js.Solution, model: nn.Module, x: Tensor, xt: Tensor, yt: Tensor, t: Tensor, loss: Callable, options: dict
) -> Row:
    """What choosing more than the horizon is worth: held-out loss of the real network moved to each choice."""

    def real(run: js.Solution, horizon: float) -> float:
        with torch.no_grad():
            return float(loss(torch.func.functional_call(model, run.parameters(horizon), (xt,)), yt))

    curve = [real(solution, float(moment)) for moment in t]
    oracle, found = min(curve), {}
    for family in FAMILIES:
        got = solution.tuned([family], limit=float(t[-1]), **options)
        found[f"jump excess, {family}"] = real(got.solution, got.horizon) / oracle - 1
        found[f"choice, {family}"] = got.choices[0].name
    return found


def best(curve: Tensor) -> int:
    return int(torch.where(curve.isfinite(), curve, torch.full_like(curve, math.inf)).argmin())


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def jobs(args: Arguments) -> list[tuple[str, int, float, int, int, bool]]:
    """Which sets, sizes, shares of label noise and seeds; longest first, so that two workers end together."""
    if args.quick:
        return [("digits", 16, 0.2, 0, 60, True)]
    names = [name for name in SETTINGS if available(name)]
    plan = [(name, 2000, 0.2, 400) for name in ("kin40k", "protein", "mnist parity")]
    plan += [(name, 512, noise, 800) for name in names if name != "digits" for noise in (0.0, 0.4)]
    plan += [(name, n, noise, 1500) for n in (128, 32) for name in names for noise in (0.0, 0.2, 0.4)]
    tuned = {(name, n) for name in names for n in (32, 128)} - {("digits", 128)}
    return [(*run[:3], seed, run[3], run[:2] in tuned and seed < 3) for run in plan for seed in range(args.seeds)]


def free() -> None:
    """Let a worker use every core, whatever its parent was bound to."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def run(args: Arguments) -> list[Row]:
    """All runs, on as many processes as there are cores: nothing here is timed."""
    todo = jobs(args)
    if args.quick:
        rows = [one(job) for job in todo]
    else:
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), free) as pool:
            rows = list(tqdm(pool.map(one, todo), total=len(todo), desc="risk", disable=not args.progress))
    settings = {"quick": args.quick, "rate": RATE, "trust": TRUST, "tolerance": TOLERANCE, "summary": summary(rows)}
    records.write(args.out / "risk", "endpoint.risk", settings, rows, range(args.seeds))
    _, trouble = plots.drawn(lambda: figure(rows), args.out / "risk" / "risk.png")
    if trouble:
        print(trouble)
    return checks(rows) + cost.run(args)


def median(rows: list[Row], key: str) -> float | None:
    found = [row[key] for row in rows if math.isfinite(row.get(key, math.nan))]
    return float(np.median(found)) if found else None


def summary(rows: list[Row]) -> list[Row]:
    """Medians over sets, shares of noise and seeds for each n; and for each set."""
    found = []
    groups = [("n", n) for n in sorted({row["n"] for row in rows})] + [("set", s) for s in {r["set"]: 0 for r in rows}]
    groups += [("noise", noise) for noise in sorted({row["noise"] for row in rows})]
    keys = [f"excess, {name}" for name in CRITERIA] + [f"jump excess, {name}" for name in FAMILIES]
    keys += ["correlation", "correlation, trusted", "gap", "gap, trusted", "standard error", "trust"]
    for by, value in groups:
        same = [row for row in rows if row[by] == value]
        behind = [row["excess, leave-one-out"] - row["excess, held out"] for row in same]
        better = sum(b < 0 for b in behind) / len(behind)
        line = {key: median(same, key) for key in keys}
        found.append({"by": by, "value": value, "runs": len(same), **line, "ahead of held out": better})
    return found


def checks(rows: list[Row]) -> list[Row]:
    """The headline, one line each."""
    small = [row for row in rows if row["n"] <= 128]
    ahead = [row["excess, leave-one-out"] - row["excess, held out"] for row in small]
    told = [
        ("  n ≤ 128: leave-one-out less held out, median of the differences", float(np.nanmedian(ahead)), 0.0),
        ("excess test loss at leave-one-out's horizon, median", median(rows, "excess, leave-one-out"), 0.02),
        ("  the same, 20% held out", median(rows, "excess, held out"), None),
        ("  the same, held out, then trained on all", median(rows, "excess, held out, then all"), None),
        ("correlation of leave-one-out with the real held-out curve, median", median(rows, "correlation"), None),
        ("mean gap between them, relative, median", median(rows, "gap"), None),
    ]  # fmt: skip
    return [
        {"point": 7, "check": check, "value": value, "limit": limit, "above": False,
         "holds": None if limit is None or value is None else value <= limit}
        for check, value, limit in told
    ]  # fmt: skip


def figure(rows: list[Row]) -> Any:
    """Predicted against real held-out curves for one run of each set, and excess test loss by criterion."""
    plt = plots.pyplot()
    shown = {
        row["set"]: row for row in sorted(rows, key=lambda r: (r["n"] == 128, r["noise"] == 0.2)) if "curves" in row
    }
    columns = 5
    lines = -(-(len(shown) + 1) // columns)
    drawn, axes = plt.subplots(lines, columns, figsize=(3.1 * columns, 2.7 * lines), squeeze=False)
    flat = list(axes.flat)
    for axis, (name, row) in zip(flat, shown.items(), strict=False):
        curves, t = row["curves"], row["curves"]["time"]
        for key, colour, style in (
            ("real test", "#000000", "-"), ("leave-one-out", "#D55E00", "-"), ("gcv", "#009E73", ":"),
            ("real train", "#999999", "-"), ("linearized train", "#0072B2", (0, (4, 1.5))),
        ):  # fmt: skip
            if key in curves:
                axis.plot(t, curves[key], color=colour, linestyle=style, label=key, linewidth=1.3)
        axis.axvline(row["trust"] * t[-1], color="#CC79A7", linewidth=0.8, label="trust horizon")
        axis.set_xscale("log")
        top = 1.6 * max(curves["real test"][0], min(curves["real test"]))
        axis.set_ylim(0, top)
        axis.set_title(f"{name}, n {row['n']}, noise {row['noise']:.0%}", fontsize=8)
        axis.set_xlabel("flow time", fontsize=8)
    flat[0].set_ylabel("loss")
    last = flat[len(shown)] if len(shown) < len(flat) else flat[-1]
    sizes = sorted({row["n"] for row in rows})
    for i, (name, colour) in enumerate(zip(CRITERIA[:6], plots.COLOURS, strict=False)):
        values = [median([r for r in rows if r["n"] == n], f"excess, {name}") or 0.0 for n in sizes]
        last.bar([j + 0.14 * (i - 2.5) for j in range(len(sizes))], values, 0.13, color=colour, label=name)
    last.set_xticks(range(len(sizes)), [f"n {n}" for n in sizes])
    last.set_title("excess test loss over the oracle's, median", fontsize=8)
    last.legend(fontsize=6, frameon=False)
    for axis in flat[len(shown) + 1 :]:
        axis.axis("off")
    handles, labels = flat[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="lower center", ncol=6, frameon=False, fontsize=8)
    drawn.tight_layout(rect=(0, 0.05, 1, 1))
    return drawn


if __name__ == "__main__":
    run(arguments("endpoint.risk", __doc__, seeds=5))
