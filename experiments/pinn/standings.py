"""What the race for time budgets comes to: tables and a picture, from its rows."""

from __future__ import annotations

import itertools
import math
from typing import Any

from jumpstart.report import plots, records
from jumpstart.report.records import Row

from ..common import legend_below, spread
from ..pages import machine, markdown
from .courses import failed
from .entrants import CONTENDERS, JUMPS, RENEWED
from .equations import EVERY

# The aims of the race at the longest budget; median error.
GOALS = {
    "burgers": 1e-7, "kdv": 1e-6, "allen_cahn": 2e-6, "convection": 1e-5, "helmholtz": 1e-6, "lshape": 1e-4,
}  # fmt: skip
LONGEST = 300.0  # seconds that the aims are about
HEADS = {
    "problem": "problem", "budget": "seconds", "contender": "contender", "runs": "runs", "error": "error",
    "range": "of seeds", "lowest": "lowest on the way", "unseen": "loss on other points", "failed": "failed",
}  # fmt: skip
VERDICT = {
    "problem": "problem", "budget": "seconds", "jumps": "jumps", "rival": "best rival", "its error": "its error",
    "times below": "times below it", "failed": "jumps failed", "goal": "goal",
}  # fmt: skip


def standing(rows: list[Row]) -> list[Row]:
    """A line a problem, budget and contender: the median error and its range, failures, and the lowest on the way."""
    found = []
    for problem, budget, name in _groups(rows):
        own = [r for r in rows if (r["problem"], r["budget"], r["contender"]) == (problem, budget, name)]
        errors = spread([_finite(row["error"]) for row in own])
        found.append({
            "problem": problem, "budget": budget, "contender": name, "runs": len(own), "error": errors["median"],
            "range": f"{records.show(errors['min'])} … {records.show(errors['max'])}",
            "lowest": spread([_finite(row["lowest"]) for row in own])["median"],
            "unseen": spread([_finite(row.get("unseen")) for row in own])["median"],
            "failed": f"{sum(map(failed, own))}/{len(own)}",
        })  # fmt: skip
    return found


def verdict(rows: list[Row]) -> list[Row]:
    """A line a problem and budget: jumps against whoever else has the lowest median."""
    found = []
    lines = standing(rows)
    for problem, budget in dict.fromkeys((line["problem"], line["budget"]) for line in lines):
        here = {line["contender"]: line for line in lines if (line["problem"], line["budget"]) == (problem, budget)}
        ours, others = here.pop(JUMPS, None), here
        if ours is None or not others:
            continue
        best = min(others.values(), key=lambda line: line["error"])
        found.append({
            "problem": problem, "budget": budget, "jumps": ours["error"], "rival": best["contender"],
            "its error": best["error"], "times below": best["error"] / ours["error"], "failed": ours["failed"],
            "goal": goal(ours) if budget == LONGEST else None,
        })  # fmt: skip
    return found


def page(content: Row) -> str:
    """What docs/pinns.md says of a race: the verdict where there are rivals, goals, and everyone's errors."""
    rows = content["rows"]
    lines, told = standing(rows), verdict(rows)
    seeds = len({row["seed"] for row in rows})
    parts: list[str] = []
    if told:
        ahead = [line["times below"] for line in told if line["budget"] == max(row["budget"] for row in rows)]
        parts += [
            f"After the longest time jumps end below the best rival in {sum(t > 1 for t in ahead)} of {len(ahead)} "
            f"problems, ten times below in {sum(t > 10 for t in ahead)}. Seeds: {seeds}; rivals' settings were chosen "
            "on others (`experiments.pinn.hyperparameters`).",
            markdown(told, VERDICT),
        ]
    shown = [{**line, "goal": goal(line)} for line in lines]
    heads = {key: HEADS[key] for key in HEADS if seeds > 1 or key not in ("runs", "range")}
    if not told:
        heads |= {"goal": "goal"}
    return "\n\n".join([*parts, markdown(shown, heads), f"<sub>{machine(content)}</sub>"])


def untuned(content: Row) -> str:
    """Everyone's errors where rivals have the first settings of their grids."""
    lines = standing(content["rows"])
    shown = {key: HEADS[key] for key in HEADS if key not in ("runs", "range")}
    return "\n\n".join([markdown([{**line} for line in lines], shown), f"<sub>{machine(content)}</sub>"])


def goal(line: Row) -> str | None:
    """Whether a line's median is at the aim of its problem; none where it has none."""
    found = GOALS.get(line["problem"])
    return None if found is None else f"{found:g}: {'met' if line['error'] <= found else 'missed'}"


def _groups(rows: list[Row]) -> list[tuple[str, float, str]]:
    order = {name: i for i, name in enumerate(CONTENDERS)}
    known = list(dict.fromkeys(row["problem"] for row in rows))
    found = {(row["problem"], row["budget"], row["contender"]) for row in rows}
    return sorted(found, key=lambda key: (known.index(key[0]), key[1], order[key[2]]))


def _finite(value: float | None) -> float:
    """∞ for what is none: at the far end of a range."""
    return value if value is not None and math.isfinite(value) else math.inf


def picture(rows: list[Row]) -> Any:
    """Error against seconds, a panel a problem, the first seed of each; points drawn anew are dashed."""
    names = list(dict.fromkeys(row["problem"] for row in rows))
    columns = min(3, len(names))
    count = math.ceil(len(names) / columns)
    figure, axes = plots.pyplot().subplots(
        count, columns, figsize=(4.6 * columns, 3.3 * count + 1.2), squeeze=False, layout="constrained"
    )
    for axis, name in itertools.zip_longest(axes.flat, names):
        if name is None:
            axis.set_axis_off()
            continue
        _panel(axis, [row for row in rows if row["problem"] == name], EVERY[name].title)
    legend_below(figure, 5)
    return figure


def _panel(axis: Any, rows: list[Row], title: str) -> None:
    first = min(row["seed"] for row in rows)
    drawn = {row["contender"]: row for row in rows if row["seed"] == first and "course" in row}  # the longest one's
    for name, row in drawn.items():
        colour, style, width = _look(name)
        course = row["course"]
        shown = [(s, e) for s, e in zip(course["seconds"], course["error"], strict=True) if s and e and e < math.inf]
        if shown:
            axis.plot(*zip(*shown, strict=True), color=colour, linestyle=style, linewidth=width, label=name)
    axis.set(xscale="log", yscale="log", xlabel="seconds", ylabel="relative error")
    axis.set_title(title, fontsize=9)


def _look(name: str) -> tuple[str, str | tuple[int, tuple[float, ...]], float]:
    """Colour, dashes and width: a colour for each method, with the jumps' own; dashes where points are drawn anew."""
    if name == JUMPS:
        return plots.COLOURS[0], "-", 2.4
    method = name.removesuffix(RENEWED)
    methods = list(dict.fromkeys(other.removesuffix(RENEWED) for other in CONTENDERS if other != JUMPS))
    number = methods.index(method)
    others = plots.COLOURS[1:]
    again = number // len(others)  # more methods than colours: the second round is dotted
    if method != name:
        return others[number % len(others)], (0, (5.0, 1.5)) if not again else (0, (5.0, 1.5, 1.0, 1.5)), 1.1
    return others[number % len(others)], "-" if not again else (0, (1.2, 1.2)), 1.1
