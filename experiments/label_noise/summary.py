"""What the runs say: settings chosen, ends beside the slower clock's, and frontiers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jumpstart.report.records import Row

from .settings import ADAMW, BETWEEN, CONTENDERS, EARLY, NAMES, REPORTED, STOPPED, TUNING, Setting, Task


def shortened(row: Row) -> Row:
    """A run of the tuning is its end and its best; nothing else is asked of it."""
    if row["part"] != TUNING:
        return row
    curve = row["curve"]
    at = min(range(len(curve["epoch"])), key=lambda i: curve["validation"][i])
    keys = ("train", "validation", "validation accuracy")
    return {**row, "curve": {key: [curve[key][at], curve[key][-1]] for key in ("epoch", *keys)}}


def told(task: Task) -> Row:
    """What a task is."""
    return {"training samples": task.count, "epochs": task.epochs, "batch": task.batch, "base rate": task.rate}


def seconds(rows: Sequence[Row]) -> Iterable[float]:
    """Of steps, where they are kept."""
    return (row["curve"]["seconds"][-1] for row in rows if row["part"] != TUNING and row["average"] is None)


def setting_of(row: Row) -> Setting:
    return Setting(row["factor"], row["decay"], row["average"])


def by_setting(rows: Iterable[Row]) -> dict[Setting, list[Row]]:
    found: dict[Setting, list[Row]] = {}
    for row in rows:
        found.setdefault(setting_of(row), []).append(row)
    return found


def median(values: Iterable[float]) -> float:
    """A loss that is not finite is the worst."""
    found = [value if math.isfinite(value) else math.inf for value in values]
    return float(np.median(found)) if found else math.nan


def chosen(rows: Sequence[Row], who: str, noise: float) -> Setting | None:
    """By the loss on the noisy validation part at the end, of who stops early at its lowest; of the tuning's runs."""
    name, at = (ADAMW, 0) if who == EARLY else (who, -1)
    found = by_setting(r for r in rows if r["part"] == TUNING and r["contender"] == name and r["noise"] == noise)
    return min(found, key=lambda s: median(r["curve"]["validation"][at] for r in found[s])) if found else None


def ending(row: Row) -> int:
    """Where a run is judged: at its end, or where its validation loss was lowest."""
    curve = row["curve"]
    if row["contender"] != EARLY:
        return -1
    return min(range(len(curve["epoch"])), key=lambda i: curve["validation"][i])


def at_end(rows: Sequence[Row], key: str) -> float:
    return median(row["curve"][key][ending(row)] for row in rows)


def frontier(row: Row, plain: Sequence[Row]) -> float | None:
    """Held-out loss above the lowest that AdamW has, at any rate, on its way through the same training loss."""
    at = ending(row)
    train, held = row["curve"]["train"][at], row["curve"]["held"][at]
    passing = [value for r in plain if r["seed"] == row["seed"] for value in crossed(r["curve"], train)]
    return held - min(passing) if passing else None


def crossed(curve: Mapping[str, Sequence[float]], train: float) -> Iterable[float]:
    """Held-out losses where a run passes a training loss, between two looks."""
    points = list(zip(curve["train"], curve["held"], strict=True))
    for (t0, h0), (t1, h1) in itertools.pairwise(points):
        if min(t0, t1) <= train <= max(t0, t1):
            yield h0 if t0 == t1 else h0 + (h1 - h0) * (train - t0) / (t1 - t0)


LOSS, ACCURACY = "held", "held accuracy"


def best_of(found: Mapping[Setting, Sequence[Row]], key: str) -> Setting:
    """The setting whose end is best, held out: known to nobody who trains, and given to all alike."""
    sign = -1 if key == ACCURACY else 1
    return min(found, key=lambda s: sign * at_end(found[s], key))


def ahead(mine: Sequence[Row], control: Sequence[Row], key: str) -> int:
    """On how many seeds the one ends better than the other."""
    other = {row["seed"]: row["curve"][key][ending(row)] for row in control}
    pairs = [(row["curve"][key][ending(row)], other[row["seed"]]) for row in mine]
    return sum(a > b if key == ACCURACY else a < b for a, b in pairs)


def summarized(rows: Sequence[Row]) -> list[Row]:
    """A line for each task, noise and contender that has been run.

    Where there is no clean problem to tune on, the base rate stands for it.
    """
    found: list[Row] = []
    for task, noise in dict.fromkeys((row["task"], row["noise"]) for row in rows):
        here = [row for row in rows if row["task"] == task and row["part"] in (REPORTED, STOPPED)]
        here = [row for row in here if row["noise"] == noise]
        plain = [row for row in here if row["contender"] in (ADAMW, BETWEEN)]
        if not plain:
            continue
        tuning = [row for row in rows if row["task"] == task]
        slow = by_setting(plain)
        control = {key: slow[best_of(slow, key)] for key in (LOSS, ACCURACY)}
        oracle = max(median(max(r["curve"]["held accuracy"]) for r in same) for same in slow.values())
        for who in NAMES:
            mine = by_setting(row for row in here if row["contender"] == who)
            if mine:
                clean = chosen(tuning, who, 0.0) or min(mine, key=lambda s: (-s.factor, s.decay, s.average or 0))
                line = of_contender(who, mine, chosen(tuning, who, noise), clean, plain, control)
                found.append({"task": task, "noise": noise, "contender": who, "oracle": oracle, **line})
    return found


def of_contender(
    who: str,
    mine: Mapping[Setting, Sequence[Row]],
    noisy: Setting | None,
    clean: Setting | None,
    plain: Sequence[Row],
    control: Mapping[str, Sequence[Row]],
) -> Row:
    """One line: at the setting tuned on the noisy problem, on the clean one, and at the best of its grid."""
    best = mine[best_of(mine, LOSS)]
    right = mine[best_of(mine, ACCURACY)]
    line: Row = {
        "runs": len(best), "grid setting": words(who, best_of(mine, LOSS)), "grid loss": at_end(best, LOSS),
        "grid accuracy": at_end(right, ACCURACY), "ahead, loss": ahead(best, control[LOSS], LOSS),
        "ahead, accuracy": ahead(right, control[ACCURACY], ACCURACY),
    }  # fmt: skip
    line["ahead"] = f"{line['ahead, loss']} / {line['ahead, accuracy']} of {line['runs']}"
    gaps = [gap for gap in (frontier(row, plain) for row in best) if gap is not None]
    line["frontier"] = median(gaps) if gaps and who != ADAMW else None
    if noisy is not None and noisy in mine:
        same = mine[noisy]
        line |= {
            "setting": words(who, noisy), "loss": at_end(same, "held"), "accuracy": at_end(same, "held accuracy"),
            "learned": at_end(same, "train accuracy"),
            "best accuracy": median(max(row["curve"]["held accuracy"]) for row in same),
            "milliseconds": median(1e3 * row["curve"]["seconds"][-1] / row["curve"]["epoch"][-1] for row in same),
        }  # fmt: skip
    if clean is not None and clean in mine:
        same = mine[clean]
        line |= {"clean setting": words(who, clean), "clean loss": at_end(same, "held"),
                 "clean accuracy": at_end(same, "held accuracy")}  # fmt: skip
    return line


def words(who: str, setting: Setting) -> str:
    """A setting in short: the factor of the base rate, and what else was varied."""
    text = f"1/{1 / setting.factor:.0f}" if setting.factor < 1 else "1"
    if who in CONTENDERS and len({s.decay for s in CONTENDERS[who].settings}) > 1:
        text += f", decay {setting.decay:g}"
    return text + (f", {setting.average:g} epochs" if setting.average is not None else "")
