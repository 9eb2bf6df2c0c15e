"""Lists of jumps and residuals from files of unknown origin: what a page draws is what it is, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ArchiveError
from .names import printable
from .records import Row

TEXT = ("who", "action", "verdict", "why")  # in every row of a jump
NUMBERS = (
    "before", "promised", "delivered", "after", "horizon", "cost", "spent", "step", "seconds", "gradient_evaluations",
    "skipped", "next_horizon", "max_rate", "trace", "modes",
)  # fmt: skip


def jumps(rows: Any, where: Path) -> list[Row]:
    """Rows of ``report.jumps``; none where the file has none.

    Raises:
        ArchiveError: a row is none; says which and why.
    """
    return _rows(rows, where, "jumps", _jump)


def residuals(rows: Any, where: Path) -> list[Row]:
    """Rows of residuals at points; none where the file has none.

    Raises:
        ArchiveError: a row is none; says which and why.
    """
    return _rows(rows, where, "residuals", _residual)


def number(value: Any) -> bool:
    """Whether this is a number that a page can draw or leave a gap for."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and not (isinstance(value, int) and abs(value) > 2**53)


def _rows(rows: Any, where: Path, name: str, wrong: Callable[[Any], str]) -> list[Row]:
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise ArchiveError(f"{where}: {name} is {type(rows).__name__}, not a list of rows.")
    for k, row in enumerate(rows):
        if not isinstance(row, dict) or (trouble := wrong(row)):
            told = trouble if isinstance(row, dict) else f"is {row!r:.40}, no table"
            raise ArchiveError(f"{where}: row {k} of its {name} {told}.")
    return rows


def _jump(row: Row) -> str:
    for key in TEXT:
        if not isinstance(row.get(key), str):
            return f"says {key}={printable(row.get(key))!r}, which is no text"
    for key in NUMBERS:
        if row.get(key) is not None and not number(row[key]):
            return f"says {key}={printable(row[key])!r}, which is no number"
    return "" if isinstance(row.get("accepted"), bool) else "does not say whether it was accepted"


def _residual(row: Row) -> str:
    columns, values = row.get("points"), row.get("values")
    if not isinstance(row.get("term"), str) or not isinstance(row.get("who", ""), str) or not number(row.get("of")):
        return "names no term, or not of how many points"
    if not isinstance(values, list) or not all(map(number, values)):
        return "has no list of numbers under values"
    whole = isinstance(columns, list) and all(isinstance(c, list) and len(c) == len(values) for c in columns)
    if not whole or not all(number(v) for column in columns for v in column):  # type: ignore[union-attr]
        return "has points that do not match its values"
    return ""
