"""The race for time budgets: the error that each contender has after 10, 60 and 300 seconds on one thread.

Contenders run one after another, each from the same network; the rivals have the same points, jumps begin with half as
many and add to them. Those whose schedule is made for the length of the run (jumps, which land at 85% of it; rates that
fall; Adam before quasi-Newton) run anew for each budget, the others once for the longest. What is read of a run, and
when: experiments.pinn.courses.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpstart.errors import InputError, JumpstartError
from jumpstart.report import records
from jumpstart.report.records import Row
from jumpstart.utils import strict_json

from .courses import failed, run, size
from .entrants import CONTENDERS
from .equations import EVERY

BUDGETS = (10.0, 60.0, 300.0)
LINES = "rows.jsonl"


@dataclass(frozen=True)
class Race:
    """What is raced, and where its rows go: a line each in ``rows.jsonl`` as they come.

    Args:
        resume: keep the rows that are there, of the same size.
    """

    seeds: Sequence[int]
    problems: Sequence[str]
    contenders: Sequence[str]
    budgets: tuple[float, ...]
    folder: Path
    quick: bool = False
    resume: bool = False

    @property
    def head(self) -> dict[str, Any]:
        return {"quick": self.quick, "budgets": list(self.budgets)}

    def run(self) -> Iterator[tuple[str, list[Row]]]:
        """Yields what has been run, and all rows so far."""
        rows = self._kept() if self.resume else []
        self._begin(rows)
        if rows:  # perhaps all that there is to be
            yield f"{len(rows)} rows are there", rows
        done = {(row["problem"], row["seed"], row["contender"]) for row in rows}
        left_out: set[tuple[str, str]] = set()
        for i, seed in enumerate(self.seeds):
            turn = i % len(self.contenders)  # nobody is always first
            for problem in self.problems:
                for name in (*self.contenders[turn:], *self.contenders[:turn]):
                    if (problem, seed, name) in done or (problem, name) in left_out:
                        continue
                    try:
                        own = run(EVERY[problem], name, seed, size(self.budgets, self.quick))
                    except JumpstartError as error:
                        print(f"{problem}: {name} is left out: {error}")
                        left_out.add((problem, name))
                        continue
                    self._append(own)
                    rows += own
                    yield f"{problem}, seed {seed}, {name}: {_shown(own)}", rows

    @property
    def path(self) -> Path:
        return self.folder / LINES

    def _kept(self) -> list[Row]:
        """Rows of an interrupted run, whole ones.

        Raises:
            InputError: they are of another size.
        """
        if not self.path.is_file():
            return []
        text = self.path.read_text()
        head, *lines = text[: text.rfind("\n") + 1].splitlines()  # the last line may have been cut short
        found = strict_json.loads(head)
        if {key: found.get(key) for key in self.head} != self.head:
            raise InputError(
                f"{self.path} holds rows of {found}, and {self.head} is asked for: give another --out, or no --resume."
            )
        rows = [strict_json.loads(line) for line in lines]
        count = collections.Counter(_key(row) for row in rows)
        return [row for row in rows if count[_key(row)] == len(self.budgets)]

    def _begin(self, rows: list[Row]) -> None:
        records.require_writable(self.folder)
        self.path.write_text(json.dumps({**self.head, **records.environment(self.seeds)}) + "\n")
        self._append(rows)

    def _append(self, rows: list[Row]) -> None:
        with self.path.open("a") as file:
            file.writelines(strict_json.dumps(row) + "\n" for row in rows)


def _key(row: Row) -> tuple[str, int, str]:
    return row["problem"], row["seed"], row["contender"]


def _shown(rows: list[Row]) -> str:
    return ", ".join(f"{row['error']:.2g} at {row['budget']:g} s{' (failed)' if failed(row) else ''}" for row in rows)


def named(contenders: Sequence[str]) -> tuple[str, ...]:
    """All contenders where none is named."""
    return tuple(contenders) or CONTENDERS
