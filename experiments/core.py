"""What the core promises, measured: errors against independent oracles in float64, orders, counts and speed ratios.

python -m experiments.core [--quick] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.ntk import train_kernel
from jumpstart.linearization.problem import LinearizedProblem
from jumpstart.report import records

from .common import arguments

Row = dict[str, Any]
TIMES = (1e-12, 1e-3, 1.0, 30.0, 1e3)


def mlp(inner: int = 3, width: int = 16, outer: int = 2) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inner, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outer)
    )


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """The oracle: reverse-mode Jacobian (N, P) by torch alone."""
    params = {k: p.detach() for k, p in model.named_parameters()}
    found = jacrev(lambda p: functional_call(model, p, (x,)))(params)
    n = model(x).numel()
    return torch.cat([j.reshape(n, -1) for j in found.values()], 1)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def closed_form(seed: int) -> list[Row]:
    """Outputs and predictions against expm of the dense kernel, rank-deficient data included."""
    torch.manual_seed(seed)
    model, x, q = mlp(), torch.randn(14, 3), torch.randn(5, 3)
    x[7:9] = x[0]  # exact rank deficiency
    y = torch.randn(14, 2)
    y[7:9] = y[0] + 1.0
    objective = js.supervised(model, x, y)
    j, jq = jacobian(model, x), jacobian(model, q)
    k, kq = 2 / y.numel() * j @ j.T, 2 / y.numel() * jq @ j.T
    g = (model(x) - y).detach().reshape(-1)
    rows = []
    solutions = {
        "dense": js.solve(objective, basis="dense"),
        "krylov, full depth": js.solve(objective, basis="krylov", depth=28),
    }
    for name, solution in solutions.items():
        worst = [0.0, 0.0]
        for t in (*TIMES, math.inf):
            if math.isinf(t):
                step = torch.linalg.pinv(j, rtol=1e-12) @ g
                shift, shift_q = j @ step, jq @ step
            else:
                # ∫ e^{−Ks} ds g, by the exponential of an augmented matrix.
                block = np.zeros((len(g) + 1, len(g) + 1))
                block[:-1, :-1], block[:-1, -1] = -k.numpy() * t, g.numpy() * t
                moved = torch.tensor(expm(block)[:-1, -1])
                # For the outputs themselves e^{−Kt} is at hand, with fewer digits lost at long times.
                shift, shift_q = g - torch.tensor(expm(-k.numpy() * t)) @ g, kq @ moved
            u, uq = model(x).detach().reshape(-1) - shift, model(q).detach().reshape(-1) - shift_q
            worst[0] = max(worst[0], relative(solution.outputs(t).reshape(-1), u))
            worst[1] = max(worst[1], relative(solution.predict(q, t).reshape(-1), uq))
        limit = 1e-10 if name == "dense" else 1e-8
        rows.append({"check": f"outputs against expm, {name}", "value": worst[0], "limit": limit})
        rows.append({"check": f"predictions against expm, {name}", "value": worst[1], "limit": limit})
    exact, ratios = solutions["dense"], []
    for depth in (4, 8, 14):
        partial = js.solve(objective, basis="krylov", depth=depth)
        for t in (1e-2, 1.0, 10.0, 1e2, 1e4, math.inf):
            miss = float((partial.outputs(t) - exact.outputs(t)).norm())
            if miss > 1e-10 * float(exact.outputs(t).norm()):
                ratios.append(partial.error_bound(t) / miss)
    rows.append({"check": "Krylov bound / error, smallest", "value": min(ratios), "limit": 1.0, "above": True})
    rows.append({"check": "Krylov bound / error, largest", "value": max(ratios), "limit": 100.0})
    return rows


def discrete(seed: int) -> list[Row]:
    """js.steps against real SGD on a linear model."""
    rows = []
    for decay in (0.0, 0.03):
        torch.manual_seed(seed)
        model, x, y = nn.Linear(4, 2), torch.randn(9, 4), torch.randn(9, 2)
        promised = js.solve(js.supervised(model, x, y), basis="dense", weight_decay=decay).outputs(js.steps(200, 0.1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        rows.append(
            {"check": f"200 SGD steps, decay {decay:g}", "value": relative(promised, model(x).detach()), "limit": 1e-10}
        )
    return rows


def other_losses(seed: int) -> list[Row]:
    """Cross-entropy and logistic flows against a tight integration of the frozen-kernel equation."""
    rows = []
    for loss in ("cross_entropy", "logistic"):
        torch.manual_seed(seed)
        c = 3 if loss == "cross_entropy" else 1
        model, x = mlp(3, 12, c), torch.randn(8, 3)
        y = torch.randint(0, 3, (8,)) if c == 3 else torch.randint(0, 2, (8, 1)).double()
        j = jacobian(model, x)
        k, u0 = (j @ j.T).numpy(), model(x).detach().reshape(-1).numpy()
        reference = nn.functional.cross_entropy if c == 3 else nn.functional.binary_cross_entropy_with_logits

        def field(_t: float, u: Any, y: Tensor = y, k: Any = k, c: int = c, reference: Any = reference) -> Any:
            v = torch.tensor(u).reshape(8, c).requires_grad_()
            return -k @ torch.autograd.grad(reference(v, y), v)[0].reshape(-1).numpy()

        times = torch.tensor([0.1, 1.0, 10.0, 100.0])
        flow = solve_ivp(field, (0, 100.0), u0, t_eval=times.numpy(), rtol=1e-11, atol=1e-13, method="DOP853")
        ours = js.solve(js.supervised(model, x, y, loss), basis="dense").outputs(times).reshape(4, -1)
        rows.append(
            {"check": f"{loss} flow against ODE", "value": relative(ours, torch.tensor(flow.y.T)), "limit": 1e-6}
        )
    return rows


def orders(seed: int) -> list[Row]:
    """Against the real network: error in t of the prediction, and in ε of the landing."""
    torch.manual_seed(seed)
    model, x, y = mlp(3, 12, 2), torch.randn(6, 3), torch.randn(6, 2)
    objective = js.supervised(model, x, y)
    solution, theta = js.solve(objective, basis="dense"), objective.theta()

    def field(_t: float, th: Any) -> Any:
        return -objective.gradient(torch.tensor(th))[1].numpy()

    times = np.geomspace(0.001, 0.008, 4)
    run = solve_ivp(field, (0, times[-1]), theta.numpy(), t_eval=times, rtol=1e-12, atol=1e-14, method="DOP853")
    misses = [
        float((solution.outputs(float(t)) - objective.outputs(torch.tensor(th))).norm())
        for t, th in zip(times, run.y.T, strict=True)
    ]
    rows = [{"check": "order in t of the predicted outputs", "value": _slope(times, misses), "limit": (1.9, 2.1)}]
    direction, sizes = torch.randn(6, 2), np.geomspace(1e-3, 1e-2, 4)
    for second in (False, True):
        misses = []
        for size in sizes:
            target = model(x).detach() + float(size) * direction
            there = js.solve(js.supervised(model, x, target), basis="dense").parameters(math.inf, land=second)
            misses.append(float((functional_call(model, there, (x,)) - target).norm()))
        limit = (2.8, 3.2) if second else (1.9, 2.1)
        name = "with" if second else "without"
        rows.append(
            {"check": f"order in ε of the landing, {name} second order", "value": _slope(sizes, misses), "limit": limit}
        )
    return rows


def _slope(x: Any, y: Any) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def kernels(seed: int, width: int, samples: int) -> list[Row]:
    """The layer-wise kernel against vmap(jacrev): agreement and speed, in one run."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    x, y = torch.randn(samples, 20), torch.randn(samples, 1)
    lin = linearize(js.supervised(model, x, y))
    params = {k: p.detach() for k, p in model.named_parameters()}

    def explicit() -> Tensor:
        found = vmap(jacrev(lambda p, z: functional_call(model, p, (z,))), (None, 0))(params, x)
        j = torch.cat([v.reshape(samples, -1) for v in found.values()], 1)
        return j @ j.T

    ours, theirs = [], []
    for _ in range(5):
        a, seconds = _timed(lambda: train_kernel(lin, Metric()))
        ours.append(seconds)
        b, seconds = _timed(explicit)
        theirs.append(seconds)
        error = relative(a, b)
    ratio = float(np.median(theirs) / np.median(ours))
    where = f"width {width}, N {samples}, c 1"
    return [
        {"check": f"layer-wise kernel against vmap(jacrev), {where}", "value": error, "limit": 1e-10},
        {"check": "  its speed-up over vmap(jacrev)", "value": ratio, "limit": 30.0, "above": True},
        {"check": "  its seconds", "value": float(np.median(ours))},
    ]


def products(seed: int, width: int, samples: int) -> list[Row]:
    """Lanczos calls exactly k products; one product costs little more than a jvp and a vjp measured apart."""
    torch.manual_seed(seed)
    model, x, y = mlp(20, width, 3), torch.randn(samples, 20), torch.randn(samples, 3)
    objective = js.supervised(model, x, y)
    lin = linearize(objective)
    depth = 9
    calls = []
    for side in ("parameters", "outputs"):
        before = lin.ledger.pushes
        js.bases.krylov(LinearizedProblem(lin, objective.loss, Metric()), depth, side=side)
        calls.append(lin.ledger.pushes - before)
    v, w = torch.randn_like(lin.theta), torch.randn_like(lin.u)
    together, apart = [], []
    for _ in range(15):
        together.append(_timed(lambda: lin.vjp(objective.loss.hvp(lin.u, lin.jvp(v))))[1])
        apart.append(_timed(lambda: lin.jvp(v))[1] + _timed(lambda: lin.vjp(w))[1])
    ratio = float(np.median(together) / np.median(apart))
    return [
        {"check": f"products in Lanczos of depth {depth}", "value": float(max(calls)), "limit": (depth, depth)},
        {"check": "one product / (one jvp + one vjp)", "value": ratio, "limit": 1.25},
    ]


def rejection(seed: int) -> list[Row]:
    """A rejected jump on a model with BatchNorm, dropout and Adam: entries that changed by as much as a bit."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2))
    x, y = torch.randn(20, 5), torch.randn(20, 2)
    adam = torch.optim.Adam(model.parameters())
    for _ in range(3):
        adam.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        adam.step()
    objective = js.supervised(model, x, y, training=False)

    def snapshot() -> list[Any]:
        state = [v.clone() for v in model.state_dict().values()]
        state += [torch.as_tensor(v).clone() for s in adam.state.values() for v in s.values()]
        return [*state, torch.get_rng_state(), torch.tensor([m.training for m in model.modules()])]

    before = copy.deepcopy(snapshot())
    result = js.jump(objective, metric=adam, horizon=1e9, geodesic=False, chord_steps=0)
    changed = sum(not torch.equal(a, b) for a, b in zip(before, snapshot(), strict=True))
    return [
        {
            "check": f"tensors changed by a rejected jump ({result.outcome.name})",
            "value": float(changed),
            "limit": (0, 0),
        },
        {"check": "  it was rejected", "value": float(not result.accepted), "limit": (1, 1)},
    ]


def _timed(f: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    answer = f()
    return answer, time.perf_counter() - begun


def holds(row: Row) -> bool | None:
    """Whether a row is within its limit; None where there is none."""
    limit, value = row.get("limit"), row["value"]
    if limit is None:
        return None
    if isinstance(limit, tuple):
        return limit[0] <= value <= limit[1]
    return value >= limit if row.get("above") else value <= limit


def main() -> None:
    settings = arguments("core", __doc__, seeds=5)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    width, samples = (64, 32) if settings.quick else (512, 256)
    seeds = list(range(settings.seeds))
    rows: list[Row] = []
    for seed in seeds:
        for check in (closed_form, discrete, other_losses, orders, rejection):
            rows += [{"seed": seed, **row} for row in check(seed)]
    for check in (kernels, products):
        rows += [{"seed": 0, **row} for row in check(0, width, samples)]
    for row in rows:
        row["holds"] = holds(row)
    shown = []
    for name in dict.fromkeys(row["check"] for row in rows):
        same = [row for row in rows if row["check"] == name]
        values, limit = [row["value"] for row in same], same[0].get("limit")
        sign = "≥ " if same[0].get("above") else "≤ "
        text = (
            "–"
            if limit is None
            else f"{limit[0]:g} to {limit[1]:g}"
            if isinstance(limit, tuple)
            else f"{sign}{limit:g}"
        )
        good = "–" if limit is None else f"{sum(bool(r['holds']) for r in same)}/{len(same)}"
        shown.append({"check": name, "min": min(values), "max": max(values), "limit": text, "holds": good})
    columns = {"check": "check", "min": "smallest", "max": "largest", "limit": "limit", "holds": "holds on seeds"}
    print(records.table(shown, columns))
    path = records.write(settings.out, "core", {"width": width, "samples": samples, "summary": shown}, rows, seeds)
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
