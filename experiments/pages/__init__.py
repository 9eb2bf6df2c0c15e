"""What pages made from results share: tables, and a line on where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jumpstart.report import records

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
UNMEASURED = "Not measured yet: `python -m experiments.{name} --no-progress --out docs/results/{name}`."


def measured(name: str) -> dict[str, Any] | None:
    """An experiment's results; None where there are none yet."""
    return records.read(RESULTS / name) if (RESULTS / name / records.NAME).is_file() else None


def told(name: str, page: Callable[[dict[str, Any]], str], command: str | None = None) -> str:
    """An experiment's page from its results; says so where there are none, and which command makes them."""
    content = measured(name)
    if content is not None:
        return page(content)
    usual = UNMEASURED.replace("experiments.{name}", f"experiments.{name.replace('/', '.')}").format(name=name)
    return usual if command is None else f"Not measured yet: `{command}`."


def markdown(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> str:
    """A table in Markdown; floats with three digits; without ``columns`` all of them."""
    heads = columns or {key: key for row in rows for key in row}
    lines = ["| " + " | ".join(heads.values()) + " |", "|" + "|".join(" --- " for _ in heads) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(records.show(row.get(key)) for key in heads) + " |")
    return "\n".join(lines)


def machine(content: Mapping[str, Any]) -> str:
    """Where and from what a results file comes, in a line."""
    found = content["environment"]
    seeds = ", ".join(map(str, found["seeds"]))
    return (
        f"`{content['command']}`, commit {found['commit']}, {found['machine']}, torch {found['torch']}, seeds {seeds}"
    )


def rough(value: float) -> str:
    """Two digits, as prose says it: 1.4, 14, 2,300."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"
