"""Pictures: miss against steps, cost against steps, held-out losses of whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jumpstart.report.plots import COLOURS, pyplot
from jumpstart.report.records import Row

from ..random_problems.pictures import ordered, ratio_axis
from ..random_problems.problems import OPTIMIZERS
from ..random_problems.tables import against, batch, median
from . import rivals
from .fidelity import LINE, SKIP
from .summary import ahead
from .whole_runs import ARMS, BARE, NUDGED

NAMES = {
    SKIP: "js.skip", LINE: "last update, repeated", rivals.FLOW: "frozen linearization (small perceptrons): flow",
    rivals.STATE: "… with momentum", rivals.MOMENTS: "… and moving second moments",
}  # fmt: skip
COLOUR = dict(zip(NAMES, (COLOURS[0], COLOURS[7], COLOURS[1], COLOURS[5], COLOURS[2]), strict=True))


def misses(found: Sequence[Row]) -> Any:
    """Median held-out miss against m where the skip took all steps, full batch, a panel an optimizer; shaded, the
    middle half of skips.
    """
    shown = [e for e in found if e["batch"] == "full" and "miss" in e and e["whole"]]
    names = [name for name in OPTIMIZERS if any(e["optimizer"] == name for e in shown)]
    across = min(4, len(names))
    figure, axes = pyplot().subplots(
        -(-len(names) // across), across, figsize=(2.6 * across, 2.3 * -(-len(names) // across) + 0.6),
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    handles: dict[str, Any] = {}
    for axis, name in zip(axes.flat, names, strict=False):
        for arm, label in NAMES.items():
            same = [e for e in shown if e["optimizer"] == name and e["arm"] == arm]
            curve = quantiles(same, "miss")
            if not curve:
                continue
            m, low, mid, high = zip(*curve, strict=True)
            ours = arm == SKIP
            (handles[label],) = axis.plot(
                m, mid, color=COLOUR[arm], linewidth=2.4 if ours else 1.2, zorder=3 if ours else 2,
                linestyle="-" if ours else "--", marker="o" if ours else None, markersize=3,
            )  # fmt: skip
            if ours:
                axis.fill_between(m, low, high, color=COLOUR[arm], alpha=0.18, linewidth=0)
        axis.axhline(1.0, color="0.8", linewidth=0.8, zorder=1)
        _steps(axis, shown)
        axis.set(yscale="log", ylim=(1e-3, 10), title=f"{name}, {_count(shown, name)} problems")
        axis.title.set_fontsize(8)
    for axis in axes[:, 0]:
        axis.set_ylabel("held-out miss")
    for axis in axes[-1]:
        axis.set_xlabel("steps skipped")
    figure.legend(handles.values(), handles, loc="lower center", ncol=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.15 if len(names) <= across else 0.1, 1, 1))
    return figure


def costs(found: Sequence[Row]) -> Any:
    """What it costs to come so many steps ahead, what is not skipped being stepped: evaluations, and seconds."""
    figure, axes = pyplot().subplots(1, 3, figsize=(9.6, 3.3))
    ours = [e | dict(zip(("cost", "time"), ahead(e), strict=True)) for e in found if e["arm"] == SKIP and "steps" in e]
    titles = {"full": "full batch", "minibatch": "minibatch; a skip sees all samples"}
    for axis, (way, title) in zip(axes, titles.items(), strict=False):
        shown = [e for e in ours if e["batch"] == way]
        for colour, name in zip(COLOURS, OPTIMIZERS, strict=False):
            _curve(axis, [e for e in shown if e["optimizer"] == name], "cost", colour, name)
        _even(axis, shown)
        axis.set(yscale="log", xlabel="steps ahead", ylabel="gradient evaluations, in steps", title=title)
    for colour, (way, title) in zip((COLOURS[6], COLOURS[7]), titles.items(), strict=True):
        _curve(axes[2], [e for e in ours if e["batch"] == way], "time", colour, title.split(";")[0])
    _even(axes[2], ours)
    axes[2].set(yscale="log", xlabel="steps ahead", ylabel="processor's seconds, in steps", title="all optimizers")
    for axis in axes:
        axis.title.set_fontsize(8)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def _curve(axis: Any, same: Sequence[Row], key: str, colour: str, label: str) -> None:
    """The median by number of steps."""
    if curve := quantiles(same, key):
        m, _, middle, _ = zip(*curve, strict=True)
        axis.plot(m, middle, color=colour, marker="o", markersize=3, label=label)


def runs(rows: Sequence[Row]) -> Any:
    """Training and held-out loss of wrapped runs over the bare run's, sorted; grey, bare runs from nudged weights."""
    ways = [way for way in ("full", "minibatch") if any(batch(row) == way for row in rows)]
    figure, axes = pyplot().subplots(
        len(ways), 2, figsize=(8.4, 2.9 * len(ways)), sharex=True, sharey=True, squeeze=False
    )
    for line, way in zip(axes, ways, strict=True):
        same = [row for row in rows if batch(row) == way]
        for side, axis in enumerate(line):
            at, values = ordered(_ratios(same, NUDGED, side))
            axis.fill_between(at, 0, values, color="0.85", linewidth=0, label=NUDGED)
            for colour, arm in zip(COLOURS, ARMS, strict=False):
                axis.plot(*ordered(_ratios(same, arm, side)), color=colour, linewidth=1.6, label=arm)
            ratio_axis(axis)
            name = ("training", "held-out")[side]
            axis.set_title(f"{name} loss, {'full batch' if way == 'full' else way} ({len(same)} problems)", fontsize=8)
        line[0].set_ylabel("loss over the bare run's")
    for axis in axes[-1]:
        axis.set_xlabel("share of problems, sorted")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _ratios(rows: Sequence[Row], arm: str, side: int) -> list[float]:
    return [
        against(row["arms"][arm], row["arms"][BARE], row["start"])[side]
        for row in rows
        if "error" not in row["arms"][arm]
    ]


def quantiles(same: Sequence[Row], key: str) -> list[tuple[int, float, float, float]]:
    """(m, lower quartile, median, upper quartile) for each number of steps."""
    found = []
    for m in sorted({e["asked"] for e in same}):
        values = [e[key] for e in same if e["asked"] == m]
        low, mid, high = (median(values, share) for share in (0.25, 0.5, 0.75))
        if low is not None and mid is not None and high is not None:
            found.append((m, low, mid, high))
    return found


def _count(found: Sequence[Row], name: str) -> int:
    return len({e["number"] for e in found if e["optimizer"] == name})


def _steps(axis: Any, found: Sequence[Row]) -> None:
    m = sorted({e["asked"] for e in found})
    axis.set_xscale("log", base=2)
    axis.set_xticks(m, [str(value) for value in m])
    axis.minorticks_off()
    axis.grid(alpha=0.25, linewidth=0.5)


def _even(axis: Any, found: Sequence[Row]) -> None:
    """The diagonal: as dear as taking the steps."""
    if found:
        _steps(axis, found)
        ends = [min(e["asked"] for e in found), max(e["asked"] for e in found)]
        axis.plot(ends, ends, color="0.6", linestyle="--", linewidth=1, zorder=1)
