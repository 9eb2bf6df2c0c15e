"""Tables made from rows: medians and counts, by optimizer, loss, network, minibatch or full."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jumpstart.report.records import Row

from ..random_problems.problems import OPTIMIZERS
from ..random_problems.tables import TWICE, WORSE, against, batch, median
from . import rivals
from .fidelity import LINE, NOISE, SKIP
from .whole_runs import ARMS, BARE

ARM_ORDER = (SKIP, LINE, NOISE, rivals.FLOW, rivals.STATE, rivals.MOMENTS)
GOALS = {"SGD": 0.04, "momentum": 0.12, "Adam": 0.2}  # of the miss after 20 steps, full batch
QUARTER = 0.25  # of the bare run's gradient evaluations


def share(flags: Sequence[bool]) -> float | None:
    return float(np.mean(flags)) if flags else None


def entries(rows: Sequence[Row]) -> Iterator[Row]:
    """An entry of fidelity each: the problem, its arm, how many steps were asked for, what came of it."""
    for row in rows:
        for arm, results in row["arms"].items():
            for result, stepping in zip(results, row["stepping"], strict=True):
                head = {key: row[key] for key in ("optimizer", "loss", "network", "dtype", "samples")}
                in_steps = row["samples"] / row["batch"]  # an evaluation of the objective, in steps of the loop
                yield {**head, "batch": batch(row), "arm": arm, "stepping": stepping, "in steps": in_steps, **result}


def fidelity(found: Sequence[Row], steps: Sequence[int]) -> list[Row]:
    """Median miss by number of steps: a line for minibatch or full, an optimizer and an arm."""
    lines = []
    for way in ("full", "minibatch"):
        for optimizer in (*OPTIMIZERS, "all"):
            for arm in ARM_ORDER:
                same = [
                    e for e in found
                    if e["batch"] == way and optimizer in (e["optimizer"], "all") and e["arm"] == arm and "miss" in e
                ]  # fmt: skip
                if not same or (optimizer == "all" and arm in (rivals.FLOW, rivals.STATE, rivals.MOMENTS)):
                    continue
                at = {f"m={m}": median(e["miss"] for e in same if e["asked"] == m) for m in steps}
                lines.append(
                    {"batch": way, "optimizer": optimizer, "arm": arm, "problems": len(same) // len(steps), **at}
                )
    return lines


def skips(found: Sequence[Row], steps: Sequence[int]) -> list[Row]:
    """The library's skip: what it kept and what it cost, by group and number of steps."""
    ours = [e for e in found if e["arm"] == SKIP]
    groups: list[tuple[str, str, Callable[[Row], bool]]] = [("", "all", lambda e: True)]
    for key in ("optimizer", "loss", "network", "dtype"):
        for value in sorted({e[key] for e in ours}):
            groups.append((key, value, lambda e, key=key, value=value: e[key] == value))
    lines = []
    for way in ("full", "minibatch"):
        for by, value, holds in groups:
            for m in steps:
                same = [e for e in ours if e["batch"] == way and e["asked"] == m and holds(e)]
                if same:
                    lines.append({"batch": way, "by": by, "value": value, "m": m, **_skip(same)})
    return lines


def _skip(same: Sequence[Row]) -> Row:
    """A line of what skips of one length did."""
    tried = [e for e in same if "error" not in e]
    moved = [e for e in tried if e["steps"]]
    held, cost = [e["held"] for e in moved], [e["evaluations"] * e["in steps"] for e in tried]
    return {
        "problems": len(same), "errors": len(same) - len(tried),
        "moved": share([bool(e["steps"]) for e in tried]), "in full": share([e["steps"] == e["asked"] for e in tried]),
        "steps": median(e["steps"] for e in tried), "miss": median(e["miss"] for e in moved),
        "miss, 90%": median((e["miss"] for e in moved), 0.9), "later": median(e["later"] for e in moved),
        "train": median(e["train"] for e in moved), "held": median(held),
        "worse": share([not v <= WORSE for v in held]), "better": share([v < -WORSE for v in held]),
        "twice": share([not v <= TWICE for v in held]),
        "evaluations": median(cost), "evaluations, 90%": median(cost, 0.9),
        "passes": median(e["passes"] * e["in steps"] for e in tried),
        "seconds": median(e["seconds"] / max(e["stepping"], 1e-9) for e in tried),
        "dense": median(e["dense"] for e in tried),
    }  # fmt: skip


def whole(rows: Sequence[Row], lengths: Sequence[int]) -> list[Row]:
    """Wrapped runs against bare ones: a line for minibatch or full, a length and an arm."""
    lines = []
    for way in ("full", "minibatch"):
        for length in (*lengths, 0) if len(lengths) > 1 else lengths:
            same = [row for row in rows if batch(row) == way and length in (row["length"], 0)]
            for arm in ARMS:
                if same:
                    lines.append({"batch": way, "length": length or "all", "arm": arm, **_whole(same, arm)})
    return lines


def _whole(rows: Sequence[Row], arm: str) -> Row:
    usable = [row for row in rows if "error" not in row["arms"][arm] and "error" not in row["arms"][BARE]]
    pairs = [(row["arms"][arm], row["arms"][BARE]) for row in usable]
    ratios = [against(mine, plain, row["start"]) for (mine, plain), row in zip(pairs, usable, strict=True)]
    train, held = [r[0] for r in ratios], [r[1] for r in ratios if not math.isnan(r[1])]
    return {
        "problems": len(rows), "errors": len(rows) - len(usable),
        "train": median(train), "held": median(held),
        "train worse": sum(v > WORSE for v in train), "train better": sum(v < -WORSE for v in train),
        "held worse": sum(v > WORSE for v in held), "held better": sum(v < -WORSE for v in held),
        "held twice": sum(v > TWICE for v in held), "diverged": len(ratios) - len(held),
        "skipped": median(1 - a["taken"] / a["effective"] for a, _ in pairs),
        "evaluations": median(a["evaluations"] / b["evaluations"] for a, b in pairs),
        "passes": median(a["passes"] / b["passes"] for a, b in pairs),
        "seconds": median(a["seconds"] / b["seconds"] for a, b in pairs),
        "kept": sum(a["kept"] for a, _ in pairs), "tries": sum(a["tries"] for a, _ in pairs),
    }  # fmt: skip


def goals(misses: Sequence[Row], runs: Sequence[Row]) -> list[Row]:
    """What was hoped for, beside what is; worse and better are of held-out losses."""
    lines = [
        {"goal": "median miss after 20 steps", "of": f"{line['optimizer']}, full", "value": line["m=20"],
         "limit": GOALS[line["optimizer"]]}
        for line in misses
        if line["batch"] == "full" and line["arm"] == SKIP and line["optimizer"] in GOALS and line.get("m=20")
    ]  # fmt: skip
    for line in runs:
        if line["length"] == runs[-1]["length"]:
            where = f"{line['arm']}, {line['batch']}"
            count = line["problems"] - line["errors"] - line["diverged"]
            lines += [
                {"goal": "runs 10% worse less those 10% better", "of": where,
                 "value": line["held worse"] - line["held better"], "limit": 0},
                {"goal": "share of runs 2× worse", "of": where,
                 "value": line["held twice"] / max(1, count), "limit": 0.01},
            ]  # fmt: skip
            if line["batch"] == "full":
                lines.append(
                    {"goal": "evaluations / bare", "of": where, "value": line["evaluations"], "limit": QUARTER}
                )
    return [line | {"holds": holds(line)} for line in lines]


def holds(line: Row) -> bool | None:
    return None if line["value"] is None else bool(line["value"] <= line["limit"])
