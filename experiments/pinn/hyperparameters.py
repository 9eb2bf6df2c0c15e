"""Settings of the rivals in the race for time budgets, chosen on seeds that no reported figure uses (100 and up).

python -m experiments.pinn.hyperparameters [--quick] [--seeds N] [--out DIR] [--problems burgers,kdv]

Everyone's settings (``entrants.ENTRANTS``) are tried for the same seconds on the same seeds, and the one with the
lowest median error is chosen, or with the lowest loss where none gets anywhere yet. Jumps have nothing to choose.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from jumpstart.errors import ArchiveError, JumpstartError
from jumpstart.report import records
from jumpstart.report.records import Row

from ..common import Arguments, arguments, spread
from . import courses
from .entrants import ENTRANTS, Setting, setting
from .equations import EVERY

FIRST = 100
SECONDS = 10.0  # a run; reported ones are as long, or longer
NOWHERE = 0.9  # an error at which a problem has hardly begun to be solved


def tried(problem: str, name: str, seed: int, size: courses.Size, base: Setting) -> list[Row]:
    """A row for each of a rival's settings."""
    rows = []
    for own in ENTRANTS[name].settings:
        [row] = courses.run(EVERY[problem], name, seed, size, {**base, **own})
        rows.append(
            {
                "problem": problem, "seed": seed, "contender": name, "setting": own,
                **{key: row[key] for key in ("error", "loss", "steps", "failure")},
            }
        )  # fmt: skip
    return rows


def best(rows: list[Row]) -> Setting:
    """The setting with the lowest median error; with the lowest loss where none gets anywhere yet."""
    settings = list({str(row["setting"]): row["setting"] for row in rows}.values())

    def median(own: Setting, key: str) -> float:
        found = [row[key] for row in rows if row["setting"] == own]
        return spread([v if math.isfinite(v) else math.inf for v in found])["median"]

    found = min(settings, key=lambda own: median(own, "error"))
    return found if median(found, "error") < NOWHERE else min(settings, key=lambda own: median(own, "loss"))


def run(settings: Arguments) -> tuple[list[Row], list[Row]]:
    """All rows, and the chosen settings: a line a problem and rival."""
    seconds = (0.5,) if settings.quick else (SECONDS,)
    size = courses.Size(seconds, courses.SHARE, courses.STEPS) if settings.quick else courses.Size(seconds)
    rows, chosen = kept(settings)
    for problem in settings.problems[: 1 if settings.quick else None]:
        found: dict[str, Setting] = {}
        for name, entrant in ENTRANTS.items():  # bases stand before those that start from them
            base = {} if entrant.base is None else found.get(entrant.base, setting(problem, entrant.base))
            if len(entrant.settings) == 1:
                found[name] = base
                continue
            own: list[Row] = []
            try:
                for seed in range(FIRST, FIRST + settings.seeds):
                    own += tried(problem, name, seed, size, base)
            except JumpstartError as error:
                print(f"{name} is left out: {error}")
                continue
            found[name] = best(own)
            rows += own
            chosen.append({"problem": problem, "contender": name, "setting": found[name]})
            if settings.progress:
                print(f"{problem}, {name}: {found[name]}", file=sys.stderr, flush=True)
        write(settings, rows, chosen)
    return rows, chosen


def kept(settings: Arguments) -> tuple[list[Row], list[Row]]:
    """Rows and choices of problems that are not run anew."""
    try:
        content = records.read(settings.out)
    except ArchiveError:  # none yet
        return [], []
    old: tuple[list[Row], list[Row]] = (content["rows"], content["settings"]["chosen"])
    rows, chosen = ([row for row in part if row["problem"] not in settings.problems] for part in old)
    return rows, chosen


def write(settings: Arguments, rows: list[Row], chosen: list[Row]) -> Any:
    about = {"seconds": SECONDS, "quick": settings.quick, "run anew": settings.problems, "chosen": chosen}
    seeds = range(FIRST, FIRST + settings.seeds)
    return records.write(settings.out, "pinn.hyperparameters", about, rows, list(seeds))


def main() -> None:
    settings = arguments("pinn.hyperparameters", __doc__, seeds=2, problems=tuple(EVERY))
    torch.set_num_threads(1)
    rows, chosen = run(settings)
    shown = [{**line, "setting": ", ".join(f"{k} {v:g}" for k, v in line["setting"].items())} for line in chosen]
    print(records.table(shown, {key: key for key in ("problem", "contender", "setting")}))
    print(f"\nwritten: {write(settings, rows, chosen)}")


if __name__ == "__main__":
    main()
