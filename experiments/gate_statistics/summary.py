"""Tables and a picture of what was measured, and what docs/gates.md says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jumpstart.report import plots
from jumpstart.report.records import Row

from ..common import legend_below
from ..pages import machine, markdown
from .rates import SIGNALS

SOURCES = {"gaussian": "Gaussian", "network": "network"}
COLUMNS = {"form": "", "batch": "b", "signal": "signal", "closed form": "closed form", **SOURCES}
CASES = {
    "case": "", "without signal": "open without a signal", "open": "open in the run",
    "open at first": "at its first step", "train accuracy": "accuracy on wrong labels", "held accuracy": "held out",
    "norm": "weights' norm", "steps": "steps",
}  # fmt: skip


def rates(rows: Sequence[Row]) -> list[Row]:
    """A line for each form, batch and signal; means over seeds."""
    kept = [row for row in rows if row["part"] == "rates"]
    found: list[Row] = []
    for key in dict.fromkeys((row["form"], row["batch"], row["signal"]) for row in kept):
        same = [row for row in kept if (row["form"], row["batch"], row["signal"]) == key]
        line: Row = {"form": key[0], "batch": key[1], "signal": key[2], "closed form": same[0]["closed form"]}
        for source in SOURCES:
            line[source] = mean(row["open"] for row in same if row["source"] == source)
        found.append(line)
    return found


def wide(lines: Sequence[Row]) -> list[Row]:
    """A line for each form and batch: false-open at no signal, false-closed at the others, each thrice."""
    found: list[Row] = []
    for key in dict.fromkeys((line["form"], line["batch"]) for line in lines):
        row: Row = {"form": key[0], "batch": key[1]}
        for line in (line for line in lines if (line["form"], line["batch"]) == key):
            of = [line[name] for name in ("closed form", *SOURCES)]
            wrong = of if line["signal"] == 0 else [None if v is None else 1 - v for v in of]
            row[f"signal {line['signal']:g}"] = " / ".join("–" if v is None else percent(v) for v in wrong)
        found.append(row)
    return found


def percent(share: float) -> str:
    """Two digits, and nothing below a millionth."""
    if share < 1e-6:
        return "0%"
    return f"{100 * share:.0f}%" if share >= 0.0995 else f"{100 * share:.2g}%"


def traps(rows: Sequence[Row]) -> list[Row]:
    """A line a case; means over seeds."""
    kept = [row for row in rows if row["part"] == "traps"]
    found: list[Row] = []
    for case in dict.fromkeys(row["case"] for row in kept):
        same = [row for row in kept if row["case"] == case]
        found.append({"case": case, **{key: mean(row[key] for row in same if key in row)
                                       for key in CASES if key != "case"}})  # fmt: skip
    for line in found:
        line["steps"] = None if line["steps"] is None else int(line["steps"])
    return found


def mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def farthest(lines: Sequence[Row], source: str) -> tuple[float, Row]:
    """The largest distance from the closed form, and where."""
    known = [line for line in lines if line[source] is not None]
    at = max(known, key=lambda line: abs(line[source] - line["closed form"]))
    return abs(at[source] - at["closed form"]), at


def says(lines: Sequence[Row]) -> str:
    """How far the closed form holds."""
    parts = []
    for source, name in (("gaussian", "Gaussian samples"), ("network", "a network's gradients")):
        if any(line[source] is not None for line in lines):
            off, at = farthest(lines, source)
            parts.append(f"on {name} by at most {off:.2g} ({at['form']}, b = {at['batch']}, signal {at['signal']:g})")
    return f"Shares of open gates differ from the closed form {', '.join(parts)}."


def page(content: Mapping[str, Any]) -> str:
    """For docs/gates.md: rates, and each mistake by itself."""
    settings = content["settings"]
    heads = {"form": "", "batch": "b", "signal 0": "no signal, yet open", **{
        f"signal {s:g}": f"signal {s:g}, yet shut" for s in SIGNALS[1:]}}  # fmt: skip
    return "\n\n".join(
        (
            "Signal: |μ| of one batch's mean gradient in that mean's own standard deviation, σ/√b. Each cell: closed "
            "form (`js.gating.open_rate`) / the optimizer on Gaussian samples / on the per-sample gradients of a "
            f"trained digits network, centred, batches drawn with replacement. {settings['says']}",
            markdown(wide(settings["rates"]), heads),
            "![shares of open gates against the signal](results/gate_statistics/gate_statistics.png)",
            "A readable reference with one mistake at a time (`experiments/gate_statistics/reference.py`): gates on "
            f"noise alone, and {settings['epochs']} epochs on digits, {100 * settings['noise']:.0f}% of labels wrong, "
            f"rate {settings['rate']:g}; means of {len(content['environment']['seeds'])} seeds:",
            markdown(settings["traps"], CASES),
            f"<sub>{machine(content)}</sub>",
        )
    )


def picture(lines: Sequence[Row]) -> Any:
    """Open gates against the signal, a panel a batch size: lines closed form, circles Gaussian, crosses the network."""
    batches = list(dict.fromkeys(line["batch"] for line in lines))
    figure, axes = plots.pyplot().subplots(
        1, len(batches), figsize=(2.9 * len(batches), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, batch in zip(axes[0], batches, strict=True):
        for colour, form in zip(plots.COLOURS, dict.fromkeys(line["form"] for line in lines), strict=False):
            here = [line for line in lines if line["batch"] == batch and line["form"] == form]
            x = [line["signal"] for line in here]
            style = "--" if form.startswith("streaming") else "-"  # both are seen where they agree
            axis.plot(x, [line["closed form"] for line in here], style, color=colour, label=form, linewidth=1.4)
            for source, mark in zip(SOURCES, "ox", strict=True):
                known = [(line["signal"], line[source]) for line in here if line[source] is not None]
                axis.plot(*zip(*known, strict=True), mark, color=colour, markersize=4, fillstyle="none")
        for told, mark in zip(SOURCES.values(), "ox", strict=True):
            axis.plot([], [], mark, color="grey", markersize=4, fillstyle="none", label=f"measured: {told}")
        axis.set(xlabel="signal, |μ|√b/σ", title=f"batches of {batch}")
    axes[0][0].set_ylabel("share of gates open")
    legend_below(figure, 7)
    return figure
