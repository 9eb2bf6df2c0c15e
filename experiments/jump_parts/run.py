"""Variants of jumps at equal gradient evaluations, seed by seed; the first of them is how jumps are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import jumpstart as js
from jumpstart.comparison.contenders import Contender
from jumpstart.report import records
from jumpstart.report.records import Row

from .kinds import KINDS, Kind

EVALUATIONS, TOY = 150, 12
SECONDS = 20.0  # of one run, where dense work takes longer than the network
SEEDS = 5
USUAL = "as it is"
COLUMNS = {
    "kind": "", "part": "", "variant": "variant", "loss": "loss, median", "ratio": f"over {USUAL!r}", "below": "below",
    "held": "held out", "held ratio": f"over {USUAL!r}", "seconds": "seconds", "failed": "failed",
}  # fmt: skip


def variants(kind: Kind) -> dict[str, dict[str, Contender]]:
    """Part -> name -> contender. Options are of ``fit``, which takes jumps until the evaluations are spent."""

    def fit(**options: Any) -> Contender:
        return js.fitted(jumps=100_000, **options)

    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-2)

    def wrapped(metric: Any) -> Contender:
        return js.jumped(adamw, at=10, search=True, metric=metric, budget=None)

    return {
        "": {USUAL: fit()},
        "basis": {"dense": fit(basis="dense"), "krylov": fit(basis="krylov"), "matrix-free": fit(basis="matrix-free")},
        "depth": {f"krylov, {depth}": fit(basis="krylov", depth=depth) for depth in (4, 24)},
        "metric": {"AdamW's, between its steps": wrapped("optimizer"), "plain, between its steps": wrapped(None)},
        "gate": {rule: fit(gate=rule, basis="dense", search="horizon") for rule in ("hard", "soft", "snr")},
        "second order": {"left out": fit(geodesic=False), "asked for": fit(geodesic=True)},
        "order": {
            "2 chord steps": fit(chord_steps=2), "loss never rises": fit(nonmonotone=False),
            "search over horizons": fit(search="horizon"), "search over scales": fit(search="scale"),
        },
        "batch size": {f"n/{divisor}, drawn anew": batches(kind, divisor) for divisor in (2, 4)},
    }  # fmt: skip


def batches(kind: Kind, divisor: int) -> Contender:
    """Jumps along a part of the samples at a time, by which each is judged too; costs are of the part."""

    def run(model: nn.Module, objective: js.Objective) -> Iterator[dict[str, Any]]:
        cost, tried, kept, part = 0.0, 0, 0, kind.build(model, torch.randperm(kind.rows)[: kind.rows // divisor])
        while True:
            result = js.jump(part)
            part = kind.redrawn(part, model, torch.randperm(kind.rows)[: kind.rows // divisor])
            tried, kept, cost = tried + 1, kept + result.accepted, cost + result.gradient_evaluations / divisor
            counted = {"gradient_evaluations": cost, "jumps": tried, "accepted": kept}
            yield {**counted, "tried": [("jump", result)]}

    return run


def measure(name: str, seeds: int, quick: bool, folder: Path | None, progress: bool | None) -> list[Row]:
    """A line for each variant of one kind."""
    kind = KINDS[name]()
    parts = variants(kind)
    named = {
        f"{part}: {variant}" if part else variant: run for part, of in parts.items() for variant, run in of.items()
    }
    if quick:
        named = dict(list(named.items())[::4])
    found = js.compare(
        kind.start, kind.objective, named, seeds=seeds, evaluations=TOY if quick else EVALUATIONS, seconds=SECONDS,
        evaluate=lambda net: {"held": kind.held(net)}, name=f"jumps-{name}", folder=folder, progress=progress,
    )  # fmt: skip
    held = {row["variant"]: row for row in found.rows("held")}
    lines = []
    for row in found.rows():
        part, _, variant = row["variant"].rpartition(": ")
        spent = [run.grouped()[row["variant"]][-1]["seconds"] for run in found.reports.values()]
        other = held[row["variant"]]
        lines.append({
            "kind": name, "part": part, "variant": variant, "loss": row["median"], "ratio": row["ratio"],
            "below": row["below"], "held": other["median"], "held ratio": other["ratio"],
            "seconds": sorted(spent)[len(spent) // 2], "failed": row["failed"],
        })  # fmt: skip
    return lines


def run(folder: Path, seeds: int, quick: bool, progress: bool | None = None) -> Path:
    """All kinds; each seed is kept in the folder, and is not measured again.

    Returns:
        The path of results.json, whose rows are the lines of the table.
    """
    lines = [line for name in KINDS for line in measure(name, seeds, quick, folder / name, progress)]
    told = {"quick": quick, "evaluations": TOY if quick else EVALUATIONS, "seconds": SECONDS, "seeds": seeds}
    return records.write(folder, "ablation of jumps", told, lines, range(seeds))


def told(lines: Sequence[Row]) -> str:
    """The table as text."""
    return records.table(lines, COLUMNS)
