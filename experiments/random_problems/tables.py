"""What tables of several experiments share: quantiles, ratios of losses, who failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from jumpstart.report.records import Row

from .runs import Finished, Losses

WORSE, TWICE = math.log(1.1), math.log(2.0)


def median(values: Iterable[float], share: float = 0.5) -> float | None:
    """The median, or another quantile, of what is a number; infinite values count. None if there is nothing."""
    found = sorted(value for value in values if not math.isnan(value))
    if not found:
        return None
    at = share * (len(found) - 1)
    low, high = found[math.floor(at)], found[math.ceil(at)]
    return low if low == high else low + (at - math.floor(at)) * (high - low)


def batch(row: Row) -> str:
    return "full" if row["batch"] == row["samples"] else "minibatch"


def against(mine: Row, plain: Row, start: Row) -> tuple[float, float]:
    """log ratios of training and held-out loss; NaN where the bare run diverged."""
    return Losses(**mine["losses"]).above(Losses(**plain["losses"]), Losses(**start))


def tried(make: Callable[[], Finished]) -> Row:
    """What a run left; what it raised, if it did: a fault of the library is a result."""
    try:
        return asdict(make())
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def faults(rows: Sequence[Row]) -> list[Row]:
    """What the library raised, how often, and of which problem first."""
    told: dict[str, dict[str, Any]] = {}
    for row in rows:
        for arm, results in row["arms"].items():
            for result in results if isinstance(results, list) else [results]:
                if "error" in result:
                    line = told.setdefault(result["error"], {"arm": arm, "first of problem": row["number"], "times": 0})
                    line["times"] += 1
    return [{**line, "error": error} for error, line in told.items()]
