"""Point 6: each part of a jump switched off in turn, on three problems."""

from __future__ import annotations

import math
from typing import Any

import torch

from jumpstart import fit
from jumpstart.report.records import Row

from ..common import spread
from .problems import PROBLEMS

PROBLEMS_SECONDS = {"poisson": 3.0, "heat": 4.0, "burgers": 10.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without second order": {"geodesic": False},
    "with reuse (2 chord corrections)": {"chord_steps": 2},
    "without boldness": {"nonmonotone": False},
    "horizon search instead of a march": {"search": "horizon", "basis": "dense"},
    "the same without reuse": {"search": "horizon", "basis": "dense", "chord_steps": 0},
    "scale search instead of a march": {"search": "scale", "basis": "dense"},
    "fixed horizon": {"horizon": 1e4, "nonmonotone": False},
    "Adam's metric": {"metric": "adam"},
    "Krylov basis of depth 30": {"basis": "krylov", "depth": 30, "geodesic": True, "nonmonotone": False},
}


def run(seeds: list[int], quick: bool) -> list[Row]:
    """A row for each problem, variant and seed; variants alternate, seed by seed."""
    rows: list[Row] = []
    for name, seconds in list(PROBLEMS_SECONDS.items())[: 1 if quick else None]:
        problem = PROBLEMS[name]
        for seed in seeds:
            for variant, options in VARIANTS.items():
                model = problem.network(seed, "torch")
                objective = problem.objective(model)
                options = dict(options)
                if options.get("metric") == "adam":
                    options["metric"] = _adam(problem, model)
                result = fit(objective, budget=0.1 if quick else seconds, progress=False, **options)
                rows.append(
                    {
                        "problem": name, "variant": variant, "seed": seed, "error": problem.error(model),
                        "loss": result.loss, "jumps": result.jumps, "seconds": result.seconds,
                        "outcome": result.outcome.name,
                    }
                )  # fmt: skip
    return rows


def _adam(problem: Any, model: torch.nn.Module, steps: int = 50) -> Any:
    """Adam's metric after a few of its steps (whose time is not counted); the weights stay where they were."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * problem.residuals(model).square().sum()).backward()
        optimizer.step()
    model.load_state_dict(before)
    return optimizer


def table(rows: list[Row]) -> list[Row]:
    """A line a variant: median error on each problem, with the worst seed."""
    found = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        line: Row = {"variant": variant}
        for name in dict.fromkeys(row["problem"] for row in rows):
            errors = [r["error"] for r in rows if (r["variant"], r["problem"]) == (variant, name)]
            errors = [e if math.isfinite(e) else math.inf for e in errors]
            if errors:
                line |= {name: spread(errors)["median"], f"{name}, worst": max(errors)}
        found.append(line)
    return found
