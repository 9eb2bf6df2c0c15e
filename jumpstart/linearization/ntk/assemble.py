"""K_SS and K_QS of a linearization, put together from its parts."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...distributed.shards import Shards
from ...objectives.parts import Batch
from ..linearize import Linearization
from ..metric import Metric
from ..operators import Explicit
from .dense import LOOPED, dense_kernel

NAMED = 3  # parameters that a note names


def train_kernel(lin: Linearization, metric: Metric) -> Tensor:
    """K_SS = J D Jᵀ (N, N) over the outputs of the linearization, flattened sample by sample, in float64.

    J is as precise as the network's arithmetic; its products are float64, or modes would be lost to the square of ε.
    """
    if not lin.layered:
        if lin.shards is not None:
            return Explicit(lin, metric).symmetric()
        j = lin.jacobian().double()
        j = j if metric.root is None else j * metric.root.double()
        return j @ j.T
    if lin.shards is not None:
        return _spread(lin, lin.shards, metric)
    return _within(lin, metric)


def query_kernel(lin: Linearization, query: Batch, metric: Metric) -> Tensor:
    """K_QS = J_Q D Jᵀ (M, N) between query points and the outputs of the linearization, in float64.

    Over several processes each may ask for other points, and has its own answer.
    """
    if lin.shards is None:
        return _joined([_block(lin, metric, query, part) for part in lin.parts], 1)
    shards, world = lin.shards, lin.shards.world
    found: list[Tensor] = []

    def against(parts: list[Batch]) -> None:
        found.extend(_block(lin, metric, query, part) for part in parts)

    for rank in range(world.size):
        parts = world.told_by("inputs of a process", rank, list(lin.parts))
        world.attempt("a block of the kernel", lambda parts=parts: against(parts))
    columns = _joined(found, 1).T
    return shards.ordered(columns.reshape(len(lin.u), -1)).reshape(columns.shape).T


def _spread(lin: Linearization, shards: Shards, metric: Metric) -> Tensor:
    """K_SS over several processes: inputs go round, each process forms half of its blocks with others', and one
    all-reduce of N² numbers puts them together. No Jacobian travels, and no activation is kept of more than two shards.
    """
    world, c = shards.world, lin.u[0].numel()
    begins = [0, *itertools.accumulate(count * c for count in shards.counts)]
    kernel = torch.zeros(begins[-1], begins[-1], dtype=torch.float64, device=lin.theta.device)
    own = slice(begins[world.rank], begins[world.rank + 1])

    def form(rank: int, parts: list[Batch]) -> None:
        if not lin.parts or not parts or not _mine(world.rank, rank, world.size):
            return
        other = slice(begins[rank], begins[rank + 1])
        if rank == world.rank:
            kernel[own, other] = 0.5 * _within(lin, metric)  # half, as its transpose is added below
        else:
            rows = [_joined([_block(lin, metric, left, right) for right in parts], 1) for left in lin.parts]
            kernel[own, other] = _joined(rows)

    for rank in range(world.size):
        parts = world.told_by("inputs of a process", rank, list(lin.parts))
        world.attempt("a block of the kernel", lambda rank=rank, parts=parts: form(rank, parts))
    found = world.sum("the kernel", lambda: kernel)
    lin.ledger.forwards += world.size  # each process goes through the samples of all
    lin.ledger.pulls += world.size * (c + 1)
    found = found + found.T
    blocks = shards.ordered(found.view(-1, c * begins[-1])).view(begins[-1], begins[-1])
    return shards.ordered(blocks.T.reshape(-1, c * begins[-1])).view(begins[-1], begins[-1])


def _mine(rank: int, other: int, size: int) -> bool:
    """Whether a process forms its block with another's, so that each pair is formed once."""
    ahead = (other - rank) % size
    return 2 * ahead < size or (2 * ahead == size and rank < other)


def _within(lin: Linearization, metric: Metric) -> Tensor:
    """The kernel of the parts of this process among themselves."""
    blocks: list[list[Tensor]] = []
    for i, left in enumerate(lin.parts):
        row = [blocks[j][i].T for j in range(i)]
        row += [_block(lin, metric, left, right if j else None) for j, right in enumerate(lin.parts[i:])]
        blocks.append(row)
    return _joined([_joined(row, 1) for row in blocks])


def _joined(blocks: list[Tensor], dim: int = 0) -> Tensor:
    """Blocks side by side; a single one, as large as a kernel can be, is not copied."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim)


def _block(lin: Linearization, metric: Metric, left: Any, right: Any) -> Tensor:
    space = lin.net.space
    params = space.pieces(lin.theta)
    # Routes are checked once, and again whenever a module has changed its mode since (as determinism is).
    modes = tuple(module.training for module in lin.net.model.modules())
    known = lin.net.routes.setdefault(left, {}) if right is None else {}
    trusted, reasons = known.get(modes, (None, {}))
    report: dict[str, str] = {}
    d = None if metric.root is None else space.pieces(metric.root.square())
    with left.translated(lin.net.model):
        kernel = dense_kernel(
            lambda tensors, x: Batch.apply(partial(lin.net.call, space.assembled(tensors)), x),
            params,
            left.inputs,
            None if right is None else right.inputs,
            metric=d,
            report=report,
            reasons=reasons,
            trusted=trusted,
            dtype=torch.float64,
        )
    known[modes] = report, reasons
    if right is None:
        left.fallbacks["kernel"] = _told(report, reasons)
    _charge(lin, [left] if right is None else [left, right], set(report.values()))
    return kernel


def _told(report: dict[str, str], reasons: dict[str, str]) -> list[str]:
    """A sentence for each way and reason that some parameters do not go layer by layer."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, why in reasons.items():
        way = "an output at a time" if name == LOOPED else "one by one"
        names.setdefault((report.get(name, way), why), []).append(name)
    found = []
    for (route, why), group in names.items():
        listed = ", ".join(repr(name) if name in report else name for name in group[:NAMED])
        more = f" and {len(group) - NAMED} more" if len(group) > NAMED else ""
        found.append(f"{listed}{more} {route}: {why}")
    return found


def _charge(lin: Linearization, parts: list[Batch], routes: set[str]) -> None:
    """Book the passes that the kernel took: one backward an output and a check, more where layers did not suffice."""
    if lin.shards is not None:  # what processes book must be the same
        return
    c = max(1, lin.u.numel() // max(1, lin.u.shape[0]))
    for part in parts:
        share = part.size / max(1, lin.u.shape[0])
        passes = 1 + ("per-sample" in routes or "per-output" in routes)
        lin.ledger.forwards += share * passes
        lin.ledger.pulls += share * passes * (c + 1)
        if "per-output" in routes:
            lin.ledger.pulls += share * part.size * c
