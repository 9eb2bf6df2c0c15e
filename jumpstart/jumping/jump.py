"""``jump``: one accepted or rejected move of the weights. A rejected one changes nothing, to the bit."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..distributed.wrapped import entry
from ..errors import BudgetError, FlowError, InputError
from ..flow.run import LinearizedRun
from ..gating import Gate
from ..linearization.metric import MetricLike
from ..linearization.problem import LinearizedProblem, linearized
from ..objectives.objective import Objective, require_objective
from ..objectives.parameters import Select
from ..surrogate import select
from ..surrogate.implicit_euler import ImplicitEuler
from ..surrogate.select import BasisLike, Expected, Plan
from ..utils.cost import Ledger
from ..utils.guard import guarded
from .balanced import balanced, kept_by_flow
from .candidates import AlongFlow, Scaled
from .conditions import Conditions, Judge, affordable, step_seconds
from .levenberg_marquardt import LevenbergMarquardt
from .search import FixedHorizon, Found, GridSearch, Search, stationary, unsolved
from .settings import HORIZON, LEVENBERG_MARQUARDT, SCALE, Settings
from .state import Memory
from .trust import Outcome, Trust, ratio

JUMP_TOLERANCE = 1e-3  # of the reduced flow inside a jump: the real loss decides, so more digits buy nothing


@dataclass(frozen=True)
class JumpResult:
    """What a jump did; printed, it is a sentence.

    Attributes:
        outcome: an :class:`Outcome`; its value is a sentence.
        horizon: flow time of the accepted (or best) candidate, that of the whole run for a scaled full step; NaN if
            there was none.
        before, predicted, actual: loss at the start, predicted by the linearization, and measured; with weight
            decay, its penalty included.
        training_before, training_actual: the training loss alone, without the penalty, at the start and measured.
        predicted_decrease: the largest decrease of the loss that a candidate was predicted to bring, kept or not.
        corrected: geodesic acceleration was used. chord_steps: reuses of the factorization that were kept.
        candidates: how many were measured.
        seconds, gradient_evaluations: what it cost (``jumpstart.utils.cost``). dense_work: what it did without the
            network (modes, the reduced flow), counted, in steps of a training loop.
        basis, modes: what answered for the linearized run, and its size.
        max_rate, trace: the largest rate of its kernel and the sum of all (1 / flow time), as far as these are known
            without further work; NaN otherwise. Of a matrix-free run the largest is one from below, of a sketched one
            both are those of its span.
        directions: (1, P) the displacement taken; None if rejected.
        plan: which ways there were to solve the stretch, and what each would have cost; None where there was no choice.
        cause: why a jump was skipped, in words; empty otherwise.
    """

    outcome: Outcome
    horizon: float
    before: float
    predicted: float
    actual: float
    corrected: bool
    chord_steps: int
    candidates: int
    seconds: float
    gradient_evaluations: float
    basis: str
    modes: int
    predicted_decrease: float = 0.0
    training_before: float = math.nan
    training_actual: float = math.nan
    dense_work: float = 0.0
    cause: str = ""
    max_rate: float = math.nan
    trace: float = math.nan
    plan: Plan | None = field(repr=False, default=None)
    directions: Tensor | None = field(repr=False, default=None)

    @property
    def accepted(self) -> bool:
        """Whether the weights moved."""
        return self.outcome.accepted

    @property
    def ratio(self) -> float:
        """ρ = actual / predicted decrease."""
        return ratio(self.before, self.predicted, self.actual)

    @property
    def cost(self) -> float:
        """Network passes and dense work together, in steps of a training loop."""
        return self.gradient_evaluations + self.dense_work

    @classmethod
    def skipped(cls, cause: str) -> JumpResult:
        """Of a jump that could not be tried."""
        return cls(
            Outcome.SKIPPED, math.nan, math.nan, math.nan, math.nan, False, 0, 0, 0.0, 0.0, "none", 0, cause=cause
        )

    def __str__(self) -> str:
        if self.outcome is Outcome.SKIPPED:
            return f"Not moved. {self.outcome.value} {self.cause}"
        spent = f"{self.gradient_evaluations:.3g} gradient evaluations, {self.seconds:.3g} s"
        tried = f"{self.candidates} candidate{'' if self.candidates == 1 else 's'}"
        if self.outcome is Outcome.STATIONARY:
            return f"Not moved, loss {self.before:.4g}: the gradient vanishes ({spent})."
        if not self.accepted:
            return f"Not moved, loss {self.before:.4g} ({tried}, {spent}). {self.outcome.value}"
        how = f"{self.basis} run of {self.modes} numbers" if self.basis == "matrix-free" else f"{self.basis} basis"
        return (
            f"Jumped {self.horizon:.3g} of flow time: loss {self.before:.4g} → {self.actual:.4g} (predicted "
            f"{self.predicted:.4g}; {how}, {tried}, {spent})."
        )


def jump(
    objective: Objective,
    *,
    basis: BasisLike = "auto",
    depth: int | None = None,
    metric: MetricLike = None,
    weight_decay: float | None = None,
    horizon: float | None = None,
    search: str | None = None,
    geodesic: bool | None = None,
    chord_steps: int | None = None,
    gate: str | Gate | None = None,
    trust: Trust | None = None,
    params: Select = None,
    memory_limit: float | None = None,
    directions: Tensor | None = None,
    keep_balance: bool = False,
) -> JumpResult:
    """Solve the stretch ahead, look for the horizon that serves the real loss best, and move the weights there.

    One move without memory: it searches from scratch. In a loop use :class:`jumpstart.Jumper`, which goes on from the
    last jump.

    Args:
        objective: whose model is moved.
        basis, depth, metric, weight_decay, gate, params, memory_limit: as for :func:`jumpstart.solve` (the limit in
            bytes); where the Jacobian of a squared loss is formed, "auto" takes implicit steps by Cholesky factors in
            place of modes. Besides, basis="matrix-free" does so without a Jacobian: by a kernel gathered layer by layer
            where that is possible (which "auto" does by itself for large networks), or by conjugate gradients of at
            most ``depth`` products.
        horizon: try this flow time alone; None searches.
        search: "horizon" looks for the best flow time along the linearized run; "scale" for the best share of the step
            to its end; "levenberg-marquardt" takes one flow time, shorter until one succeeds (docs/theory.md, sections
            5 and 9). None is "horizon" here.
        geodesic: correct for the curvature of the network along the step (Transtrum & Sethna's geodesic acceleration);
            None does so unless the basis is a Krylov one, whose products cost as much as the correction.
        chord_steps: how many corrections by the same factorization to try after the step; None: 2, and none for
            "levenberg-marquardt", where they do not pay.
        trust: a :class:`jumpstart.Trust`, the policy.
        directions: (r, P) displacements to keep in a Krylov basis, such as ``result.directions`` of jumps before.
        keep_balance: end at weights that are the same function but have the balance of the start, which gradient flow
            keeps behind linear and rectified units and a jump does not (``jumpstart.trajectory.balance``).

    Returns:
        A :class:`JumpResult`. Unless it is accepted, parameters, buffers, optimizer state and random state are
        exactly what they were.

    Raises:
        InputError and its kinds: before anything has changed.
    """
    settings = Settings(
        basis, depth, weight_decay, horizon, search, geodesic, chord_steps, gate, trust or Trust(), params,
        memory_limit, directions, keep_balance=keep_balance,
    )  # fmt: skip
    require_objective(objective, "jump")
    objective = objective if params is None else objective.subset(params)
    return move(objective, settings, Memory(), metric)[0]


@guarded(lambda objective, *_, **__: objective.model)
def move(
    objective: Objective,
    settings: Settings,
    memory: Memory,
    metric: MetricLike,
    remembers: bool = False,
    conditions: Conditions | None = None,
) -> tuple[JumpResult, Memory]:
    """Linearize, choose a way to answer, search, commit: one jump, and what it tells the next.

    Args:
        remembers: there will be a next one, so that one horizon a jump is enough where the Jacobian is formed anyway.
        conditions: what it must meet besides the fall of its own loss.
    """
    with entry(objective.world, "a jump"):
        return _moved(objective, settings, memory, metric, remembers, conditions or Conditions())


def _moved(
    objective: Objective,
    settings: Settings,
    memory: Memory,
    metric: MetricLike,
    remembers: bool,
    conditions: Conditions,
) -> tuple[JumpResult, Memory]:
    begun = time.perf_counter()
    _require_one_world(objective, conditions)
    problem = linearized(
        objective, metric, settings.weight_decay, Ledger(allowance=conditions.search_allowance(objective))
    )
    problem.lin.ledger.step_seconds = step_seconds(problem)
    settings.require(problem)
    layers = kept_by_flow(objective, problem) if settings.keep_balance else []
    found, run, plan = _searched(problem, settings, memory, remembers, conditions)
    problem.lin.ledger.allowance = conditions.allowance
    if layers and found.outcome.accepted:
        assert found.best is not None
        found = replace(found, best=balanced(objective, problem, found.best, layers))
    best, follow = found.best, _nothing
    if found.outcome.accepted and conditions.approve is not None:
        assert best is not None
        then = conditions.approve(problem, best)
        follow = _nothing if then is None else then
        if then is None:
            found = replace(found, outcome=Outcome.UNDONE)
    asked = found.memory.horizon if best is None else best.horizon
    learned = {} if run is None or not remembers else run.learned(asked or 1.0)
    memory = replace(found.memory, **{"sketch": None, "modes": None, **learned})
    result = _told(found, run, plan, problem, objective.elapsed(begun))
    if found.outcome.accepted:  # last of all: what has been measured is what is done
        assert best is not None
        objective.move(problem.lin.theta, problem.lin.theta + best.displacement, follow)
    return result, memory


def _require_one_world(objective: Objective, conditions: Conditions) -> None:
    """Refuse judges of one process alone beside an objective of several: they would decide otherwise on each."""
    if any(judge.world is not objective.world for judge in conditions.judges):
        raise InputError(
            "a jump is judged by an objective of other processes than its own: give every objective the same group=."
        )


def _nothing() -> None:
    """What there is to do with a move that nobody follows."""


def _searched(
    problem: LinearizedProblem, settings: Settings, memory: Memory, remembers: bool, conditions: Conditions
) -> tuple[Found, LinearizedRun | None, Plan | None]:
    """The verdict, who answered for the linearized run, and why that one."""
    found, run, plan = stationary(problem.before, memory), None, None
    if problem.at_rest:
        return found, run, plan
    damped = settings.search == LEVENBERG_MARQUARDT or (settings.search is None and select.forms_jacobian(problem))
    ledger = problem.lin.ledger
    try:
        basis, depth = affordable(problem, settings, damped)
        run, plan = select.run(
            problem,
            basis,
            damped=damped,
            depth=depth,
            memory_limit=settings.memory_limit,
            gate=Gate.named(settings.gate),
            tolerance=JUMP_TOLERANCE,
            directions=settings.directions,
            sketch=memory.sketch,
            expected=_expected(settings, memory) if remembers else None,
        )
        geodesic = not run.is_krylov if settings.geodesic is None else settings.geodesic
        judge = Judge(conditions.judges, problem.lin.theta, ledger, len(problem.lin.u)) if conditions.judges else None
        kind = Scaled if settings.search == SCALE else AlongFlow
        descent = kind(run, geodesic, judge=judge, trades=settings.penalty_pays)
        if not descent.stationary:
            found = search_of(settings, run, remembers)(descent, settings.trust, memory)
    except BudgetError:
        found = replace(found, outcome=Outcome.TOO_DEAR)
    except (FlowError, torch.linalg.LinAlgError):
        found = unsolved(found)
    return found, run, plan


def _expected(settings: Settings, memory: Memory) -> Expected | None:
    """What the last jump says of this one, whose horizons are at most the one that memory begins with."""
    goes_on = settings.horizon is None and settings.search in (None, LEVENBERG_MARQUARDT)
    if not goes_on or memory.modes is None or memory.horizon is None:
        return None
    return Expected(memory.modes, memory.horizon)


def search_of(settings: Settings, run: LinearizedRun, remembers: bool) -> Search:
    """The search that was asked for, or the one that suits whoever answers.

    Raises:
        InputError: a nonmonotone search where there is none to be.
    """
    steps, implicit = settings.chord_steps, isinstance(run, ImplicitEuler)
    if settings.horizon is not None:
        return FixedHorizon(settings.horizon, (0 if implicit else 2) if steps is None else steps)
    default = LEVENBERG_MARQUARDT if remembers and implicit else HORIZON
    if (settings.search or default) == LEVENBERG_MARQUARDT:
        return LevenbergMarquardt(settings.nonmonotone, steps or 0)
    if settings.nonmonotone:
        raise InputError(
            f"nonmonotone=True is for search={LEVENBERG_MARQUARDT!r}, which is not taken by itself here (a {run.kind} "
            "basis): ask for it, or leave nonmonotone out."
        )
    return GridSearch(2 if steps is None else steps)


def _told(
    found: Found, run: LinearizedRun | None, plan: Plan | None, problem: LinearizedProblem, seconds: float
) -> JumpResult:
    best = found.best
    stays = found.outcome is Outcome.STATIONARY
    still = found.before if stays else math.nan
    max_rate, trace = run.known_rates if run else (math.nan, math.nan)
    return JumpResult(
        outcome=found.outcome,
        horizon=best.horizon if best else math.nan,
        before=found.before,
        predicted=best.predicted if best else still,
        actual=best.loss if best else still,
        corrected=best.corrected if best else False,
        chord_steps=found.chord_steps,
        candidates=found.tried,
        seconds=seconds,
        gradient_evaluations=problem.lin.ledger.gradient_evaluations,
        basis=run.kind if run else "none",
        modes=run.size if run else 0,
        predicted_decrease=found.predicted_decrease,
        training_before=problem.training_before,
        training_actual=best.training if best else (problem.training_before if stays else math.nan),
        dense_work=problem.lin.ledger.dense,
        max_rate=max_rate,
        trace=trace,
        plan=plan,
        directions=best.displacement[None] if best is not None and found.outcome.accepted else None,
    )
