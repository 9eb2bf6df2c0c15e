"""Whole runs at equal effective steps: a user's loop as it is, and the same loop in a wrapper that skips.

Beside them, the bare loop from weights nudged a little: how far a run of that problem is thrown off by next to nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from jumpstart.report.records import Row

from ..random_problems.problems import Problem
from ..random_problems.runs import NUDGE, Finished, Run, bare, wrapped
from ..random_problems.tables import tried

LENGTHS, TOY = (100, 200, 400), (60,)
BARE, AUTO, TWENTY, NUDGED = "bare", "skip='auto'", "skip=20", "bare, nudged"
ARMS: dict[str, dict[str, Any]] = {AUTO: {"skip": "auto"}, TWENTY: {"skip": 20}}


def measure(of: Problem, replica: int, steps: int) -> Row:
    """Losses and costs of all arms, from the same weights along the same minibatches."""
    arms: dict[str, Callable[[], Finished]] = {BARE: lambda: bare(of, steps, replica)}
    for arm, options in ARMS.items():
        arms[arm] = lambda options=options: wrapped(of, steps, replica, **options)
    arms[NUDGED] = lambda: bare(of, steps, replica, nudge=NUDGE)
    order = list(arms)
    random.Random(of.number + replica).shuffle(order)
    found: dict[str, Row] = {arm: tried(arms[arm]) for arm in order}
    start = Run.start(of, replica).losses()
    return {
        **of.told, "replica": replica, "length": steps, "start": asdict(start),
        "arms": {arm: found[arm] for arm in arms},
    }  # fmt: skip
