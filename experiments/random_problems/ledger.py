"""A file of finished work, a line a piece, so that a run that was stopped goes on; and the options of such runs."""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from jumpstart.report.records import Row
from jumpstart.utils import strict_json

from . import networks, problems, runs
from .problems import REPORTING, TUNING

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "rows.jsonl"
DIGITS = 4  # of measured numbers that are kept


@dataclass(frozen=True)
class Options:
    """``problems`` is how many; ``seeds`` is of how many draws each; after ``minutes`` no more are begun."""

    quick: bool
    problems: int
    seeds: int
    minutes: float
    tuning: bool
    out: Path
    progress: bool
    only: tuple[str, ...] = ()

    @property
    def numbers(self) -> range:
        return (TUNING if self.tuning else REPORTING)[: self.problems]


def options(
    name: str, description: str | None, count: int, toy: int, seeds: tuple[int, str], only: Sequence[str] = ()
) -> Options:
    """Parse the command line of an experiment on random problems; ``toy`` are those of a quick run."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="toy size, seconds instead of minutes")
    parser.add_argument("--problems", type=int, help=f"how many (default: {count}, quick {toy})")
    parser.add_argument("--seeds", type=int, default=seeds[0], help=f"{seeds[1]} (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no problem after so many (default: all)")
    parser.add_argument("--tuning", action="store_true", help="problems to make choices on, of which nothing is told")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder (default: %(default)s)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    if only:
        parser.add_argument("--only", choices=only, action="append", help="a part (default: all)")
    found = parser.parse_args()
    if found.problems is not None or found.quick:
        count = toy if found.problems is None else found.problems
    most = len(TUNING) if found.tuning else len(REPORTING)
    if not 1 <= count <= most:
        parser.error(f"--problems {count}: there are 1 to {most:,}")
    if found.seeds < 1 or not found.minutes > 0:
        parser.error("--seeds must be at least 1, and --minutes above 0")
    return Options(
        found.quick, count, found.seeds, found.minutes, found.tuning, found.out, not found.no_progress,
        tuple(found.only or only) if only else (),
    )  # fmt: skip


class Ledger:
    """Rows by what they are of. A line that was cut off is as if it was not there, and so is one of other sources:
    results of two versions of the library are never mixed.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self.path, self.source = folder / NAME, source
        self.rows: dict[str, Row] = {}
        self.others = 0  # lines of other sources
        folder.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text() if self.path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole)
        for line in whole.splitlines():
            content = strict_json.loads(line.encode())
            if content["source"] == self.source:
                self.rows[content["of"]] = content["row"]
            else:
                self.others += 1

    def __contains__(self, of: str) -> bool:
        return of in self.rows

    def add(self, of: str, row: Row) -> None:
        line = strict_json.dumps({"of": of, "source": self.source, "row": rounded(row)})
        with self.path.open("a") as file:
            file.write(line + "\n")
        self.rows[of] = strict_json.loads(line.encode())["row"]


def work(ledger: Ledger, jobs: Iterable[tuple[str, Callable[[], Row]]], settings: Options) -> list[Row]:
    """Do what is not done yet, in order, until the time is up; the rows of all that is done of ``jobs``."""
    plan = list(jobs)
    end = time.monotonic() + 60 * settings.minutes
    for of, measure in tqdm([job for job in plan if job[0] not in ledger], disable=not settings.progress):
        if time.monotonic() > end:
            break
        ledger.add(of, measure())
    return [ledger.rows[of] for of, _ in plan if of in ledger]


def digest(*code: ModuleType | Path) -> str:
    """Of the names and the text of modules and files, in whatever order: rows come from them."""
    files = [item if isinstance(item, Path) else Path(str(item.__file__)) for item in code]
    found = hashlib.sha256()
    for path in sorted(file.resolve() for file in files):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def sources(*measuring: ModuleType) -> str:
    """A digest of the library, the random problems and their runs, and modules that measure."""
    return digest(*(ROOT / "jumpstart").rglob("*.py"), networks, problems, runs, *measuring)


def rounded(value: Any) -> Any:
    """The same with ``DIGITS`` digits in every float."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value
