"""What is kept of a jump, whoever tried it: plain numbers, the verdict and why."""

from __future__ import annotations

import math
from typing import Any

from .records import Row


def row(who: str, action: str, result: Any, **where: Any) -> Row:
    """A row about a jump: losses before and after, decreases predicted and actual, horizon, cost, verdict and why.

    Args:
        result: a :class:`jumpstart.JumpResult`, a skip's or a proposal's: what it does not say is NaN.
        where: step, seconds and gradient_evaluations of the run when the jump was over, as far as they are known.
    """
    before = number(result, "before")
    predicted = number(result, "predicted", "proposed")
    actual = number(result, "actual")
    actual = before + number(result, "change") if math.isnan(actual) else actual
    after = [number(result, "training_before"), number(result, "training_actual")]  # without the penalty of decay
    if math.isnan(after[1]):
        after = [before, actual]
    found = {
        "who": who, "action": action, "verdict": "kept" if result.accepted else "refused",
        "accepted": bool(result.accepted), "outcome": result.outcome.name, "before": known(before),
        "promised": known(before - predicted), "delivered": known(before - actual),
        "after": known(after[1] if result.accepted else after[0]), "horizon": known(number(result, "horizon")),
        "cost": number(result, "gradient_evaluations"), "spent": number(result, "seconds"),
        "why": f"{result.outcome.value} {result.cause}".rstrip(), **where,
    }  # fmt: skip
    if hasattr(result, "windows"):  # a skip
        found["skipped"] = result.steps
    for key in ("max_rate", "trace", "modes"):
        if not math.isnan(value := number(result, key)):
            found[key] = value
    return found


def known(value: float) -> float | None:
    """None where nobody knows."""
    return None if math.isnan(value) else value


def number(result: Any, *names: str) -> float:
    """The first of these attributes that there is, as a number; NaN for none."""
    for name in names:
        value = getattr(result, name, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return math.nan
