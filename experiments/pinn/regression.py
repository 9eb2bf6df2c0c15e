"""Least squares without an equation: one smooth curve to many digits, and noisy tables read without validation data.

Curve: sinc(10x) at 20,000 points of [−1, 1] by 1-20-1 tanh units: seconds to a mean square error of 1e-7, on all points
and on every 40th (500 points determine 61 weights as well), measured on all of them.

Tables: UCI energy and concrete, 80% of the rows for training, 50 tanh units. AdamW is given the best test error of its
run, as if by an oracle. Jumps see the training rows alone: weight decay α/β is estimated anew from the evidence every
three jumps (MacKay 1992; Foresee & Hagan 1997): α = γ/‖θ‖², β = (n − γ)/Σr², with γ effective weights. The weights kept
are those whose linearization has the least leave-one-out error; where that no longer falls the run ends.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import jumpstart as js
from jumpstart.errors import JumpstartError
from jumpstart.linearization.linearize import linearize
from jumpstart.report import plots

from ..common import spread, uci
from .rivals import peer

TARGET = 1e-7  # mean square error of the curve
SLACK = 0.9  # fits stop at this share of it, since every 40th point may say a little less than all
THIN = 40
# Chosen on seed 100 among (0.1, 10), (0.3, 2), (0.5, 3), three damping modes, QR and Cholesky, float32 and float64.
DAMPING = {"dec_factor": 0.3, "inc_factor": 2.0, "min_value": 1e-16}
ADAM = 0.01  # Adam's rate on the curve
SETS = ("energy", "concrete")
RATES = {"energy": (0.01, 0.01), "concrete": (0.03, 0.01)}  # AdamW's rate and decay, chosen on seeds 100 and 101
PRIOR = 1.0  # first α, a standard normal prior of each weight
INNER = 3  # jumps between estimates of α and β
PATIENCE = 10  # estimates without a lower leave-one-out error after which it is over


def mlp(seed: int, inputs: int, width: int) -> nn.Sequential:
    """One hidden layer of tanh units, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1)).double()


def mse(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - y).square().mean())


def rows(model: nn.Module, x: Tensor, y: Tensor, weight: float) -> js.Objective:
    """½ weight Σ (net(x) − y)² as a residual at one row (x, y)."""
    return js.residual(model, js.Term(lambda net, row: net(row[:-1]) - row[-1:], torch.cat([x, y], 1), weight=weight))


def levenberg(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Any]:
    """torch-levenberg-marquardt, as its README uses it, with the settings that serve it best here."""
    package: Any = peer("torch_levenberg_marquardt", "torch-levenberg-marquardt==1.2.3")
    module = package.training.LevenbergMarquardtModule(
        model, loss_fn=package.loss.MSELoss(), solve_method="cholesky", attempts_per_step=100,
        damping_strategy=package.damping.StandardDampingStrategy(**DAMPING),
    )  # fmt: skip
    stop = False
    while not stop:
        _, _, stop, _ = module.training_step(x, y)
        yield True


def stepped(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> Iterator[Any]:
    """Full-batch steps of a torch optimizer, ``steps`` at a time."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    while True:
        for _ in range(steps):
            optimizer.step(closure)  # type: ignore[call-overload]  # torch types closures as float
        yield True


RIVALS: dict[str, Callable[[nn.Module, Tensor, Tensor], Iterator[Any]]] = {
    "torch-levenberg-marquardt": levenberg,
    "L-BFGS": lambda m, x, y: stepped(
        m, x, y, torch.optim.LBFGS(
            m.parameters(), max_iter=20, max_eval=50, tolerance_grad=0.0, tolerance_change=0.0, history_size=50,
            line_search_fn="strong_wolfe",
        ), 1,
    ),
    "Adam": lambda m, x, y: stepped(m, x, y, torch.optim.Adam(m.parameters(), lr=ADAM, fused=True), 10),
}  # fmt: skip


def jumped(model: nn.Module, x: Tensor, y: Tensor, seconds: float, batch: bool) -> float:
    """Seconds of objective and ``fit``; ``batch`` takes the whole batch (js.supervised), not a residual at a row."""
    begun = time.perf_counter()
    objective = js.supervised(model, x, y) if batch else rows(model, x, y, 2 / len(x))  # Φ is the mean square in both
    js.fit(objective, budget=seconds, tolerance=SLACK * TARGET, progress=False)
    return time.perf_counter() - begun


def timed(model: nn.Module, x: Tensor, y: Tensor, seconds: float, steps: Iterator[Any]) -> float:
    """Seconds of a rival's steps until the target, or until the time is up; measuring is not timed."""
    spent = 0.0
    while spent < seconds and not mse(model, x, y) <= SLACK * TARGET:
        begun = time.perf_counter()
        going = next(steps, False)  # False once a method gives up
        spent += time.perf_counter() - begun
        if not going:
            break
    return spent


def sinc(seed: int, seconds: float, count: int) -> list[dict[str, Any]]:
    """One row a method and number of points; methods take turns, all from the same weights."""
    x = torch.linspace(-1, 1, count, dtype=torch.float64)[:, None]
    y = torch.sinc(10 * x)
    found = []
    for thin in (1, THIN):
        some = x[::thin], y[::thin]
        for name in ("jumps", "jumps, js.supervised", *RIVALS):
            model = mlp(seed, 1, 20)
            if name in RIVALS:
                try:
                    spent = timed(model, *some, seconds, RIVALS[name](model, *some))
                except JumpstartError as error:  # a rival that is not installed
                    print(f"{name} is left out: {error}")
                    continue
            else:
                spent = jumped(model, *some, seconds, name != "jumps")
            error = mse(model, x, y)
            found.append({
                "part": "sinc", "method": name, "seed": seed, "points": len(some[0]), "seconds": spent, "mse": error,
                "reached": error <= TARGET,
            })  # fmt: skip
    return found


def split(name: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test inputs and targets."""
    x, y = (table.double() for table in uci(name))
    train, test = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).tensor_split([len(x) * 4 // 5])
    return x[train], y[train], x[test], y[test]


def evidence(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[float]:
    """Jumps under weight decay from the evidence; yields the leave-one-out error every few jumps.

    It is that of the linearization at the present weights: mean (r/(1 − h))², h = diag βJ(βJᵀJ + α)⁻¹Jᵀ; γ is Σh.
    """
    objective = rows(model, x, y, 1.0)
    alpha, beta, accepted, known = PRIOR, 1.0, True, None
    while accepted:
        jumper = js.Jumper(objective, weight_decay=alpha / beta)
        if known is not None:
            jumper.load_state_dict(known)
        accepted = any([jumper.jump().accepted for _ in range(INNER)])
        known = jumper.state_dict()
        lin = linearize(objective)
        j, r = lin.jacobian(), lin.u.flatten()
        root = torch.linalg.cholesky(beta * (j.T @ j) + alpha * torch.eye(j.shape[1], dtype=j.dtype))
        leverage = beta * torch.linalg.solve_triangular(root, j.T, upper=False).square().sum(0)
        gamma = float(leverage.sum())
        alpha = gamma / float(lin.theta.square().sum())
        beta = (len(r) - gamma) / float(r.square().sum())
        yield float((r / (1 - leverage)).square().mean())


def tables(name: str, seed: int, seconds: float) -> list[dict[str, Any]]:
    """AdamW with the best test error of its run, and jumps where leave-one-out stops; test errors along both."""
    x, y, xt, yt = split(name, seed)
    start = mlp(seed, x.shape[1], 50)
    found = []
    for method in ("AdamW, oracle", "jumps"):
        model, oracle = copy.deepcopy(start), method != "jumps"
        adamw = torch.optim.AdamW(model.parameters(), lr=RATES[name][0], weight_decay=RATES[name][1], fused=True)
        steps: Iterator[Any] = stepped(model, x, y, adamw, 20) if oracle else evidence(model, x, y)
        curve: list[tuple[float, float]] = []
        best, chosen, since, spent = math.inf, (0.0, math.inf), 0, 0.0
        while spent < seconds and (oracle or since < PATIENCE):
            begun = time.perf_counter()
            left_out: Any = next(steps, None)  # None once no jump is accepted
            spent, since = spent + time.perf_counter() - begun, since + 1
            if left_out is None:
                break
            curve.append((spent, mse(model, xt, yt)))
            criterion = curve[-1][1] if oracle else float(left_out)
            if criterion < best:
                best, chosen, since = criterion, curve[-1], 0
        found.append({
            "part": name, "method": method, "seed": seed, "seconds": spent, "chosen_seconds": chosen[0],
            "test": chosen[1], "last_test": curve[-1][1], "leave_one_out": None if oracle else best,
            "curve": curve[:: max(1, len(curve) // 200)],
        })  # fmt: skip
        # On the way, by test errors that nobody training has; and by the choice made without them.
        found[-1]["goal_seconds"] = next((s for s, e in curve if e <= found[0]["test"]), None)
        found[-1]["goal_by_choice"] = chosen[0] if chosen[1] <= found[0]["test"] else None
    return found


def run(seeds: list[int], quick: bool, progress: bool) -> list[dict[str, Any]]:
    """One row a method, problem and seed."""
    found: list[dict[str, Any]] = sinc(seeds[0], 1e-9, 400)[:0]  # what is loaded on first use is nobody's to pay for
    for seed in tqdm(seeds, disable=not progress, desc="regression", leave=False):
        found += sinc(seed, 0.1 if quick else 30.0, 400 if quick else 20000)
        for name in SETS:
            found += tables(name, seed, 0.4 if quick else 15.0)
    return found


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each problem and method, medians and ranges over seeds, and in how many runs it got where it should."""
    found = []
    for part, points, method in dict.fromkeys((r["part"], r.get("points"), r["method"]) for r in rows):
        some = [r for r in rows if (r["part"], r.get("points"), r["method"]) == (part, points, method)]
        times, error = ("seconds", "mse") if part == "sinc" else ("goal_by_choice", "test")
        reached = [r[times] for r in some if r.get("reached", r.get("goal_by_choice") is not None)]
        row: dict[str, Any] = {"part": part, "points": points, "method": method}
        row |= {"runs": len(some), "reached": len(reached)}
        numbers = {error: [r[error] for r in some], "seconds_to_goal": reached}
        numbers["seconds_on_the_way"] = [s for r in some if (s := r.get("goal_seconds")) is not None]
        numbers["chosen_seconds"] = [r["chosen_seconds"] for r in some if "chosen_seconds" in r]
        for name, column in numbers.items():
            row |= {f"{name}_{key}": value for key, value in spread(column).items()} if column else {}
        found.append(row)
    return found


def figure(rows: list[dict[str, Any]]) -> Any:
    """Seconds to the target on the curve (failures hollow, at the time they had), and test errors along the tables."""
    plt = plots.pyplot()
    result, axes = plt.subplots(1, 1 + len(SETS), figsize=(11, 3.4))
    names = ("jumps", "jumps, js.supervised", *RIVALS)
    full = max(r.get("points", 0) for r in rows)
    for r in (r for r in rows if r["part"] == "sinc"):
        colour = plots.COLOURS[int(r["points"] == full)]
        place = names.index(r["method"]) + (0.15 if r["points"] == full else -0.15)
        axes[0].plot(r["seconds"], place, "o", color=colour, fillstyle="full" if r["reached"] else "none")
    axes[0].set(yticks=range(len(names)), yticklabels=names, xscale="log", title="sinc(10x)")
    axes[0].set_xlabel(f"seconds to {TARGET:.0e}\nblue: all points, red: every {THIN}th, hollow: failed", fontsize=8)
    for axis, name in zip(axes[1:], SETS, strict=True):
        for r in (r for r in rows if r["part"] == name):
            colour = plots.COLOURS[0 if r["method"] == "jumps" else 7]
            axis.plot(*zip(*r["curve"], strict=True), color=colour, linewidth=0.8)
            axis.plot(r["chosen_seconds"], r["test"], "o", color=colour, markersize=4)
        axis.set(xscale="log", yscale="log", ylabel="test error", title=name)
        axis.set_xlabel("seconds\nred: jumps, grey: AdamW, dots: chosen", fontsize=8)
    result.tight_layout()
    return result
