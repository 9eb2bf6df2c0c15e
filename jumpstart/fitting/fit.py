"""``fit``: the loop around jumps that somebody with a PINN wants. Jumps until a tolerance or a budget; keeps the best.

result = js.fit(objective, budget=60.0, tolerance=1e-12, error=lambda model: relative_error(model))
"""

from __future__ import annotations

import contextlib
import enum
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..archive.container import digest
from ..errors import ArchiveError, InputError, NonFiniteError
from ..jumping.jump import JumpResult, require_objective
from ..jumping.jumper import Jumper
from ..jumping.settings import LEVENBERG_MARQUARDT
from ..jumping.trust import Outcome
from ..linearization.metric import MetricLike, metric_of
from ..objectives.objective import Objective
from ..report import plots
from ..utils.progress import counter
from .checkpoint import Checkpoint
from .stages import Event, FitRun, FitSettings, FitState

SAVING = 1.0  # seconds between checkpoints

_rehearsing: ContextVar[bool] = ContextVar("jumpstart_rehearsing", default=False)


@contextlib.contextmanager
def rehearsal() -> Iterator[None]:
    """Fits inside neither read nor write their files: a trial that is nobody's run."""
    token = _rehearsing.set(True)
    try:
        yield
    finally:
        _rehearsing.reset(token)


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
        gradient_evaluations: as in ``jumpstart.utils.cost``.
        history: a row for each jump: jump, seconds, gradient_evaluations, loss, best, horizon, outcome, stage, and
            error where it was measured.
        notes: what was slower than it could be, and why.
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
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        error = "" if self.error is None else f", error {self.error:.3g}"
        return (
            f"{self.outcome.name}: loss {self.start:.3g} → {self.loss:.3g}{error} in {self.seconds:.3g} s, "
            f"{self.accepted}/{self.jumps} jumps, {self.restarts} restarts. {self.outcome.value} {self.cause}".rstrip()
        )

    def plot(self, path: str | Path) -> Path:
        """Loss (and error) against seconds, as a picture at ``path``."""
        return plots.save(plots.history(self.history), path)


def fit(
    objective: Objective,
    *,
    budget: float | None = None,
    jumps: int | None = None,
    tolerance: float | None = None,
    error: Callable[[nn.Module], float] | None = None,
    resample: Callable[[int], Any] | None = None,
    every: int = 1,
    patience: int = 40,
    nonmonotone: bool = True,
    restarts: int = 2,
    path: str | Path | None = None,
    progress: bool | None = None,
    callback: Callable[[JumpResult], Any] | None = None,
    seed: int = 0,
    metric: MetricLike = None,
    **options: Any,
) -> FitResult:
    """Jump until the loss is below a tolerance or the budget is spent; the model ends with the best weights found.

    Args:
        objective: a residual objective, or any other.
        budget: seconds. jumps: most jumps. At least one of the two (or a tolerance) must be given.
        tolerance: stop at this loss Φ; None for none.
        error: measures the model for the progress bar and the history (relative error against a reference, say); it is
            called in eval mode without gradients, not timed, and for at most a tenth of the time.
        resample: jump number -> new collocation points (``objective.resampled``), called before every ``every``-th
            jump but the first; the same for the same number if the run is to be resumed.
        patience: jumps without a fall of the loss by a hundredth after which the run has stagnated. It is then
            restarted from the best weights, slightly perturbed, at most ``restarts`` times.
        nonmonotone: once the loss has fallen a hundredfold, or after 20 jumps, or where it no longer falls, let it rise
            on the way (the best weights are kept), and land from the best weights once 60% of the budget is spent or
            ``patience`` is over; docs/theory.md, section 9. For squared losses and Levenberg–Marquardt's search.
        path: file for a checkpoint, written about once a second and at the end; a run that finds one there goes on, if
            it is of the same problem.
        progress: a bar with loss and error: None on terminals alone.
        callback: called with every :class:`JumpResult` (the model holds the weights that the next jump starts from); a
            true answer stops the fit.
        seed: of the perturbations; the global random state is left alone.
        metric, options: of jumps, as for :class:`jumpstart.Jumper`.

    Raises:
        InputError and its kinds for an objective that cannot be jumped along; ArchiveError for a file at ``path`` that
        holds no fit of this problem. Nothing has moved then.

    Example:
        >>> import torch
        >>> from jumpstart import fit, supervised
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> fit(supervised(model, x, (3 * x).sin()), jumps=30, tolerance=1e-6).loss < 1e-3
        True
    """
    run = Fit(
        objective, error=error, resample=resample, path=path, progress=progress, callback=callback, metric=metric,
        budget=budget, jumps=jumps, tolerance=tolerance, every=every, patience=patience, nonmonotone=nonmonotone,
        restarts=restarts, seed=seed, **options,
    )  # fmt: skip
    steps = run.steps()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: FitResult = end.value
            if found.cause and tolerance is not None:
                warnings.warn(f"{found.outcome.value} {found.cause}", StagnationWarning, stacklevel=2)
            return found


class Fit:
    """A fit that is taken jump by jump: what :func:`fit` runs to its end.

    Args:
        keywords: :func:`fit`'s others, and the options of jumps.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        error: Callable[[nn.Module], float] | None = None,
        resample: Callable[[int], Any] | None = None,
        path: str | Path | None = None,
        progress: bool | None = None,
        callback: Callable[[JumpResult], Any] | None = None,
        metric: MetricLike = None,
        **keywords: Any,
    ) -> None:
        require_objective(objective, "fit")
        own = {f.name for f in fields(FitSettings)}
        self.settings = FitSettings(**{name: value for name, value in keywords.items() if name in own})
        options = {name: value for name, value in keywords.items() if name not in own}
        if unknown := set(options) - Jumper.OPTIONS:
            known = sorted(own | (Jumper.OPTIONS - {"nonmonotone"}))
            raise InputError(f"fit: {sorted(unknown)} is no option of fit or of jumps; there are {known}.")
        _require_functions(error=error, resample=resample, callback=callback)
        if resample is not None and not hasattr(objective, "resampled"):
            raise InputError("fit: resample= needs an objective made by js.residual, which knows its points.")
        if resample is None and self.settings.every != 1:
            raise InputError(f"fit: every={self.settings.every} is how often resample= is called: give both.")
        if (params := options.pop("params", None)) is not None:
            objective = objective.subset(params)
        if _implicit(objective, options):
            options["search"] = LEVENBERG_MARQUARDT
        self.objective, self.resample, self.callback, self.progress = objective, resample, callback, progress
        self.run = FitRun(objective, self.settings, error, metric, options, progress)
        self.file: Checkpoint | None = None
        if path is not None and not _rehearsing.get():
            self.file = Checkpoint(path, objective, decisive(objective, options, metric, resample is not None))

    def steps(self) -> Generator[FitState, None, FitResult]:
        """Yields the state after each jump, with the best weights so far, and returns the result."""
        run = self.run
        self._start()
        saved = time.monotonic()
        total = self.settings.limit if self.settings.budget is None else math.inf
        try:
            with counter("fit", None if math.isinf(total) else int(total), self.progress) as bar:
                while (outcome := self._over()) is None:
                    outcome = self._step(bar)
                    if time.monotonic() - saved > SAVING:
                        self._save()
                        saved = time.monotonic()
                    yield run.state
                    if outcome is not None:
                        break
        except BaseException:
            # An interrupt or a failing callback: the file holds where the run was, the model gets the best so far.
            run.write(run.state.best)
            self._save()
            raise
        cause = run.cause() if outcome is FitOutcome.STAGNANT else ""
        run.write(run.state.best)
        self._save()
        return self._result(outcome, cause)

    def _start(self) -> None:
        """From the checkpoint if there is one, else from the present weights."""
        run, every = self.run, self.settings.every
        if self.file is None or not self.file.exists():
            run.begin()
            return
        found = self.file.load(FitState.names())
        try:
            state = FitState.from_flat(found, self.objective.space.size)
        except InputError as error:
            raise ArchiveError(f"{self.file.path}: {error} Give another path, or delete it.") from error
        run.resume(state)
        if self.resample is not None and state.jumps >= every and state.jumps % every:
            run.resample(self.resample(state.jumps // every * every))  # the points it was on

    def _over(self) -> FitOutcome | None:
        state, settings = self.run.state, self.settings
        if settings.tolerance is not None and state.best_loss <= settings.tolerance:
            return FitOutcome.TOLERANCE
        if state.jumps >= settings.limit or (settings.budget is not None and state.seconds >= settings.budget):
            return FitOutcome.BUDGET
        return None

    def _step(self, bar: Callable[[str], None]) -> FitOutcome | None:
        """One jump, and what follows from it; how the fit ended, if it did."""
        run, state = self.run, self.run.state
        if run.late():
            run.meet(Event.LATE)
        if self.resample is not None and state.jumps and state.jumps % self.settings.every == 0:
            run.resample(self.resample(state.jumps))
        if run.down():
            run.meet(Event.DOWN)
        try:
            result = run.jump()
        except NonFiniteError:  # a climb has led to where derivatives are not finite
            return None if run.meet(Event.BROKEN) else FitOutcome.NOT_FINITE
        bar(run.shown())
        outcome = None
        solved = state.best_loss == 0  # a restart from there could only lose
        if result.outcome is Outcome.STATIONARY and (solved or not run.meet(Event.STILL)):
            outcome = FitOutcome.STATIONARY
        elif run.stuck() and not run.meet(Event.STUCK):
            outcome = FitOutcome.STAGNANT
        # Last, so that an interrupt in it finds everything else done.
        if self.callback is not None and self.callback(result) and outcome is None:
            outcome = FitOutcome.STOPPED
        return outcome

    def _save(self) -> None:
        """A run goes on where its file cannot be written."""
        if self.file is None:
            return
        try:
            self.file.save(self.run.state.flat())
        except ArchiveError as error:
            warnings.warn(f"fit goes on without a checkpoint: {error}", RuntimeWarning, stacklevel=2)

    def _result(self, outcome: FitOutcome, cause: str) -> FitResult:
        run, state = self.run, self.run.state
        return FitResult(
            outcome, state.best_loss, state.start, run.measure(), state.jumps, state.accepted, state.restarts,
            state.seconds, state.cost, cause, state.history, tuple(run.objective.notes()),
        )  # fmt: skip


def _implicit(objective: Objective, options: dict[str, Any]) -> bool:
    """Whether the loss is a multiple of a squared distance, and nothing asked for stands against implicit steps."""
    free = all(options.get(name) is None for name in ("gate", "horizon", "search", "directions"))
    basis = options.get("basis", "auto")
    return free and objective.loss.curvature is not None and isinstance(basis, str) and basis != "krylov"


def _require_functions(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and not callable(value):
            raise InputError(f"fit: {name}={value!r} must be a function, or None.")


def decisive(objective: Objective, options: dict[str, Any], metric: MetricLike, resampled: bool) -> dict[str, Any]:
    """The options that change what a run converges to, or is measured on; a resumed one must be given the same."""
    basis, gate = options.get("basis", "auto"), options.get("gate")
    decay = metric_of(metric, objective, options.get("weight_decay")).decay
    return {
        "basis": basis if isinstance(basis, str) else getattr(basis, "__qualname__", type(basis).__name__),
        "gate": gate if gate is None or isinstance(gate, str) else repr(gate),
        "metric": metric is not None,
        "weight_decay": digest(decay) if isinstance(decay, Tensor) else decay,
        "resample": resampled,
    }
