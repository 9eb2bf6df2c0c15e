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
from .whole_runs import ARMS, BARE, NUDGED

FROZEN = (rivals.FLOW, rivals.STATE, rivals.MOMENTS)
IN_FULL, BESIDE, ALL = "share skipped in full", "skip, small perceptrons", "all"
GOALS = {"SGD": 0.04, "momentum": 0.12, "Adam": 0.2}  # of the miss after 20 steps, full batch
QUARTER = 0.25  # of the bare run's gradient evaluations


def share(flags: Sequence[bool]) -> float | None:
    return float(np.mean(flags)) if flags else None


def entries(rows: Sequence[Row]) -> Iterator[Row]:
    """An entry of fidelity each: the problem, its arm, how many steps were asked for, what came of it; ``whole`` where
    the skip took them all, so that arms can be compared there.
    """
    for row in rows:
        head: Row = {key: row[key] for key in ("number", "optimizer", "loss", "network", "dtype", "samples")}
        # What an evaluation of the objective costs, in steps of the loop.
        head |= {"batch": batch(row), "in steps": row["samples"] / row["batch"], "small": rivals.FLOW in row["arms"]}
        through = [result.get("steps") == result["asked"] for result in row["arms"][SKIP]]
        for arm, results in row["arms"].items():
            for result, stepping, full in zip(results, row["stepping"], through, strict=True):
                yield {**head, "arm": arm, "stepping": stepping, "whole": full, **result}


def fidelity(found: Sequence[Row], steps: Sequence[int]) -> list[Row]:
    """Median miss by number of steps, of the problems where the skip took them all, for every arm; and their share.

    A line for minibatch or full, an optimizer and an arm. Frozen linearizations are of small perceptrons alone, and so
    is the skip beside them.
    """
    lines = []
    for way in ("full", "minibatch"):
        for optimizer in (*OPTIMIZERS, ALL):
            here = [e for e in found if e["batch"] == way and optimizer in (e["optimizer"], ALL)]
            named = {arm: [e for e in here if e["arm"] == arm] for arm in (SKIP, LINE, NOISE)}
            if optimizer != ALL:
                small = [e for e in here if e["small"]]
                named |= {BESIDE: [e for e in small if e["arm"] == SKIP]}
                named |= {way: [e for e in small if e["arm"] == way] for way in FROZEN}
            head = {"batch": way, "optimizer": optimizer}
            if here:
                parts = {m: [e["whole"] for e in named[SKIP] if e["asked"] == m] for m in steps}
                count = len(parts[steps[0]])
                lines.append({**head, "arm": IN_FULL, "problems": count, **{f"m={m}": share(parts[m]) for m in steps}})
            for arm, same in named.items():
                if same:
                    at = {m: [e["miss"] for e in same if e["asked"] == m and e["whole"]] for m in steps}
                    count = sum(e["asked"] == steps[0] for e in same)
                    lines.append({**head, "arm": arm, "problems": count, **{f"m={m}": median(at[m]) for m in steps}})
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
        "miss, 90%": median((e["miss"] for e in moved), 0.9),
        "miss, in full": median(e["miss"] for e in moved if e["whole"]), "later": median(e["later"] for e in moved),
        "train": median(e["train"] for e in moved), "held": median(held),
        "worse": share([not v <= WORSE for v in held]), "better": share([v < -WORSE for v in held]),
        "twice": share([not v <= TWICE for v in held]),
        "pays": share([e["steps"] > spent for e, spent in zip(tried, cost, strict=True)]),
        "ahead": median(ahead(e)[0] for e in tried),
        "evaluations": median(cost), "evaluations, 90%": median(cost, 0.9),
        "passes": median(e["passes"] * e["in steps"] for e in tried),
        "seconds": median(ahead(e)[1] / e["asked"] for e in tried),
        "dense": median(e["dense"] for e in tried),
    }  # fmt: skip


def ahead(entry: Row) -> tuple[float, float]:
    """What it costs to come as many steps ahead as were asked for, in steps: those not skipped are taken.

    By gradient evaluations, and by seconds.
    """
    rest = entry["asked"] - entry["steps"]
    seconds = entry["asked"] * entry["seconds"] / max(entry["stepping"], 1e-9)
    return entry["evaluations"] * entry["in steps"] + rest, seconds + rest


def whole(rows: Sequence[Row], lengths: Sequence[int]) -> list[Row]:
    """Wrapped runs against bare ones: a line for minibatch or full, a length and an arm."""
    lines = []
    for way in ("full", "minibatch"):
        for length in (*lengths, 0) if len(lengths) > 1 else lengths:
            same = [row for row in rows if batch(row) == way and length in (row["length"], 0)]
            for arm in (*ARMS, NUDGED):
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
        if line["length"] == runs[-1]["length"] and line["arm"] != NUDGED:
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
