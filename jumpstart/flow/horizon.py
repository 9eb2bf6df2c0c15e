"""Horizons: how far ahead to solve, in flow time or in steps of SGD.

Flow time is learning rate × steps: one plain SGD step of rate η advances it by η (docs/theory.md, section 1).
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import HorizonError
from ..linalg.etdrk4 import Modes
from ..utils.brief import brief

FARTHEST = 1e280  # flow times are finite numbers, and so are a few times as many


@dataclass(frozen=True)
class Steps:
    """``count`` steps of full-batch SGD at rate ``lr`` with heavy-ball ``momentum``; build it with :func:`steps`."""

    count: int
    lr: float
    momentum: float = 0.0
    scalar: ClassVar[bool] = True

    @property
    def time(self) -> float:
        """The flow time that the steps span: heavy-ball momentum μ stretches it by 1/(1 − μ)."""
        return self.count * self.lr / (1 - self.momentum)


def steps(count: int, lr: float, momentum: float = 0.0) -> Steps:
    """A horizon of ``count`` full-batch gradient-descent steps at learning rate ``lr``.

    Unlike the flow time ``count * lr / (1 − momentum)`` it reproduces the discrete steps exactly, the oscillation and
    divergence of too large a rate included (docs/theory.md, equation 6).

    Args:
        momentum: heavy-ball momentum as in ``torch.optim.SGD`` (no dampening), started from rest.

    Raises:
        HorizonError: if ``count`` is not a whole number ≥ 0, ``lr`` not positive and finite, or ``momentum`` not in
            [0, 1).
    """
    if isinstance(count, bool) or not isinstance(count, numbers.Real) or not (0 <= count < math.inf and count % 1 == 0):
        raise HorizonError(f"steps(count={brief(count)}, …): count must be a whole number of steps, 0 or more.")
    if not (isinstance(lr, numbers.Real) and math.isfinite(lr) and lr > 0):
        raise HorizonError(f"steps(…, lr={brief(lr)}): the learning rate must be positive and finite.")
    if not (isinstance(momentum, numbers.Real) and 0 <= momentum < 1):
        raise HorizonError(f"steps(…, momentum={brief(momentum)}): heavy-ball momentum must lie in [0, 1).")
    return Steps(int(count), float(lr), float(momentum))


@dataclass(frozen=True)
class Times:
    """One or many flow times, as float64 on the CPU; ``scalar`` remembers that one number was asked for."""

    values: tuple[float, ...]
    scalar: bool

    @staticmethod
    def at(t: float) -> Times:
        """One flow time."""
        return Times((t,), True)

    @property
    def time(self) -> float:
        """The last of them."""
        return max(self.values)


Horizon = float | int | Steps | Tensor
Parsed = Times | Steps


def parse(t: Horizon | Times) -> Parsed:
    """Check a horizon and bring it to one of two forms.

    Raises:
        HorizonError: for negative or NaN times, or anything that is no number, ``js.steps`` or 1-D tensor.
    """
    if isinstance(t, (Steps, Times)):
        return t
    if isinstance(t, Tensor) and (t.is_complex() or t.dtype == torch.bool):
        raise HorizonError(f"horizon of {t.dtype}: flow times are real numbers.")
    if isinstance(t, Tensor) and t.dim() == 1:
        values, scalar = tuple(t.detach().to("cpu", torch.float64).tolist()), False
    elif (
        isinstance(t, (numbers.Real, Tensor))
        and not isinstance(t, bool)
        and (not isinstance(t, Tensor) or t.dim() == 0)
    ):
        values, scalar = (_number(t),), True
    else:
        shown = f"a tensor of shape {tuple(t.shape)}" if isinstance(t, Tensor) else repr(t)
        raise HorizonError(
            f"horizon {shown}: give a flow time (learning rate × steps) as a number, math.inf, "
            "a 1-D tensor of such numbers, or js.steps(count, lr)."
        )
    if not values:
        raise HorizonError("horizon: the tensor of flow times is empty; give at least one.")
    for value in values:
        if math.isnan(value) or value < 0:
            raise HorizonError(
                f"horizon {brief(value)}: flow time must be 0 or more (math.inf for the end of training)."
            )
    return Times(values, scalar)


def _number(t: numbers.Real | Tensor) -> float:
    try:
        return float(t)
    except OverflowError:
        raise HorizonError(
            "horizon: a whole number beyond what a float64 holds; math.inf is the end of training."
        ) from None


def phi(rates: Tensor, horizon: Parsed) -> Tensor:
    """The filter φ(λ, t) = (1 − e^{−λt})/λ, or its exact discrete twin (1 − (1 − ηλ)^m)/λ, with φ(0, t) = t.

    At t = ∞ it is 1/λ, and 0 at λ = 0: a direction without curvature has no gradient either, and stays.

    Args:
        rates: (k,) eigenvalues λ of the reduced flow.
        horizon: T flow times, or a number of steps (then T = 1).

    Returns:
        (T, k). Source: docs/theory.md, equations 4 and 6.
    """
    lam = rates[None, :]
    zero = lam == 0
    safe = torch.where(zero, torch.ones_like(lam), lam)
    if isinstance(horizon, Steps) and horizon.momentum:
        return _heavy_ball(rates, horizon)[None]
    if isinstance(horizon, Steps):
        m, eta = horizon.count, horizon.lr
        step = eta * lam
        # expm1∘log1p keeps small ηλ exact; past ½ the plain power does, and the sign it needs beyond 1.
        near = -torch.expm1(m * torch.log1p(-step.clamp(max=0.5)))
        far = 1 - (1 - step) ** m
        return torch.where(zero, torch.full_like(lam, m * eta), torch.where(step < 0.5, near, far) / safe)
    times = torch.tensor(horizon.values, dtype=rates.dtype, device=rates.device)[:, None]
    endless = torch.isinf(times)
    finite = torch.where(endless, torch.zeros_like(times), times)
    filtered = torch.where(zero, finite.expand(-1, lam.shape[1]), -torch.expm1(-finite * safe) / safe)
    return torch.where(endless, torch.where(zero, torch.zeros_like(lam), 1 / safe), filtered)


def filters(modes: Modes, horizon: Parsed) -> Tensor:
    """φ(Λ, t) (T, k). A rate lost to rounding moves no further than one at the floor: noise · t is bounded."""
    found = phi(modes.rates, horizon)
    if modes.floor == 0:
        return found
    return torch.where(modes.rates == 0, found.clamp_max(1 / modes.floor), found)


def _heavy_ball(rates: Tensor, horizon: Steps) -> Tensor:
    """φ (k,) after m heavy-ball steps: p_{m+1} = p_m + μ(p_m − p_{m−1}) + η(1 − λ p_m), by powers of its 3×3 matrix."""
    mu, eta = horizon.momentum, horizon.lr
    matrix = rates.new_zeros(len(rates), 3, 3)
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 0, 2] = 1 + mu - eta * rates, -mu, eta
    matrix[:, 1, 0] = matrix[:, 2, 2] = 1
    return torch.linalg.matrix_power(matrix, horizon.count)[:, 0, 2]
