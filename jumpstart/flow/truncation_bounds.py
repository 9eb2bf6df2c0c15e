"""How far an answer from a truncated basis can be from the full linearized run.

Every bound is on ‖u_k(t) − u(t)‖₂ over all training outputs. Source: docs/theory.md, section 4 (equations 9 and 10).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..linearization.linearize import rounding_error
from .horizon import Steps, Times
from .reduced_flow import ReducedFlow

NODES = 400
BENDS = 6  # nodes by the length of the way, besides those by time
MOST_STEPS = 1_000_000


def error_bound(flow: ReducedFlow, t: float) -> float:
    """An upper bound on the error of the outputs at flow time t, in the outputs' units.

    Krylov bases and squared loss: the smaller of a residual bound (equation 9) and an energy bound (equation 10),
    for one more network product in all. Other truncated bases and losses: the residual of the flow integrated over
    time by quadrature (equation 10b), for up to 14 vjps and some products for the operator norm. Dense bases: rounding.
    """
    basis, lin = flow.basis, flow.problem.lin
    if basis.complete:
        return rounding_error(lin)
    if t == 0:
        return 0.0
    if not bool((flow.gates == 1).all()):
        return math.inf  # gated coefficients are not those of a flow that the bounds are about
    bounds = []
    curvature = flow.loss.curvature
    if _closed(flow) and curvature is not None:
        bounds.append(_residual(flow, t, curvature))
        if basis.damping == 0:  # a damped run ends away from the targets
            bounds.append(_energy(flow, t, curvature))
    else:
        bounds.append(_sampled(flow, t))
    return min(bounds) + rounding_error(lin)


def _closed(flow: ReducedFlow) -> bool:
    """Whether equation 9 holds: a Krylov basis, squared loss with B = βI, no decay but a pull back to the start, which
    shifts every rate and leaves the Krylov space as it is."""
    quadratic = flow.loss.quadratic and flow.loss.curvature is not None
    return flow.basis.remainder is not None and quadratic and not flow.basis.metric.decays


def _grid(t: float) -> Tensor:
    """Nodes on [0, t], dense at both ends."""
    x = torch.linspace(0, 1, NODES, dtype=torch.float64, device="cpu")
    near_zero = t * torch.logspace(-12, 0, NODES, dtype=torch.float64, device="cpu")
    return torch.cat([x * t, near_zero, t - near_zero]).clamp(0, t).unique()


def _residual(flow: ReducedFlow, t: float, curvature: float) -> float:
    """∫ β_k |c_k(s)| ‖A e^{−(t−s)G} q_{k+1}‖ ds, the norm bounded by ‖A q_{k+1}‖ and by 1/√(2eβ(t−s))."""
    remainder = flow.basis.remainder
    assert remainder is not None
    norm, image = remainder.measure()
    if norm == 0:
        return 0.0
    if math.isinf(t):
        return math.inf
    s = _grid(t)
    last = flow.coefficients(Times(tuple(s.tolist()), False))[:, -1].abs().cpu()
    upper = norm * torch.maximum(last[1:], last[:-1])
    # ∫ min(a, b/√τ) dτ in closed form on each interval, so that only |c_k| is sampled.
    b = 1 / math.sqrt(2 * math.e * curvature)
    knee = (b / max(image, 1e-300)) ** 2

    def antiderivative(tau: Tensor) -> Tensor:
        short = image * tau
        long = image * knee + 2 * b * (tau.clamp_min(knee).sqrt() - math.sqrt(knee))
        return torch.where(tau < knee, short, long)

    weights = antiderivative(t - s[:-1]) - antiderivative(t - s[1:])
    return float((upper * weights).sum())


def _energy(flow: ReducedFlow, t: float, curvature: float) -> float:
    """Both runs end near the targets: Φ(u(t)) ≤ Φ(u_k(t)) + ‖c(t)‖²/2t, by convexity; at t = ∞ by Pythagoras."""
    c = flow.coefficients(Times.at(t))[0]
    reached = float(flow.predicted_loss(c))
    if math.isinf(t):
        return math.sqrt(2 * reached / curvature)
    other = reached + float(c.square().sum()) / (2 * t)
    return math.sqrt(2 * reached / curvature) + math.sqrt(2 * other / curvature)


def _sampled(flow: ReducedFlow, t: float) -> float:
    """‖A‖ ∫ ‖(I − QQᵀ)(Aᵀ∇Φ(u_k(s)) + W z)‖ ds: the linearized flow contracts, so defects only add up."""
    if math.isinf(t):
        return math.inf
    problem, basis, metric = flow.problem, flow.basis, flow.basis.metric
    s = sorted({0.0, *(t * torch.logspace(-3, 0, 7, dtype=torch.float64, device="cpu")).tolist(), *_bends(flow, t)})
    c = flow.coefficients(Times(tuple(s), False))
    defects, largest = [], torch.zeros_like(problem.z)
    for row in c:
        g = problem.loss.grad(flow.outputs(row).to(problem.lin.u.dtype))
        full = problem.jacobian.apply_adjoint(g)
        if metric.decays or basis.damping:
            moved = basis.scaled(row)
            full = full + metric.decay * (problem.z + moved) + basis.damping * moved
        inside = basis.scaled(flow.gradient(row))
        defect = full - inside
        if float(torch.linalg.vector_norm(defect)) >= (max(defects) if defects else 0.0):
            largest = defect
        defects.append(float(torch.linalg.vector_norm(defect)))
    total = sum((s[i + 1] - s[i]) * max(defects[i], defects[i + 1]) for i in range(len(defects) - 1))
    return _operator_norm(flow, largest) * total


def _bends(flow: ReducedFlow, t: float) -> list[float]:
    """Flow times at equal shares of the way to t: a run can have turned and come to rest before 10⁻³ t."""
    fine = t * torch.logspace(-12, 0, 12 * 8, dtype=torch.float64, device="cpu")
    c = flow.coefficients(Times(tuple(fine.tolist()), False)).cpu()
    way = torch.linalg.vector_norm(c.diff(dim=0), dim=1).cumsum(0)
    if not bool(way[-1] > 0):
        return []
    shares = way[-1] * torch.linspace(0, 1, BENDS + 2, dtype=way.dtype, device="cpu")[1:-1]
    return fine[1:][torch.searchsorted(way, shares).clamp(max=len(way) - 1)].tolist()


def _operator_norm(flow: ReducedFlow, start: Tensor) -> float:
    """‖A‖ from above: the largest image in the basis, or four power steps from the defect with 5% on top."""
    a = flow.problem.jacobian
    best = float(torch.linalg.matrix_norm(flow.images, ord=2))
    v = start
    for _ in range(4):
        length = torch.linalg.vector_norm(v)
        if not bool(length > 0):
            break
        image = a @ (v / length)
        best = max(best, float(torch.linalg.vector_norm(image)))
        v = a.T @ image
    return 1.05 * best


def steps_bound(flow: ReducedFlow, horizon: Steps) -> float:
    """The bound for SGD steps: equation 9 summed over the steps, for rates up to 1/λ_max; ∞ where none is known."""
    basis, curvature = flow.basis, flow.loss.curvature
    if basis.complete or horizon.count == 0:
        return error_bound(flow, horizon.time)
    stable = horizon.momentum == 0 and horizon.lr * float(flow.start.rates.max()) <= 1
    if not (stable and _closed(flow)) or horizon.count > MOST_STEPS or not bool((flow.gates == 1).all()):
        return math.inf
    assert basis.remainder is not None
    assert curvature is not None
    norm, image = basis.remainder.measure()
    if norm == 0:
        return error_bound(flow, horizon.time)
    rates, b = flow.start.rates.cpu(), flow.start.into(flow.initial_gradient).cpu()
    eye = torch.eye(flow.size, dtype=b.dtype, device="cpu")
    row = (eye if flow.start.vectors is None else flow.start.vectors.cpu())[-1]
    total = 0.0
    for at in range(0, horizon.count, 4096):
        j = torch.arange(at, min(at + 4096, horizon.count), dtype=b.dtype, device="cpu")[:, None]
        # c_k after j steps, in the modes: −(1 − (1 − ηλ)^j)/λ.
        powers = torch.where(rates > 0, (1 - (1 - horizon.lr * rates) ** j) / rates.clamp_min(1e-300), horizon.lr * j)
        last = (powers * b) @ row
        behind = horizon.lr * (horizon.count - 1 - j[:, 0])
        reach = (1 / (2 * math.e * curvature * behind.clamp_min(1e-300)).sqrt()).clamp_max(image)
        total += float((horizon.lr * norm * last.abs() * reach).sum())
    return total + rounding_error(flow.problem.lin)
