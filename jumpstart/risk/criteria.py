"""What the run would cost on new data, from the training samples alone: leave-one-out, GCV, population decrease.

All of it is about the linearized run, and costs no network evaluation. Source: docs/theory.md, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import gating as gate
from ..errors import HorizonError, InputError
from ..flow.horizon import Parsed, Times, filters, parse
from ..flow.reduced_flow import ReducedFlow
from ..losses.weighted import unweighted
from ..utils.brief import brief
from . import leave_out as holdout
from .leave_out import Groups
from .starts import Starts

PER_DECADE = 8  # horizons of the default grid
DECADES = 7.0  # from a tenth of the fastest relaxation time on


@dataclass(frozen=True)
class LeftOut:
    """The run without each of some samples (or groups), read at those samples.

    Attributes:
        samples: (m,) their indices.
        outputs: (T, m, …) what the run without them (their group) predicts for them.
        losses: (T, m) their losses there, on the scale of the mean loss Φ.
    """

    samples: Tensor
    outputs: Tensor
    losses: Tensor

    @property
    def risk(self) -> Tensor:
        """(T,) estimated loss on new data: the mean over the samples left out."""
        return self.losses.mean(-1)

    @property
    def standard_error(self) -> Tensor:
        """(T,) of that mean; NaN for a single sample."""
        m = self.losses.shape[-1]
        if m < 2:
            return torch.full_like(self.risk, math.nan)
        return self.losses.std(-1) / math.sqrt(m)


def leave_out(
    flow: ReducedFlow,
    horizon: Parsed,
    *,
    groups: Groups = None,
    samples: int | Tensor | None = None,
    tolerance: float = 1e-5,
    start: Starts | None = None,
) -> LeftOut:
    """Leave samples out of the linearized run, one by one or in groups, exactly.

    Args:
        groups: (n,) labels, or index tensors: samples that are left out together (folds, duplicates, users).
        samples: leave out only so many samples, or these, one by one.
        tolerance: local error of the integration, for losses that are not quadratic.
        start: where the runs without each group start, if a first stage was fitted on these samples (``fit_head``).
    """
    n = flow.u.shape[0]
    if not isinstance(tolerance, (int, float)) or not 0 < tolerance < 1:
        raise InputError(f"leave_out(tolerance={brief(tolerance)}): give a relative local error between 0 and 1.")
    require_modes(flow)
    chosen = holdout.as_groups(groups, samples, n)
    outputs = torch.cat(holdout.left_out(flow, horizon, chosen, tolerance, start), 1)
    indices = torch.cat(chosen).to(flow.u.device)
    if indices.unique().numel() != indices.numel():
        raise InputError("groups overlap: a sample can be left out in one of them only.")
    loss = unweighted(flow.loss)
    whole = flow.u.expand(len(outputs), *flow.u.shape).clone()
    whole[:, indices] = outputs
    return LeftOut(indices, outputs, n * loss.per_sample(whole)[:, indices])


def require_modes(flow: ReducedFlow) -> None:
    """Raise for a Krylov or prefix basis that is not whole: it follows one run, and left-out runs leave it.

    Raises:
        InputError: with what to ask for instead. (Leading dense modes are allowed: what they leave out is slow.)
    """
    if not flow.supports_leave_out:
        raise InputError(
            f"risk: a {flow.kind} basis of {flow.size} directions follows the run with every sample, and says "
            "little about runs without some. Solve with basis='dense', or with the leading modes only: basis=lambda "
            "problem: js.bases.dense(problem, rank=200)."
        )


def gcv(flow: ReducedFlow, horizon: Parsed) -> Tensor:
    """Generalized cross-validation Φ(t)/(1 − d(t)/N)² with d(t) = Σ λφ(λ, t) degrees of freedom, (T,); squared loss.

    Source: Golub, Heath & Wahba 1979; infinite once every output is fitted.
    """
    if flow.loss.curvature is None:
        raise InputError(
            f"criterion='gcv' is for squared loss without weights or masks, not {type(flow.loss).__name__}: use 'loo'."
        )
    require_modes(flow)
    fitted = _learnt(flow, horizon)
    left = 1 - (fitted * flow.gates).sum(-1) / flow.u.numel()
    loss = flow.predicted_loss(flow.coefficients(horizon))
    return torch.where(left > 1e-9, loss / left.square(), torch.full_like(loss, math.inf))


def _learnt(flow: ReducedFlow, horizon: Parsed) -> Tensor:
    """λφ(λ, t) (T, k) for the data's share of each rate: 1 where a mode has been fitted."""
    damping = 0.0 if flow.basis.decay is None else flow.basis.decay.diagonal().mean()
    return (flow.start.rates - damping).clamp_min(0) * filters(flow.start, horizon)


def population(flow: ReducedFlow, horizon: Parsed) -> Tensor:
    """Φ(0) less the unbiased first-order decrease of the population risk, mode by mode, (T,); equation 15."""
    require_modes(flow)
    mean_square, noise = gate.moments(flow.scores())
    shares = filters(flow.start, horizon) * flow.gates
    return flow.predicted_loss(torch.zeros_like(flow.initial_gradient)) - gate.population_decrease(
        mean_square, noise, shares
    )


def estimate(flow: ReducedFlow, horizon: Parsed, criterion: str, **options) -> Tensor:
    """(T,) estimates of the loss on new data by a criterion's name."""
    table = {"gcv": gcv, "population": population}
    if criterion != "loo" and criterion not in table:
        raise InputError(f"criterion={brief(criterion)} is none of 'loo', 'gcv', 'population'.")
    known = ("groups", "samples", "tolerance", "start") if criterion == "loo" else ()
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(f"criterion={brief(criterion)} takes {list(known)}, not {unknown[0]!r}.")
    if criterion == "loo":
        return leave_out(flow, horizon, **options).risk
    return table[criterion](flow, horizon)


def times(horizons: Tensor | Sequence[float]) -> Tensor:
    """Given flow times, checked, as a (T,) tensor."""
    if not isinstance(horizons, Tensor):
        try:
            horizons = torch.as_tensor(horizons, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise HorizonError(
                f"horizons of type {type(horizons).__name__}: give a (T,) tensor or a list of flow times."
            ) from None
    found = parse(horizons)
    assert isinstance(found, Times)
    return torch.tensor(found.values, dtype=torch.float64, device="cpu")


def grid(flow: ReducedFlow, limit: float = math.inf) -> Tensor:
    """(T,) flow times, geometric, from a tenth of the fastest mode's relaxation time to ``limit`` or 7 decades on."""
    first = 0.1 * flow.timescale()
    last = min(limit, first * 10**DECADES)
    first = min(first, last)
    count = 2 + int(PER_DECADE * math.log10(last / first))
    times = torch.logspace(math.log10(first), math.log10(last), count, dtype=torch.float64, device="cpu")
    times[-1] = last
    return times


def best(flow: ReducedFlow, criterion: str, times: Tensor | None, limit: float, **options) -> float:
    """The flow time of lowest estimated risk up to ``limit``: on a grid, then on a finer one around its minimum."""
    coarse = grid(flow, limit) if times is None else times[times <= limit]
    if coarse.numel() == 0:
        raise InputError(f"best_horizon: no horizon given is within the limit {limit:.3g}.")
    risks = estimate(flow, Times(tuple(coarse.tolist()), False), criterion, **options)
    at = lowest(risks)
    if times is not None:
        return float(coarse[at])
    if options.get("start") is None:
        still = flow.predicted_loss(torch.zeros_like(flow.initial_gradient))
    else:  # the first stage has its own leave-one-out
        still = estimate(flow, Times.at(0.0), criterion, **options)
    if bool(still <= risks[at]):
        return 0.0  # no training at all looks best
    low, high = float(coarse[max(at - 1, 0)]), float(coarse[min(at + 1, len(coarse) - 1)])
    fine = torch.logspace(math.log10(low), math.log10(high), 9, dtype=torch.float64, device="cpu").clamp(max=high)
    risks = estimate(flow, Times(tuple(fine.tolist()), False), criterion, **options)
    return float(fine[lowest(risks)])


def lowest(risks: Tensor) -> int:
    """Where the lowest finite estimate stands."""
    return int(torch.where(risks.isfinite(), risks, torch.full_like(risks, math.inf)).argmin())
