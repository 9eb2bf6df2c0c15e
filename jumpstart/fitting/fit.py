"""``fit``: the loop around jumps that somebody with a PINN wants. Jumps until a tolerance or a budget; keeps the best.

result = js.fit(objective, budget=60.0, tolerance=1e-12, error=lambda model: relative_error(model))
"""

from __future__ import annotations

import enum
import inspect
import math
import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError, NonFiniteError
from ..jumping.jump import JumpResult, jump
from ..jumping.levenberg_marquardt import Course
from ..jumping.trust import Outcome, Trust
from ..objectives.objective import Objective
from ..utils.progress import counter
from .checkpoint import Checkpoint
from .stages import LANDING, Run, State


class FitOutcome(enum.Enum):
    """How a fit ended; the value is a sentence for people."""

    TOLERANCE = "The loss is below the tolerance."
    BUDGET = "The budget of time or jumps is spent."
    STAGNANT = "The loss no longer falls, from the best weights or from perturbed ones; the best are kept."
    STOPPED = "The callback asked for it."
    STATIONARY = "The gradient vanishes: this is a stationary point."
    NOT_FINITE = "The residual stopped being finite on the way; the best weights are kept."


class StagnationWarning(UserWarning):
    """A fit stopped short of its tolerance; the message holds the likely cause."""


@dataclass(frozen=True)
class FitResult:
    """What a fit did. The model holds the best weights found.

    Attributes:
        outcome: a :class:`FitOutcome`. cause: a sentence on what probably stands in the way, if it stagnated.
        loss: Φ at the best weights (on the last points, where they were resampled), with the penalty of weight decay if
            there is any. start: the same at the start.
        error: ``error(model)`` at the best weights, if given.
        jumps, accepted, restarts: how many.
        seconds: time spent, all sessions of a resumed run together, ``error`` and ``callback`` aside.
        gradient_evaluations: as in ``jumpstart.cost``.
        history: a row for each jump: jump, seconds, gradient_evaluations, loss, best, horizon, outcome, and error
            where it was measured.
    """

    outcome: FitOutcome
    loss: float
    start: float
    error: float | None
    jumps: int
    accepted: int
    restarts: int
    seconds: float
    gradient_evaluations: float
    cause: str = ""
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        error = "" if self.error is None else f", error {self.error:.3g}"
        return (
            f"{self.outcome.name}: loss {self.start:.3g} → {self.loss:.3g}{error} in {self.seconds:.3g} s, "
            f"{self.accepted}/{self.jumps} jumps, {self.restarts} restarts. {self.outcome.value} {self.cause}".rstrip()
        )

    def plot(self, path: str | Path) -> Path:
        """Loss (and error) against seconds, as a picture at ``path``."""
        from ..report import plots

        return plots.save(plots.history(self.history), path)


def fit(
    objective: Objective,
    *,
    budget: float | None = None,
    jumps: int | None = None,
    tolerance: float = 0.0,
    error: Callable[[nn.Module], float] | None = None,
    resample: Callable[[int], Any] | None = None,
    every: int = 1,
    patience: int = 40,
    bold: bool = True,
    restarts: int = 2,
    path: str | Path | None = None,
    progress: bool | None = None,
    callback: Callable[[JumpResult], Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> FitResult:
    """Jump until the loss is below a tolerance or the budget is spent; the model ends with the best weights found.

    Args:
        objective: a residual objective, or any other.
        budget: seconds. jumps: most jumps. At least one of the two (or a tolerance) must be given.
        tolerance: stop at this loss Φ.
        error: measures the model for the progress bar and the history (relative error against a reference, say); it is
            called in eval mode without gradients, not timed, and for at most a tenth of the time.
        resample: jump number -> new collocation points (``objective.resampled``), called before every ``every``-th
            jump but the first; the same for the same number if the run is to be resumed.
        patience: jumps without a fall of the loss by a hundredth after which the run has stagnated. It is then
            restarted from the best weights, slightly perturbed, at most ``restarts`` times.
        bold: once the loss has fallen a hundredfold, or after 20 jumps, or where it no longer falls, march boldly (the
            loss may rise on the way, the best weights are kept), and land from the best weights once 60% of the budget
            is spent or ``patience`` is over; docs/theory.md, section 9. For squared losses that are marched (``jump``'s
            family).
        path: file for a checkpoint, written about once a second and at the end; a run that finds one there goes on.
        progress: a bar with loss and error: None on terminals alone.
        callback: called with every :class:`JumpResult` (the model holds the weights that the next jump starts from); a
            true answer stops the fit.
        seed: of the perturbations; the global random state is left alone.
        options: passed to :func:`jumpstart.jump`.

    Raises:
        InputError and its kinds for an objective that cannot be jumped along.

    Example:
        >>> import torch
        >>> from jumpstart import fit, supervised
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> fit(supervised(model, x, (3 * x).sin()), jumps=30, tolerance=1e-6).loss < 1e-3
        True
    """
    run = iterate(
        objective, budget=budget, jumps=jumps, tolerance=tolerance, error=error, resample=resample, every=every,
        patience=patience, bold=bold, restarts=restarts, path=path, progress=progress, callback=callback, seed=seed,
        **options,
    )  # fmt: skip
    while True:
        try:
            next(run)
        except StopIteration as end:
            if end.value.cause and tolerance > 0:
                warnings.warn(f"{end.value.outcome.value} {end.value.cause}", StagnationWarning, stacklevel=2)
            return end.value


def iterate(
    objective: Objective,
    *,
    budget: float | None = None,
    jumps: int | None = None,
    tolerance: float = 0.0,
    error: Callable[[nn.Module], float] | None = None,
    resample: Callable[[int], Any] | None = None,
    every: int = 1,
    patience: int = 40,
    bold: bool = True,
    restarts: int = 2,
    path: str | Path | None = None,
    progress: bool | None = None,
    callback: Callable[[JumpResult], Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Generator[State, None, FitResult]:
    """:func:`fit` jump by jump: yields its state after each, with the best weights so far, and returns the result."""
    _check(objective, budget, jumps, tolerance, resample, every, options)
    for name, value, least in (("patience", patience, 1), ("restarts", restarts, 0)):
        if not isinstance(value, int) or value < least:
            raise InputError(f"fit: {name}={value!r}: give a whole number of at least {least}.")
    if (params := options.pop("params", None)) is not None:
        objective = objective.subset(params)
    if _marches(objective, options):
        options = {**options, "family": "march"}
    bold = bold and options.get("family") == "march"
    theta = objective.theta()
    run = Run(objective, State.at(theta), error, options, seed, restarts, progress)
    file = None if path is None else Checkpoint(path, objective, _decisive(options))
    if file is not None and file.exists():
        run.state = _state(file.load(set(State.__dataclass_fields__)))
        objective.space.write(objective.model, run.state.theta)
        if resample is not None and run.state.jumps >= every and run.state.jumps % every:
            run.resample(resample(run.state.jumps // every * every))  # the points it was on
        if not bold:
            run.land()
    else:
        run.begin(bold)
    state = run.state
    outcome, cause = None, ""
    limit = math.inf if jumps is None else jumps
    total = limit if budget is None else None
    saved = time.monotonic()
    try:
        with counter("fit", None if total is None or math.isinf(total) else int(total), progress) as bar:
            while outcome is None:
                if state.best_loss <= tolerance:
                    outcome = FitOutcome.TOLERANCE
                    break
                if state.jumps >= limit or (budget is not None and state.seconds >= budget):
                    outcome = FitOutcome.BUDGET
                    break
                if state.may_climb and run.spent(budget, limit) >= LANDING:
                    run.land()
                if resample is not None and state.jumps and state.jumps % every == 0:
                    run.resample(resample(state.jumps))
                try:
                    result = run.jump()
                except NonFiniteError:  # a climb has led to where derivatives are not finite
                    if run.land() or run.restart():
                        continue
                    outcome = FitOutcome.NOT_FINITE
                    break
                bar(f"loss {state.best_loss:.2e}{run.shown()}")
                if result.outcome is Outcome.STATIONARY and not run.restart():
                    outcome = FitOutcome.STATIONARY
                elif run.stagnant(patience) and not (run.embolden() or run.land() or run.restart()):
                    outcome, cause = FitOutcome.STAGNANT, run.cause(result)
                # Last, so that an interrupt in it finds everything else done.
                if callback is not None and callback(result) and outcome is None:
                    outcome = FitOutcome.STOPPED
                if file is not None and time.monotonic() - saved > 1.0:
                    file.save(_plain(state))
                    saved = time.monotonic()
                yield state
    except BaseException:
        # An interrupt or a failing callback: the checkpoint holds where the run was, the model gets the best so far.
        objective.space.write(objective.model, state.best)
        if file is not None:
            file.save(_plain(state))
        raise
    objective.space.write(objective.model, state.best)
    if file is not None:
        file.save(_plain(state))
    return FitResult(
        outcome, state.best_loss, state.start, run.measure(), state.jumps, state.accepted, state.restarts,
        state.seconds, state.cost, cause, state.history,
    )  # fmt: skip


def _plain(state: State) -> dict[str, Any]:
    """A state as tensors, numbers and tables of them, for a file."""
    course = [] if state.course is None else [vars(state.course)]
    return {**vars(state), "trust": [vars(state.trust)], "course": course}


def _state(found: dict[str, Any]) -> State:
    course = [Course(**row) for row in found["course"]]
    return State(**{**found, "trust": Trust(**found["trust"][0]), "course": course[0] if course else None})


def _decisive(options: dict[str, Any]) -> dict[str, Any]:
    """The options that change what a run converges to; a resumed one must be given the same."""
    basis = options.get("basis", "auto")
    return {
        "basis": basis if isinstance(basis, str) else getattr(basis, "__qualname__", type(basis).__name__),
        "gate": options.get("gate"),
        "metric": options.get("metric") is not None,
        "weight_decay": options.get("weight_decay"),
    }


def _marches(objective: Objective, options: dict[str, Any]) -> bool:
    """Whether the loss is a sum of squares, and nothing that was asked for stands against a march."""
    asked = options.get("gate") is None and options.get("horizon") is None and options.get("family") is None
    basis = options.get("basis", "auto")
    return asked and objective.loss.curvature is not None and isinstance(basis, str) and basis != "krylov"


def _check(
    objective: Any, budget: Any, jumps: Any, tolerance: Any, resample: Any, every: Any, options: dict[str, Any]
) -> None:
    if not isinstance(objective, Objective):
        raise InputError(f"fit needs a js.Objective (see js.residual), got {type(objective).__name__}.")
    if budget is None and jumps is None and not tolerance:
        raise InputError("fit: say when to stop, with budget= (seconds), jumps= or tolerance= (loss).")
    for name, value in (("budget", budget), ("jumps", jumps)):
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
            raise InputError(f"fit: {name}={value!r} must be positive.")
    if jumps is not None and jumps % 1:
        raise InputError(f"fit: jumps={jumps!r}: give a whole number.")
    if not (isinstance(tolerance, (int, float)) and tolerance >= 0):
        raise InputError(f"fit: tolerance={tolerance!r} is a loss, 0 or more.")
    if not isinstance(every, int) or every < 1:
        raise InputError(f"fit: every={every!r}: resample every so many jumps, at least 1.")
    if resample is not None and not hasattr(objective, "resampled"):
        raise InputError("fit: resample= needs an objective made by js.residual, which knows its points.")
    known = set(inspect.signature(jump).parameters) - {"objective", "trust", "course", "recycle"}
    if unknown := set(options) - known:
        raise InputError(f"fit: {sorted(unknown)} is no option of fit or js.jump; there are {sorted(known)}.")
