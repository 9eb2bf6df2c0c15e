"""A page to look at: of a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..jumping.trust import Outcome
from ..report import records
from ..report.page import parts
from ..report.page.model import Chart, Curve, Page, Section
from ..report.records import Row

ACROSS = {"seconds": "seconds", "gradient_evaluations": "gradient evaluations", "step": "jumps"}
LOSSES = {"best": "best so far", "loss": "where it is", "unseen": "on other points"}


def of_fit(result: Any, about: Mapping[str, Any]) -> Page:
    """Of a :class:`jumpstart.FitResult`: losses and error, every jump, the spectrum along the way, residuals,
    and where it was measured.
    """
    rows = [{**row, "step": row["jump"]} for row in result.history]
    jumps = [_jump(row, before) for row, before in zip(rows, [None, *rows], strict=False)]
    charts = [
        Chart(
            "Loss along the fit", "value", "loss", ACROSS,
            [
                Curve(name, _columns(rows, key), jumps=parts.marks(jumps, "value") if key == "loss" else {})
                for key, name in LOSSES.items()
                if any(row.get(key) is not None for row in rows)
            ],
            note="Circles are jumps that were kept, crosses those that were refused. On the way the loss may rise.",
        )
    ]  # fmt: skip
    if any(row.get("error") is not None for row in rows):
        charts.append(Chart("Error along the fit", "value", "error", ACROSS, [Curve("error", _columns(rows, "error"))]))
    here = about or {"environment": records.environment(), "command": records.command()}
    told = {
        "outcome": result.outcome.name, "start": result.start, "loss": result.loss, "error": result.error,
        "loss on other points": result.generalization, "jumps": result.jumps, "accepted": result.accepted,
        "restarts": result.restarts, "seconds": result.seconds, "gradient evaluations": result.gradient_evaluations,
    }  # fmt: skip
    return Page(
        "fit", [str(result), *result.notes],
        [
            Section("Curves", charts), *parts.jumps(jumps, ACROSS), *parts.residuals(result.residuals),
            parts.about({**here, "settings": told}),
        ],
    )  # fmt: skip


def _jump(row: Row, before: Row | None) -> Row:
    """A row of the history as a row about a jump; fits of versions before say less."""
    outcome, earlier = Outcome[row["outcome"]], before or {"gradient_evaluations": 0.0, "seconds": 0.0}
    start, predicted, actual = (row.get(key) for key in ("before", "predicted", "actual"))
    return {
        **row, "who": "fit", "action": row["stage"].lower(), "verdict": "kept" if outcome.accepted else "refused",
        "accepted": outcome.accepted, "promised": _less(start, predicted), "delivered": _less(start, actual),
        "after": row["loss"], "why": outcome.value, "horizon": _less(row.get("horizon"), 0.0),
        "cost": row["gradient_evaluations"] - earlier["gradient_evaluations"],
        "spent": row["seconds"] - earlier["seconds"],
    }  # fmt: skip


def _less(a: float | None, b: float | None) -> float | None:
    found = math.nan if a is None or b is None else a - b
    return None if math.isnan(found) else found


def _columns(rows: Sequence[Row], key: str) -> dict[str, list[float | None]]:
    """A column that was measured now and then, where it was."""
    there = [row for row in rows if row.get(key) is not None]
    return {**{axis: [row[axis] for row in there] for axis in ACROSS}, "value": [row[key] for row in there]}
