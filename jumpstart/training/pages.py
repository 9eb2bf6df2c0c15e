"""A page to look at: of the jumps of a wrapped loop, from its optimizer or from the lines that ``JsonLines`` wrote."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import ArchiveError
from ..jumping.trust import Outcome
from ..report import checked, jumps, records
from ..report.names import printable
from ..report.page import parts
from ..report.page.model import Chart, Curve, Page, Section
from ..report.records import Row
from ..skipping.result import SkipOutcome
from .proposals.result import ProposalOutcome

ACROSS = {"step": "effective steps", "taken": "steps taken", "seconds": "seconds"}
OUTCOMES: tuple[type[enum.Enum], ...] = (SkipOutcome, Outcome, ProposalOutcome)


def of_run(rows: Sequence[Row], told: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> Page:
    """Losses at jumps, steps saved, every jump; ``told`` are the run's counts.

    The loop is its owner's: what is known of the loss is what jumps measured.
    """
    known = {key: label for key, label in ACROSS.items() if any(row.get(key) is not None for row in rows)}
    charts: list[Any] = []
    if rows:
        points = {key: [row.get(key) for row in rows] for key in known}
        losses = {**points, "loss": [row.get("before") for row in rows]}
        charts = [
            Chart("Loss of the objective when a jump was tried", "loss", "loss", known,
                  [Curve("before each jump", losses, jumps=parts.marks(rows))],
                  note="Circles are jumps that were kept, crosses those that were refused."),
            Chart("Steps that were not taken", "skipped", "steps skipped", known,
                  [Curve("skipped so far", {**points, "skipped": [row.get("skipped so far") for row in rows]})]),
        ]  # fmt: skip
    here = about or {"environment": records.environment(), "command": records.command()}
    lead = [f"{printable(name)}: {printable(value)}" for name, value in told.items()]
    lead = [", ".join(lead) + "."] if rows else [", ".join(lead) + ".", "No jump was tried."]
    return Page(
        "Jumps of a wrapped loop", lead,
        [Section("Along the loop", charts), *parts.jumps(rows, known), parts.about({**here, "settings": told})],
    )  # fmt: skip


def lines(path: str | Path) -> list[Row]:
    """Rows about jumps from a file of :class:`jumpstart.JsonLines`, of unknown origin.

    Raises:
        ArchiveError: it cannot be read, or a line is of no jump; says which.
    """
    try:
        if (size := Path(path).stat().st_size) > records.LARGEST:
            raise ArchiveError(f"{path} has {size:,} bytes: files of up to {records.LARGEST:,} are read.")
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"{path} cannot be read ({error}): give a file that js.JsonLines wrote.") from error
    return [_line(line, f"{path}, line {k}") for k, line in enumerate(text.splitlines(), 1) if line.strip()]


def _line(text: str, where: str) -> Row:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{where} is no JSON ({error}): give a file that js.JsonLines wrote.") from error
    named = isinstance(found, dict) and isinstance(found.get("mode"), str) and isinstance(found.get("outcome"), str)
    kinds = [kind for kind in OUTCOMES if named and found["outcome"] in kind.__members__]
    counts = named and all(checked.number(found.get(key)) for key in ("taken", "skipped"))
    if not kinds or not counts:
        raise ArchiveError(f"{where} is of no jump: {printable(text)}. Give a file that js.JsonLines wrote.")
    taken, skipped = found["taken"], found["skipped"]
    outcome: Any = kinds[0][found["outcome"]]
    told = {"outcome": outcome, "accepted": outcome.accepted, "cause": str(found.get("cause", ""))}
    result = SimpleNamespace(**{**found, **told})
    for key, value in found.items():
        if value is None:
            setattr(result, key, math.nan)
    counted = {"step": taken + skipped, "taken": taken, "skipped so far": skipped}
    return jumps.row("run", found["mode"], result, **counted)
