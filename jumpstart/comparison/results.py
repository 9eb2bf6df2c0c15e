"""What ``jumpstart report`` shows of a folder: whatever kind of results it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArchiveError, InputError
from ..fitting.result import FitResult
from ..report import export, records
from ..report.names import printable
from ..report.page import render, results
from ..report.page.results import scalars
from ..training import pages
from .ablation import Ablation
from .report import Report

COLUMNS = 8  # of a table on a terminal, of results of no known kind
ROWS = 40


@dataclass(frozen=True)
class Shown:
    """A table, and how to write the rest.

    Attributes:
        folder: where files go by default. draw: makes the figure, where there is one.
    """

    table: str
    folder: Path
    html: Callable[[Path], Path]
    to_csv: Callable[[Path], Path]
    draw: Callable[[], tuple[Path | None, str]] | None = None


def read(folders: Sequence[Path], baseline: str | None = None) -> Shown:
    """Results of any kind: a comparison, a fit, an ablation's seeds, an experiment; or the lines of a wrapped loop.

    Raises:
        ArchiveError: there are none, or they are damaged; says what. InputError: several folders that cannot be merged,
            a baseline that is none.
    """
    first = folders[0]
    seeds = [folder for folder in folders if not (folder / records.NAME).is_file() and any(folder.glob("seed-*"))]
    if len(folders) > 1 and len(seeds) < len(folders):
        other = next(folder for folder in folders if folder not in seeds)
        raise InputError(f"{other} holds no seeds of an ablation: these alone are merged. Give one folder.")
    if seeds:
        found = Ablation.read(*folders)
        _require(baseline, found.variants[:1], "the first variant of an ablation is what the others are compared with")
        tables = "\n\n".join(found.table(key) for key in ("loss", *found.metrics))
        return Shown(tables, first, found.html, found.to_csv)
    if first.suffix.lower() == ".jsonl" and not first.is_dir():
        _require(baseline, [], "the lines of a wrapped loop have no contenders")
        return _lines(first)
    content = records.read(first)
    settings = content.get("settings")
    told = settings if isinstance(settings, Mapping) else {}
    if "metrics" in told:
        report = Report.read(first)
        if baseline is not None:
            _require(baseline, report.contenders, "contenders")
        return Shown(report.table(baseline), first, report.html, report.to_csv, lambda: report.draw(first))
    _require(baseline, [], "these results have no contenders")
    if "fit" in told:
        result = FitResult.read(first)
        return Shown(str(result), first, result.html, result.to_csv)
    return _any(content, first)


def _lines(path: Path) -> Shown:
    rows = pages.lines(path)
    kept = sum(bool(row["accepted"]) for row in rows)
    told = {"jumps": len(rows), "kept": kept, "lines of": path.name}
    columns = {"action": "action", "step": "step", "verdict": "verdict", "before": "loss", "delivered": "decrease"}
    table = records.table(rows[-ROWS:], {**columns, "cost": "gradients"})
    return Shown(
        table, path.parent, lambda target: render.write(pages.of_run(rows, told, {"command": None}), target),
        lambda target: export.to_csv(rows, target),
    )  # fmt: skip


def _any(content: Mapping[str, Any], folder: Path) -> Shown:
    """Results of a kind that nobody knows here: what numbers and words there are."""
    rows = [scalars(row) for row in content["rows"] if isinstance(row, dict)]
    if not rows:
        raise ArchiveError(f"{folder} is not a comparison, nor a fit, and has no rows that are tables.")
    names = list({name: None for row in rows for name in row})
    table = records.table(rows[:ROWS], {name: name for name in names[:COLUMNS]})
    cut = [f"{len(rows) - ROWS} more rows"] if len(rows) > ROWS else []
    cut += [f"{len(names) - COLUMNS} more columns"] if len(names) > COLUMNS else []
    table += f"\n({' and '.join(cut)}: --html or --csv)" if cut else ""
    return Shown(
        table, folder, lambda target: render.write(results.page(content, folder), target),
        lambda target: export.to_csv(rows, target),
    )  # fmt: skip


def _require(baseline: str | None, known: Sequence[str], why: str) -> None:
    if baseline is not None and baseline not in known:
        there = ", ".join(printable(name) for name in known[:9])
        raise InputError(f"baseline {printable(baseline)!r} is no contender; there are {there or f'none: {why}'}.")
