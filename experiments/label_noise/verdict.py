"""Who passes the slower-clock control, and the page that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jumpstart.report.records import Row

from ..pages import machine, markdown
from .settings import ADAMW, EARLY, GATES

HEADS = {
    "task": "task", "noise": "wrong", "contender": "", "setting": "tuned on noisy", "loss": "loss at the end",
    "accuracy": "accuracy", "best accuracy": "best on the way", "learned": "of the labels learned",
    "clean accuracy": "accuracy, tuned on clean", "grid loss": "loss, best of its grid",
    "grid accuracy": "accuracy, best of its grid", "ahead": "seeds ahead of the slower clock", "frontier": "frontier",
    "milliseconds": "ms an epoch",
}  # fmt: skip
WITHIN = 0.01  # of the oracle's accuracy


def verdict(lines: Sequence[Row]) -> str:
    """Who passes the control, and who meets the goal: the first line of the page."""
    noisy = [line for line in lines if line["noise"] > 0]
    settings = list(dict.fromkeys((line["task"], line["noise"]) for line in noisy))
    passed = {
        who: [place(line) for line in noisy if line["contender"] == who and passes(line)]
        for who in dict.fromkeys(line["contender"] for line in noisy)
    }
    gates = [f"{who} ({', '.join(where)})" for who, where in passed.items() if who in GATES and where]
    others = [f"{who} ({', '.join(where)})" for who, where in passed.items() if who not in GATES and where]
    first = (
        f"Ahead of the slower clock on every seed, in loss and in accuracy: {'; '.join(gates)}."
        if gates
        else "No gate passes the slower-clock control: none ends ahead of plain AdamW at a lower rate on every seed, "
        f"in loss and in accuracy, on any of {len(settings)} noisy settings."
    )
    second = f" What does: {'; '.join(others)}." if others else " Nothing else does, either."
    met = {who: [line for line in noisy if line["contender"] == who and goal(line, noisy)] for who in GATES}
    most = max(met, key=lambda who: len(met[who]))
    third = (
        f" Within {WITHIN:.0%} of the oracle's epoch without validation data, ahead of the 20% split and of the slower "
        f"clock: {f'{most}, ' if met[most] else ''}{len(met[most])} of {len(settings)} settings."
    )
    return first + second + third


def place(line: Row) -> str:
    return f"{line['task']} {line['noise']:.0%}"


def passes(line: Row) -> bool:
    """Ahead of the control with the best setting of its own grid, as the control is AdamW's: on all seeds.

    Of each measure the best: a rate for the loss, a rate for the accuracy.
    """
    if line["contender"] == ADAMW:
        return False
    return line["ahead, loss"] == line["runs"] and line["ahead, accuracy"] == line["runs"]


def goal(line: Row, lines: Sequence[Row]) -> bool:
    """The issue's: tuned on the clean problem, so that no validation data are used."""
    early = [o for o in lines if o["contender"] == EARLY and (o["task"], o["noise"]) == (line["task"], line["noise"])]
    accuracy = line.get("clean accuracy")
    if accuracy is None or not passes(line):
        return False
    return accuracy >= line["oracle"] - WITHIN and all(accuracy > o.get("accuracy", math.inf) for o in early)


def page(content: Mapping[str, Any]) -> str:
    """For docs/gates.md."""
    settings = content["settings"]
    lines = [line for line in settings["summary"] if line["noise"] > 0]
    parts = [verdict(settings["summary"])]
    if settings["missing"]:
        parts.append(
            f"{settings['missing']} runs are missing: contenders without a line, or without all of their grid."
        )
    for task, of in settings["tasks"].items():
        here = [line for line in lines if line["task"] == task]
        if here:
            keys = {key: head for key, head in HEADS.items() if any(line.get(key) is not None for line in here)}
            oracle = ", ".join(f"{line['oracle']:.3f} at {line['noise']:.0%}" for line in here
                               if line["contender"] == ADAMW)  # fmt: skip
            parts += [
                f"**{task}**: {of['training samples']:,} samples, {of['epochs']} epochs, base rate "
                f"{of['base rate']:g}. "
                f"The oracle's epoch, best of AdamW's at any rate: {oracle}.",
                markdown(here, keys),
            ]
    return "\n\n".join(
        (
            *parts,
            "![held-out loss against epochs, and against training loss](results/label_noise/label_noise.png)",
            f"<sub>{machine(content)}</sub>",
        )
    )
