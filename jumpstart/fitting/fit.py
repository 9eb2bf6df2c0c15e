"""``fit``: the loop around jumps that somebody with a PINN wants. Jumps until a tolerance or a budget; keeps the best.

result = js.fit(objective, budget=60.0, tolerance=1e-12, error=lambda model: relative_error(model))
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..archive.container import digest
from ..distributed.wrapped import entry
from ..errors import ArchiveError, InputError, NonFiniteError
from ..jumping.jump import JumpResult
from ..jumping.jumper import Jumper
from ..jumping.settings import LEVENBERG_MARQUARDT
from ..jumping.trust import Outcome
from ..linearization.metric import MetricLike, metric_of
from ..objectives.objective import Objective, require_objective
from ..utils.brief import brief
from ..utils.progress import counter
from ..utils.warn import warn
from ..weighting import Rule
from .checkpoint import Checkpoint
from .result import FitOutcome, FitResult
from .settings import FitSettings
from .stages import Event, FitRun
from .state import FitState

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


class StagnationWarning(UserWarning):
    """A fit stopped short of its tolerance; the message holds the likely cause."""


class CollocationWarning(UserWarning):
    """A network fits the points that it was trained on, and not the equation between them."""


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
    adaptive: bool | None = None,
    weigh: Rule | None = None,
    metric: MetricLike = None,
    **options: Any,
) -> FitResult:
    """Jump until the loss is below a tolerance or the budget is spent; the model ends with the best weights found.

    Args:
        objective: a residual objective, or any other.
        budget: seconds. jumps: most jumps. At least one of the two (or a tolerance) must be given.
        tolerance: stop at this loss Φ; None for none. Where terms have domains it is of points never trained on, which
            are looked at every few jumps, unless ``adaptive=False``.
        adaptive: where terms have domains, move points to where the residual is large, and add some, once the loss on
            points never trained on is above three times that on the others (the default); False keeps the first points,
            whose loss then decides everything.
        error: measures the model for the progress bar and the history (relative error against a reference, say), as one
            number; it is called in eval mode without gradients, once before the first jump, not timed, and for at most
            a tenth of the time.
        weigh: where terms have domains, a rule that gives each of their points a weight as its residual is, at every
            fifth jump: ``js.weighting.Attention()``, ``js.weighting.Causal()``, or a function as described there.
        resample: jump number -> new collocation points (``objective.resampled``), called before every ``every``-th
            jump but the first; the same for the same number if the run is to be resumed.
        patience: jumps without a fall of the loss by a hundredth (where terms have domains, of that on points never
            trained on; a climb on these has four times as many) after which the run has stagnated. It is then restarted
            from the best weights, slightly perturbed, at most ``restarts`` times.
        nonmonotone: once the loss has fallen a hundredfold, or after 20 jumps, or where it no longer falls, let it rise
            on the way (the best weights are kept). Once 60% of the budget is spent (85% where points are drawn; of
            seconds less, if 25 jumps take more), or ``patience`` is over, it comes down from where it is, or from the
            best weights; docs/theory.md, section 9. For squared losses and Levenberg–Marquardt's search.
        path: file for a checkpoint, written about once a second and at the end; a run that finds one there goes on, if
            it is of the same problem. Where it cannot be written any more, the run warns and goes on. Two runs with
            one path warn of each other, and the last to write wins, whole.
        progress: a bar with loss and error: None on terminals alone.
        callback: called with every :class:`JumpResult` (the model holds the weights that the next jump starts from); a
            true answer stops the fit.
        seed: of the perturbations, and of points that are drawn on the way; the global random state is left alone.
        metric, options: of jumps, as for :class:`jumpstart.Jumper`.

    Raises:
        InputError and its kinds: for an objective that cannot be jumped along; nothing has moved then.
        ArchiveError: for a file at ``path`` that holds no fit of this problem; nothing has moved then. After any other
            exception, an interrupt or one of ``error`` or ``callback``, the model holds the best weights so far and the
            file the last whole state.

    Example:
        >>> import torch
        >>> from jumpstart import fit, supervised
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> fit(supervised(model, x, (3 * x).sin()), jumps=30, tolerance=1e-6).loss < 1e-3
        True
    """
    with entry(getattr(objective, "world", None), "fit"):
        run = Fit(
            objective, error=error, resample=resample, path=path, progress=progress, callback=callback, metric=metric,
            budget=budget, jumps=jumps, tolerance=tolerance, every=every, patience=patience, nonmonotone=nonmonotone,
            restarts=restarts, seed=seed, adaptive=adaptive, weigh=weigh, **options,
        )  # fmt: skip
    found = run.complete()
    if found.cause and tolerance is not None:
        warn(f"{found.outcome.value} {found.cause}", StagnationWarning)
    if told := run.run.parted(found.generalization):
        warn(told, CollocationWarning)
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
        if resample is not None and self.settings.adaptive:
            raise InputError("fit: adaptive=True and resample= both move the points: ask for one of them.")
        if resample is not None and self.settings.weigh is not None:
            raise InputError("fit: resample= moves the points that weigh= weighs: ask for one of them.")
        if resample is None and self.settings.every != 1:
            raise InputError(f"fit: every={self.settings.every} is how often resample= is called: give both.")
        if (params := options.pop("params", None)) is not None:
            objective = objective.subset(params)
        if _implicit(objective, options):
            options["search"] = LEVENBERG_MARQUARDT
        progress = progress if objective.leads else False
        self.objective, self.resample, self.callback, self.progress = objective, resample, callback, progress
        self.run = FitRun(objective, self.settings, error, metric, options, progress, moving=resample is None)
        self.outcome: FitOutcome | None = None  # where it does not follow from the state
        self.begun, self.trouble = False, ""
        self.file: Checkpoint | None = None
        _require_known_data(objective, path)
        if path is not None and not _rehearsing.get():
            self.file = Checkpoint(
                path, objective, decisive(objective, options, metric, resample is not None, self.settings)
            )

    def complete(self) -> FitResult:
        """Every jump, to the end."""
        with self._kept():
            for _ in self._jumps():
                pass
            return self._end()

    def steps(self) -> Generator[FitState, None, FitResult]:
        """Yields the state after each jump, with the best weights so far, and returns the result."""
        with self._kept():
            yield from self._jumps()
            return self._end()

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """After an interrupt or a failing callback the model has the best weights, the file the last whole state."""
        try:
            yield
        except BaseException as error:
            self.run.write(self.run.state.answer)
            if self.begun:
                self._save(error)
            raise

    def _jumps(self) -> Iterator[FitState]:
        run = self.run
        self._start()
        saved = time.monotonic()
        total = self.settings.limit if self.settings.budget is None else math.inf
        with counter("fit", None if math.isinf(total) else int(total), self.progress) as bar:
            while self._over() is None:
                self._step()
                bar(run.shown())
                if time.monotonic() - saved > SAVING:
                    self._save()
                    saved = time.monotonic()
                yield run.state

    def _start(self) -> None:
        """From the checkpoint if there is one, else from the present weights; what ``error`` returns is looked at."""
        run, world = self.run, self.objective.world
        with entry(world, "the start of a fit"):
            run.measure()
            there = self.file is not None and self.file.exists()
            if world is not None and self.file is not None:
                remedy = "Give a path in a folder that all of them see."
                world.require_same("fit", {"whether the file at path= exists": there}, remedy)
            if self.file is None or not there:
                run.begin()
            else:
                self._resume(self.file)
        self.begun = True

    def _resume(self, file: Checkpoint) -> None:
        run, every = self.run, self.settings.every
        found = file.load(FitState.names())
        try:
            state = FitState.from_flat(found, run.state.theta)
            drawn = (state.jumps - 1) // every * every if self.resample is not None else 0
            points = self.resample(drawn) if self.resample is not None and drawn > 0 else None
            run.use(points)  # those that its losses were measured on
            run.return_to(state)
            if wrong := run.mismatch(state):
                if points is None:
                    raise InputError(f"{wrong} The model, its data or its weight decay are others.")
                warn(
                    f"fit: {wrong} resample={self.resample!r:.60} gives other points for jump {drawn} than in the run "
                    "before, so that this one will not end as if that had gone on: let the number decide them.",
                    RuntimeWarning,
                )
                state = run.resampled(state, points)
        except InputError as error:
            raise ArchiveError(f"{file.path}: {error} Give another path, or delete it.") from error
        run.resume(state)

    def _over(self) -> FitOutcome | None:
        """How the fit ended, if it did."""
        state, settings, run = self.run.state, self.settings, self.run
        if self.outcome is not None:
            return self.outcome
        if state.ended:
            # Of a run before this one, which may have allowed fewer restarts or less patience.
            state = run.followed(replace(state, ended=False))
            if state.ended:
                return FitOutcome.STATIONARY if state.last == Outcome.STATIONARY.name else FitOutcome.STAGNANT
            run.state = state
        if settings.tolerance is not None and run.level(state) <= settings.tolerance:
            return FitOutcome.TOLERANCE
        if state.jumps >= settings.limit or (settings.budget is not None and state.seconds >= settings.budget):
            return FitOutcome.BUDGET
        return None

    def _step(self) -> None:
        """One jump, and what follows from it."""
        with entry(self.objective.world, "a jump of a fit"):
            self._stepped()

    def _stepped(self) -> None:
        run, state = self.run, self.run.state
        if run.late(state):
            state = run.met(state, Event.LATE) or state
        if self.resample is not None and state.jumps and state.jumps % self.settings.every == 0:
            state = run.resampled(state, self.resample(state.jumps))
        if run.down(state):
            state = run.met(state, Event.DOWN) or state
        try:
            result, state = run.jump(state)
        except NonFiniteError:  # a climb has led to where derivatives are not finite
            after = run.met(state, Event.BROKEN)
            if after is None:
                self.outcome = FitOutcome.NOT_FINITE
            else:
                run.state = after
            return
        run.state = run.followed(run.looked(state))
        # From here on whatever fails finds the jump done.
        run.watch()
        run.place(run.state)
        stop = self.callback is not None and bool(self.callback(result))
        if self.objective.world is not None and self.callback is not None:
            stop = self.objective.world.any("a callback", stop)
        if stop and not run.state.ended:
            self.outcome = FitOutcome.STOPPED

    def _end(self) -> FitResult:
        with entry(self.objective.world, "the end of a fit"):
            return self._ended()

    def _ended(self) -> FitResult:
        run, outcome = self.run, self._over()
        assert outcome is not None
        cause = run.cause() if outcome is FitOutcome.STAGNANT else ""
        state, answer = run.state, run.answer()
        run.write(answer)
        self._save()
        loss = state.best_loss if run.points is None else run.value(answer)
        return FitResult(
            outcome, loss, state.start, run.measure(), state.jumps, state.accepted, state.restarts,
            state.seconds, state.cost, cause, state.history, tuple(run.objective.notes()), run.generalization(answer),
            run.residuals(),
        )  # fmt: skip

    def _save(self, ending: BaseException | None = None) -> None:
        """A run goes on where its file cannot be written, and ends with what ended it.

        Args:
            ending: the exception that is on its way, which no other may hide.
        """
        if self.file is None or not self.objective.leads:
            return
        trouble = told = ""
        try:
            if self.file.save(self.run.state.flat()) and ending is None:
                trouble = "shared"
                told = (
                    f"{self.file.path} has been written by another run meanwhile. The last to write wins, whole: give "
                    "each its own path."
                )
        except ArchiveError as error:
            trouble, told = "unwritten", f"fit goes on without a checkpoint: {error}"
        except Exception as error:
            if ending is None:
                raise
            trouble, told = "unwritten", f"the checkpoint was not written: {type(error).__name__}: {error}"
        if told and ending is not None:
            ending.add_note(told)  # a warning may be an error here, and come out in its place
        elif told and trouble != self.trouble:  # once, not every second
            warn(told, RuntimeWarning)
        self.trouble = trouble


def _implicit(objective: Objective, options: dict[str, Any]) -> bool:
    """Whether the loss is a multiple of a squared distance, and nothing asked for stands against implicit steps."""
    free = all(options.get(name) is None for name in ("gate", "horizon", "search", "directions"))
    basis = options.get("basis", "auto")
    return free and objective.loss.quadratic and isinstance(basis, str) and basis != "krylov"


def _require_functions(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and not callable(value):
            raise InputError(f"fit: {name}={brief(value)} must be a function, or None.")


def _require_known_data(objective: Objective, path: Any) -> None:
    """Raise for a file of an objective whose data no process knows whole."""
    if path is not None and objective.world is not None and objective.whole is objective.parts:
        raise InputError(
            "fit: path= is for one process, or for js.residual(group=…), whose points all processes know; here "
            "each has samples of its own, which a file could not be held against. Leave path= out."
        )


def decisive(
    objective: Objective, options: dict[str, Any], metric: MetricLike, resampled: bool, settings: FitSettings
) -> dict[str, Any]:
    """The options that change what a run converges to, or is measured on; a resumed one must be given the same."""
    basis, gate = options.get("basis", "auto"), options.get("gate")
    decay = metric_of(metric, objective, options.get("weight_decay")).decay
    return {
        "basis": basis if isinstance(basis, str) else getattr(basis, "__qualname__", type(basis).__name__),
        "gate": gate if gate is None or isinstance(gate, str) else repr(gate),
        "metric": metric is not None,
        "weight_decay": digest(decay) if isinstance(decay, Tensor) else decay,
        "resample": resampled,
        "adaptive": settings.adaptive is not False,
        "weigh": None if settings.weigh is None else getattr(settings.weigh, "__qualname__", repr(settings.weigh)),
    }
