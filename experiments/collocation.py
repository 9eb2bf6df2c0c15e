"""What it is worth to draw collocation points anew where the residual is large.

python -m experiments.collocation [--quick] [--seeds N] [--problems a,b] [--out DIR]

``fit`` on terms with domains as it is (points are renewed, and more of them, once the loss on points never trained on
parts from the other), on the first points (``adaptive=False``), and with as many points drawn evenly every ten jumps
(``resample=``). Equal seconds, one thread, contenders in turn for each seed. Errors are against the solution, and take
no part in anything.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart.demo import poisson
from jumpstart.domains import Box
from jumpstart.objectives.residual import Residuals
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from .common import arguments, spread
from .pinn import formulas
from .pinn.equations import EQUATIONS, Equation
from .pinn.on_domains import network, part, periodic

EVERY = 10  # jumps between even draws
SEEDS = 100  # of even draws begin here
PEAK = 1000.0  # of exp(−PEAK r²), 0.02 wide


@dataclass(frozen=True)
class Problem:
    """An equation and how long it is fitted, from how many times its points; at toy size by ``small`` networks."""

    equation: Equation
    small: Callable[[int], nn.Module]
    seconds: float
    share: float = 1.0  # enough that those who keep the first points have a chance


def peaked(z: Tensor) -> Tensor:
    """exp(−1000 r²) at points (…, 2), away from the middle."""
    return torch.exp(-PEAK * ((z[..., 0] - 0.3).square() + (z[..., 1] - 0.6).square()))


def peak() -> Equation:
    """Δu = f on the unit square, u a peak 0.02 wide; f is as large as PEAK."""
    box = Box((0.0, 0.0), (1.0, 1.0))

    def source(z: Tensor) -> Tensor:
        r2 = (z[..., 0] - 0.3).square() + (z[..., 1] - 0.6).square()
        return (4 * PEAK**2 * r2 - 4 * PEAK) * peaked(z)

    @functools.cache
    def reference() -> tuple[Tensor, Tensor]:
        points = poisson.grid(200)
        return points, peaked(points)[:, None]

    return Equation(
        "peak", "Poisson with a peak 0.02 wide, 2-20-20-1", network((20, 20)),
        (
            part("equation", formulas.laplace(source), box, PEAK**-2, 1000),
            part("sides", formulas.given(peaked), box.boundary(), 10.0, 200),
        ),
        reference,
    )  # fmt: skip


PROBLEMS = {
    "burgers": Problem(
        replace(EQUATIONS["burgers"], title="Burgers, ν = 0.01/π, 2-20-20-20-1", network=network((20, 20, 20))),
        network((6,)), 60.0, 2.0,
    ),
    "peak": Problem(peak(), network((6,)), 20.0),
    "kdv": Problem(EQUATIONS["kdv"], network((6,), periodic(2.0)), 120.0, 2.0),
}  # fmt: skip
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
    equation = problem.equation
    model = problem.small(seed) if quick else equation.network(seed)
    objective = equation.objective(model, 0.05 if quick else problem.share)
    options: dict[str, Any] = {"jumps": 12} if quick else {"budget": problem.seconds}
    if contender == FIRST:
        options["adaptive"] = False
    elif contender == EVENLY:
        options |= {"resample": evenly(objective), "every": EVERY}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", js.CollocationWarning)  # what is measured here
        found = js.fit(objective, error=equation.error, seed=seed, progress=False, **options)
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
                "problem": PROBLEMS[name].equation.title, "contender": contender, "runs": len(same),
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
        column[0].set_title(PROBLEMS[name].equation.title, fontsize=9)
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
