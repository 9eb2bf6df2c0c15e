"""Grokking, with everybody tuned: steps and seconds to 95% held-out accuracy, gates and skips among the contenders.

python -m experiments.grokking --tuning [--minutes M] [--out DIR]     chooses settings, by default for the other command
python -m experiments.grokking [--quick] [--seeds N] [--minutes M] [--problems a,b] [--out DIR]

Addition modulo 113 by a two-layer MLP (40% of the table), and a/b modulo a smaller prime by a one-block transformer, in
full batches. Each contender has the rate and decay of one grid with which it is soonest on a seed that is not reported;
what wraps another has its setting. One thread; seconds of the process, looks at the held-out part left out.
OUT/rows.jsonl grows as in experiments.skipping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from jumpstart.errors import JumpstartError
from jumpstart.report import plots, records
from jumpstart.report.records import Row

from ..common import Arguments, arguments
from ..random_problems import ledger
from ..random_problems.ledger import Ledger, digest
from . import contenders, runs, tasks
from .contenders import CONTENDERS, TUNED
from .runs import run
from .summary import COLUMNS, chosen, picture, summarized
from .tasks import PROTOCOLS, Protocol, Setting

CHOSEN = Path(__file__).resolve().parents[2] / "docs" / "results" / "grokking" / "tuning"
FIRST = 100  # seed of the tuning
FEW = 1  # seeds of runs with exact statistics or more than one budget of steps
LIBRARY = ("gating", "optim")  # what gates are made of


def source(name: str) -> str:
    """A digest of what a contender is made of besides torch and this experiment; nothing where that is all."""
    of, package = CONTENDERS[name], ledger.ROOT / "jumpstart"
    if of.skips:
        return digest(*package.rglob("*.py"))
    if of.gate is not None:
        return digest(*(path for room in LIBRARY for path in (package / room).rglob("*.py")))
    return ""


def job(book: Ledger, of: Protocol, name: str, setting: Setting, seed: int, racing: bool = False) -> Any:
    """A run, by its name. ``racing`` runs end where the contender's best so far is reached: later is not sooner."""

    def measure() -> Row:
        budget = of.steps * CONTENDERS[name].times
        if racing:
            before = [row for row in book.rows.values() if (row["protocol"], row["contender"]) == (of.name, name)]
            budget = min([budget, *(row["steps"] for row in before if row["steps"])])
        found = run(of, CONTENDERS[name], setting, seed, budget)
        return {"protocol": of.name, "contender": name, "seed": seed, **setting.told, "budget": budget, **found}

    return f"{of.name} {name} {setting.rate:g} {setting.decay:g} {seed} {source(name)}", measure


def tuning(book: Ledger, problems: Sequence[str]) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Setting after setting, everybody in each, so that who is stopped has given all of them the same; but exact
    statistics, several times as dear, come after all others.
    """
    for exact in (False, True):
        for of in map(PROTOCOLS.__getitem__, problems):
            for setting in of.grid:
                for name in TUNED:
                    if CONTENDERS[name].exact == exact:
                        yield job(book, of, name, setting, FIRST, racing=True)


def setting_of(name: str, choices: Row) -> Setting | None:
    """What a contender is reported with; None where nothing was chosen for it, nor for the one it is nearest to."""
    given = CONTENDERS[name].settings
    if CONTENDERS[name].exact and name not in choices:
        given = name.replace("exact", "corrected")
    if isinstance(given, Setting):
        return given
    found = choices.get(given or name)
    return None if found is None else Setting(found["rate"], found["decay"])


def reporting(
    book: Ledger, problems: Sequence[str], seeds: int, choices: Row
) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Seed after seed; dear runs last, and of few seeds."""
    for dear in (False, True):
        for seed in range(min(seeds, FEW) if dear else seeds):
            for of in map(PROTOCOLS.__getitem__, problems):
                for name, who in CONTENDERS.items():
                    setting = setting_of(name, choices[of.name])
                    if (who.exact or who.times > 1) == dear and setting is not None:
                        yield job(book, of, name, setting, seed)


def choices_of(asked: Arguments, problems: Sequence[str]) -> Row:
    if asked.quick:
        return {name: {who: PROTOCOLS[name].grid[0].told for who in TUNED} for name in problems}
    found = records.read(CHOSEN)["settings"]["choices"]
    if lacking := [name for name in problems if name not in found]:
        raise JumpstartError(f"{lacking[0]} is not tuned: python -m experiments.grokking --tuning.")
    return found


def main() -> None:
    asked = arguments("grokking", __doc__, 5, tuple(PROTOCOLS), tuned=True)
    problems = [name for name in asked.problems if name.startswith("toy") == asked.quick]
    torch.set_num_threads(1)
    run(PROTOCOLS["toy addition"], CONTENDERS[contenders.GATE_SKIPS], Setting(1e-2, 1.0), 0, 20)  # what is imported
    out = asked.out / "tuning" if asked.tuning else asked.out
    book = Ledger(out, digest(tasks, contenders, runs))
    if book.others:
        print(f"{book.path}: {book.others} lines of other sources are left out")
    if asked.tuning:
        jobs = tuning(book, problems)
    else:
        choices = choices_of(asked, problems)
        jobs = reporting(book, problems, asked.seeds, choices)
    rows: list[Any] = ledger.work(book, jobs, SimpleNamespace(minutes=asked.minutes, progress=asked.progress))  # type: ignore[arg-type]
    if asked.tuning:
        choices = {name: chosen([row for row in rows if row["protocol"] == name]) for name in problems}
        bare = [{key: value for key, value in row.items() if key != "curve"} for row in rows]
        path = records.write(out, "grokking", {"choices": choices}, bare, [FIRST])
        print(*(f"{name}, {who}: {told}" for name in problems for who, told in choices[name].items()), sep="\n")
        print(f"written: {path}")
        return
    summary = summarized(rows)
    settings = {"quick": asked.quick, "choices": choices, "summary": summary, "goal": runs.GOAL}
    path = records.write(out, "grokking", settings, rows, sorted({row["seed"] for row in rows}))
    print(records.table(summary, COLUMNS))
    _, trouble = plots.drawn(lambda: picture(rows), out / "grokking.png")
    print("\n".join([*filter(None, [trouble]), f"written: {path}"]))


if __name__ == "__main__":
    main()
