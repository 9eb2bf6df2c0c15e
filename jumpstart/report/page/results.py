"""A page for a results.json of any kind: its rows as tables and charts, and the pictures that lie beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..names import printable
from ..records import Row
from . import parts
from .model import Chart, Curve, Page, Section, Table

COLUMNS = 40  # of a table
CHARTS = 12
LABELS = ("contender", "name", "variant", "method", "task")  # of a curve
AXES = ("seconds", "gradient_evaluations", "step", "steps", "epoch", "jump")


def page(content: Mapping[str, Any], folder: str | Path) -> Page:
    """What ``records.read`` gave, and the folder that it came from."""
    rows = [row for row in content["rows"] if isinstance(row, dict)]
    sections: list[Section] = []
    found, left = parts.pictures(Path(folder))
    if charts := _charts(rows):
        sections.append(Section("Curves", charts))
    told = content.get("settings")
    summary = _tables(told.get("summary") if isinstance(told, Mapping) else None)
    tables, more = _table(rows)
    sections += [*found, Section("Rows", [*summary, *tables], more), parts.about(content)]
    lead = [f"{len(rows)} rows.", *filter(None, [left])]
    if len(rows) < len(content["rows"]):
        lead.append(f"{len(content['rows']) - len(rows)} rows are no tables, and are left out.")
    return Page(str(content.get("experiment") or Path(folder).name), lead, [s for s in sections if s.items or s.says])


def scalars(row: Mapping[str, Any], before: str = "") -> Row:
    """Numbers and words of a row by name, those one table further in as well."""
    found: Row = {}
    for key, value in row.items():
        if isinstance(value, Mapping) and not before:
            found |= scalars(value, f"{key}: ")
        elif value is None or isinstance(value, (bool, int, float, str)):
            found[f"{before}{key}"] = value
    return found


def _table(rows: Sequence[Row], title: str = "All rows") -> tuple[list[Table], str]:
    plain = [scalars(row) for row in rows]
    names = list({name: None for row in plain for name in row})
    if not names:
        return [], "The rows hold lists alone, which are not shown." if rows else ""
    # What is named first says which row it is: words before numbers.
    words = [name for name in names if any(isinstance(row.get(name), str) for row in plain)]
    names = [*words, *(name for name in names if name not in words)]
    more = f"{len(names) - COLUMNS} more columns are left out." if len(names) > COLUMNS else ""
    return [Table(title, {name: printable(name) for name in names[:COLUMNS]}, plain)], more


def _tables(summary: Any) -> list[Table]:
    """A summary that an experiment keeps in its settings: a list of rows, or such lists by name."""
    if isinstance(summary, list) and all(isinstance(row, dict) for row in summary):
        return _table(summary, "Summary")[0]
    if isinstance(summary, dict):
        return [t for k, v in summary.items() if isinstance(v, list) and v for t in _tables_named(k, v)]
    return []


def _tables_named(name: str, rows: list[Any]) -> list[Table]:
    return _table(rows, f"Summary: {name}")[0] if all(isinstance(row, dict) for row in rows) else []


def _charts(rows: Sequence[Row]) -> list[Chart]:
    """Numbers along seconds, steps or the like, where rows follow one another; a curve for each name."""
    label = next((key for key in LABELS if any(key in row for row in rows)), None)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get(label, "")) if label else "all rows", []).append(row)
    axes = [key for key in AXES if _count(rows, key) > 1 and all(_rises(of, key) for of in groups.values())]
    if not axes or max(map(len, groups.values())) < 3:
        return []
    keys = [key for key in {key: None for row in rows for key in row} if key not in AXES and _count(rows, key)]
    return [
        Chart(f"{key} along the run", key, key, {axis: axis.replace("_", " ") for axis in axes},
              [_curve(name, of, (*axes, key)) for name, of in groups.items()])
        for key in keys[:CHARTS]
    ]  # fmt: skip


def _curve(name: str, rows: Sequence[Row], keys: Sequence[str]) -> Curve:
    return Curve(name, {key: [_plain(row.get(key)) for row in rows] for key in keys})


def _count(rows: Sequence[Row], key: str) -> int:
    return sum(_finite(row.get(key)) for row in rows)


def _rises(rows: Sequence[Row], key: str) -> bool:
    values = [row[key] for row in rows if _finite(row.get(key))]
    return all(a <= b for a, b in itertools.pairwise(values))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
