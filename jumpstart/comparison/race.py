"""One race: contenders from copies of one start, interleaved, recorded against steps, gradient evaluations and time."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, NonFiniteError
from ..fitting.fit import rehearsal as rehearsing
from ..objectives.objective import Objective
from ..objectives.pure import module_mode
from ..objectives.residual import Residuals
from ..report import jumps
from ..report.names import printable
from ..report.records import Row
from ..utils.brief import brief
from ..utils.guard import guarded
from ..utils.warn import warn
from .columns import FAILED
from .contenders import TRIED, Contender, Progress
from .report import Report

HUNDREDTH = 100  # a step that is always recorded: what others quote their times to
CADENCE = 1.08  # records thin out geometrically: this ratio between the step numbers of neighbours
KEPT = 1000  # jumps of a contender in a report, the last ones

Evaluate = Callable[[nn.Module], Mapping[str, float]]
Tell = Callable[[float, str], None]  # the share that is done, and what to show beside it


@dataclass(frozen=True)
class Limits:
    """Of each contender: seconds by name, and for all alike steps and gradient evaluations.

    Raises:
        InputError: quoting what is no limit.
    """

    seconds: Mapping[str, float]
    steps: float | None = None
    evaluations: float | None = None

    def __post_init__(self) -> None:
        limits = {
            **{f"seconds of {name}": value for name, value in self.seconds.items()},
            "steps": self.steps,
            "evaluations": self.evaluations,
        }
        for name, value in limits.items():
            optional = name in ("steps", "evaluations") and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
                raise InputError(f"compare: {name}={brief(value)} must be a positive number.")

    def of(self, label: str) -> _Limits:
        steps, evaluations = self.steps, self.evaluations
        return _Limits(
            self.seconds[label], math.inf if steps is None else steps, math.inf if evaluations is None else evaluations
        )


def race(
    model: nn.Module,
    objective: Callable[[nn.Module], Objective],
    contenders: Mapping[str, Contender],
    limits: Limits,
    evaluate: Evaluate | None,
    report: Report,
    tell: Tell,
    seed: int,
    folder: str | Path | None = None,
) -> Report:
    """Run everybody to the end and fill the report; see :func:`jumpstart.compare`.

    Args:
        folder: where the rows so far are written if anything ends the race.
    """
    try:
        runs = [_rehearsed(label, model, objective, contender, seed) for label, contender in contenders.items()]
        for run in runs:
            _record(report, run, evaluate)
        _run(report, runs, limits, evaluate, tell)
    except BaseException as error:
        if folder is not None and report.rows:
            _keep(report, folder, error)
        raise
    report.settings["metrics"] = _metrics(report)
    for run in runs:
        _close(report, run)
        if run.failure:
            warn(f"compare: {printable(run.label)!r} is out: {run.failure}", RuntimeWarning)
    return report


def _close(report: Report, run: _Run) -> None:
    """What is told once of each contender: its jumps, and where residuals are large at its end."""
    report.jumps += run.tried
    if left := run.count - len(run.tried):
        report.settings.setdefault("jumps left out", {})[run.label] = left
    if isinstance(run.objective, Residuals) and math.isfinite(run.loss):
        try:
            report.residuals += [found.row(run.label) for found in run.objective.maps()]
        except Exception as error:  # a map is no reason to lose the rows
            warn(f"compare: no residual map of {printable(run.label)!r}: {printable(error, 200)}", RuntimeWarning)


def _rehearsed(
    label: str, model: nn.Module, objective: Callable[[nn.Module], Objective], contender: Contender, seed: int
) -> _Run:
    """A contender at the start, after a step on another copy: what torch imports or tunes on first use is nobody's."""
    rehearsal, twin = copy.deepcopy(model), copy.deepcopy(model)
    with rehearsing():
        spare = _Run(label, rehearsal, objective(rehearsal), contender, seed)
        spare.advance(_Limits(math.inf, 1, math.inf))
    return _Run(label, twin, objective(twin), contender, seed)


def _run(report: Report, runs: list[_Run], limits: Limits, evaluate: Evaluate | None, tell: Tell) -> None:
    while live := [run for run in runs if run.live]:
        run = min(live, key=lambda run: run.seconds)
        run.advance(limits.of(run.label))
        if run.due():
            with run.failing():  # the model that it has left behind
                _record(report, run, evaluate)
        if run.failure:
            _told(report, run)
        done = sum(run.done(limits.of(run.label)) for run in runs) / len(runs)
        tell(done, f"{printable(run.label, 30)}: loss {run.loss:.3g}")


def _told(report: Report, run: _Run) -> None:
    """The contender's last row says what happened to it."""
    last = next(row for row in reversed(report.rows) if row["contender"] == run.label)
    if last["step"] < run.step:
        last = {**last, "step": run.step, "seconds": run.seconds, "loss": math.nan}
        report.rows.append(last)
    last[FAILED] = run.failure


def _metrics(report: Report) -> list[str]:
    return sorted({k for row in report.rows for k in row} - _Run.COLUMNS)


def _keep(report: Report, folder: str | Path, error: BaseException) -> None:
    """The rows so far, written whatever ended the run; a failure to do so does not hide that."""
    report.settings |= {"metrics": _metrics(report), "interrupted": type(error).__name__}
    try:
        path = report.save(folder, figure=False)
    except Exception as failure:
        error.add_note(f"the rows so far were not written: {failure}")
    else:
        error.add_note(f"the rows so far are in {path}")


@dataclass(frozen=True)
class _Limits:
    seconds: float
    steps: float
    evaluations: float


class _Run:
    COLUMNS = frozenset(("contender", "step", "gradient_evaluations", "seconds", "loss", "jumps", "accepted", FAILED))

    def __init__(self, label: str, model: nn.Module, objective: Objective, contender: Contender, seed: int) -> None:
        objective.require_alone("compare")
        self.label, self.model, self.objective = label, model, objective
        self.contender, self.iterator, self.failure = contender, None, ""
        self.device, self.random = objective.space.device, _Random(seed)
        self.seconds, self.step, self.loss, self.live, self.next = 0.0, 0, math.nan, True, 1.0
        self.progress: Progress = {"gradient_evaluations": 0}
        self.tried: list[Row] = []
        self.count = 0  # of all jumps, also those that are no longer among ``tried``

    def advance(self, limits: _Limits) -> None:
        _wait(self.device)
        begun = time.perf_counter()
        tried: Any = ()
        # Every contender draws from a random stream of its own, whoever's turn it was before.
        with _random_state(self.device, self.random) as self.random, self.failing():
            try:
                if self.iterator is None:
                    self.iterator = iter(self.contender(self.model, self.objective))
                self.progress = _progress(next(self.iterator))
                self.step += 1
                tried = self.progress.pop(TRIED, ())
            except (StopIteration, NonFiniteError):  # it has come to its end, or diverged
                self.live = False
        _wait(self.device)
        self.seconds += time.perf_counter() - begun
        self._keep(tried)
        if self.done(limits) >= 1:
            self.live = False

    def _keep(self, tried: Any) -> None:
        """Rows of the jumps that a step has tried, the last thousand."""
        cost = self.progress["gradient_evaluations"]
        where = {"step": self.step, "seconds": self.seconds, "gradient_evaluations": cost}
        found = [jumps.row(self.label, action, result, **where) for action, result in tried]
        self.tried, self.count = [*self.tried, *found][-KEPT:] if found else self.tried, self.count + len(found)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """An exception inside ends this contender, and no other."""
        try:
            yield
        except Exception as error:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self.live, self.failure = False, printable(text, 200)

    def done(self, limits: _Limits) -> float:
        """Share of the run that is over."""
        spent = (
            self.seconds / limits.seconds,
            self.step / limits.steps,
            self.progress["gradient_evaluations"] / limits.evaluations,
        )
        return 1.0 if not self.live else min(1.0, max(spent))

    def due(self) -> bool:
        if self.step >= self.next or not self.live or self.step == HUNDREDTH:
            self.next = max(self.step + 1.0, self.step * CADENCE)
            return True
        return False


def _progress(found: Any) -> Progress:
    """What a contender yielded.

    Raises:
        InputError: it counts no gradient evaluations.
    """
    cost = found.get("gradient_evaluations") if isinstance(found, Mapping) else None
    if isinstance(cost, bool) or not isinstance(cost, (int, float)):
        raise InputError(f"a contender yields a table with 'gradient_evaluations' so far, got {found!r:.60}.")
    return dict(found)


class _Random:
    """The state of a random stream between two turns: a seed at first."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.cpu: torch.Tensor | None = None
        self.cuda: torch.Tensor | None = None


@contextlib.contextmanager
def _random_state(device: torch.device, state: _Random) -> Iterator[_Random]:
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        if state.cpu is None:
            torch.manual_seed(state.seed)
        else:
            torch.set_rng_state(state.cpu)
            if state.cuda is not None:
                torch.cuda.set_rng_state(state.cuda, device)
        yield state
        state.cpu = torch.get_rng_state()
        state.cuda = torch.cuda.get_rng_state(device) if cuda else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@guarded(lambda report, run, *_, **__: run.model)
def _record(report: Report, run: _Run, evaluate: Evaluate | None) -> None:
    # Outputs at weights that a diverged optimizer has made NaN are recorded as such, not refused.
    theta = run.objective.space.flatten({k: p.detach() for k, p in run.model.named_parameters()})
    run.loss = run.objective.value(theta)
    row: Row = {
        "contender": run.label,
        "step": run.step,
        "seconds": run.seconds,
        "loss": run.loss,
        **run.progress,
    }
    if evaluate is not None:
        with torch.no_grad(), module_mode(run.model, False):
            row.update({key: float(value) for key, value in evaluate(run.model).items()})
    report.rows.append(row)
