"""What runs to the goal say, by contender: medians in which a run that does not get there is infinite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jumpstart.report import plots
from jumpstart.report.records import Row

from ..common import legend_below, plain_ticks
from ..pages import machine, markdown
from ..random_problems.tables import median
from .contenders import ADAMW, CONTENDERS, EXACT, STREAMING, TUNED
from .runs import GOAL
from .tasks import PROTOCOLS

PAPER = {"AdamW": 29_450, "gate": 5_950}  # Litman & Guo, arXiv:2605.01172: a/b modulo 97, 25% of the table


def chosen(rows: Sequence[Row]) -> Row:
    """For each contender the setting that is soonest at the goal, else the one that gets nearest."""
    found: Row = {}
    for name in TUNED:
        same = [row for row in rows if row["contender"] == name]
        if same:
            best = min(same, key=lambda row: (row["steps"] or math.inf, -row["best"]))
            keys = ("rate", "decay", "steps", "best")
            found[name] = {key: best[key] for key in keys} | {"runs": len(same)}
    return found


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def summarized(rows: Sequence[Row]) -> list[Row]:
    """A line a contender: how many of its runs get there, medians of what that takes, and AdamW's over its own.

    ``each``: steps of all runs over the runs that get there, which is what a success costs who starts anew.
    """
    found: list[Row] = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        own = [row for row in rows if row["protocol"] == protocol]
        base = _middle([row for row in own if row["contender"] == ADAMW], "steps")
        for name in CONTENDERS:
            same = [row for row in own if row["contender"] == name]
            if not same:
                continue
            steps = _middle(same, "steps")
            reached = [row for row in same if row["steps"] is not None]
            opens = [point[4] for row in same for point in row["curve"] if point[4] is not None]
            found.append({
                "protocol": protocol, "contender": name, "setting": f"{same[0]['rate']:g}, {same[0]['decay']:g}",
                "runs": len(same), "reached": len(reached), "budget": same[0]["budget"],
                "learned": finite(_middle(same, "learned")), "steps": finite(steps),
                "least": min((row["steps"] for row in reached), default=None),
                "most": max(row["steps"] for row in reached) if len(reached) == len(same) else None,
                "sooner": base / steps if math.isfinite(base) and math.isfinite(steps) else None,
                "each": sum(row["spent"][0] for row in same) / len(reached) if reached else None,
                "gradients": finite(_middle(same, "gradients")), "seconds": finite(_middle(same, "seconds")),
                "best": median(row["best"] for row in same), "open": median(opens),
            })  # fmt: skip
    return found


def _middle(rows: Sequence[Row], key: str) -> float:
    value = median(math.inf if row[key] is None else float(row[key]) for row in rows)
    return math.inf if value is None else value


COLUMNS = {
    "protocol": "protocol", "contender": "", "setting": "rate, decay", "reached": "reached", "runs": "of",
    "learned": "99% of training", "steps": "steps to 95% held out", "least": "least", "most": "most",
    "sooner": "AdamW's steps over its own", "each": "steps spent for each success", "gradients": "gradients",
    "seconds": "seconds", "best": "best accuracy", "open": "gates open", "budget": "budget",
}  # fmt: skip


def page(content: Row) -> str:
    """What docs/gates.md says of it."""
    settings = content["settings"]
    tuned = "; ".join(
        f"{name}: {max(found['runs'] for found in choices.values())} settings a contender"
        for name, choices in settings["choices"].items()
        if choices and "runs" in next(iter(choices.values()))
    )
    return "\n\n".join(
        (
            "Medians of runs; one that does not get there in its budget is infinite, a dash. Tuned on one other seed "
            f"({tuned}; fewer where statistics are exact, their rate and decay else those of the streaming gate).",
            account(settings["summary"]),
            markdown(settings["summary"], COLUMNS),
            "![held-out accuracy against steps](results/grokking/grokking.png)",
            "[What the tuning chose](results/grokking/tuning/results.json).",
            f"<sub>{machine(content)}</sub>",
        )
    )


def account(lines: Sequence[Row]) -> str:
    """The paper's ratio beside what tuning alone is worth to AdamW, and what gates are then."""
    said = [
        f"The paper has {PAPER['gate']:,} steps against AdamW's {PAPER['AdamW']:,} (a·b⁻¹ modulo 97, 25% of the "
        f"table): {PAPER['AdamW'] / PAPER['gate']:.1f} times sooner."
    ]
    for protocol in dict.fromkeys(line["protocol"] for line in lines):
        own = {line["contender"]: line for line in lines if line["protocol"] == protocol}
        tuned, plain = own[ADAMW], own.get(f"{ADAMW}, untuned")
        words = f"{protocol.capitalize()}: tuned AdamW gets there in {tuned['reached']} of {tuned['runs']} runs"
        words += f", a success for each {tuned['each']:,.0f} steps" if tuned["each"] else ""
        if plain and plain["each"] and tuned["each"]:
            words += f"; at {plain['setting']}, which nobody tuned, one for each {plain['each']:,.0f}"
            words += f" ({plain['each'] / tuned['each']:.1f} times as many)"
        gates = [own[name] for name in (*STREAMING, *EXACT) if name in own and own[name]["each"]]
        if gates:
            best = min(gates, key=lambda line: line["each"])
            words += f"; the best of the gates, {best['contender']}, in {best['reached']} of {best['runs']}"
            words += f", one for each {best['each']:,.0f}"
            if best["reached"] < best["runs"] or tuned["reached"] < tuned["runs"]:
                words += (
                    f" (Fisher's exact test of the counts: p = {fisher(tuned, best):.2g}, not corrected for the choice)"
                )
        said.append(words + ".")
    return " ".join(said)


def fisher(one: Row, other: Row) -> float:
    """Whether two success rates differ."""
    from scipy.stats import fisher_exact

    counts: Any = fisher_exact([[line["reached"], line["runs"] - line["reached"]] for line in (one, other)])
    return float(counts.pvalue)


SHOWN = 8  # contenders with a colour of their own


def picture(rows: Sequence[Row]) -> Any:
    """A column a protocol: above, the best held-out accuracy so far, medians of runs; below, where each run came to."""
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    figure, axes = plots.pyplot().subplots(
        2, len(protocols), figsize=(5.2 * len(protocols), 7.6), squeeze=False, layout="constrained"
    )
    for (above, below), protocol in zip(axes.T, protocols, strict=True):
        own = {name: [r for r in rows if (r["protocol"], r["contender"]) == (protocol, name)] for name in CONTENDERS}
        names = [name for name in CONTENDERS if own[name]]
        for place, name in enumerate(names):
            i = list(CONTENDERS).index(name)
            colour, style = plots.COLOURS[i % SHOWN], "-" if i < SHOWN else "--"
            above.plot(*best_so_far(own[name]), style, color=colour, linewidth=1.4, label=name)
            for row in own[name]:
                there = row["steps"] is not None
                at, full = (row["steps"], "full") if there else (row["curve"][-1][0], "none")
                below.plot(at, place, "o" if there else "x", color=colour, fillstyle=full, markersize=5)
        counts = [f"{name}  {sum(r['steps'] is not None for r in own[name])}/{len(own[name])}" for name in names]
        below.set_yticks(range(len(names)), counts)
        below.invert_yaxis()
        below.grid(axis="y", alpha=0.25, linewidth=0.5)
        above.axhline(GOAL, color="grey", linewidth=0.8, label=f"the goal, {GOAL:g}")
        above.set(xlabel="steps", ylabel="best held-out accuracy so far, median of runs", xscale="log",
                  title=PROTOCOLS[protocol].title)  # fmt: skip
        below.set(xlabel="steps of a run: ● to the goal, × its end without", xscale="log", xlim=above.get_xlim())
        for axis in (above.xaxis, below.xaxis):
            plain_ticks(axis)
    legend_below(figure)
    return figure


def best_so_far(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Steps, and there the median over runs of the highest held-out accuracy until then; a run that ended keeps its."""
    steps = sorted({point[0] for row in rows for point in row["curve"]})
    runs = [[max((p[3] for p in row["curve"] if p[0] <= at), default=0.0) for at in steps] for row in rows]
    return steps, [float(median(values) or 0.0) for values in zip(*runs, strict=True)]
