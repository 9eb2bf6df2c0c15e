"""Masked copies of the reduced flow, advanced together: one for each group of samples that is left out.

One linear part serves all of them, that of the run with every sample: it is never smaller than a copy's own, so that
steps are limited by accuracy alone. Source: docs/theory.md, section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import HorizonError
from ..flow.horizon import Steps, Times
from ..flow.reduced_flow import ReducedFlow
from ..utils.progress import track

SETTLED = 1e-8  # t = ∞: every copy's gradient has fallen by this factor
MOST_STEPS = 1_000_000
ENTRIES = 2**24  # outputs of all copies that are held at once, at most


@dataclass(frozen=True)
class Masks:
    """Which samples each group leaves out: rows (G, m) indices, padded where keep (G, m) is 0."""

    rows: Tensor
    keep: Tensor

    @staticmethod
    def of(groups: Sequence[Tensor], n: int, device: torch.device) -> Masks:
        size = max(len(group) for group in groups)
        rows = torch.zeros(len(groups), size, dtype=torch.long, device="cpu")
        keep = torch.zeros(len(groups), size, dtype=torch.float64, device="cpu")
        for g, group in enumerate(groups):
            rows[g, : len(group)], keep[g, : len(group)] = group.to("cpu", torch.long), 1.0
        return Masks(rows.to(device), keep.to(device))

    @property
    def groups(self) -> int:
        return self.rows.shape[0]

    @property
    def size(self) -> int:
        return self.rows.shape[1]

    def block(self, at: int, count: int) -> Masks:
        return Masks(self.rows[at : at + count], self.keep[at : at + count])

    def present(self, n: int) -> Tensor:
        """(G, n): 1 where a sample is trained on, 0 where it is left out."""
        full = self.keep.new_ones(self.groups, n)
        # Padding points at sample 0 with keep 0: amin leaves a sample in only if no entry takes it out.
        return full.scatter_reduce(1, self.rows, 1 - self.keep, "amin")


def descend(flow: ReducedFlow, horizon: Steps, masks: Masks, shifts: Tensor | None = None) -> Tensor:
    """(1, G, m, …): gradient descent of every copy, step for step; shifts (G, n, …) of their starts."""
    if horizon.count > MOST_STEPS:
        raise HorizonError(
            f"js.steps({horizon.count}, …): runs with samples left out are followed step for step, up to "
            f"{MOST_STEPS:,}; give the flow time {horizon.time:.3g} instead."
        )
    present = masks.present(flow.u.shape[0])
    c = before = flow.initial_gradient.new_zeros(masks.groups, flow.size)
    for _ in range(horizon.count):
        c, before = c - horizon.lr * flow.gradient(c, present, shifts) + horizon.momentum * (c - before), c
    return _read(flow, c, masks, shifts)[None]


def integrate(
    flow: ReducedFlow, horizon: Times, masks: Masks, tolerance: float, shifts: Tensor | None = None
) -> Tensor:
    """(T, G, m, …) at each flow time, in blocks of copies; shifts (G, n, …) of their starts."""
    count = max(1, ENTRIES // max(1, flow.u.numel()))
    blocks = track(range(0, masks.groups, count), label="runs with samples left out")
    found = []
    for at in blocks:
        some = None if shifts is None else shifts[at : at + count]
        found.append(_integrate(flow, horizon, masks.block(at, count), tolerance, some))
    return torch.cat(found, 1)


def _integrate(flow: ReducedFlow, horizon: Times, masks: Masks, tolerance: float, shifts: Tensor | None) -> Tensor:
    present = masks.present(flow.u.shape[0])
    present = torch.cat([present, torch.ones_like(present[:1])])  # the last row is the run with every sample
    moved = None if shifts is None else torch.cat([shifts, torch.zeros_like(shifts[:1])])
    integrator = flow.integrator(lambda c: -flow.gradient(c, present, moved), tolerance, SETTLED)
    order = sorted(range(len(horizon.values)), key=lambda i: horizon.values[i])
    out = flow.u.new_zeros(len(order), *masks.rows.shape, *flow.u.shape[1:])
    state = flow.origin(masks.groups + 1)
    for i in order:
        state = integrator.advance(state, horizon.values[i])
        out[i] = _read(flow, state.rows[:-1], masks, shifts)
    return out


def own(u: Tensor, masks: Masks) -> Tensor:
    """(G, m, …): of outputs u (G, n, …) for each group those of its own samples."""
    return u[torch.arange(masks.groups, device=u.device)[:, None], masks.rows]


def _read(flow: ReducedFlow, c: Tensor, masks: Masks, shifts: Tensor | None) -> Tensor:
    """(G, m, …): outputs of the left-out samples only."""
    c, n = flow.through_gates(c), flow.u.shape[0]
    rows = flow.images.reshape(flow.size, n, -1)[:, masks.rows]  # (k, G, m, c)
    shift = torch.einsum("gk,kgmc->gmc", c, rows)
    start = flow.u[masks.rows] if shifts is None else flow.u[masks.rows] + own(shifts, masks)
    return start + shift.reshape(*masks.rows.shape, *flow.u.shape[1:])
