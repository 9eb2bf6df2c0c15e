"""The dense kernel and the endpoint beside neural-tangents, and how far they scale, point by point.

python -m experiments.endpoint [--quick] [--seeds N] [--out DIR] [--only 1,2] [--resume]

Results are written after every point. With --resume what the folder's results hold is kept, and only points that are
missing there are run, or those that --only names. Point 5 takes MNIST (see experiments.common); beside points 1 to 4
neural-tangents is run if JUMPSTART_PEERS names an interpreter that has it (see experiments.endpoint.rival).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jumpstart.errors import JumpstartError
from jumpstart.report import plots, records

from ..common import Arguments
from . import agreement, figures, horizons, kernels, labels, linearity, machine, memory, risk, scale
from .problem import Row

POINTS: dict[int, tuple[str, Callable[[Arguments], list[Row]]]] = {
    1: ("agreement with neural-tangents", agreement.run),
    2: ("time of the kernel", kernels.run),
    3: ("memory of the kernel and the endpoint", memory.run),
    4: ("a hundred further horizons", horizons.run),
    5: ("200,000 outputs, matrix-free", scale.run),
    6: ("where linearization holds", linearity.run),
    7: ("risk without a validation set", risk.run),
    8: ("a thousand label vectors", labels.run),
}


def main() -> None:
    settings, only, resume = parse()
    machine.one_core()
    chosen: dict[str, Any] = {"quick": settings.quick, "points": {str(p): name for p, (name, _) in POINTS.items()}}
    kept, commits = earlier(settings) if resume else ({}, {})
    chosen["commits"] = commits  # of each point, since they may be run at different times
    for point, (name, run) in POINTS.items():
        if point in only if only else point not in kept:
            print(f"\npoint {point}: {name}", flush=True)
            begun = time.perf_counter()
            try:
                kept[point] = run(settings)
            except JumpstartError as error:  # no MNIST, say: the other points can do without
                print(f"point {point} is left out: {error}")
                continue
            commits[str(point)] = records.environment()["commit"]
            print(f"point {point} took {time.perf_counter() - begun:.0f} s")
            rows = [row for p in sorted(kept) for row in kept[p]]
            records.write(settings.out, "endpoint", {**chosen, "summary": summary(rows)}, rows, range(settings.seeds))
    rows = [row for p in sorted(kept) for row in kept[p]]
    heads = ("point", "check", "smallest", "largest", "limit", "holds")
    print("\n" + records.table(summary(rows), {head: head for head in heads}))
    try:
        for drawn, figure in figures.draw(rows).items():
            plots.save(figure, settings.out / f"{drawn}.png")
    except JumpstartError as error:
        print(error)
    print(f"\nwritten: {settings.out / 'results.json'}")


def parse() -> tuple[Arguments, set[int], bool]:
    parser = argparse.ArgumentParser(prog="python -m experiments.endpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="toy size, seconds instead of the better part of an hour")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs") / "endpoint", help="folder (default: %(default)s)")
    parser.add_argument("--no-progress", action="store_true", help="no progress lines")
    parser.add_argument("--only", default="", help="points to run, such as 1,2")
    parser.add_argument("--resume", action="store_true", help="keep what the folder's results hold")
    found = parser.parse_args()
    try:
        only = {int(p) for p in found.only.split(",") if p}
    except ValueError:
        parser.error(f"--only {found.only}: give numbers such as 1,2")
    if unknown := only - set(POINTS):
        parser.error(f"--only: there is no point {min(unknown)}; there are {', '.join(map(str, POINTS))}")
    if found.seeds < 1:
        parser.error("--seeds must be at least 1")
    return Arguments(found.quick, found.seeds, found.out, not found.no_progress), only, found.resume


def earlier(settings: Arguments) -> tuple[dict[int, list[Row]], dict[str, str | None]]:
    """The rows of an earlier run of the same size, by point, and the commits that they were measured at."""
    try:
        content = records.read(settings.out)
    except (OSError, ValueError):
        return {}, {}
    if content.get("experiment") != "endpoint" or content["settings"].get("quick") != settings.quick:
        return {}, {}
    kept: dict[int, list[Row]] = {}
    for row in content["rows"]:
        kept.setdefault(row["point"], []).append(row)
    known = content["settings"].get("commits", {})
    return kept, {str(point): known.get(str(point), content["environment"]["commit"]) for point in kept}


def summary(rows: list[Row]) -> list[Row]:
    """A line for each check: its range over seeds, and on how many it holds."""
    shown = []
    for point, check in dict.fromkeys((row["point"], row["check"]) for row in rows):
        same = [row for row in rows if (row["point"], row["check"]) == (point, check)]
        values, limit = [row["value"] for row in same], same[0]["limit"]
        if limit is not None:
            limit = " to ".join(f"{v:g}" for v in limit) if isinstance(limit, (tuple, list)) else f"{limit:g}"
            limit = limit if " to " in limit else ("≥ " if same[0]["above"] else "≤ ") + limit
        good = None if limit is None else f"{sum(bool(row['holds']) for row in same)}/{len(same)}"
        line = {"smallest": min(values), "largest": max(values), "limit": limit, "holds": good}
        shown.append({"point": point, "check": check, **line})
    return shown


if __name__ == "__main__":
    main()
