"""The linearized run with samples left out: what it would have predicted for them, without touching the network.

Leaving samples out sets their rows of the gradient to zero: a masked copy of the reduced flow. For squared loss the
copies are read off from one Laplace transform and a low-rank identity (equations 17 to 19); for other losses they are
integrated together (``masked``). Source: docs/theory.md, section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..flow.horizon import Parsed, Steps, Times
from ..flow.reduced_flow import ReducedFlow
from ..utils.brief import brief
from .closed_form import closed
from .integrated import Masks, descend, integrate
from .starts import Starts, require

Groups = Tensor | Sequence[Any] | None


def left_out(
    flow: ReducedFlow,
    horizon: Parsed,
    groups: Sequence[Tensor],
    tolerance: float = 1e-5,
    start: Starts | None = None,
) -> list[Tensor]:
    """Outputs of each group of samples from the run without that group: (T, m_g, …) for group g.

    Args:
        groups: index tensors; each group is left out by itself.
        tolerance: local error of the integration, for losses that are not quadratic.
        start: where the runs without each group start, if a first stage was fitted on these samples.
    """
    shifts = None if start is None else require(start).shifts(flow, len(groups))
    masks = Masks.of(groups, flow.u.shape[0], flow.u.device)
    if flow.size == 0:  # the gradient vanishes everywhere: no run moves
        count = len(horizon.values) if isinstance(horizon, Times) else 1
        own = [flow.u[k] if shifts is None else flow.u[k] + shifts[g, k] for g, k in enumerate(groups)]
        return [u.expand(count, *u.shape).clone() for u in own]
    if isinstance(horizon, Steps):
        found = descend(flow, horizon, masks, shifts)
    elif flow.is_closed(horizon):
        found = closed(flow, horizon, masks, shifts)
    else:
        found = integrate(flow, horizon, masks, tolerance, shifts)
    return [found[:, g, : len(group)] for g, group in enumerate(groups)]


def as_groups(groups: Groups, samples: int | Tensor | None, n: int) -> list[Tensor]:
    """Checked groups: given ones, or each sample alone, or each of some samples alone.

    Args:
        groups: (n,) labels (samples of one label are left out together), or index tensors; None for one by one.
        samples: how many samples to leave out in turn (spread evenly), or their indices; None for all.
    """
    if groups is not None and samples is not None:
        raise InputError("give groups (left out together) or samples (left out one by one), not both.")
    if isinstance(groups, Tensor):
        if groups.shape != (n,) or bool((groups != groups).any()):
            raise InputError(f"groups {tuple(groups.shape)}: give one label (not NaN) for each of {n} samples.")
        return [(groups == label).nonzero()[:, 0] for label in groups.unique()]
    if groups is not None:
        if not isinstance(groups, (list, tuple)) or not groups:
            raise InputError(f"groups={brief(groups)}: give a (n,) tensor of labels, or a list of index tensors.")
        return [indices(group, n) for group in groups]
    if isinstance(samples, int) and not isinstance(samples, bool):
        if samples < 1:
            raise InputError(f"samples={brief(samples)}: leave out at least one.")
        samples = torch.linspace(0, n - 1, min(samples, n), device="cpu").round().long()
    chosen = torch.arange(n, device="cpu") if samples is None else indices(samples, n)
    return list(chosen[:, None])


def indices(given: Any, n: int) -> Tensor:
    """Checked sample indices (m,), different ones from 0 to n − 1.

    Raises:
        InputError: quotes what was given.
    """
    try:
        found = given if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, device="cpu")
    found = found.reshape(-1) if found.dim() == 0 else found
    whole = not (found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool)
    if not whole or found.dim() != 1 or found.numel() == 0:
        raise InputError(f"samples to leave out: give whole indices below {n}, got {brief(given)}.")
    found = found.long()
    if int(found.min()) < 0 or int(found.max()) >= n or found.unique().numel() != found.numel():
        raise InputError(f"samples to leave out must be different indices from 0 to {n - 1}, got {found.tolist()}.")
    return found
