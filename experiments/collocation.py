"""What it is worth to draw collocation points anew where the residual is large.

python -m experiments.collocation [--quick] [--seeds N] [--problems a,b] [--out DIR]

``fit`` on terms with domains as it is (points are renewed, and more of them, once the loss on points never trained on
parts from the other), on the first points (``adaptive=False``), and with as many points drawn evenly every ten jumps
(``resample=``). Equal seconds, one thread, contenders in turn for each seed. Errors are against the solution, and take
no part in anything.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad

import jumpstart as js
from jumpstart.demo import poisson
from jumpstart.domains import Box
from jumpstart.objectives.residual import Residuals
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from .common import arguments, spread
from .pinn import problems, references, spectral

EVERY = 10  # jumps between even draws
SEEDS = 100  # of even draws begin here
PEAK = 1000.0  # of exp(−PEAK r²), 0.02 wide


@dataclass(frozen=True)
class Problem:
    """``objective`` by the model and a factor of the number of points; ``error`` relative in L²."""

    title: str
    widths: tuple[int, ...]
    objective: Callable[[nn.Module, float], Residuals]
    error: Callable[[nn.Module], float]
    seconds: float
    periods: dict[int, float] | None = None

    def network(self, seed: int, quick: bool) -> nn.Module:
        """Of tanh, torch's initialization; behind waves where there are periods."""
        widths = (6,) if quick else self.widths
        if self.periods is None:
            return poisson.network(seed, widths, "torch")
        front = js.features.Periodic(2, self.periods).double()
        torch.manual_seed(seed)
        sizes = (front.outputs, *widths)
        layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.Tanh())]
        return nn.Sequential(front, *layers, nn.Linear(sizes[-1], 1)).double()


def burgers(model: nn.Module, share: float) -> Residuals:
    """u_t + u u_x = ν u_xx from −sin πx, 2,000 points and 400 on faces."""
    box = Box((-1.0, 0.0), (1.0, 1.0))

    def equation(net: Any, z: Tensor) -> Tensor:
        u, ux, ut, uxx = problems.jet(net, z)
        return ut + u * ux - problems.VISCOSITY * uxx

    def start(net: Any, z: Tensor) -> Tensor:
        return net(z)[0] + torch.sin(math.pi * z[0])

    def walls(net: Any, z: Tensor) -> Tensor:
        return net(z)[0]

    return js.residual(
        model, js.Term(equation, box, count=round(2000 * share)),
        js.Term(start, box.initial(), count=round(200 * share)),
        js.Term(walls, box.boundary(axes=[0]), count=round(200 * share)),
    )  # fmt: skip


def peaked(z: Tensor) -> Tensor:
    """exp(−1000 r²) at points (…, 2), away from the middle."""
    return torch.exp(-PEAK * ((z[..., 0] - 0.3).square() + (z[..., 1] - 0.6).square()))


def peak(model: nn.Module, share: float) -> Residuals:
    """Δu = f on the unit square, u a peak 0.02 wide; 1,000 points and 200 on the boundary."""
    box = Box((0.0, 0.0), (1.0, 1.0))

    def equation(net: Any, z: Tensor) -> Tensor:
        r2 = (z[0] - 0.3).square() + (z[1] - 0.6).square()
        f = (4 * PEAK**2 * r2 - 4 * PEAK) * peaked(z)
        first = grad(lambda z: net(z)[0])
        along = [grad(lambda z, i=i: first(z)[i])(z)[i] for i in range(2)]
        return (along[0] + along[1] - f) / PEAK

    def sides(net: Any, z: Tensor) -> Tensor:
        return net(z)[0] - peaked(z)

    return js.residual(
        model, js.Term(equation, box, count=round(1000 * share)),
        js.Term(sides, box.boundary(), weight=10.0, count=round(200 * share)),
    )  # fmt: skip


def kdv(model: nn.Module, share: float) -> Residuals:
    """u_t + u u_x + 0.022² u_xxx = 0 from cos πx, 2,000 points and 400 at the start; the network has the period."""
    box = Box((-1.0, 0.0), (1.0, 1.0))

    def equation(net: Any, z: Tensor) -> Tensor:
        first = grad(lambda z: net(z)[0])
        slopes = first(z)
        bend = grad(lambda z: grad(lambda z: first(z)[0])(z)[0])(z)[0]
        return slopes[1] + net(z)[0] * slopes[0] + spectral.DISPERSION * bend

    def start(net: Any, z: Tensor) -> Tensor:
        return net(z)[0] - torch.cos(math.pi * z[0])

    return js.residual(
        model, js.Term(equation, box, count=round(2000 * share)),
        js.Term(start, box.initial(), count=round(400 * share)),
    )  # fmt: skip


def distance(reference: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[nn.Module], float]:
    """Relative L² distance on a reference's points (m, 2) and values (m,)."""

    def error(model: nn.Module) -> float:
        points, exact = reference()
        return float((model(points)[:, 0] - exact).norm() / exact.norm())

    return error


def of_burgers() -> tuple[Tensor, Tensor]:
    x, t, u = references.burgers()
    return torch.cartesian_prod(x, t), u.reshape(-1)


def of_peak() -> tuple[Tensor, Tensor]:
    points = poisson.grid(200)
    return points, peaked(points)


def of_kdv() -> tuple[Tensor, Tensor]:
    x, t, u = spectral.kdv()
    return torch.cartesian_prod(x[::2], t), u[::2].reshape(-1)


PROBLEMS = {
    "burgers": Problem("Burgers, ν = 0.01/π, 2-20-20-20-1", (20, 20, 20), burgers, distance(of_burgers), 60.0),
    "peak": Problem("Poisson with a peak 0.02 wide, 2-20-20-1", (20, 20), peak, distance(of_peak), 20.0),
    "kdv": Problem("KdV, 0.022², 3-30-30-30-1, periodic", (30, 30, 30), kdv, distance(of_kdv), 120.0, {0: 2.0}),
}
AS_IT_IS, FIRST, EVENLY = "renewed by residual", "the first points", f"drawn evenly, every {EVERY} jumps"
CONTENDERS = (AS_IT_IS, FIRST, EVENLY)


def evenly(objective: Residuals) -> Callable[[int], dict[str, Tensor]]:
    """New points of each domain by the jump's number."""
    parts = objective.drawn

    def points(jump: int) -> dict[str, Tensor]:
        return {part.name: part.domain.points(len(part.points), SEEDS + jump) for part in parts}  # type: ignore

    return points


def run(name: str, contender: str, seed: int, quick: bool) -> Row:
    """One fit, and its course."""
    problem = PROBLEMS[name]
    model = problem.network(seed, quick)
    objective = problem.objective(model, 0.05 if quick else 1.0)
    options: dict[str, Any] = {"jumps": 12} if quick else {"budget": problem.seconds}
    if contender == FIRST:
        options["adaptive"] = False
    elif contender == EVENLY:
        options |= {"resample": evenly(objective), "every": EVERY}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", js.CollocationWarning)  # what is measured here
        found = js.fit(objective, error=problem.error, seed=seed, progress=False, **options)
    measured = [row for row in found.history if row.get("error") is not None]
    keys = ("seconds", "loss", "unseen", "error")
    return {
        "problem": name, "contender": contender, "seed": seed, "loss": found.loss, "unseen": found.generalization,
        "error": found.error, "lowest error": min((row["error"] for row in measured), default=found.error),
        "jumps": found.jumps, "seconds": found.seconds,
        "course": {key: [short(row.get(key)) for row in found.history] for key in keys},
    }  # fmt: skip


def short(value: float | None) -> float | None:
    """Three digits."""
    return None if value is None else float(f"{value:.3g}")


def summarized(rows: list[Row]) -> list[Row]:
    """Medians and ranges by problem and contender."""
    found = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        for contender in CONTENDERS:
            same = [row for row in rows if (row["problem"], row["contender"]) == (name, contender)]
            errors = spread([row["error"] for row in same])
            found.append({
                "problem": PROBLEMS[name].title, "contender": contender, "runs": len(same),
                "seconds": spread([row["seconds"] for row in same])["median"],
                "jumps": spread([row["jumps"] for row in same])["median"],
                "loss": spread([row["loss"] for row in same])["median"],
                "unseen": spread([row["unseen"] for row in same])["median"],
                "error": errors["median"], "range": f"{records.show(errors['min'])} … {records.show(errors['max'])}",
                "lowest": spread([row["lowest error"] for row in same])["median"],
            })  # fmt: skip
    return found


HEADS = {
    "problem": "", "contender": "points", "seconds": "seconds", "jumps": "jumps", "loss": "loss",
    "unseen": "loss on other points", "error": "error", "range": "of seeds", "lowest": "lowest on the way",
}  # fmt: skip


def picture(rows: list[Row]) -> Any:
    """Error and loss on other points against seconds, the first seed of each."""
    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = plots.pyplot().subplots(2, len(names), figsize=(4.6 * len(names), 6.0), squeeze=False)
    first = min(row["seed"] for row in rows)
    for column, name in zip(axes.T, names, strict=True):
        for axis, key, label in zip(
            column, ("error", "unseen"), ("relative error", "loss on other points"), strict=True
        ):
            for colour, contender in zip(plots.COLOURS, CONTENDERS, strict=False):
                [row] = [r for r in rows if (r["problem"], r["contender"], r["seed"]) == (name, contender, first)]
                course = row["course"]
                shown = [(s, v) for s, v in zip(course["seconds"], course[key], strict=True) if v]
                axis.plot(*zip(*shown, strict=True), color=colour, label=contender, linewidth=1.3)
            axis.set(yscale="log", ylabel=label, xlabel="seconds")
        column[0].set_title(PROBLEMS[name].title, fontsize=9)
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def main() -> None:
    asked = arguments("collocation", __doc__, 3, tuple(PROBLEMS))
    torch.set_num_threads(1)
    rows = []
    with counter("collocation", len(asked.problems) * asked.seeds * len(CONTENDERS), asked.progress) as count:
        for seed in range(asked.seeds):
            for name in asked.problems:
                for contender in CONTENDERS:
                    rows.append(run(name, contender, seed, asked.quick))
                    count(f"{name}, {contender}")
    summary = summarized(rows)
    path = records.write(asked.out, "collocation", {"quick": asked.quick, "summary": summary}, rows, range(asked.seeds))
    print(records.table(summary, HEADS))
    drawn, trouble = plots.drawn(lambda: picture(rows), asked.out / "collocation.png")
    print(f"written: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"))


if __name__ == "__main__":
    main()
