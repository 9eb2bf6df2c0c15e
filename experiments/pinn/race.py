"""Points 1 and 2: jumps and their rivals from the same start, interleaved, each for its time."""

from __future__ import annotations

import bisect
import math
import time
from pathlib import Path
from typing import Any

from jumpstart import fitted
from jumpstart.comparison.compare import compare
from jumpstart.comparison.contenders import Contender
from jumpstart.comparison.report import Report
from jumpstart.report import records
from jumpstart.report.records import Row

from ..common import spread
from . import rivals, tuning
from .problems import PROBLEMS, Problem

JUMPS = "jumps"
FIRST_ORDER = ("Adam", "AdamW", "SOAP", "L-BFGS")
SECOND_ORDER = ("torch-LM", "torchmin", "natural gradient")
LONG = 20.0  # seconds for Adam; jumps and the other rivals have the problem's own
OWN = ("jumps", "torch-LM", "torchmin", "natural gradient")  # use the objective, which has to be built first
ITERATIONS = 100  # of the natural gradient, whose time point 1 is measured by
FAILED = 0.1  # a relative error above which a run has not solved its problem
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "pinn" / "tuning"


def contenders(problem: Problem, seconds: float, long: float, rates: dict[str, float]) -> dict[str, Contender]:
    """Jumps and all rivals that are installed."""
    made: dict[str, Any] = {
        JUMPS: lambda: fitted(budget=seconds),
        "Adam": lambda: rivals.adam(problem, rates["Adam"], decay=long),
        "AdamW": lambda: rivals.adamw(problem, rates["AdamW"], tuning.DECAY, decay=seconds),
        "SOAP": lambda: rivals.soap(problem, rates["SOAP"], decay=seconds),
        "L-BFGS": lambda: rivals.lbfgs(problem),
        "torch-LM": lambda: rivals.torch_lm(problem),
        "torchmin": lambda: rivals.least_squares(problem),
        "natural gradient": lambda: rivals.natural_gradient(problem),
    }
    return rivals.installed(made)


def rates() -> dict[str, dict[str, float]]:
    """Learning rates by problem and rival, from the results of ``experiments.pinn.tuning``."""
    content = records.read(RESULTS)
    return {row["problem"]: row for row in content["settings"]["chosen"]}


def run(name: str, init: str, seed: int, quick: bool, progress: bool) -> list[Row]:
    """One interleaved race; a row for each contender, with its curves."""
    problem, tuned = PROBLEMS[name], rates()
    seconds, long = (0.1, 0.2) if quick else (problem.seconds, problem.seconds if name == "poisson" else LONG)
    given = tuned.get(name) or tuned["poisson"]
    racers = contenders(problem, seconds, long, given)
    times = {label: long if label == "Adam" else seconds for label in racers}
    build = _build_seconds(problem, seed, init)
    report = compare(
        problem.network(seed, init), problem.objective, racers, seconds=times, name=name, seed=seed, progress=progress,
        evaluate=lambda model: {"error": problem.error(model)},
    )  # fmt: skip
    start = {"problem": name, "init": init, "seed": seed}
    return [
        {**start, "build": build if label in OWN else 0.0, **curves(report, label, times[label])}
        for label in report.contenders
    ]


def _build_seconds(problem: Problem, seed: int, init: str) -> float:
    """What building the objective takes once a first one has loaded torch's tracing modules."""
    for _ in range(2):
        model = problem.network(seed, init)
        begun = time.perf_counter()
        problem.objective(model)
        seconds = time.perf_counter() - begun
    return round(seconds, 4)


def curves(report: Report, label: str, seconds: float) -> Row:
    """One contender's records in a row: lists, since a line a record would be a file of megabytes."""
    own = [row for row in report.rows if row["contender"] == label]
    step = [row["step"] for row in own]
    at = next((row["seconds"] for row in own if row["step"] >= ITERATIONS), None)
    return {
        "contender": label, "given": seconds, "steps": step[-1],
        "evaluations": round(own[-1]["gradient_evaluations"], 1),
        "seconds to iteration 100": None if at is None else round(at, 4),
        "seconds": [round(row["seconds"], 4) for row in own],
        "loss": [float(f"{row['loss']:.3g}") for row in own], "error": [float(f"{row['error']:.3g}") for row in own],
    }  # fmt: skip


def reached(row: Row, error: float) -> float:
    """Seconds to an error, those of building the objective included, ∞ if it never came to it."""
    return row.get("build", 0.0) + next(
        (t for t, e in zip(row["seconds"], row["error"], strict=True) if e <= error), math.inf
    )


def at(row: Row, seconds: float) -> float:
    """The lowest error recorded within a time."""
    count = bisect.bisect_right(row["seconds"], seconds)
    return min((e for e in row["error"][: max(count, 1)] if math.isfinite(e)), default=math.inf)


def final(row: Row) -> float:
    """The lowest error of the run."""
    return at(row, math.inf)


def anchor(rows: list[Row]) -> list[Row]:
    """Point 1: Poisson's 129 parameters, everyone at the time at which the natural gradient has made 100 iterations."""
    found = []
    here = [row for row in rows if row["problem"] == "poisson"]
    for init in dict.fromkeys(row["init"] for row in here):
        same = [row for row in here if row["init"] == init]
        limit = {row["seed"]: row["seconds to iteration 100"] for row in same if row["contender"] == "natural gradient"}
        for label in dict.fromkeys(row["contender"] for row in same):
            own = [row for row in same if row["contender"] == label]
            times = [limit.get(row["seed"]) or row["given"] for row in own]
            hundred = sum(limit.get(row["seed"]) is not None for row in own)
            errors = [at(row, time) for row, time in zip(own, times, strict=True)]
            found.append(
                {
                    "init": init, "contender": label, "seconds": _median(times), **spread(errors),
                    "100 iterations made": f"{hundred}/{len(own)}",
                    "above 1e-5": f"{sum(error > 1e-5 for error in errors)}/{len(own)}",
                    "stuck": f"{sum(final(row) > FAILED for row in own)}/{len(own)}",
                    "seconds to 1e-6": _median([reached(row, 1e-6) for row in own]),
                    "seconds to 1e-7": _median([reached(row, 1e-7) for row in own]),
                }
            )  # fmt: skip
    return found


def suite(rows: list[Row]) -> list[Row]:
    """Point 2: time to the best error of Adam's longer run, seed by seed, and final errors."""
    found = []
    for name in dict.fromkeys(row["problem"] for row in rows if row["init"] == "torch"):
        same = [row for row in rows if row["problem"] == name and row["init"] == "torch"]
        target = {row["seed"]: final(row) for row in same if row["contender"] == "Adam"}
        for label in dict.fromkeys(row["contender"] for row in same):
            own = [row for row in same if row["contender"] == label]
            times = [reached(row, target[row["seed"]]) for row in own]
            errors = spread([final(row) for row in own])
            found.append(
                {
                    "problem": name, "contender": label, "given": own[0]["given"],
                    "seconds to Adam's best": _median(times), "slowest": max(times),
                    "never": f"{sum(math.isinf(t) for t in times)}/{len(times)}",
                    "error": errors["median"], "smallest": errors["min"], "largest": errors["max"],
                    "failed": f"{sum(final(row) > FAILED for row in own)}/{len(own)}",
                }
            )  # fmt: skip
    return found


def verdict(rows: list[Row]) -> list[Row]:
    """Point 2's aims, a line a problem: how much sooner than the best others, and how much lower than Adam.

    Where Adam's best is no solution (above FAILED) there is nothing to be sooner at.
    """
    found = []
    lines = suite(rows)
    for name in dict.fromkeys(line["problem"] for line in lines):
        by = {line["contender"]: line for line in lines if line["problem"] == name}
        if JUMPS not in by or "Adam" not in by:
            continue
        ours, adam = by[JUMPS], by["Adam"]
        first = {k: by[k]["seconds to Adam's best"] for k in FIRST_ORDER if k in by}
        ends = {k: by[k]["error"] for k in (*FIRST_ORDER, *SECOND_ORDER) if k in by}
        quickest, lowest = min(first, key=lambda k: first[k]), min(ends, key=lambda k: ends[k])
        solved = adam["error"] <= FAILED
        by_seed = {row["seed"]: final(row) for row in rows if _is(row, name, lowest)}
        level = [reached(row, by_seed[row["seed"]]) for row in rows if _is(row, name, JUMPS)]
        there = [reached(row, final(row)) for row in rows if _is(row, name, lowest)]
        found.append(
            {
                "problem": name, "Adam's seconds": adam["given"], "Adam's best": adam["error"],
                "jumps reach it in": ours["seconds to Adam's best"] if solved else None,
                "quickest first-order": quickest if solved else None, "in": first[quickest] if solved else None,
                "times sooner": first[quickest] / ours["seconds to Adam's best"] if solved else None,
                "jumps' lowest": ours["error"], "times below Adam": adam["error"] / ours["error"],
                "best rival": lowest, "its lowest": ends[lowest], "seconds each": ours["given"],
                "it is there in": _median(there), "jumps are there in": _median(level),
                "jumps above 0.1": ours["failed"],
            }
        )  # fmt: skip
    return found


def _is(row: Row, problem: str, contender: str) -> bool:
    return (row["problem"], row["contender"], row["init"]) == (problem, contender, "torch")


def _median(values: list[float]) -> float:
    return spread(values)["median"]
