"""Wrong labels: gates beside slower clocks, averages, early stopping, decay and rivals, trained to the end.

python -m experiments.label_noise [--quick] [--seeds N] [--minutes M] [--problems a,b] [--tuning] [--out DIR]

Every contender has four settings, and is tuned by one run of each on a seed of its own, trained on 80% of the samples:
on the clean problem, or on the noisy one, by the loss at the end on the other 20%, whose labels are as wrong. The
control is plain AdamW at all these rates and three between them. One thread. OUT/rows.jsonl grows, so that a run that
was stopped goes on; ``--tuning`` runs no more than what is tuned on.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from .. import rivals
from ..common import Arguments, arguments
from ..random_problems import ledger
from . import figures, networks, runs, settings, summary, verdict
from .settings import ADAMW, BETWEEN, CONTENDERS, FIRST, REPORTED, STOPPED, TASKS, TUNING, Setting


@dataclass(frozen=True)
class Job:
    """All noises and seeds of one contender at one setting."""

    task: str
    contender: str
    setting: Setting
    part: str
    seeds: tuple[int, ...]

    @property
    def of(self) -> str:
        return " ".join(map(str, (self.task, self.contender, *self.setting.told.values(), self.part, self.seeds)))

    def run(self) -> Row:
        found = runs.run(TASKS[self.task], self.contender, self.setting, self.part, self.seeds)
        return {"rows": [summary.shortened(row) for row in found]}


def jobs(asked: Arguments, names: list[str]) -> Iterator[Job]:
    """Tuning first, so that a run that is cut short is of fewer contenders, not of untuned ones."""
    seeds = tuple(range(asked.seeds))
    for name in names:
        chosen = TASKS[name].contenders or tuple(CONTENDERS)
        plan = [(who, setting) for who in chosen for setting in CONTENDERS[who].settings]
        yield from (Job(name, who, setting, TUNING, (FIRST,)) for who, setting in plan if who != BETWEEN)
        if not asked.tuning:
            reported = [Job(name, ADAMW, setting, STOPPED, seeds) for setting in CONTENDERS[ADAMW].settings]
            reported += [Job(name, who, setting, REPORTED, seeds) for who, setting in plan]
            yield from sorted(reported, key=lambda job: CONTENDERS[job.contender].exact)  # what is dear comes last


def main() -> None:
    asked = arguments("label_noise", __doc__, 3, tuple(TASKS), tuned=True)
    names = [name for name in asked.problems if (name == "toy") == asked.quick]
    torch.set_num_threads(1)
    # Of this package's part of what rows come from; after a change of the optimizers the file is to be removed.
    book = ledger.Ledger(asked.out, ledger.digest(networks, rivals, runs, settings))
    plan, end = list(jobs(asked, names)), time.monotonic() + 60 * asked.minutes
    runs.run(TASKS["toy"], ADAMW, Setting(1.0), REPORTED, (0,))  # what is imported at first steps is nobody's time
    with counter("label noise", len(plan), asked.progress) as count:
        for job in plan:
            if job.of not in book and time.monotonic() > end:
                break
            if job.of not in book:
                book.add(job.of, job.run())
            count(f"{job.task}, {job.contender}")
    done = [job for job in plan if job.of in book]
    if missing := len(plan) - len(done):
        print(f"{missing} of {len(plan)} are not done; --minutes {asked.minutes:g} was the limit")
    rows = [row for job in done for row in book.rows[job.of]["rows"]]
    seeds = range(0 if asked.tuning else asked.seeds)
    told = summary.summarized(rows)
    content = {"quick": asked.quick, "missing": missing, "summary": told, "seconds": math.fsum(summary.seconds(rows)),
               "tasks": {name: summary.told(TASKS[name]) for name in names}}  # fmt: skip
    path = records.write(asked.out, "label_noise", content, rows, seeds)
    print(verdict.verdict(told), records.table(told, verdict.HEADS), sep="\n")
    drawn, trouble = plots.drawn(lambda: figures.picture(rows), asked.out / "label_noise.png")
    print(f"written: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"), file=sys.stdout)


if __name__ == "__main__":
    main()
