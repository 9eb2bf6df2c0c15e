"""Sections that several kinds of pages have: jumps, the spectrum beside them, residual maps, environment, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..names import printable
from ..records import Row
from .model import DOTS, MAP, Chart, Curve, Picture, Section, Table

MAPS = 12  # of residuals that are drawn, at most
PICTURES = 8  # of a folder, at most
BYTES = 1_500_000  # of all of them
ACROSS = {"seconds": "seconds", "gradient_evaluations": "gradient evaluations", "step": "steps"}

# What a row about a jump holds (``report.jumps``), and what a table calls it.
JUMP = {
    "who": "run", "step": "step", "seconds": "seconds", "action": "action", "verdict": "verdict",
    "before": "loss before", "promised": "predicted decrease", "delivered": "actual decrease", "horizon": "horizon",
    "skipped": "steps skipped",    "cost": "cost (gradient evaluations)", "spent": "cost (seconds)", "why": "why",
}  # fmt: skip


def jumps(rows: Sequence[Row], across: Mapping[str, str] = ACROSS) -> list[Section]:
    """Every jump: a table, what was predicted against what came of it, and how far each went."""
    if not rows:
        return []
    by_who: dict[str, list[Row]] = {}
    for row in rows:
        by_who.setdefault(row["who"], []).append(row)
    known = {key: label for key, label in across.items() if any(_has(row, key) for row in rows)}
    wanted = [
        _promises(by_who),
        _over(known, by_who, "horizon", "How far each jump went", "horizon (flow time)"),
        _over(known, by_who, "next_horizon", "Trust: the horizon that the next search starts from", "flow time"),
    ]
    kept = sum(bool(row["accepted"]) for row in rows)
    table = Table("Every jump", {key: head for key, head in JUMP.items() if _said(rows, key)}, rows)
    found = [Section("Jumps", [*_there(wanted), table], f"{kept} of {len(rows)} jumps were kept.")]
    spectrum = [
        _over(known, by_who, "max_rate", "Largest rate of the kernel", "1 / flow time"),
        _over(known, by_who, "trace", "Sum of all rates of the kernel", "1 / flow time"),
    ]
    if len({row.get("modes") for row in rows}) > 2:  # one size is no picture
        spectrum.append(_over(known, by_who, "modes", "Numbers that answer for the linearized run", "modes"))
    if there := _there(spectrum):
        found.append(Section("Spectrum along the way", there, "As far as jumps learn it without further work."))
    return found


def _said(rows: Sequence[Row], key: str) -> bool:
    """Whether a column of jumps says anything."""
    return any(_has(row, key) or (isinstance(row.get(key), str) and row[key]) for row in rows)


def _promises(by_who: Mapping[str, Sequence[Row]]) -> Chart | None:
    """What was predicted of each jump against what came of it."""
    curves = [
        Curve(who, _columns(rows, ("promised", "delivered")),
              words=[f"jump at step {row.get('step')}: {row['verdict']}" for row in rows])
        for who, rows in by_who.items()
        if any(_has(row, "promised") for row in rows)
    ]  # fmt: skip
    if not curves:
        return None
    return Chart(
        "Actual decrease of the loss against the predicted one", "delivered", "actual decrease",
        {"promised": "predicted decrease"}, curves, kind=DOTS, diagonal=True,
        note="On the dotted line the linearization was right. A refused jump changed nothing.",
    )  # fmt: skip


def marks(rows: Sequence[Row], y: str = "loss") -> dict[str, list[Any]]:
    """Jumps as marks on a curve of the loss."""
    if not rows:
        return {}
    return {
        **_columns(rows, tuple(key for key in ACROSS if any(_has(row, key) for row in rows))),
        y: [row.get("after") for row in rows],
        "kept": [bool(row["accepted"]) for row in rows],
        "words": [
            f"{row['verdict']}: predicted decrease {_number(row.get('promised')):.3g}, "
            f"actual {_number(row.get('delivered')):.3g}"
            for row in rows
        ],
    }


def residuals(rows: Sequence[Row]) -> list[Section]:
    """Maps of residuals: rows of who, term, points (m, d) as columns, values."""
    charts: list[Any] = []
    told = []
    for row in rows:
        values = [_number(v) for v in row["values"]]
        finite = [v for v in values if math.isfinite(v)]
        worst = values.index(max(finite)) if finite else None
        who = f"{row['who']}, " if row.get("who") else ""
        told.append({
            "term": f"{who}{row['term']}", "points": row["of"],
            "rms": math.sqrt(sum(v * v for v in finite) / len(finite)) if finite else None,
            "largest": max(finite) if finite else None,
            "where": None if worst is None else ", ".join(f"{column[worst]:.4g}" for column in row["points"]),
        })  # fmt: skip
        more = f"{len(values)} of {row['of']} points." if row["of"] > len(values) else ""
        if len(row["points"]) == 2:
            points = {"x": row["points"][0], "y": row["points"][1], "value": values}
            charts.append(
                Chart(f"{who}{row['term']}: |residual| at its points", "y", "|residual|", {"x": "x"},
                      [Curve(f"{who}{row['term']}", points)], kind=MAP, group=row["term"], note=more)
            )  # fmt: skip
        elif len(row["points"]) == 1:
            order = sorted(range(len(values)), key=lambda i, row=row: row["points"][0][i])
            points = {"x": [row["points"][0][i] for i in order], "value": [values[i] for i in order]}
            charts.append(
                Chart(f"{who}{row['term']}: |residual| at its points", "value", "|residual|", {"x": "x"},
                      [Curve(f"{who}{row['term']}", points)], note=more)
            )  # fmt: skip
    if not told:
        return []
    left = f"{len(charts) - MAPS} more are not drawn." if len(charts) > MAPS else ""
    columns = {"term": "term", "points": "points", "rms": "root mean square", "largest": "largest", "where": "where"}
    return [Section("Residuals", [*charts[:MAPS], Table("Residuals by term, without weights", columns, told)], left)]


def about(content: Mapping[str, Any]) -> Section:
    """Where it was measured, and with which settings."""
    tables = []
    for key, title in (("environment", "Environment"), ("settings", "Settings")):
        found = content.get(key)
        rows = list(_flat(found)) if isinstance(found, Mapping) else []
        if rows:
            tables.append(Table(title, {"name": "name", "value": "value"}, rows))
    says = f"Made by: {content['command']}" if content.get("command") else ""
    return Section("Environment and settings", tables, says)


def pictures(folder: Path) -> tuple[list[Section], str]:
    """The pictures that lie beside results, and in words which are too many or too large to take."""
    found, size, left = [], 0, []
    for path in sorted(folder.glob("*.png")):
        if path.is_symlink() or not path.is_file():
            continue
        size += path.stat().st_size
        if len(found) >= PICTURES or size > BYTES:
            left.append(path.name)
            size -= path.stat().st_size
            continue
        found.append(Picture(path.stem.replace("_", " "), path.read_bytes()))
    said = f"Pictures that are left out, being too many or too large: {', '.join(left[:9])}." if left else ""
    return ([Section("Pictures", found)] if found else []), said


def _over(
    known: Mapping[str, str], by_who: Mapping[str, Sequence[Row]], key: str, title: str, label: str
) -> Chart | None:
    curves = [
        Curve(who, _columns(rows, (*known, key))) for who, rows in by_who.items() if any(_has(row, key) for row in rows)
    ]
    return Chart(title, key, label, known, curves) if curves and known else None


def _there(charts: Sequence[Any]) -> list[Any]:
    return [chart for chart in charts if chart is not None]


def _columns(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, list[float | None]]:
    return {key: [_number(row.get(key)) if row.get(key) is not None else None for row in rows] for key in keys}


def _has(row: Row, key: str) -> bool:
    return math.isfinite(_number(row.get(key)))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _flat(table: Mapping[str, Any], before: str = "") -> Any:
    for key, value in table.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value and len(name) < 200:
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, (list, tuple)) and len(value) > 20:
            yield {"name": name, "value": f"{len(value)} values"}
        else:
            yield {"name": name, "value": printable(value, 200) if not isinstance(value, float) else value}
