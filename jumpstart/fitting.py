"""``fit``: the loop around jumps that somebody with a PINN wants. Jumps until a tolerance or a budget; keeps the best.

result = js.fit(objective, budget=60.0, tolerance=1e-12, error=lambda model: relative_error(model))
"""

from __future__ import annotations

import enum
import inspect
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import load, save
from .errors import InputError, NonFiniteError
from .jumping import JumpResult, jump
from .march import Course
from .objective import Objective
from .parameters import module_mode
from .progress import counter
from .trust import Outcome, Trust

REFUSED = 3  # rejections in a row after which something else is tried
CALM = 0.99  # a run of ``patience`` jumps that leaves more than this share of the loss has stagnated
LAND_HORIZON = 500.0  # times 1/loss: where landing starts its search
KICK = 0.03  # size of the first perturbation of a restart, relative to each tensor's own root mean square
LANDING = 0.6  # share of the budget after which a bold march goes back to the best weights and may no longer climb
WATCH = 0.1  # share of the time that may go into calls of ``error``


class FitOutcome(enum.Enum):
    """How a fit ended; the value is a sentence for people."""

    TOLERANCE = "The loss is below the tolerance."
    BUDGET = "The budget of time or jumps is spent."
    STAGNANT = "The loss no longer falls, from the best weights or from perturbed ones; the best are kept."
    STATIONARY = "The gradient vanishes: this is a stationary point."
    NOT_FINITE = "The residual stopped being finite on the way; the best weights are kept."


class StagnationWarning(UserWarning):
    """A fit stopped short of its tolerance; the message holds the likely cause."""


@dataclass(frozen=True)
class FitResult:
    """What a fit did. The model holds the best weights found.

    Attributes:
        outcome: a :class:`FitOutcome`. cause: a sentence on what probably stands in the way, if it stagnated.
        loss: Φ at the best weights (on the last points, where they were resampled). start: Φ at the start.
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
        from . import plots

        return plots.save(plots.history(self.history), path)


@dataclass
class _State:
    """Everything that a fit needs to go on where it was interrupted."""

    theta: Tensor
    best: Tensor
    loss: float
    best_loss: float
    start: float
    trust: Trust
    seconds: float = 0.0
    cost: float = 0.0
    jumps: int = 0
    accepted: int = 0
    refused: int = 0
    restarts: int = 0
    bold: bool = False  # whether the loss may rise for now
    course: Course | None = None
    since: int = 0  # the jump at which patience began
    mark: float = math.inf  # the loss at that time
    history: list[dict[str, Any]] = field(default_factory=list)


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
            jump but the first.
        patience: jumps without a fall of the loss by a hundredth after which the run has stagnated. It is then
            restarted from the best weights, slightly perturbed, at most ``restarts`` times.
        bold: march boldly at first (the loss may rise on the way, the best weights are kept), and land from the best
            weights once 60% of the budget is spent or ``patience`` is over; docs/theory.md, section 9. For squared
            losses that are marched (``jump``'s family).
        path: file for a checkpoint, written about once a second and at the end; a run that finds one there goes on.
        progress: a bar with loss and error: None on terminals alone.
        callback: called with every :class:`JumpResult`; a true answer stops the fit.
        seed: of the perturbations; the global random state is left alone.
        options: passed to :func:`jumpstart.jump`.

    Raises:
        InputError and its kinds for an objective that cannot be jumped along.

    Example:
        >>> from jumpstart import fit, supervised
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> fit(supervised(model, x, (3 * x).sin()), jumps=30, tolerance=1e-6).loss < 1e-3
        True
    """
    _check(objective, budget, jumps, tolerance, resample, every, options)
    theta = objective.theta()
    loss = objective.value(theta)
    state = _State(theta, theta.clone(), loss, loss, loss, Trust())
    if path is not None and Path(path).exists():
        state = _State(**load(path, objective, set(_State.__dataclass_fields__)))
        objective.space.write(objective.model, state.theta)
    elif bold and options.get("family") in (None, "march") and options.get("gate") is None:
        state.bold, state.course = objective.loss.curvature is not None, Course()
    run = _Run(objective, state, error, options, seed, restarts)
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
                if state.bold and run.spent(budget, limit) >= LANDING:
                    run.land()
                if resample is not None and state.jumps and state.jumps % every == 0:
                    run.resample(resample(state.jumps))
                try:
                    result = run.jump()
                except NonFiniteError:
                    outcome = FitOutcome.NOT_FINITE
                    break
                bar(f"loss {state.best_loss:.2e}{run.shown()}")
                if callback is not None and callback(result):
                    outcome = FitOutcome.BUDGET
                elif result.outcome is Outcome.STATIONARY and not run.restart():
                    outcome = FitOutcome.STATIONARY
                elif run.stagnant(patience) and not (run.land() or run.restart()):
                    outcome, cause = FitOutcome.STAGNANT, run.cause(result)
                if path is not None and time.monotonic() - saved > 1.0:
                    save(path, objective, vars(state))
                    saved = time.monotonic()
    except BaseException:
        # An interrupt or a failing callback: the checkpoint holds where the run was, the model gets the best so far.
        if path is not None:
            save(path, objective, vars(state))
        objective.space.write(objective.model, state.best)
        raise
    if path is not None:
        save(path, objective, vars(state))
    objective.space.write(objective.model, state.best)
    if cause and tolerance > 0:
        warnings.warn(f"{outcome.value} {cause}", StagnationWarning, stacklevel=2)
    return FitResult(
        outcome, state.best_loss, state.start, run.measure(), state.jumps, state.accepted, state.restarts,
        state.seconds, state.cost, cause, state.history,
    )  # fmt: skip


class _Run:
    """One fit on its way: the state, and what is done to it."""

    def __init__(
        self,
        objective: Objective,
        state: _State,
        error: Callable[[nn.Module], float] | None,
        options: dict[str, Any],
        seed: int,
        restarts: int,
    ) -> None:
        self.objective, self.state, self.error, self.options = objective, state, error, options
        self.seed, self.restarts = seed, restarts
        self.watched, self.last_error = 0.0, None

    def jump(self) -> JumpResult:
        """One jump from the present weights; the best are kept."""
        state = self.state
        result = jump(self.objective, trust=state.trust, course=state.course if state.bold else None, **self.options)
        state.trust, state.course, state.jumps = result.trust, result.course, state.jumps + 1
        state.seconds, state.cost = state.seconds + result.seconds, state.cost + result.gradient_evaluations
        if result.accepted:
            state.accepted, state.refused, state.loss = state.accepted + 1, 0, result.actual
            state.theta = self.objective.space.read(self.objective.model)
            if state.loss < state.best_loss:
                state.best, state.best_loss = state.theta, state.loss
        else:
            state.refused += 1
        row = {
            "jump": state.jumps, "seconds": state.seconds, "gradient_evaluations": state.cost, "loss": state.loss,
            "best": state.best_loss, "horizon": result.horizon, "outcome": result.outcome.name,
        }  # fmt: skip
        if self.error is not None and self.watched <= WATCH * state.seconds:
            begun = time.perf_counter()
            row["error"] = self.last_error = self.measure()
            self.watched += time.perf_counter() - begun
        state.history.append(row)
        return result

    def measure(self) -> float | None:
        """``error`` of the model as it is."""
        if self.error is None:
            return None
        with torch.no_grad(), module_mode(self.objective.model, False):
            return float(self.error(self.objective.model))

    def shown(self) -> str:
        return "" if self.last_error is None else f", error {self.last_error:.2e}"

    def resample(self, points: Any) -> None:
        """Other collocation points: losses are compared on these from now on."""
        state = self.state
        self.objective = self.objective.resampled(points)  # type: ignore[attr-defined]
        state.loss, state.best_loss = self.objective.value(state.theta), self.objective.value(state.best)
        if not state.loss < math.inf:
            state.theta, state.loss = state.best, state.best_loss
            self.objective.space.write(self.objective.model, state.best)
        elif state.loss < state.best_loss:
            state.best, state.best_loss = state.theta, state.loss

    def stagnant(self, patience: int) -> bool:
        """Whether jumps have been refused too often in a row, or the loss has hardly fallen for ``patience`` jumps."""
        state = self.state
        reached = state.best_loss if state.bold else state.loss
        if reached < CALM * state.mark:
            state.since, state.mark = state.jumps, reached
        return state.refused >= REFUSED or state.jumps - state.since >= patience

    def spent(self, budget: float | None, limit: float) -> float:
        """Share of the budget that is gone."""
        return max(self.state.seconds / budget if budget else 0.0, self.state.jumps / limit)

    def land(self) -> bool:
        """Go on from the best weights, and no longer climb; False where that is so already."""
        state = self.state
        if not state.bold:
            return False
        state.bold, state.course, state.theta, state.loss = False, None, state.best, state.best_loss
        state.refused, state.since, state.mark = 0, state.jumps, state.best_loss
        # Damping in proportion to the loss: where a march would arrive that had come down all the way.
        state.trust = Trust(horizon=LAND_HORIZON / state.loss) if state.loss > 0 else Trust()
        self.objective.space.write(self.objective.model, state.theta)
        return True

    def restart(self) -> bool:
        """Go on from the best weights, perturbed; False once all restarts are used up."""
        state, space = self.state, self.objective.space
        if state.restarts >= self.restarts:
            return False
        generator = torch.Generator().manual_seed(self.seed + state.restarts)
        noise = torch.randn(state.best.shape, generator=generator, dtype=torch.float64).to(state.best)
        size = torch.cat([t.square().mean().sqrt().expand(t.numel()) for t in state.best.split(space.sizes)])
        size = torch.where(size > 0, size, size.mean())
        theta = state.best + KICK * 2.0**state.restarts * size * noise
        loss = self.objective.value(theta)
        state.restarts, state.refused, state.since = state.restarts + 1, 0, state.jumps
        if loss < math.inf:
            state.theta, state.loss, state.mark, state.trust = theta, loss, loss, Trust()
            space.write(self.objective.model, theta)
        return True

    def cause(self, last: JumpResult) -> str:
        """What probably stands in the way: the linearized problem itself, rounding, or the network's curvature."""
        state = self.state
        eps = torch.finfo(self.objective.space.dtype).eps
        if state.best_loss <= (1e3 * eps) ** 2 * max(state.start, 1e-300):
            return f"The loss is at the rounding of {self.objective.space.dtype}: there is nothing left to gain."
        share = ""
        if hasattr(self.objective, "terms"):
            terms: Sequence[Any] = self.objective.terms()  # type: ignore[attr-defined]
            worst = max(terms, key=lambda term: term.share)
            share = f" {worst.share:.0%} of the loss is {worst.name!r}."
        promised = last.before - last.predicted
        if not promised > 0.1 * last.before:
            return (
                "Even the linearized problem cannot lower the loss: a local minimum, a network too small, or terms "
                f"that contradict each other.{share}"
            )
        return (
            "The linearized problem could lower the loss, but the network bends away from it: a poor start (another "
            f"seed), inputs of unequal scale, or float32 at its limit.{share}"
        )


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
    if not (isinstance(tolerance, (int, float)) and tolerance >= 0):
        raise InputError(f"fit: tolerance={tolerance!r} is a loss, 0 or more.")
    if not isinstance(every, int) or every < 1:
        raise InputError(f"fit: every={every!r}: resample every so many jumps, at least 1.")
    if resample is not None and not hasattr(objective, "resampled"):
        raise InputError("fit: resample= needs an objective made by js.residual, which knows its points.")
    known = set(inspect.signature(jump).parameters) - {"objective", "trust", "course", "recycle"}
    if unknown := set(options) - known:
        raise InputError(f"fit: {sorted(unknown)} is no option of fit or js.jump; there are {sorted(known)}.")
