"""Rows of a few-shot run, told: means by shots, and how often somebody is below the logistic head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jumpstart.report.records import Row

from ..pages import machine, markdown
from .contenders import CONTENDERS, LOGISTIC

MARGIN = 0.01  # of accuracy, about two standard errors of the difference of near contenders on 400 texts
COLUMNS = {
    "shots": "a class", "contender": "", "runs": "runs", "accuracy": "accuracy", "against": "less logistic",
    "error": "± s.e.", "below": "> 1% below", "above": "> 1% above", "loss": "test loss",
    "promised": "promised", "not carried": "not carried", "seconds": "CPU s",
}  # fmt: skip


def differences(rows: Sequence[Row], name: str, shots: int | None = None) -> np.ndarray:
    """A contender's accuracies less those of the logistic head on the same samples."""
    table = {(r["task"], r["shots"], r["seed"], r["contender"]): r["accuracy"] for r in rows}
    return np.array([
        accuracy - table[task, count, seed, LOGISTIC]
        for (task, count, seed, who), accuracy in table.items()
        if who == name and shots in (None, count)
    ])  # fmt: skip


def summary(rows: Sequence[Row]) -> list[Row]:
    """A line a contender and number of shots, means over tasks and seeds."""
    found: list[Row] = []
    for count in sorted({row["shots"] for row in rows}):
        for name in CONTENDERS:
            own = [row for row in rows if (row["shots"], row["contender"]) == (count, name)]
            found.append({"shots": count, "contender": name, **_line(own, differences(rows, name, count))})
    return found


def by_task(rows: Sequence[Row]) -> list[Row]:
    """A line a task: mean accuracies of everybody over shots and seeds."""
    return [
        {
            "task": task,
            **{
                name: float(np.mean([r["accuracy"] for r in rows if (r["task"], r["contender"]) == (task, name)]))
                for name in CONTENDERS
            },
        }
        for task in dict.fromkeys(row["task"] for row in rows)
    ]


def goals(rows: Sequence[Row]) -> list[Row]:
    """Never below the logistic head beyond noise, and above it somewhere: means, and single runs."""
    found: list[Row] = []
    for name in ("head", "head, then network"):
        off = differences(rows, name)
        error = float(off.std(ddof=1) / np.sqrt(len(off))) if len(off) > 1 else float("nan")
        moved = [row for row in rows if row["contender"] == name and row.get("horizon", 0.0) > 0]
        says = (
            f"{name}: {100 * off.mean():+.2f} ± {100 * error:.2f} points of accuracy against the logistic head over "
            f"{len(off)} runs, worst {100 * off.min():+.1f}, best {100 * off.max():+.1f}"
        )
        if name != "head":
            says += f"; the second stage was taken in {len(moved)}"
        found.append({"contender": name, "mean": float(off.mean()), "error": error, "says": f"{says}."})
    return found


def section(content: Mapping[str, Any]) -> str:
    """For docs/benchmarks.md."""
    rows = content["rows"]
    tasks = markdown(by_task(rows), {"task": "accuracy", **{name: name for name in CONTENDERS}})
    said = "\n".join(f"- {line['says']}" for line in content["settings"]["goals"])
    return (
        f"{markdown(content['settings']['summary'], COLUMNS)}\n\nBy task, means over shots and seeds:\n\n{tasks}\n\n"
        f"{said}\n\n*Promised* is what a contender says of itself: leave-one-out, or the loss of the samples that it "
        "held out; *not carried* what leave-one-out of the second stage would have said without knowing that the head "
        f"has seen the samples.\n\n<sub>{machine(content)}</sub>"
    )


def _line(own: Sequence[Row], off: np.ndarray) -> Row:
    return {
        "runs": len(own), "against": float(off.mean()),
        "error": float(off.std(ddof=1) / np.sqrt(len(off))) if len(off) > 1 else None,
        "below": int((off < -MARGIN).sum()), "above": int((off > MARGIN).sum()),
        **{key: _mean(own, key) for key in ("promised", "not carried")},
        **{key: float(np.mean([row[key] for row in own])) for key in ("accuracy", "loss", "seconds")},
    }  # fmt: skip


def _mean(rows: Sequence[Row], key: str) -> float | None:
    """Of what not everybody has."""
    found = [row[key] for row in rows if key in row]
    return float(np.mean(found)) if found else None
