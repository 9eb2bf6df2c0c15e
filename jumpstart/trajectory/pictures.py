"""Operators to look at: what has been learned, where the gradient lies, and how the kernel turned; a sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InputError
from ..report import plots
from .operators import TOLERANCE, Operators

TINY = 1e-16  # shares below are not drawn


def picture(records: Operators | Sequence[Operators], tolerance: float = TOLERANCE) -> Any:
    """Three panels of one record, or of several of one run, the earliest first.

    Args:
        records: one or several. tolerance: between channel and reservoir, as in :meth:`Operators.channel`.

    Raises:
        InputError: there is no record. MissingPackageError: matplotlib is not installed.
    """
    found = [records] if isinstance(records, Operators) else list(records)
    if not found or not all(isinstance(record, Operators) for record in found):
        raise InputError("picture: give operators of a Recorder, or a list of them.")
    with plots.panels(3, 4.2, 4.0) as (figure, (first, second, third)):
        for i, record in enumerate(found):
            colour = plots.COLOURS[i % len(plots.COLOURS)]
            values = record.spectrum.clamp_min(0).tolist()
            first.plot(range(1, len(values) + 1), values, ".-", color=colour, lw=1, label=f"t = {record.time:.3g}")
        last = found[-1]
        first.axhline(tolerance * float(last.spectrum[0]), color="0.6", lw=0.8, ls="--")
        first.set(yscale="log", xlabel="mode", ylabel="eigenvalue of W_S")
        r, k = last.rank(tolerance), len(last.spectrum)
        first.legend(frameon=False, fontsize=8)
        _told(
            first, "Spectrum", f"{r} of {k} directions are the signal channel (above the line); the rest is reservoir."
        )

        a = last.coordinates(last.gradient)
        shares = (last.modes.T @ a).square() / a.square().sum()
        inside = float(shares[:r].sum())
        parts = [(range(1, r + 1), shares[:r], "channel"), (range(r + 1, k + 1), shares[r:], "reservoir")]
        for (x, y, name), colour in zip(parts, plots.COLOURS[2:0:-1], strict=True):
            if len(y):
                second.plot(x, y.clamp_min(TINY).tolist(), "o", ms=3, color=colour, label=name)
        second.set(yscale="log", xlabel="mode", ylabel="share of the gradient's energy")
        second.legend(frameon=False, fontsize=8)
        _told(second, "Where the gradient lay", f"{inside:.1%} of the start's gradient lies in the channel.")

        _turned(third, found, tolerance)
        figure.tight_layout()
    return figure


def _turned(axis: Any, found: Sequence[Operators], tolerance: float) -> None:
    """How the channel of each record lies to that of the last one."""
    last = found[-1].channel(tolerance)
    overlaps, times = [], []
    for record in found:
        own = record.channel(tolerance)
        if min(own.shape[1], last.shape[1]):
            cosines = torch.linalg.svdvals(own.T @ last)
            overlaps.append(float(cosines.square().mean()))
            times.append(record.time)
    axis.plot(times, overlaps, "o-", color=plots.COLOURS[0], lw=1)
    axis.set(xlabel="flow time", ylabel="mean cos² of principal angles", ylim=(0, 1.05))
    text = "One record: nothing to compare." if len(times) < 2 else (
        f"At t = {times[0]:.3g} the channel lay {_degrees(overlaps[0]):.0f}° from where it is at the end."
    )  # fmt: skip
    _told(axis, "How the channel turned", text)


def _degrees(overlap: float) -> float:
    return math.degrees(math.acos(math.sqrt(min(1.0, max(0.0, overlap)))))


def _told(axis: Any, title: str, sentence: str) -> None:
    axis.set_title(title, fontsize=10)
    words, lines = sentence.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 52:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    axis.text(0.5, -0.2, "\n".join(lines), transform=axis.transAxes, ha="center", va="top", fontsize=8)
