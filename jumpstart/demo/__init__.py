"""``jumpstart demo``: real digits and a Poisson equation, each jumped and stepped from the same start."""

from __future__ import annotations

from pathlib import Path

import torch

from ..comparison.report import Report
from ..errors import MissingPackageError
from ..report import records
from . import digits, poisson

PROBLEMS = {"digits": digits, "poisson": poisson}


def run(folder: str | Path, seed: int = 0, quick: bool = False, progress: bool | None = None) -> list[Report]:
    """Run both problems, print their tables, and write results.json and a figure for each under ``folder``.

    What an optional package is needed for is left out, with a hint.

    Raises:
        InputError: the folder cannot be written; found out before anything is run.
    """
    reports = []
    for name in PROBLEMS:
        out = Path(folder) / name
        records.require_writable(out if out.exists() else folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what is compared is the method, and small matrices do not gain from a second core
    try:
        for name, problem in PROBLEMS.items():
            out = Path(folder) / name
            seconds = 1.0 if quick else problem.SECONDS
            try:
                report = problem.compare(seed=seed, seconds=seconds, progress=progress, folder=out)
            except MissingPackageError as error:
                print(f"\n{problem.TITLE}\nleft out: {error}")
                continue
            print(f"\n{problem.TITLE}\n{report.table(problem.BASELINE)}\n{verdict(report, problem.BASELINE)}")
            picture, trouble = report.draw(out)
            print(f"written: {out / records.NAME}" + (f" and {picture.name}" if picture else f"; {trouble}"))
            reports.append(report)
    finally:
        torch.set_num_threads(threads)
    return reports


def verdict(report: Report, baseline: str) -> str:
    """One line that says who won and by how much, whichever way it went."""
    rows = {row["contender"]: row for row in report.summary(baseline)}
    jumped = next(row for name, row in rows.items() if "jump" in name)
    rivals = [row for name, row in rows.items() if "jump" not in name]
    mine = jumped["seconds_to_target"]
    target = report.target(baseline)
    if mine is None:
        ahead = "within its time jumpstart does not reach"
        return f"Jumping LOSES on training loss here: {ahead} the {target:.2g} of {baseline}."
    others = [row["seconds_to_target"] for row in rivals if row["seconds_to_target"] is not None]
    factor = min(others, default=float("inf")) / max(mine, 1e-9)
    if factor >= 1:
        return f"Jumping wins: {factor:.1f} times faster to loss {target:.2g} than the best rival."
    return f"Jumping LOSES here: it takes {1 / factor:.1f} times as long to loss {target:.2g} as the best rival."
