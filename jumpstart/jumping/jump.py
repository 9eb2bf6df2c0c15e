"""``jump``: one accepted or rejected move of the weights. A rejected one changes nothing, to the bit."""

from __future__ import annotations

import math
import numbers
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import FlowError, HorizonError, InputError
from ..flow.gates import set_gate
from ..flow.reduced_flow import ReducedFlow
from ..linalg.nystrom import Nystrom
from ..linearization.linearize import linearize
from ..linearization.metric import MetricLike, metric_of
from ..objectives.objective import Objective
from ..objectives.parameters import Select
from ..surrogate.damped_cg import Iterative
from ..surrogate.select import BasisLike, Plan, build, implicit, resolvent_fits
from ..utils.cost import Ledger
from .candidates import Attempt, Proposal, attempt
from .levenberg_marquardt import Course, march
from .trust import Outcome, Trust

MATRIX_FREE = "matrix-free"
FAMILIES = ("march", "horizon", "scale")
TOLERANCE = 1e-3  # of the reduced flow inside a jump: the real loss decides, so more digits buy nothing


@dataclass(frozen=True)
class JumpResult:
    """What a jump did.

    Attributes:
        outcome: an :class:`Outcome`; its value is a sentence.
        horizon: flow time of the accepted (or best) candidate, that of the whole run for a scaled full step; NaN if
            there was none.
        before, predicted, actual: loss at the start, promised by the linearization, and measured; with weight
            decay, its penalty included.
        promised: the largest decrease of the loss that a candidate promised, kept or not.
        corrected: the second-order correction was used. corrections: reuses of the factorization that were kept.
        candidates: how many were measured.
        seconds, gradient_evaluations: what it cost (``jumpstart.cost``).
        trust: pass it to the next jump.
        directions: (r, P) the displacement taken, for recycling; empty if rejected.
        course: of a bold march, for the next jump. sketch: of the kernel, to precondition the next matrix-free jump.
    """

    outcome: Outcome
    horizon: float
    before: float
    predicted: float
    actual: float
    corrected: bool
    corrections: int
    candidates: int
    seconds: float
    gradient_evaluations: float
    basis: str
    modes: int
    trust: Trust
    plan: Plan | None = field(repr=False, default=None)
    directions: Tensor | None = field(repr=False, default=None)
    course: Course | None = field(repr=False, default=None)
    sketch: Nystrom | None = field(repr=False, default=None)
    promised: float = 0.0

    @property
    def accepted(self) -> bool:
        return self.outcome.accepted

    @property
    def ratio(self) -> float:
        """ρ = actual / predicted decrease."""
        return self.trust.ratio(self.before, self.predicted, self.actual)


def jump(
    objective: Objective,
    *,
    basis: BasisLike = "auto",
    depth: int | None = None,
    metric: MetricLike = None,
    weight_decay: float | None = None,
    horizon: float | None = None,
    family: str | None = None,
    course: Course | None = None,
    second_order: bool | None = None,
    reuse: int | None = None,
    gate: str | None = None,
    trust: Trust | None = None,
    params: Select = None,
    memory_limit: float | None = None,
    recycle: Tensor | Nystrom | None = None,
) -> JumpResult:
    """Solve the stretch ahead, look for the horizon that serves the real loss best, and move the weights there.

    Args:
        basis, depth, metric, weight_decay, gate, params, memory_limit: as for :func:`jumpstart.solve`. Besides,
            basis="matrix-free" marches without a Jacobian: by a kernel gathered layer by layer where that is possible
            (which "auto" and "dense" do by themselves for large networks), or by conjugate gradients of at most
            ``depth`` products.
        horizon: try this flow time alone; None searches, from the last accepted one in ``trust``.
        family: "march" takes one horizon a jump, a little longer than the last (squared losses, dense); "horizon"
            searches the best one along the linearized run; "scale" goes part of the way to its end. None marches
            where the Jacobian of a squared loss is formed, and searches horizons elsewhere (docs/theory.md, sections 5
            and 9).
        course: ``result.course`` of the jump before makes a march bold: it may climb. Start with ``Course()``.
        second_order: correct for the curvature of the network along the step; None does so unless the basis is
            Krylov's, whose products cost as much as the correction.
        reuse: how many chord corrections to try after the step; None: 2, and none in a march, where they do not pay.
        trust: ``result.trust`` of the jump before.
        recycle: ``result.sketch`` of the jump before, for matrix-free jumps; or (r, P) directions to keep in a Krylov
            basis, such as its ``result.directions``.

    Returns:
        A :class:`JumpResult`. Unless it is accepted, parameters, buffers, optimizer state and random state are
        exactly what they were.

    Raises:
        InputError and its kinds (``jumpstart.errors``), before anything has changed.
    """
    if not isinstance(objective, Objective):
        raise InputError(f"jump needs a js.Objective (see js.supervised), got {type(objective).__name__}.")
    if family not in (None, *FAMILIES):
        raise InputError(f"family={family!r} is none of {FAMILIES}.")
    if basis == MATRIX_FREE:
        if family not in (None, "march") or gate is not None:
            raise InputError(f"basis={MATRIX_FREE!r} marches: leave family and gate out.")
        if objective.loss.curvature is None:
            raise InputError(f"basis={MATRIX_FREE!r} is for squared losses (js.residual, 'mse'): use 'krylov'.")
    if course is not None and family not in (None, "march"):
        raise InputError(f"course= is for family='march', not {family!r}.")
    if reuse is not None and (not isinstance(reuse, int) or reuse < 0):
        raise InputError(f"reuse={reuse!r}: give a number of corrections, 0 or more.")
    if horizon is not None and family == "scale":
        raise InputError(
            "horizon= fixes a flow time; family='scale' searches shares of the whole run: give one of them."
        )
    if horizon is not None and not (isinstance(horizon, numbers.Real) and horizon > 0):
        raise HorizonError(f"horizon={horizon!r}: flow time must be positive (or None to search).")
    begun = time.perf_counter()
    objective = objective if params is None else objective.subset(params)
    state = trust if trust is not None else Trust()
    if horizon is not None:
        state = replace(state, horizon=float(horizon), limit=1)
    ledger = Ledger()
    lin = linearize(objective, ledger=ledger)
    loss = objective.loss
    before = float(loss.value(lin.u))
    chosen = metric_of(metric, objective, weight_decay)
    found = Attempt(Outcome.STATIONARY, None, before, 0, 0, state)
    built, plan, sketch = None, None, None
    if chosen.decays or bool((loss.grad(lin.u) != 0).any()):
        try:
            marching = family == "march" or (family is None and resolvent_fits(lin, loss))
            marching = marching and not isinstance(recycle, Tensor)  # which is for a Krylov basis
            found_implicit = implicit(lin, loss, chosen, basis, memory_limit) if marching and gate is None else None
            if basis == MATRIX_FREE:
                built = flow = Iterative(lin, loss, chosen, depth, recycle if isinstance(recycle, Nystrom) else None)
            elif found_implicit is not None:
                built, plan = found_implicit
                flow = built
            else:
                kept = recycle if isinstance(recycle, Tensor) else None
                built, plan = build(lin, loss, chosen, basis, depth, memory_limit, kept)
                flow = ReducedFlow(built, loss, lin.u, TOLERANCE)
                set_gate(flow, gate)
            corrected = built.kind != "krylov" if second_order is None else second_order
            proposal = Proposal(lin, loss, built, flow, corrected)
            if family == "march" or (family is None and not isinstance(flow, ReducedFlow)):
                found = march(proposal, state, course, reuse or 0)
            else:
                found = attempt(proposal, state, family=family or "horizon", reuse=2 if reuse is None else reuse)
            sketch = built.sketch() if isinstance(built, Iterative) else None
        except (FlowError, torch.linalg.LinAlgError):
            found = replace(found, outcome=Outcome.UNSOLVED)
    best = found.best
    if found.outcome.accepted:
        assert best is not None
        try:
            objective.space.write(objective.model, lin.theta + best.displacement)
        except BaseException:  # an interrupt between two tensors
            objective.space.write(objective.model, lin.theta)
            raise
    given = trust if trust is not None else Trust()
    tried = None if horizon is None or math.isinf(horizon) else float(horizon)
    still = found.before if found.outcome is Outcome.STATIONARY else math.nan
    return JumpResult(
        outcome=found.outcome,
        horizon=best.horizon if best else math.nan,
        before=found.before,
        predicted=best.predicted if best else still,
        actual=best.loss if best else still,
        corrected=best.corrected if best else False,
        corrections=found.corrections,
        candidates=found.candidates,
        seconds=time.perf_counter() - begun,
        gradient_evaluations=ledger.gradient_evaluations,
        basis=built.kind if built else "none",
        modes=built.size if built else 0,
        trust=found.trust if horizon is None else replace(given, horizon=tried or given.horizon),
        plan=plan,
        directions=best.displacement[None] if best is not None and found.outcome.accepted else None,
        sketch=sketch,
        promised=found.promised,
        course=course.after(best) if course is not None and best is not None and found.outcome.accepted else course,
    )
