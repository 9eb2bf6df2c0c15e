"""Figures. Measuring is not drawing: everything here is drawn from records, and matplotlib is optional."""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingPackageError
from ..utils import files
from .names import printable

# Okabe & Ito's palette, told apart by people who do not see all colours.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLE: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "text.usetex": False}
MISSING = "figures need matplotlib: pip install 'jumpstart[plots]'."


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files; for experiments, whose process is their own.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    with _needed():
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    plt.rcParams.update(STYLE)
    return plt


@contextlib.contextmanager
def panels(count: int, width: float, height: float) -> Iterator[tuple[Any, Sequence[Any]]]:
    """A figure of panels in a row, and these; the user's backend and style are left alone.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    with _needed():
        import matplotlib
        from matplotlib.figure import Figure
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * count, height))
        yield figure, figure.subplots(1, count, squeeze=False)[0]


def mark_jumps(axis: Any, at: Sequence[float], values: Sequence[float], kept: Sequence[bool], colour: str) -> None:
    """Jumps on a curve: a dot for each that was kept, a cross for each that was refused."""
    for accepted, marker in ((True, "o"), (False, "x")):
        chosen = [(x, y) for x, y, ok in zip(at, values, kept, strict=True) if ok is accepted and math.isfinite(y)]
        if chosen:
            axis.plot(*zip(*chosen, strict=True), marker, color=colour, markersize=3.5, label="_", gid="jumps")


KEPT = ("ACCEPTED", "CLIMBED")  # outcomes of a history's jumps that moved the weights
NAMES = {"unseen": "loss on other points"}  # of what a history holds, in a legend


def history(rows: list[dict[str, Any]]) -> Any:
    """Loss, loss on points never trained on, and error of a fit against seconds."""
    with panels(1, 4.8, 3.2) as (figure, (axis,)):
        shown: list[float] = []
        for key, colour in (("loss", COLOURS[1]), ("unseen", COLOURS[2]), ("error", COLOURS[0])):
            found = [(row["seconds"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
            if found:
                axis.plot(*zip(*found, strict=True), color=colour, label=NAMES.get(key, key), linewidth=1.4)
                shown += [value for _, value in found]
        done = [row for row in rows if "outcome" in row and row.get("loss") is not None]
        kept = [row["outcome"] in KEPT for row in done]
        mark_jumps(axis, [row["seconds"] for row in done], [row["loss"] for row in done], kept, COLOURS[1])
        if shown and min(shown) > 0:
            axis.set_yscale("log")
        axis.set_xlabel("seconds")
        axis.set_title("Loss along a fit (dots: jumps kept, crosses: refused)", fontsize=9)
        axis.grid(alpha=0.25, linewidth=0.5)
        if shown:
            axis.legend(frameon=False)
        figure.tight_layout()
    return figure


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure, whole or not at all, and close it; returns its path, which gets ".png" if it ends in nothing.

    Raises:
        InputError: the ending is of no picture, or the file cannot be written.
    """
    target = Path(path)
    target = target if target.suffix else target.with_name(f"{target.name}.png")
    known = figure.canvas.get_supported_filetypes()
    form = target.suffix[1:].lower()
    if form not in known:
        raise InputError(f"{path}: {target.suffix!r} is no picture that can be written; there are {sorted(known)}.")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=form)
    if "matplotlib.pyplot" in sys.modules:  # which keeps figures that it has made
        sys.modules["matplotlib.pyplot"].close(figure)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target) as file:
            file.write(picture.getvalue())
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise InputError(f"{path} cannot be written ({error}): give a path in a folder that can be.") from error
    return target


def drawn(make: Callable[[], Any], path: str | Path) -> tuple[Path | None, str]:
    """Draw a figure and save it beside a table, which is what counts: its path, or None and why there is none."""
    try:
        return save(make(), path), ""
    except MissingPackageError as error:
        return None, f"no figure: {error}"
    except Exception as error:  # a picture is no reason to lose the numbers
        return None, printable(f"no figure at {path}: {type(error).__name__}: {error}", 300)


@contextlib.contextmanager
def _needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(MISSING) from error
