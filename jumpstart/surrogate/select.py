"""Which way to answer for the linearized run: by counted work and bytes, under a memory limit, never by the clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import bases
from ..errors import InputError, MemoryLimitError
from ..flow.basis import Basis
from ..flow.reduced_flow import FLOW_TOLERANCE, ReducedFlow
from ..flow.run import LinearizedRun
from ..gating import Gate
from ..linalg.nystrom import Nystrom
from ..linearization.linearize import rounding_error
from ..linearization.ntk.collocation import gatherable
from ..linearization.operators import Explicit
from ..linearization.problem import LinearizedProblem
from ..utils.brief import brief
from ..utils.cost import EIGEN, ELEMENTS, FORWARD, MOVED, PRODUCTS, PULL, PUSH, RECORD, SINGULAR, TRANSFORM, rate
from ..utils.memory import FREE
from .damped_cg import DampedCG
from .damped_cholesky import DampedCholesky, GatheredCholesky
from .damped_sketch import DampedSketch, width_for
from .implicit_euler import longest

BasisLike = str | Basis | Callable[[LinearizedProblem], Basis]

BASES = ("auto", "dense", "krylov")
MATRIX_FREE = "matrix-free"
DEPTH = 12  # Krylov vectors where none are asked for (docs/decisions/0005)
EIGH_FLOPS = 9.0  # eigh of an N×N matrix costs about this many N³
RENEWALS = 20.0  # factorizations that a flow takes which is integrated to an end
SAVING = 0.8  # of the cost of Cholesky factors, at most, that a sketch may take
DIGITS = 4.0  # the same where Cholesky factors have no digits left
CHOLESKIES = 2.0  # factors a jump takes, on average
LARGE = 2.5e7  # entries of a Jacobian beyond which its kernel is gathered without forming it
GATHERED = 6000  # outputs up to which a kernel is gathered and factored
FOLLOWED = 10.0  # a flow may take this many times what is affordable to make


@dataclass(frozen=True)
class Cost:
    """What a way is expected to take; the same for the same problem, whenever it is asked.

    Attributes:
        seconds: of making it. flow: of following the flow to an end, where that has no closed form.
    """

    seconds: float
    bytes: float
    flow: float = 0.0

    @property
    def total(self) -> float:
        return self.seconds + self.flow


@dataclass(frozen=True)
class Worth:
    """What every mode is worth, beside a Krylov basis that follows one run for a while.

    Attributes:
        patience: times the cost of Krylov. affordable: predicted seconds up to which Krylov is not considered.
    """

    patience: float
    affordable: float = 0.0

    def buys(self, dense: Cost, krylov: Cost) -> bool:
        cheap = dense.seconds <= self.affordable and dense.flow <= FOLLOWED * self.affordable
        return cheap or dense.total <= self.patience * krylov.total


SOLUTION = Worth(4.0, 0.3)  # asked for many horizons, and as good as its basis
STEP = Worth(4.0)  # implicit steps, each of which Krylov vectors would be made for anew
JUMP = Worth(1.0)  # the real loss decides, so that modes must not be dearer


@dataclass(frozen=True)
class Expected:
    """What the last jump says of the next: how many modes it reached, and the longest horizon that is to be tried."""

    modes: float
    horizon: float


@dataclass(frozen=True)
class Plan:
    """A choice and the reasons for it: the predicted cost of each way that was weighed."""

    kind: str
    depth: int
    costs: dict[str, Cost]
    limit: float
    reason: str
    by_default: bool = False  # a truncated basis that was not asked for

    def explain(self) -> str:
        """A few lines for people."""
        lines = [f"basis: {self.kind} ({self.reason}); memory limit {self.limit / 2**30:.1f} GiB"]
        for name, cost in self.costs.items():
            flow = f", and {1e3 * cost.flow:.1f} ms to follow the flow to an end" if cost.flow else ""
            lines.append(f"  {name:<8} {1e3 * cost.seconds:9.1f} ms, {cost.bytes / 2**20:9.1f} MiB (predicted){flow}")
        return "\n".join(lines)


def run(
    problem: LinearizedProblem,
    basis: BasisLike = "auto",
    *,
    damped: bool = False,
    depth: int | None = None,
    memory_limit: float | None = None,
    gate: Gate | None = None,
    tolerance: float = FLOW_TOLERANCE,
    directions: Tensor | None = None,
    sketch: Nystrom | None = None,
    expected: Expected | None = None,
) -> tuple[LinearizedRun, Plan | None]:
    """The linearized run by the way that was asked for, or by the cheaper one that fits.

    Args:
        damped: prefer implicit steps (``damped_cholesky``) to modes where the loss is quadratic and they fit.
        directions: (r, P) displacements to keep in a Krylov basis. sketch: preconditioner of matrix-free steps.
        expected: implicit steps may then be taken within fewer modes (``damped_sketch``), where "auto" is asked for.
        depth, memory_limit, gate, tolerance: as for ``solve``.
    """
    if basis == MATRIX_FREE:
        return matrix_free(problem, depth, sketch), None
    if damped and gate is None and directions is None and isinstance(basis, str):
        found = implicit(problem, basis, memory_limit, expected)
        if found is not None:
            return found
    built, plan = build(problem, basis, depth, memory_limit, directions)
    return ReducedFlow(built, problem.loss, tolerance, gate), plan


def build(
    problem: LinearizedProblem,
    kind: BasisLike = "auto",
    depth: int | None = None,
    memory_limit: float | None = None,
    directions: Tensor | None = None,
    worth: Worth = JUMP,
) -> tuple[Basis, Plan | None]:
    """The basis that was asked for, or the cheaper one that fits; ``directions`` are kept in a Krylov basis.

    Args:
        worth: what "auto" pays for every mode.
    """
    require_effect(kind, depth, memory_limit)
    if isinstance(kind, Basis):
        return _given(problem, kind), None
    if not isinstance(kind, str) and callable(kind):
        made = kind(problem)
        if not isinstance(made, Basis):
            raise InputError(f"basis: the function returned {type(made).__name__}, not a Basis from js.bases.")
        return made, None
    keep = directions is not None and directions.shape[0] > 0
    chosen = weigh(problem, "krylov" if keep else kind, depth, memory_limit, worth=worth)
    if chosen.kind == "dense":
        return bases.dense(problem), chosen
    if keep:
        assert directions is not None
        return bases.recycled(problem, directions, chosen.depth), chosen
    side = "auto" if chosen.costs["krylov"].bytes <= chosen.limit else "outputs"
    return bases.krylov(problem, chosen.depth, side=side), chosen


def _given(problem: LinearizedProblem, basis: Basis) -> Basis:
    u = problem.lin.u
    if basis.images.shape[1:] != u.shape or not basis.lin.theta.equal(problem.lin.theta):
        raise InputError(
            f"basis: it was built for outputs {tuple(basis.images.shape[1:])} at the weights of that time; here are "
            f"outputs {tuple(u.shape)}, or the weights have moved since. Give a function (problem) -> Basis to build "
            "it afresh."
        )
    if problem.metric.root is not None or problem.metric.decays:
        raise InputError("basis: a finished Basis has its metric and decay in it; leave metric and weight_decay out.")
    return basis


def weigh(
    problem: LinearizedProblem,
    kind: Any = "auto",
    depth: int | None = None,
    memory_limit: float | None = None,
    cholesky: bool = False,
    worth: Worth | None = None,
) -> Plan:
    """Weigh dense against Krylov by counted work; the same question has the same answer.

    Args:
        worth: what "auto" pays for every mode; None: as for a jump.
        cholesky: dense means a Gram matrix and its Cholesky factors (``damped_cholesky``), not eigenvectors.

    Raises:
        MemoryLimitError: neither fits.
        InputError: an unknown kind or depth.
    """
    require_basis(kind, BASES)
    require_depth(depth)
    require_memory_limit(memory_limit)
    limit = problem.lin.allowance(memory_limit)
    n, p = problem.jacobian.shape
    k = min(depth or DEPTH, p if problem.metric.decays else min(n, p))  # decay leads out of the span of Jᵀ
    dense = cholesky_cost(problem) if cholesky else modes_cost(problem)
    krylov, least = krylov_cost(problem, k)
    costs = {"dense": dense, "krylov": krylov}
    fits = {"dense": dense.bytes <= limit, "krylov": min(krylov.bytes, least) <= limit}
    if kind != "auto":
        if not fits[kind]:
            raise MemoryLimitError(_too_small(kind, costs, limit))
        return Plan(kind, k, costs, limit, "asked for")
    if not any(fits.values()):
        raise MemoryLimitError(_too_small("any basis", costs, limit))
    worth = (STEP if cholesky else JUMP) if worth is None else worth
    if fits["dense"] and worth.buys(dense, krylov):
        return Plan("dense", k, costs, limit, "exact, and affordable")
    where = "" if memory_limit is not None else f" in {FREE}; memory_limit= would decide it"
    if fits["krylov"]:
        why = "dense would take too long" if fits["dense"] else f"dense would not fit{where}"
        return Plan("krylov", k, costs, limit, why, by_default=True)
    return Plan("dense", k, costs, limit, f"Krylov would not fit{where}")


def require_depth(depth: Any) -> None:
    """Raise unless a depth is None or a number of products."""
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 1):
        raise InputError(f"depth={brief(depth)}: give a number of Krylov vectors (products) of at least 1, or None.")


def require_basis(kind: Any, names: Sequence[str]) -> None:
    """Raise unless a basis is one of these names, a finished one, or a function that makes one."""
    if not (isinstance(kind, Basis) or callable(kind) or (isinstance(kind, str) and kind in names)):
        raise InputError(
            f"basis={brief(kind)}: use 'auto', 'dense', 'krylov' (for jumps also 'matrix-free'), a Basis made with "
            "jumpstart.bases or a function (problem) -> Basis."
        )


def require_memory_limit(limit: Any) -> None:
    """Raise unless a limit is None or a positive number of bytes."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
        raise InputError(f"memory_limit={brief(limit)}: give a positive number of bytes.")


def require_effect(kind: BasisLike, depth: int | None, memory_limit: float | None) -> None:
    """Refuse what a basis that is given, or dense, would ignore."""
    if depth is not None and (kind == "dense" or not isinstance(kind, str)):
        raise InputError(f"depth={brief(depth)} is for Krylov bases and matrix-free jumps: leave it out.")
    if memory_limit is not None and not isinstance(kind, str):
        raise InputError("memory_limit= decides between bases; here one is given: leave it out.")


def gradient_seconds(problem: LinearizedProblem) -> float:
    """Predicted seconds of a gradient evaluation, from the counted work of a forward pass."""
    lin = problem.lin
    return lin.work.seconds(lin.theta.dtype, lin.theta.device) / FORWARD


def eigen_seconds(size: int, device: torch.device) -> float:
    """Predicted seconds of the eigendecomposition of a symmetric matrix (size, size) in float64."""
    return EIGH_FLOPS * size**3 / rate(EIGEN, device) + size * size / rate(MOVED, device)


def modes_cost(problem: LinearizedProblem) -> Cost:
    """Of every mode: the kernel layer by layer, or an explicit Jacobian, and its eigenvectors."""
    lin, device = problem.lin, problem.lin.theta.device
    n, p = problem.jacobian.shape
    small, large = min(n, p), max(n, p)
    layered = lin.layered and n <= p
    if layered:
        # Layer by layer, a layer of in·out weights costs in + out multiply-adds a pair of outputs instead of in·out.
        width = min(p, 4 * p**0.5) if problem.metric.root is None else p
        layers = len(lin.net.space.names)
        made = 2.0 * n * n * width / rate(PRODUCTS, device) + 2.0 * layers * n * n / rate(ELEMENTS, device)
        made += eigen_seconds(n, device)
        passes = n / max(1, lin.u.shape[0]) + 1
    elif small <= bases.SVD:
        made = (4.0 * large * small**2 + 9.0 * small**3) / rate(SINGULAR, device)
        passes = lin.jacobian_pulls()
    else:
        made = 2.0 * small * small * large / rate(PRODUCTS, device) + eigen_seconds(small, device)
        passes = lin.jacobian_pulls()
    seconds = (passes * PULL + FORWARD) * gradient_seconds(problem) + made + RECORD + lin.work.calls * TRANSFORM
    renewal = eigen_seconds(small, device) + 2.0 * small * small * n / rate(PRODUCTS, device)
    flow = 0.0 if problem.loss.quadratic else RENEWALS * renewal
    return Cost(seconds, 8.0 * (4 * small * small + (0 if layered else 3 * n * p)), flow)


def cholesky_cost(problem: LinearizedProblem) -> Cost:
    """Of implicit steps: an explicit Jacobian, its smaller Gram matrix, and a few factors."""
    lin, device = problem.lin, problem.lin.theta.device
    n, p = problem.jacobian.shape
    small, large = min(n, p), max(n, p)
    here = n if lin.shards is None or problem.loss.curvature is None else n * lin.shards.most / len(lin.u)
    flops = small * small * large + CHOLESKIES * small**3 / 3
    passes = lin.jacobian_pulls() * PULL + FORWARD
    seconds = passes * gradient_seconds(problem) + flops / rate(PRODUCTS, device)
    return Cost(seconds + RECORD + lin.work.calls * TRANSFORM, 8.0 * (4 * small * small + 3 * here * p))


def sketch_cost(problem: LinearizedProblem, width: int) -> Cost:
    """Of implicit steps within so many modes: an explicit Jacobian, random sums of its rows, and their image."""
    lin, device = problem.lin, problem.lin.theta.device
    n, p = problem.jacobian.shape
    seconds = (lin.jacobian_pulls() * PULL + FORWARD) * gradient_seconds(problem) + RECORD + lin.work.calls * TRANSFORM
    seconds += 2.0 * n * p / rate(ELEMENTS, device) + 2.0 * n * width * p / rate(PRODUCTS, device)
    seconds += width**2 * (4.0 * p + 2.0 * n + CHOLESKIES * 10 / 3 * width) / rate(SINGULAR, device)
    return Cost(seconds, 8.0 * (3 * n * p + 3 * p * width + n * width))


def krylov_cost(problem: LinearizedProblem, k: int) -> tuple[Cost, float]:
    """Of k Krylov vectors on the parameters' side, and the bytes on the outputs' side."""
    n, p = problem.jacobian.shape
    lin = problem.lin
    size = lin.u.element_size()
    moved = 4.0 * k * p / rate(ELEMENTS, lin.theta.device)  # each vector against those before it, twice
    product = (PUSH + PULL) * gradient_seconds(problem) + lin.work.calls * TRANSFORM + moved
    flow = 0.0 if problem.loss.quadratic else RENEWALS * eigen_seconds(k, lin.theta.device)
    whole = float(size * k * (p + n) + 8 * k * n)
    least = whole if problem.metric.decays else float(size * 2 * k * n + 8 * k * n)
    return Cost(k * product + RECORD, whole, flow), least


def _too_small(what: str, costs: dict[str, Cost], limit: float) -> str:
    table = ", ".join(f"{name} {cost.bytes:.0f} bytes" for name, cost in costs.items())
    return (
        f"memory_limit of {limit:.0f} bytes is too small for {what} (needed: {table}): raise it, take fewer "
        "samples, lower depth, or restrict params."
    )


def forms_jacobian(problem: LinearizedProblem) -> bool:
    """Whether the Jacobian of a quadratic loss is formed anyway, so that implicit steps are the natural way."""
    return problem.loss.quadratic and not problem.lin.layered


def implicit(
    problem: LinearizedProblem, kind: str, memory_limit: float | None = None, expected: Expected | None = None
) -> tuple[DampedCholesky | DampedSketch, Plan] | None:
    """Implicit steps in a dense basis's place; None where dense is not asked for, does not fit or is slow."""
    if kind not in ("auto", "dense") or not problem.loss.quadratic:
        return None
    n, p = problem.jacobian.shape
    if n < p and n * p > LARGE and _gathers(problem):
        limit = problem.lin.allowance(memory_limit)
        cost = Cost(math.nan, 8.0 * 6 * n * n)
        if cost.bytes <= limit:
            plan = Plan("dense", 0, {"gathered": cost}, limit, "kernel gathered layer by layer")
            return GatheredCholesky(problem), plan
    chosen = weigh(problem, kind, None, memory_limit, cholesky=True)
    if chosen.kind != "dense":
        return None
    formed, tried = Explicit(problem.lin, problem.metric), 0
    if kind == "auto" and expected is not None:
        sketched, tried = _sketched(problem, formed, expected, chosen)
        if sketched is not None:
            return sketched
    return DampedCholesky(problem, formed, max(1.0, tried)), chosen


def _sketched(
    problem: LinearizedProblem, formed: Explicit, expected: Expected, chosen: Plan
) -> tuple[tuple[DampedSketch, Plan] | None, int]:
    """Steps within the modes that are reached, if that is cheaper, and the width that was tried last.

    None where they are not, or miss what they are for. Beyond the horizon that Cholesky factors have digits for, as
    many modes are taken as that needs, perhaps all.
    """
    if problem.metric.decays or problem.loss.curvature is None or problem.lin.shards is not None:
        return None, 0
    norm = float(torch.linalg.vector_norm(formed.rows))
    beyond = expected.horizon > longest(problem.loss.curvature * norm * norm)
    left = (DIGITS if beyond else SAVING) * chosen.costs["dense"].seconds
    whole, tried = min(formed.shape), 0
    width = min(width_for(expected.modes), whole)
    while (cost := sketch_cost(problem, width)).seconds < left and cost.bytes <= chosen.limit:
        found, tried = DampedSketch(problem, formed, width), width
        if width == whole or found.reaches(min(expected.horizon, found.max_horizon)):
            plan = Plan("sketched", width, {"sketched": cost, **chosen.costs}, chosen.limit, "few modes are reached")
            return (found, plan), width
        if not beyond:
            break
        left, width = left - cost.seconds, min(2 * width, whole)
    return None, tried


def _gathers(problem: LinearizedProblem) -> bool:
    """Whether the kernel can be gathered layer by layer, and factored."""
    plain = problem.metric.root is None and not problem.metric.decays and problem.loss.curvature is not None
    if problem.lin.shards is not None:  # over several processes columns of the Jacobian travel (operators.Explicit)
        return False
    return plain and problem.jacobian.shape[0] <= GATHERED and all(gatherable(part) for part in problem.lin.parts)


def matrix_free(
    problem: LinearizedProblem, depth: int | None = None, sketch: Nystrom | None = None
) -> DampedCG | GatheredCholesky:
    """Without a Jacobian: by a gathered kernel where that is possible and no depth is asked for, else by products."""
    require_depth(depth)
    if depth is None and _gathers(problem):
        return GatheredCholesky(problem)
    return DampedCG(problem, depth, sketch)


def explain(flow: ReducedFlow, chosen: Plan | None, seconds: float, notes: Sequence[str] = ()) -> str:
    """A few lines for people: the choice, what it was expected to cost and has cost, and the modes it found.

    Args:
        seconds: what linearizing and building the basis took; 0 where they were not measured.
        notes: what is slower than it could be, and why.
    """
    lin, basis = flow.problem.lin, flow.basis
    lines = [chosen.explain() if chosen is not None else f"basis: {basis.kind} (given)"]
    if seconds:
        lines.append(f"  took     {1e3 * seconds:9.1f} ms (linearization included)")
    lines.append(f"  so far   {flow.gradient_evaluations:9.1f} gradient evaluations spent")
    dtype = str(lin.u.dtype).removeprefix("torch.")
    lines.append(
        f"  network in {dtype}, modes and flow in float64; rounding of the outputs ≲ {rounding_error(lin):.1g}"
    )
    moving = flow.start.rates[flow.start.rates > 0]
    fast = 1 / float(moving.max()) if moving.numel() else math.inf
    slow = 1 / float(moving.min()) if moving.numel() else math.inf
    route = f", {basis.route}" if basis.route else ""
    lines.append(f"  {basis.size} modes ({basis.kind}{route}), relaxation times {fast:.3g} to {slow:.3g}")
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)])
