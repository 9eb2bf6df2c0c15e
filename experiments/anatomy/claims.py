"""What an account says before the runs, with the number that refutes it, and what was so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import scipy.stats
import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row

from ..common import Arguments
from ..pages import machine, markdown


@dataclass(frozen=True)
class Claim:
    """What the account says, written before the run, and the number at which it is refuted."""

    name: str
    says: str
    least: float = -math.inf
    most: float = math.inf

    def told(self) -> Row:
        """For the results: the claim and its limits."""
        limits = [
            f"{word} {value:g}" for word, value in (("below", self.least), ("above", self.most)) if math.isfinite(value)
        ]
        return {"claim": self.name, "says": self.says, "refuted if": " or ".join(limits)}


def judged(claims: Sequence[Claim], measured: Mapping[str, float]) -> list[Row]:
    """A line for each claim; what is no number has not held."""
    found = []
    for claim in claims:
        value = measured[claim.name]
        held = claim.least <= value <= claim.most
        found.append({**claim.told(), "measured": value, "verdict": "held" if held else "refuted"})
    return found


def concluded(
    name: str, asked: Arguments, about: Row, rows: list[Row], seeds: Sequence[int], verdicts: list[Row],
    summary: list[Row], columns: Mapping[str, str], picture: Callable[[list[Row]], Any],
    heads: Mapping[str, str] | None = None, note: str = "",
) -> None:  # fmt: skip
    """The end of an experiment with an account: results written, both tables printed, and the picture drawn.

    Args:
        about: settings besides "quick", "verdicts" and "summary". heads: of the verdicts' table. note: printed as well.
    """
    settings = {"quick": asked.quick, **about, "verdicts": verdicts, "summary": summary}
    path = records.write(asked.out, name, settings, rows, seeds)
    print(records.table(summary, columns), records.table(verdicts, VERDICT if heads is None else heads), sep="\n\n")
    _, trouble = plots.drawn(lambda: picture(rows), asked.out / f"{name}.png")
    print("\n".join([*filter(None, [trouble, note]), f"written: {path}"]))


VERDICT = {"claim": "claim", "refuted if": "refuted if", "measured": "measured", "verdict": "verdict"}


def told(content: Row, columns: Mapping[str, str], *of: str) -> str:
    """What docs say of an experiment: verdicts, ``of`` what besides, and its table."""
    settings = content["settings"]
    heads = {key: key for key in of} | {"says": "the account says"} | VERDICT
    parts = (markdown(settings["verdicts"], heads), markdown(settings["summary"], columns), settings.get("left out"))
    return "\n\n".join([*filter(None, parts), f"<sub>{machine(content)}</sub>"])


def ranked(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    return float(scipy.stats.spearmanr(first, second).statistic)  # type: ignore[attr-defined]


def banded(axis: Any, rows: Sequence[Row], x: str, y: str | Callable[[Row], float], **style: Any) -> None:
    """The median over seeds as a line, and their range as a band."""
    value = y if callable(y) else lambda row: row[y]
    places = sorted({row[x] for row in rows})
    groups = [torch.tensor([float(value(row)) for row in rows if row[x] == at]) for at in places]
    axis.plot(places, [float(torch.quantile(g, 0.5)) for g in groups], **style)
    low, high = ([float(end(g)) for g in groups] for end in (torch.min, torch.max))
    axis.fill_between(places, low, high, color=style.get("color"), alpha=0.15, linewidth=0)
