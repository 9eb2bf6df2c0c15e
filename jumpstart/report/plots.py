"""Figures. Measuring is not drawing: everything here is drawn from records, and matplotlib is optional."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import JumpstartError

if TYPE_CHECKING:
    pass

# Okabe & Ito's palette, told apart by people who do not see all colours.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        JumpstartError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise JumpstartError("figures need matplotlib: pip install 'jumpstart[plots]'.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    return plt


def history(rows: list[dict[str, Any]]) -> Any:
    """Loss, best loss and error of a fit against seconds."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.8, 3.2))
    for key, colour in (("loss", COLOURS[1]), ("error", COLOURS[0])):
        found = [(row["seconds"], row[key]) for row in rows if row.get(key) is not None and row[key] > 0]
        if found:
            axis.plot(*zip(*found, strict=True), color=colour, label=key, linewidth=1.4)
    axis.set(xlabel="seconds", yscale="log")
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.legend(frameon=False)
    figure.tight_layout()
    return figure


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure and close it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    pyplot().close(figure)
    return target
