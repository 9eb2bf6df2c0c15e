"""What pictures of several experiments share: axes of ratios, and sorted values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

RATIOS = (0.1, 0.5, 0.9, 1.0, 1.1, 2.0, 10.0)


def ratio_axis(axis: Any) -> None:
    """An axis of log ratios, linear about 1 and logarithmic beyond, that says the ratios."""
    axis.axhline(0, color="0.6", linewidth=0.8, zorder=1)
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set_yticks([math.log(ratio) for ratio in RATIOS], [f"{ratio:g}×" for ratio in RATIOS])
    axis.minorticks_off()
    axis.grid(alpha=0.25, linewidth=0.5)


def ordered(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Shares of those that are smaller, and the values sorted; what is no number is left out."""
    found = sorted(value for value in values if not math.isnan(value))
    return [(i + 0.5) / len(found) for i in range(len(found))], found
