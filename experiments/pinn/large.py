"""Point 5: networks of 10⁵ to 10⁶ parameters, whose Jacobian is never formed, beside SOAP and L-BFGS."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from jumpstart import fitted
from jumpstart.comparison.compare import compare
from jumpstart.comparison.contenders import Contender
from jumpstart.demo import poisson
from jumpstart.report.plots import COLOURS, pyplot
from jumpstart.report.records import Row

from ..common import spread
from . import rivals
from .problems import PROBLEMS, Problem
from .race import JUMPS, curves, final, reached

SECONDS = {"cpu": 45.0, "cuda": 10.0}
RATE = 3e-3  # SOAP's, of 1e-3, 3e-3 and 1e-2 on seed 100
# problem, hidden widths, most seeds
CASES = {
    "Poisson, 2-256-256-256-1": ("poisson2", (256,) * 3, 3),
    "Heat, 2-256-256-256-1": ("heat", (256,) * 3, 3),
    "Poisson, 2-700-700-700-1": ("poisson2", (700,) * 3, 1),
}


def run(seeds: list[int], quick: bool, progress: bool) -> list[Row]:
    """A row for each case, seed and contender, with its curves."""
    rows: list[Row] = []
    for case, (name, widths, most) in list(CASES.items())[: 1 if quick else None]:
        widths = (24,) * 3 if quick else widths
        problem = replace(PROBLEMS[name], network=lambda seed, init, w=widths: poisson.network(seed, w, init))
        for seed in seeds[:most]:
            model = problem.network(seed, "torch")
            seconds = 0.5 if quick else SECONDS[next(model.parameters()).device.type]
            racers = _contenders(problem, seconds)
            report = compare(
                model, problem.objective, racers, seconds=seconds, name=case, seed=seed, progress=progress,
                evaluate=lambda net, problem=problem: {"error": problem.error(net)},
            )  # fmt: skip
            size = sum(p.numel() for p in model.parameters())
            rows += [
                {"case": case, "parameters": size, "seed": seed, **curves(report, label, seconds)}
                for label in report.contenders
            ]
    return rows


def _contenders(problem: Problem, seconds: float) -> dict[str, Contender]:
    made: dict[str, Any] = {
        JUMPS: lambda: fitted(budget=seconds),
        "jumps, conjugate gradients": lambda: fitted(budget=seconds, basis="matrix-free", depth=20),
        "SOAP": lambda: rivals.soap(problem, RATE, decay=seconds),
        "L-BFGS": lambda: rivals.lbfgs(problem),
    }
    return rivals.installed(made)


def table(rows: list[Row]) -> list[Row]:
    """A line a case and contender: errors over seeds, and the time to the best error of the others."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        same = [row for row in rows if row["case"] == case]
        ours = {row["seed"]: row for row in same if row["contender"] == JUMPS}
        for label in dict.fromkeys(row["contender"] for row in same):
            own = [row for row in same if row["contender"] == label]
            errors = spread([final(row) for row in own])
            times = spread([reached(ours[row["seed"]], final(row)) for row in own])
            lines.append(
                {
                    "case": case, "parameters": own[0]["parameters"], "contender": label, "steps": own[0]["steps"],
                    "gradient evaluations": own[0]["evaluations"],
                    "error": errors["median"], "smallest": errors["min"], "largest": errors["max"],
                    "jumps reach it in": times["median"], "seconds": own[0]["given"],
                }
            )  # fmt: skip
    return lines


def figure(rows: list[Row]) -> Any:
    """Error against seconds, a panel a case, a line a seed."""
    plt = pyplot()
    cases = list(dict.fromkeys(row["case"] for row in rows))
    labels = list(dict.fromkeys(row["contender"] for row in rows))
    made, axes = plt.subplots(1, len(cases), figsize=(3.4 * len(cases), 3.0), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        for row in (row for row in rows if row["case"] == case):
            i = labels.index(row["contender"])
            axis.plot(
                row["seconds"], np.fmin.accumulate(row["error"]), color=COLOURS[i], linewidth=1.2,
                label=row["contender"] if row["seed"] == rows[0]["seed"] else None,
                linestyle="-" if "jumps" in row["contender"] else (0, (4, 1.2)),
            )  # fmt: skip
        axis.set(yscale="log", xlabel="seconds", title=case)
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.25, linewidth=0.5)
    axes[0][0].set_ylabel("relative L² error")
    made.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False, fontsize=8)
    made.tight_layout(rect=(0, 0.09, 1, 1))
    return made
