"""Point 8: the endpoint for a thousand vectors of labels on the same inputs, from one factorization."""

from __future__ import annotations

from typing import Any

import torch

import jumpstart as js

from ..common import Arguments
from . import machine
from .problem import Row, Size, make, relative, row

REPETITIONS = 3
HORIZON = 100.0


def run(settings: Arguments) -> list[Row]:
    if not hasattr(js.Solution, "with_targets"):
        print("this jumpstart's Solution has no with_targets yet: point 8 is left out.")
        return []
    size, many = (Size(16, 20, 1), 7) if settings.quick else (Size(256, 1000, 1), 1000)
    problem = make(size, 0)
    labels = torch.randn(many, size.samples, 1, dtype=torch.float64)
    once: list[float] = []
    all_of_them: list[float] = []
    ratios: list[float] = []
    found: Any = None
    js.solve(problem.objective(), basis="dense").with_targets(labels[:2]).outputs(HORIZON)  # warms up
    for _ in range(1 if settings.quick else REPETITIONS):
        solution, solved, _ = machine.timed(lambda: js.solve(problem.objective(), basis="dense"))
        _, answered, _ = machine.timed(lambda s=solution: s.outputs(HORIZON))
        found, further, _ = machine.timed(lambda s=solution: s.with_targets(labels).outputs(HORIZON))
        once.append(solved + answered)
        all_of_them.append(solved + answered + further)
        ratios.append(all_of_them[-1] / once[-1])
    at: dict[str, Any] = {"width": size.width, "samples": size.samples, "outputs": 1, "vectors": many}
    limit = None if settings.quick else 2.0
    rows = [
        row(8, f"{size}: seconds, one label vector", machine.median(once), **machine.spread(once), **at),
        row(8, f"{size}: seconds, and {many} more", machine.median(all_of_them), **machine.spread(all_of_them), **at),
        row(8, f"{size}: with {many} more / one", machine.median(ratios), limit, **machine.spread(ratios), **at),
    ]
    # Each of them as if it had been solved alone.
    errors = []
    for i in (0, many - 1):
        alone = js.solve(js.supervised(problem.model, problem.x, labels[i]), basis="dense")
        errors.append(relative(found[i], alone.outputs(HORIZON)))
    rows.append(row(8, f"{size}: outputs against a solve of their own", max(errors), 1e-10, **at))
    return rows
