"""The picture: held-out loss against epochs, and along the frontier of training loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jumpstart.report import plots
from jumpstart.report.records import Row

from ..common import legend_below, plain_ticks
from .settings import ADAMW, GATES, REPORTED
from .summary import by_setting

COLOURS = (*plots.COLOURS[:6], "#7B3294")  # without the palette's black and grey, which are AdamW's


def middle(rows: Sequence[Row], key: str) -> np.ndarray:
    """Medians over seeds, look by look."""
    return np.median([row["curve"][key] for row in rows], axis=0)


def picture(rows: Sequence[Row]) -> Any:
    """A column for each task and noise: AdamW at all rates in grey, gates at the base rate in colour."""
    kept = [row for row in rows if row["part"] == REPORTED and row["noise"] > 0 and row["average"] is None]
    columns = list(dict.fromkeys((row["task"], row["noise"]) for row in kept))
    figure, axes = plots.pyplot().subplots(
        2, len(columns), figsize=(3.6 * len(columns), 6.4), squeeze=False, layout="constrained"
    )
    for (task, noise), (above, below) in zip(columns, axes.T, strict=True):
        here = [row for row in kept if (row["task"], row["noise"]) == (task, noise)]
        plain = by_setting(row for row in here if row["contender"] == ADAMW)
        for shade, setting in enumerate(sorted(plain, key=lambda s: s.factor)):
            for axis, key in ((above, "epoch"), (below, "train")):
                axis.plot(middle(plain[setting], key), middle(plain[setting], "held"), color=str(0.75 - 0.25 * shade),
                          linewidth=1.2, label=f"AdamW × {setting.factor:.2g}")  # fmt: skip
        for colour, who in zip(COLOURS, GATES, strict=True):
            mine = [row for row in here if row["contender"] == who and row["factor"] == 1]
            if mine:
                for axis, key in ((above, "epoch"), (below, "train")):
                    axis.plot(middle(mine, key), middle(mine, "held"), color=colour, linewidth=1.2, label=who)
        shown = [value for line in above.lines for value in line.get_ydata()[len(line.get_ydata()) // 4 :]]
        bounds = (0.95 * min(shown), 1.05 * max(shown))  # of later epochs: the first ones are all alike
        above.set(title=f"{task}, {noise:.0%} of labels wrong", xlabel="epoch", xscale="log", yscale="log", ylim=bounds)
        below.set(xlabel="training loss, falling", yscale="log", ylim=bounds)
        below.invert_xaxis()
        for axis in (above.xaxis, above.yaxis, below.yaxis):
            plain_ticks(axis)
    for axis, text in zip(axes[:, 0], ("along the run", "at equal training loss"), strict=True):
        axis.set_ylabel(f"held-out loss {text}")
    legend_below(figure, 4)
    return figure
