"""Jumps on partial differential equations beside seven other ways to train, point by point.

python -m experiments.pinn [--quick] [--seeds N] [--out DIR] [--only races,costs] [--problems heat] [--resume]
python -m experiments.pinn --only budgets [--seeds N] [--problems burgers,kdv] [--seconds 10,60,300]
                           [--contenders jumps,SSBroyden] [--resume]

Every part writes OUT/PART/results.json as it goes (races after each race), and OUT/results.json holds their summaries.
With --resume what is there is kept. The race for time budgets (experiments/pinn/budgets.py) takes days with everybody
in it, and runs when it is asked for alone. Burgers takes its reference from $JUMPSTART_DATA/pde, the UCI sets are in
$JUMPSTART_DATA/uci; rivals from other packages are left out where these are not installed (experiments/pinn/rivals
says how). Learning rates were chosen by experiments.pinn.tuning on other seeds. JUMPSTART_DEVICE=cuda puts
--only large on a GPU.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # scipy's own threads, before it is imported

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

if "JUMPSTART_DEVICE" in os.environ:  # problems are made on import
    torch.set_default_device(os.environ["JUMPSTART_DEVICE"])

from jumpstart.errors import JumpstartError
from jumpstart.report import plots, records
from jumpstart.report.records import Row

from ..common import names
from . import ablation, budgets, costs, figures, race, standings
from .equations import EQUATIONS, EVERY
from .problems import PROBLEMS

USUAL = ("costs", "races", "inverse", "regression", "large", "ablation")
PARTS = (*USUAL, "budgets")
SHOWN = ("poisson", "helmholtz", "convection", "burgers", "lshape")


@dataclass(frozen=True)
class Settings:
    quick: bool
    seeds: list[int]
    out: Path
    progress: bool
    only: tuple[str, ...]
    problems: tuple[str, ...]
    resume: bool
    merge: tuple[Path, ...]
    seconds: tuple[float, ...]
    contenders: tuple[str, ...]

    def write(self, part: str, rows: list[Row], **summary: Any) -> None:
        records.write(self.out / part, "pinn", {"part": part, "quick": self.quick, **summary}, rows, self.seeds)

    def kept(self, part: str) -> list[Row]:
        """Rows of an earlier run of the same size."""
        try:
            content = records.read(self.out / part)
        except (OSError, ValueError):
            return []
        return content["rows"] if self.resume and content["settings"].get("quick") == self.quick else []


def main() -> None:
    settings = parse()
    torch.set_num_threads(1)
    for part in settings.only:
        print(f"\n{part}", flush=True)
        try:
            RUN[part](settings)
        except JumpstartError as error:  # data that are not here, say: the other parts can do without
            print(f"{part} is left out: {error}")
    overview(settings)


def run_races(settings: Settings) -> None:
    """Points 1 and 2."""
    rows = settings.kept("races")
    merged = []
    for folder in settings.merge:  # runs of other seeds, made side by side
        content = records.read(folder / "races")
        rows += content["rows"]
        merged.append({key: content["environment"][key] for key in ("date", "commit", "seeds")})
    done = {(row["problem"], row["init"], row["seed"]) for row in rows}
    for seed in settings.seeds:
        for name in settings.problems:
            for init in ("torch", "small") if name == "poisson" else ("torch",):
                if (name, init, seed) in done:
                    continue
                try:
                    rows += race.run(name, init, seed, settings.quick, settings.progress)
                except JumpstartError as error:
                    print(f"{name} is left out: {error}")
                    continue
                best = {row["contender"]: race.final(row) for row in rows[-8:] if row["seed"] == seed}
                print(name, init, seed, {label: float(f"{error:.2g}") for label, error in best.items()}, flush=True)
                settings.write("races", rows)
    summary = {"anchor": race.anchor(rows), "suite": race.suite(rows), "verdict": race.verdict(rows)}
    settings.write("races", rows, long=race.LONG, merged=merged, **summary)
    for lines in (race.anchor(rows), race.suite(rows), race.verdict(rows)):
        if lines:
            print("\n" + records.table(lines, {key: key for key in lines[0]}))
    draw(settings, "races", "races", lambda: figures.races(rows))
    small = [row for row in rows if row["problem"] == "poisson"]
    if small:
        draw(settings, "races", "small", lambda: figures.races(small, "small"))
    shown = [name for name in SHOWN if name in {row["problem"] for row in rows}][: 1 if settings.quick else None]
    seconds = {name: 0.2 if settings.quick else PROBLEMS[name].seconds for name in PROBLEMS}
    draw(settings, "races", "solutions", lambda: figures.solutions(shown, 0, seconds))


def run_costs(settings: Settings) -> None:
    """Point 0."""
    rows = costs.run(settings.quick)
    settings.write("costs", rows, verdict=costs.verdict(rows))
    print(records.table(rows, {key: key for key in rows[0]}))


def run_ablation(settings: Settings) -> None:
    """Point 6."""
    rows = ablation.run(settings.seeds, settings.quick)
    lines = ablation.table(rows)
    settings.write("ablation", rows, summary=lines, seconds=ablation.PROBLEMS_SECONDS)
    print(records.table(lines, {key: key for key in lines[0]}))


def run_budgets(settings: Settings) -> None:
    """The error after 10, 60 and 300 seconds, on equations with domains."""
    race = budgets.Race(
        settings.seeds, settings.problems, budgets.named(settings.contenders), settings.seconds,
        settings.out / "budgets", settings.quick, settings.resume,
    )  # fmt: skip
    rows: list[Row] = []
    for told, rows in race.run():
        print(told, flush=True)
        settings.write("budgets", rows, standing=standings.standing(rows), verdict=standings.verdict(rows))
    for lines, heads in (
        (standings.standing(rows), standings.HEADS), (standings.verdict(rows), standings.VERDICT),
    ):  # fmt: skip
        if lines:
            print("\n" + records.table(lines, heads))
    if rows:
        draw(settings, "budgets", "budgets", lambda: standings.picture(rows))


def _module(part: str) -> Callable[[Settings], None]:
    def run(settings: Settings) -> None:
        module = importlib.import_module(f".{part}", __package__)
        rows = module.run(settings.seeds, settings.quick, settings.progress)
        lines = module.table(rows)
        settings.write(part, rows, summary=lines)
        keys = dict.fromkeys(key for line in lines for key in line)
        print(records.table(lines, {key: key for key in keys}))
        draw(settings, part, part, lambda: module.figure(rows))

    return run


RUN: dict[str, Callable[[Settings], None]] = {
    "costs": run_costs,
    "races": run_races,
    "inverse": _module("inverse"),
    "regression": _module("regression"),
    "large": _module("large"),
    "ablation": run_ablation,
    "budgets": run_budgets,
}


def draw(settings: Settings, part: str, name: str, make: Callable[[], Any]) -> None:
    try:
        plots.save(make(), settings.out / part / f"{name}.png")
    except JumpstartError as error:
        print(error)


def overview(settings: Settings) -> None:
    """One file with every part's summary, and the commit and date that each was measured at."""
    rows: list[Row] = []
    for part in PARTS:
        try:
            content = records.read(settings.out / part)
        except (OSError, ValueError):
            continue
        found = {k: v for k, v in content["settings"].items() if k not in ("part", "quick")}
        rows.append({"part": part, "environment": content["environment"], "command": content["command"], **found})
    print(f"\nwritten: {records.write(settings.out, 'pinn', {'quick': settings.quick}, rows, settings.seeds)}")


def parse() -> Settings:
    parser = argparse.ArgumentParser(prog="python -m experiments.pinn", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="toy size, a minute instead of hours")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs") / "pinn", help="folder (default: %(default)s)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    parser.add_argument("--only", default="", help=f"parts to run, of {', '.join(PARTS)} (default: all but the last)")
    parser.add_argument(
        "--problems",
        default="",
        help=f"problems to race, of {', '.join(PROBLEMS)}; for budgets, of {', '.join(EVERY)}",
    )
    parser.add_argument("--resume", action="store_true", help="keep what the folder's results hold")
    parser.add_argument("--merge", default="", help="folders of races of other seeds to take in, with commas")
    seconds = ",".join(f"{budget:g}" for budget in budgets.BUDGETS)
    parser.add_argument("--seconds", default=seconds, help="time budgets to race for (default: %(default)s)")
    parser.add_argument("--contenders", default="", help=f"of {', '.join(budgets.CONTENDERS)} (default: all)")
    found = parser.parse_args()
    merge = tuple(Path(folder) for folder in found.merge.split(",") if folder)
    only = names(parser, "only", found.only, PARTS) or USUAL
    if "budgets" in only and len(only) > 1:
        parser.error("--only budgets goes alone: its problems, seconds and contenders are its own")
    known, usual = (EVERY, EQUATIONS) if "budgets" in only else (PROBLEMS, PROBLEMS)
    problems = names(parser, "problems", found.problems, known)
    if found.seeds < 1:
        parser.error("--seeds must be at least 1")
    if "JUMPSTART_DEVICE" in os.environ and only != ("large",):
        parser.error("JUMPSTART_DEVICE is for --only large; references and pictures of the others stay on the CPU")
    problems = problems or (tuple(usual)[:1] if found.quick else tuple(usual))
    seeds = list(range(found.first, found.first + found.seeds))
    return Settings(
        found.quick, seeds, found.out, not found.no_progress, only, problems, found.resume, merge,
        _seconds(parser, found.seconds), names(parser, "contenders", found.contenders, budgets.CONTENDERS),
    )  # fmt: skip


def _seconds(parser: argparse.ArgumentParser, text: str) -> tuple[float, ...]:
    """Budgets, the shortest first."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        parser.error(f"--seconds {text}: give numbers with commas, such as 10,60,300")
    if not 0 < found[0] <= found[-1] < float("inf"):
        parser.error(f"--seconds {text}: give positive numbers")
    return tuple(found)


if __name__ == "__main__":
    main()
