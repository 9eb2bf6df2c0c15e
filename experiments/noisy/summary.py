"""Who ends where, and the questions put to a gate: beside stopping, the best on the way, and the slower clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from jumpstart.report import records
from jumpstart.report.records import Row

from ..pages import machine, markdown
from .choices import VALIDATION
from .contenders import ADAMW, EARLY, EMA, GATES, Setting, control, names
from .tasks import Task

ERROR, MISFIT = 2, 3  # of a curve's points


def curves(rows: Sequence[Row], name: str, setting: Setting) -> list[list[list[float]]]:
    """Those of a contender at a setting, a seed each, in order."""
    plain, average = {EMA: ADAMW, EARLY: ADAMW}.get(name, name), setting.average
    return [
        row["curves"]["" if average is None else f"{average:g}"]
        for row in sorted(rows, key=lambda row: row["seed"])
        if row["contender"] == plain and row["split"] == (name == EARLY)
        and (row["factor"], row["decay"]) == (setting.factor, setting.decay)
    ]  # fmt: skip


def end(curve: list[list[float]], name: str) -> list[float]:
    """The last point; of early stopping the one where the validation part was fitted best."""
    return min(curve, key=lambda point: point[VALIDATION]) if name == EARLY else curve[-1]


def ends(rows: Sequence[Row], name: str, setting: Setting) -> list[float]:
    return [end(curve, name)[ERROR] for curve in curves(rows, name, setting)]


def slower(task: Task, rows: Sequence[Row]) -> tuple[Setting, list[float]]:
    """Plain AdamW's rate that ends lowest in the median, known in hindsight, and where it ends."""
    best = min((Setting(factor) for factor in control(task)), key=lambda setting: median(ends(rows, ADAMW, setting)))
    return best, ends(rows, ADAMW, best)


def passes(own: Sequence[float], control: Sequence[float]) -> bool:
    """Lower than the slower clock in the median and on every seed."""
    return median(own) < median(control) and all(a < b for a, b in zip(own, control, strict=True))


def summarized(task: Task, rows: Sequence[Row], choices: Row) -> list[Row]:
    """A line a contender and level; at the end one of plain AdamW at the rate that is best in hindsight."""
    found: list[Row] = []
    for level in task.levels:
        here, chosen = [row for row in rows if row["level"] == level], choices[f"{level:g}"]
        best, clock = slower(task, here)
        early = median(ends(here, EARLY, Setting(**chosen[EARLY])))
        oracle = median(min(p[ERROR] for p in c) for c in curves(here, ADAMW, Setting(**chosen[ADAMW])))
        for name in (*names(task), CLOCK):
            setting = best if name == CLOCK else Setting(**chosen[name])
            of = ADAMW if name == CLOCK else name
            own, all_of = ends(here, of, setting), curves(here, of, setting)
            tops = [min(curve, key=lambda point: point[ERROR]) for curve in all_of]
            line: Row = {
                "level": level, "contender": name, "setting": str(setting), "runs": len(own),
                "end": median(own), "low": min(own), "high": max(own),
                "best": median(p[ERROR] for p in tops), "step": median(p[0] for p in tops),
                "seconds": median(end(curve, name)[1] for curve in all_of),
                "misfit": median(end(curve, name)[MISFIT] for curve in all_of),
                "kept": median(a / p[ERROR] for a, p in zip(own, tops, strict=True)) <= task.within,
                "oracle": median(own) <= task.within * oracle,
                "ahead": None if name == EARLY else median(own) < early,
                "passes": None if name == CLOCK else passes(own, clock),
                "wins": None if name == CLOCK else sum(a < b for a, b in zip(own, clock, strict=True)),
            }  # fmt: skip
            if name in GATES:
                line |= hindsight(here, name, clock)
            line |= more(here, of, setting)
            found.append(line)
    return found


def more(rows: Sequence[Row], name: str, setting: Setting) -> Row:
    """Medians of what else was told at the end of a run; nothing of one that is stopped before."""
    same = [row["more"] for row in rows if "more" in row and row["contender"] == name and not row["split"]
            and (row["factor"], row["decay"]) == (setting.factor, setting.decay)]  # fmt: skip
    return {key: median(told[key] for told in same) for key in (same[0] if same else ())}


def hindsight(rows: Sequence[Row], name: str, control: Sequence[float]) -> Row:
    """A gate at the rate that is best in hindsight, as the control's is."""
    factors = dict.fromkeys(row["factor"] for row in rows if row["contender"] == name)
    best = min((Setting(factor) for factor in factors), key=lambda setting: median(ends(rows, name, setting)))
    own = ends(rows, name, best)
    return {"hindsight": median(own), "hindsight factor": best.factor, "hindsight passes": passes(own, control)}


CLOCK = "AdamW, slower"
WORDS = {True: "yes", False: "no", None: "–"}
QUESTIONS = ("kept", "oracle", "ahead", "passes", "hindsight passes")


def verdict(task: Task, summary: Sequence[Row], runs: int) -> str:
    """The first line of the page."""
    gates = [line for line in summary if line["contender"] in GATES]
    others = [line for line in summary if line["contender"] not in GATES]
    clock = {line["level"]: line["end"] for line in summary if line["contender"] == CLOCK}

    def named(lines: Sequence[Row], passing: str, end: str) -> str:
        return ", ".join(
            f"{line['contender']} at noise {line['level']:g} ({digits(task.shown(line[end]))} against "
            f"{digits(task.shown(clock[line['level']]))})"
            for line in lines
            if line[passing]
        )

    tuned, best = named(gates, "passes", "end"), named(gates, "hindsight passes", "hindsight")
    of = f"of {len(gates)} gates and levels of noise, {runs} seeds each"
    first = (
        f"Ahead of AdamW at every rate, on every seed: {tuned}" if tuned else "No gate passes the slower-clock control"
    )
    return f"**{first}** ({of}). With the gate's rate chosen in hindsight, as the control's is: {best or 'none'}. " + (
        f"Of what is no gate, these are ahead of it: {named(others, 'passes', 'end') or 'none'}."
    )


def told(task: Task, summary: Sequence[Row]) -> list[Row]:
    """The summary in the unit of the page."""
    lines = []
    for line in summary:
        own: dict[str, Any] = {key: WORDS[line.get(key)] for key in QUESTIONS}
        for key in ("end", "best", "hindsight"):
            value = line.get(key)
            own[key] = digits(task.shown(value)) if value is not None and math.isfinite(value) else "–"
        ends = sorted((line["low"], line["high"]), key=task.shown)  # decibels grow where errors fall
        own["spread"] = " … ".join(digits(task.shown(value)) if math.isfinite(value) else "–" for value in ends)
        lines.append({**line, **own, "wins": "–" if line["wins"] is None else f"{line['wins']}/{line['runs']}"})
    return lines


def digits(value: float) -> str:
    """Three digits, four above ten: a tenth of a decibel is to be seen."""
    return f"{value:.2f}" if abs(value) >= 10 else records.show(value)


def heads(task: Task) -> dict[str, str]:
    return {
        "level": "noise", "contender": "", "setting": "of the rate, decay", "end": f"end, {task.unit}",
        "spread": "of seeds", "best": "best on the way", "step": "at step", "seconds": "seconds",
        "kept": f"own best kept to {task.allowance}", "oracle": "AdamW's best reached",
        "ahead": "ahead of stopping", "wins": "seeds ahead of the slower clock",
        "hindsight": "end, best rate", "hindsight passes": "passes at that", **task.titles,
    }  # fmt: skip


def tries(task: Task) -> str:
    count = len(task.factors) or 4
    told = f"{'four' if count == 4 else count} tries a contender"
    return f"{told} (EMA: eight looks along AdamW's four runs)" if EMA in names(task) else told


def page(task: Task, content: Row) -> str:
    """What docs/gates.md says of it."""
    settings = content["settings"]
    summary, seeds = settings["summary"], content["environment"]["seeds"]
    return "\n\n".join(
        (
            verdict(task, summary, len(seeds)),
            f"{settings['steps']:,} steps each, base rate {settings['rate']:g}. Medians. Rates were chosen on seeds "
            f"that are not reported, {tries(task)}, by the misfit to a noisy validation "
            "part of 20% at the end of a run on the other 80%; the reported runs see all, "
            f'but for early stopping, which has its 20% held back. "{CLOCK}" is plain AdamW at the best of '
            f"{len(control(task))} rates ({min(control(task)):g} to 1), known in hindsight: a gate passes if it ends "
            "lower on every seed.",
            markdown(told(task, summary), heads(task)),
            f"![{task.name}](results/{task.name}/{task.name}.png)",
            f"[What the tuning chose](results/{task.name}/tuning/results.json).",
            f"<sub>{machine(content)}</sub>",
        )
    )
