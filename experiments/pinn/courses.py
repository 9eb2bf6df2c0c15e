"""One contender on one equation for so many seconds, and what its weights are worth at each budget.

What counts is the error of the weights that a contender holds at that time, those after its last whole step; the lowest
error on the way is recorded beside it, though nobody could know it. Measuring is not timed, nor is a first step at toy
size, in which torch loads what it needs.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart.report.records import Row

from .entrants import ENTRANTS, JUMPS, Entrant, Setting, setting
from .equations import Drawn, Equation
from .rivals.sampled import at_points

FAILED = 0.1  # a relative error above which a run has not solved its problem
CADENCE = 1.08  # records thin out geometrically, by the number of steps
MOST = 200  # records of a run that are kept
UNSEEN = 77_000  # seeds of points by which nothing is chosen begin here, twice as many as those of the start
SHARE, STEPS = 0.05, 3  # of the points, and steps, at toy size
RIVALS = 2.0  # times the points that jumps begin with, and add to: rivals stay with as many


@dataclass(frozen=True)
class Size:
    """Of a run: seconds, and for toys fewer points and steps."""

    budgets: tuple[float, ...]
    share: float = 1.0
    steps: float = math.inf


def size(budgets: tuple[float, ...], quick: bool) -> Size:
    return Size(tuple(0.01 * b for b in budgets), SHARE, STEPS) if quick else Size(budgets)


def run(equation: Equation, name: str, seed: int, size: Size, asked: Setting | None = None) -> list[Row]:
    """One contender on one equation: a row for each budget.

    Raises:
        JumpstartError: its package is not installed.
    """
    if math.isinf(size.steps):
        _rehearse(equation, name)
    start: Row = {"problem": equation.name, "seed": seed, "contender": name}
    if name == JUMPS:
        return [{**start, **_jumped(equation, seed, budget, size)} for budget in size.budgets]
    entrant, used = ENTRANTS[name], setting(equation.name, name) if asked is None else asked
    groups = [(budget,) for budget in size.budgets] if entrant.planned else [size.budgets]
    found = []
    for budgets in groups:
        rows = _stepped(equation, entrant, used, seed, Size(budgets, size.share, size.steps))
        found += [{**start, **row, "setting": used} for row in rows]
    return found


@functools.cache
def _rehearse(equation: Equation, name: str) -> None:
    """A step or two of a toy, after which torch has loaded what it needs."""
    small = Size((1e-3,), SHARE, 2)
    if name == JUMPS:
        _jumped(equation, 0, 1e-3, small)
    else:
        _stepped(equation, ENTRANTS[name], setting(equation.name, name), 0, small)


def _jumped(equation: Equation, seed: int, budget: float, size: Size) -> Row:
    """``js.fit`` with a budget, less what building the objective took."""
    model, drawn = equation.network(seed), equation.drawn(seed, size.share)
    begun = time.perf_counter()
    objective = at_points(equation.objective(model, size.share), drawn.points)
    build = time.perf_counter() - begun
    watch = equation.drawn(UNSEEN + seed, RIVALS**2 * size.share)
    row: Row = {"budget": budget, "build": round(build, 4), "failure": ""}
    limits: Any = {"budget": max(budget - build, 1e-3)} if math.isinf(size.steps) else {"jumps": int(size.steps)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", js.CollocationWarning)  # the rows say it
            found = js.fit(objective, error=equation.error, seed=seed, progress=False, **limits)
    except Exception as error:
        return {**row, "failure": _text(error), "error": equation.error(model), "lowest": math.nan}
    history = found.history
    errors = [r["error"] for r in history if r.get("error") is not None]
    error = equation.error(model)
    return {
        **row, "seconds": round(build + found.seconds, 3), "steps": found.jumps,
        "evaluations": round(found.gradient_evaluations, 1), "loss": found.loss, "unseen": loss(watch, model),
        "generalization": found.generalization, "error": error, "lowest": min([error, *errors]),
        "course": thinned([[build + r["seconds"], r["loss"], r.get("unseen"), r.get("error")] for r in history]),
    }  # fmt: skip


@dataclass
class _Run:
    """A rival at work: its weights, its time, and what was recorded."""

    equation: Equation
    model: nn.Module
    drawn: Drawn
    watch: Drawn
    seconds: float = 0.0
    steps: int = 0
    evaluations: float = 0.0
    failure: str = ""
    lowest: float = math.inf
    course: list[list[float | None]] = field(default_factory=list)

    @torch.no_grad()
    def theta(self) -> Tensor:
        return torch.cat([p.reshape(-1) for p in self.model.parameters()])

    @torch.no_grad()
    def write(self, theta: Tensor) -> None:
        parameters = list(self.model.parameters())
        for p, part in zip(parameters, theta.split([p.numel() for p in parameters]), strict=True):
            p.copy_(part.view_as(p))

    def measured(self) -> dict[str, float]:
        """Loss on the present points, loss on others, and error, which are recorded."""
        error = self.equation.error(self.model)
        self.lowest = min(self.lowest, error) if math.isfinite(error) else self.lowest
        found = {"loss": loss(self.drawn, self.model), "unseen": loss(self.watch, self.model), "error": error}
        self.course.append([self.seconds, *found.values()])
        return found

    def reading(self, budget: float) -> Row:
        """What the weights are worth that it holds now."""
        return {
            "budget": budget, "seconds": round(self.seconds, 3), "steps": self.steps,
            "evaluations": round(self.evaluations, 1), **self.measured(), "lowest": self.lowest,
            "failure": self.failure,
        }  # fmt: skip


def _stepped(equation: Equation, entrant: Entrant, used: Setting, seed: int, size: Size) -> list[Row]:
    """A rival's run, read at each budget; the longest one's row has the course."""
    share = RIVALS * size.share
    model, drawn = equation.network(seed), equation.drawn(seed, share)
    contender = entrant.make(drawn, size.budgets[-1], used)
    begun, objective = time.perf_counter(), None
    if entrant.linearizes:
        objective = at_points(equation.objective(model, share), drawn.points)
    build = time.perf_counter() - begun
    state = _Run(equation, model, drawn, equation.drawn(UNSEEN + seed, RIVALS * share), build)
    pending, found, due = list(size.budgets), [], 1.0
    state.measured()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        iterator = contender(model, objective)  # type: ignore[arg-type]  # None for those that need none
        while pending:
            before, held = state.theta(), (state.seconds, state.steps, state.evaluations)
            going = _advanced(state, iterator) and state.steps < size.steps
            if state.seconds > pending[0]:
                after, now = state.theta(), (state.seconds, state.steps, state.evaluations)
                state.write(before)
                state.seconds, state.steps, state.evaluations = held
                while pending and now[0] > pending[0]:
                    found.append(state.reading(pending.pop(0)))
                state.write(after)
                state.seconds, state.steps, state.evaluations = now
            elif state.steps >= due:
                due = max(state.steps + 1.0, state.steps * CADENCE)
                state.measured()
            if not going:
                found += [state.reading(budget) for budget in pending]
                break
        iterator.close()  # type: ignore[attr-defined]  # contenders are generators
    found[-1]["course"] = thinned(state.course)
    return [{"build": round(build, 4), **row} for row in found]


def _advanced(state: _Run, iterator: Iterator[dict[str, Any]]) -> bool:
    """One step, timed; whether there may be more. An exception is the end of this contender, and told."""
    begun = time.perf_counter()
    try:
        told = next(iterator)
    except StopIteration:  # it has come to its end
        return False
    except Exception as error:
        state.failure = _text(error)
        return False
    finally:
        state.seconds += time.perf_counter() - begun
    state.steps, state.evaluations = state.steps + 1, told["gradient_evaluations"]
    if bool(torch.isfinite(state.theta()).all()):
        return True
    state.failure = "weights are not finite"
    return False


def loss(drawn: Drawn, model: nn.Module) -> float:
    """Φ of a network at points."""
    rows = drawn.residuals(model).detach()
    return 0.5 * float(rows.dot(rows))


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def thinned(course: Sequence[Sequence[float | None]]) -> dict[str, list[float | None]]:
    """At most ``MOST`` records, the last among them, three digits each (seconds: milliseconds)."""
    step = max(1, math.ceil(len(course) / MOST))
    kept = [record for i, record in enumerate(course) if (len(course) - 1 - i) % step == 0]
    columns: list[tuple[float | None, ...]] = list(zip(*kept, strict=True)) or [()] * 4
    return {
        "seconds": [round(s or 0.0, 3) for s in columns[0]],
        **{
            key: [short(v) for v in column]
            for key, column in zip(("loss", "unseen", "error"), columns[1:], strict=True)
        },
    }


def short(value: float | None) -> float | None:
    """Three digits."""
    return None if value is None else float(f"{value:.3g}")


def failed(row: Row) -> bool:
    """Whether a run has not solved its problem: by error, or by an exception."""
    return bool(row["failure"]) or not row["error"] <= FAILED
