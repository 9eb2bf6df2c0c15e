"""How near one skip of m steps comes to really taking them, and what whole runs that skip end at and cost.

python -m experiments.skipping [--quick] [--problems N] [--minutes M] [--only fidelity|runs] [--out DIR]

Random problems by number; one thread. OUT/rows.jsonl grows by a line a problem, and a run that was stopped goes on from
it as long as the code is the same; OUT/results.json is made from it anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row

from ..random_problems import ledger, tables
from ..random_problems.ledger import Ledger, Options
from ..random_problems.problems import problem
from . import fidelity, figures, rivals, summary, whole_runs

FIDELITY, RUNS = "fidelity", "runs"
PROBLEMS, TOY = 600, 8


def main() -> None:
    asked = ledger.options(
        "skipping", __doc__, PROBLEMS, TOY, (1, "initializations and orders of minibatches a problem"), (FIDELITY, RUNS)
    )
    torch.set_num_threads(1)
    book = Ledger(asked.out, ledger.sources(fidelity, rivals, whole_runs))
    if book.others:
        print(f"{book.path}: {book.others} lines of other sources are left out")
    steps, lengths = (fidelity.TOY, whole_runs.TOY) if asked.quick else (fidelity.STEPS, whole_runs.LENGTHS)
    rows = ledger.work(book, jobs(asked), asked)
    summarized, trouble = told(rows, steps, lengths), []
    settings = {
        "quick": asked.quick, "problems": asked.problems, "tuning": asked.tuning, "steps": steps, "lengths": lengths,
        "start": fidelity.START, "sources": book.source, "summary": summarized,
    }  # fmt: skip
    path = records.write(asked.out, "skipping", settings, rows, range(asked.seeds))
    content = records.read(asked.out)  # what is printed and drawn is what was written
    show(content["settings"]["summary"])
    for name, make in pictures(content["rows"]).items():
        trouble += [plots.drawn(make, asked.out / f"{name}.png")[1]]
    print("\n".join([*filter(None, trouble), f"\nwritten: {path}"]))


def jobs(asked: Options) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each problem's parts, seed by seed; a problem's runs have one of the lengths, in turn."""
    steps, lengths = (fidelity.TOY, whole_runs.TOY) if asked.quick else (fidelity.STEPS, whole_runs.LENGTHS)
    for seed in range(asked.seeds):
        for i, number in enumerate(asked.numbers):
            of, length = problem(number), lengths[(i + seed) % len(lengths)]
            if FIDELITY in asked.only:
                yield (
                    f"{FIDELITY} {number} {seed} {steps}",
                    lambda of=of, seed=seed: {"part": FIDELITY, **fidelity.measure(of, seed, steps)},
                )
            if RUNS in asked.only:
                yield (
                    f"{RUNS} {number} {seed} {length}",
                    lambda of=of, seed=seed, length=length: {"part": RUNS, **whole_runs.measure(of, seed, length)},
                )


def parts(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of fidelity where the real run did not diverge, and those of whole runs."""
    one = [row for row in rows if row["part"] == FIDELITY and not row["diverged"]]
    return one, [row for row in rows if row["part"] == RUNS]


def told(rows: list[Row], steps: tuple[int, ...], lengths: tuple[int, ...]) -> dict[str, Any]:
    """All tables."""
    one, runs = parts(rows)
    found = list(summary.entries(one))
    misses, wholes = summary.fidelity(found, steps), summary.whole(runs, lengths)
    return {
        "problems": {
            "fidelity": len(one), "diverged": sum(row.get("diverged", False) for row in rows), "runs": len(runs),
        },
        "misses": misses, "skips": summary.skips(found, steps), "runs": wholes,
        "goals": summary.goals(misses, wholes), "faults": tables.faults([*one, *runs]),
    }  # fmt: skip


def pictures(rows: list[Row]) -> dict[str, Callable[[], Any]]:
    one, runs = parts(rows)
    found = list(summary.entries(one))
    makers: dict[str, Callable[[], Any]] = {}
    if any(e["batch"] == "full" for e in found):
        makers["misses"] = lambda: figures.misses(found)
    if found:
        makers["costs"] = lambda: figures.costs(found)
    if runs:
        makers["runs"] = lambda: figures.runs(runs)
    return makers


SHOWN = {"": fidelity.STEPS, "optimizer": (20, 80)}  # the rest is in results.json
SKIPS = {
    "batch": "batch", "by": "by", "value": "", "m": "m", "problems": "problems", "in full": "in full",
    "steps": "skipped", "miss": "miss", "miss, 90%": "90%", "miss, in full": "if in full",
    "later": "10 on", "train": "train", "held": "held out", "worse": "worse", "better": "better",
    "twice": "2× worse", "pays": "pays", "evaluations": "evaluations", "passes": "passes", "ahead": "with the rest",
    "seconds": "seconds", "errors": "errors",
}  # fmt: skip
SKIPS_SAY = """js.skip of m steps: miss after them, and after 10 real ones more; log ratios of losses to the real run's;
shares of held-out losses > 10% worse, > 10% better, > 2× worse; share of skips of more steps than they cost. Cost in
steps of the loop: gradient evaluations, network passes, evaluations with those steps that were not skipped; seconds of
these over those of m steps"""
WHOLE = {
    "batch": "batch", "length": "steps", "arm": "", "problems": "problems", "train": "train", "held": "held out",
    "train worse": "worse", "train better": "better", "held worse": "held out worse", "held better": "better",
    "held twice": "2× worse", "skipped": "skipped", "evaluations": "evaluations", "passes": "passes",
    "seconds": "seconds", "kept": "kept", "tries": "tries", "errors": "errors", "diverged": "diverged",
}  # fmt: skip
WHOLE_SAY = (
    "whole runs at equal effective steps (log ratios of losses to those of the bare run; numbers of runs > 10% worse, "
    "> 10% better,\n> 2× worse; cost over the bare run's; diverged is the bare run)"
)


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    counts = found["problems"]
    print(
        f"{counts['fidelity']} problems, one skip from step {fidelity.START} ({counts['diverged']} diverged by "
        f"themselves and are left out); {counts['runs']} problems, whole runs. Medians where nothing else is said."
    )
    if misses := found["misses"]:
        heads = {key: key for key in misses[0]}
        print(
            f"\nheld-out miss relative to the movement, where js.skip took all m steps\n{records.table(misses, heads)}"
        )
        short = [line for line in found["skips"] if line["m"] in SHOWN.get(line["by"], (20,))]
        print(f"\n{SKIPS_SAY}\n{records.table(short, SKIPS)}")
    if found["runs"]:
        print(f"\n{WHOLE_SAY}\n{records.table(found['runs'], WHOLE)}")
    if found["goals"]:
        heads = {"goal": "goal", "of": "of", "value": "value", "limit": "at most", "holds": "holds"}
        print(f"\n{records.table(found['goals'], heads)}")
    if found["faults"]:
        heads = {key: key for key in found["faults"][0]}
        print(f"\nfaults of the library\n{records.table(found['faults'], heads)}")


if __name__ == "__main__":
    main()
