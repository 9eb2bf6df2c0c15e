"""Does the real network do what the linearization says? A copy of the weights is moved, and the model is left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..flow.horizon import Parsed, Times
from ..flow.kernel_drift import Drift
from ..flow.reduced_flow import ReducedFlow
from ..linearization.linearize import Linearization
from ..losses.base import Loss
from ..losses.weighted import unweighted
from .query import Queries

CLOSE = 1.1  # the trust horizon is bisected to this ratio
PASSES = 24  # forward passes of the search, at most
TINY = 1e-10  # horizons this far below the asked one are not looked at


@dataclass(frozen=True)
class Agreement:
    """Linearized against real outputs at one horizon, on one set of points.

    Attributes:
        linearized, actual: outputs (m, …). error: ‖actual − linearized‖ / ‖linearized − outputs at θ₀‖.
        losses: (linearized, actual) loss, None without targets. accuracies: the same, None without classes.
    """

    linearized: Tensor
    actual: Tensor
    error: float
    losses: tuple[float, float] | None
    accuracies: tuple[float, float] | None

    def __str__(self) -> str:
        pairs = [("loss", self.losses), ("accuracy", self.accuracies)]
        told = [f"{name} {p[0]:.3g} linearized, {p[1]:.3g} real" for name, p in pairs if p is not None]
        return ", ".join([f"relative error {self.error:.2g}", *told])


@dataclass(frozen=True)
class Check:
    """What ``Solution.check`` found.

    Attributes:
        horizon: where it looked. train, query: agreement there (query None without query points).
        trust_horizon: longest flow time found at which the training outputs' error is within ``tolerance``.
        passes: forward passes of the search for it.
        drift: size of the next order relative to the first, at the horizon; None where it was not asked for.
    """

    horizon: Parsed
    train: Agreement
    query: Agreement | None
    tolerance: float
    trust_horizon: float
    passes: int
    drift: float | None = None

    @property
    def time(self) -> float:
        """The flow time of its horizon."""
        return self.horizon.time

    @property
    def agrees(self) -> bool:
        """Whether everything up to its horizon was found to agree."""
        return self.trust_horizon >= self.time

    def __str__(self) -> str:
        lines = [f"train: {self.train}"]
        if self.drift is not None:
            lines.append(f"kernel drift: {self.drift:.2g} of the first order")
        if self.query is not None:
            lines.append(f"query: {self.query}")
        lines.append(
            f"within {self.tolerance:.0%} up to flow time {self.trust_horizon:.3g} ({self.passes} forward passes)"
        )
        return "\n".join(lines)


def examine(
    flow: ReducedFlow,
    queries: Queries,
    horizon: Parsed,
    points: tuple[Any, Tensor | None],
    tolerance: float,
    drift: Drift | None,
) -> Check:
    """Compare at one horizon, on the training outputs and on query points with or without targets; find the limit.

    Args:
        points: query points (or None) and their targets (or None).
        drift: where given, the kernel's drift along the run limits the trust, too.
    """
    lin, (x, y) = flow.problem.lin, points
    c = flow.coefficients(horizon)
    displacement = flow.basis.displacement(c[0])
    train, query, share = agreement(lin, flow.outputs(c[0]), displacement, flow.problem.loss), None, None
    if x is not None:
        at, _ = queries.at(x, many=1)
        loss = None if y is None else unweighted(flow.problem.loss).on_new_samples(y).to(at.u)
        if loss is not None:
            loss.check(at.u)
        query = agreement(at, queries.shifted(x, c)[0], displacement, loss)
    end = max(horizon.time, 1e-300)
    trusted, passes = trust_horizon(flow, end, tolerance)
    if drift is not None and trusted > 0:
        near, share = drift_horizon(drift, flow, min(trusted, 1e8 * flow.timescale()), tolerance)
        trusted = min(trusted, near)
    return Check(horizon, train, query, tolerance, trusted, passes, share)


def agreement(lin: Linearization, linearized: Tensor, displacement: Tensor, loss: Loss | None) -> Agreement:
    """Compare linearized outputs with those of the network really moved by δθ (P,); losses where there are targets."""
    linearized, actual = linearized.to(lin.u.dtype), lin.outputs(lin.theta + displacement)
    losses = accuracies = None
    if loss is not None:
        losses = (float(loss.value(linearized)), float(loss.value(actual)))
        right = [loss.correct(u) for u in (linearized, actual)]
        if right[0] is not None and right[1] is not None:
            accuracies = (float(right[0].double().mean()), float(right[1].double().mean()))
    return Agreement(linearized, actual, relative_error(lin.u, linearized, actual), losses, accuracies)


def trust_horizon(flow: ReducedFlow, end: float, tolerance: float) -> tuple[float, int]:
    """Longest flow time up to ``end`` at which the training outputs agree, and the forward passes it took."""

    lin = flow.problem.lin

    def error(t: float) -> float:
        c = flow.coefficients(Times.at(t))[0]
        actual = lin.outputs(lin.theta + flow.basis.displacement(c))
        return relative_error(lin.u, flow.outputs(c).to(lin.u.dtype), actual)

    return longest(error, flow.timescale(), end, tolerance)


def drift_horizon(drift: Drift, flow: ReducedFlow, end: float, tolerance: float) -> tuple[float, float]:
    """The first flow time up to ``end`` at which the next order reaches ``tolerance`` times the first, and its size at
    the end: what true training adds to the linearized run, which moving the weights along that run does not show.
    """
    first = min(flow.timescale(), end)
    times = torch.logspace(
        math.log10(first), math.log10(end), 2 + int(4 * math.log10(end / first)), dtype=torch.float64, device="cpu"
    )
    horizon = Times(tuple(times.tolist()), False)
    moved = flow.outputs(flow.coefficients(horizon))
    extra = (drift.outputs(horizon) - moved).flatten(1).norm(dim=1)
    shares = (extra / (moved - flow.u).flatten(1).norm(dim=1).clamp_min(1e-300)).tolist()
    for before, after in zip(range(-1, len(shares)), range(len(shares)), strict=False):
        if not shares[after] <= tolerance:
            if before < 0:
                return float(times[0]) * tolerance / shares[0] if shares[0] < math.inf else 0.0, shares[-1]
            slope = math.log(max(shares[after], 1e-300) / max(shares[before], 1e-300))
            part = math.log(tolerance / max(shares[before], 1e-300)) / slope if slope > 0 else 0.0
            return float(times[before]) * float(times[after] / times[before]) ** min(max(part, 0.0), 1.0), shares[-1]
    return end, shares[-1]


def relative_error(start: Tensor, linearized: Tensor, actual: Tensor) -> float:
    """How far the real outputs are from the linearized ones, relative to how far these have moved; NaN counts as ∞."""
    miss, moved = torch.linalg.vector_norm(actual - linearized), torch.linalg.vector_norm(linearized - start)
    if bool(miss <= 8 * torch.finfo(start.dtype).eps * torch.linalg.vector_norm(start)):
        return 0.0  # rounding
    if not bool(miss > 0):
        return math.inf
    return float(miss / moved) if bool(moved > 0) else math.inf


def longest(error: Callable[[float], float], start: float, end: float, tolerance: float) -> tuple[float, int]:
    """The longest flow time in [0, end] with error ≤ tolerance, by secant-guided bisection in log time.

    Args:
        error: flow time -> relative error; grows about linearly at first, which guides the search.
        start: a first finite guess. end: nothing beyond is looked at; may be ∞.

    Returns:
        the flow time (0 where even the shortest fails) and the number of errors asked for.
    """
    miss, asked = error(end), 1
    if miss <= tolerance:
        return end, asked
    low, high, t = 0.0, end, min(start, end)
    if math.isfinite(end * miss):  # errors grow about linearly with the time
        t = max(t, end * tolerance / miss) if t < end else end * tolerance / miss
    floor = TINY * t
    while asked < PASSES and t > floor:
        miss = error(t)
        asked += 1
        low, high = (t, high) if miss <= tolerance else (low, min(high, t))
        if low > 0 and high <= CLOSE * low:
            break
        guess = t * min(max(tolerance / miss if miss > 0 else 16.0, 1 / 64), 16.0)
        if low > 0 and math.isfinite(high):
            inside = low * CLOSE**0.5 < guess < high / CLOSE**0.5
            t = guess if inside and asked % 3 else math.sqrt(low * high)
        else:
            t = min(max(guess, 2 * low), high) if low > 0 else min(guess, 0.5 * high)
            if t >= high:
                t = 0.5 * high if low == 0 else math.sqrt(low * high)
    return low, asked
