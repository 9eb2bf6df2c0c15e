"""Which basis: from counted cost, under a memory limit. Nothing is timed, so that a run can be repeated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import basis as bases
from .basis import Basis
from .cost import GRADIENT, PULL, PUSH
from .errors import InputError, MemoryLimitError
from .kernel import assemble
from .linearize import Linearization
from .losses import Loss
from .metric import Metric

DEPTH = 12  # Krylov vectors where none are asked for (docs/decisions/0005)
EIGH_FLOPS = 25.0  # eigh of an N×N matrix costs about this many N³, at the rate of a matrix product


@dataclass(frozen=True)
class Plan:
    """A choice and the reasons for it: predicted gradient evaluations and bytes of each way that was weighed."""

    kind: str
    depth: int
    costs: dict[str, float]
    bytes: dict[str, float]
    limit: float
    reason: str

    def explain(self) -> str:
        """A few lines for people."""
        lines = [f"basis: {self.kind} ({self.reason}); memory limit {self.limit / 2**30:.1f} GiB"]
        for name, cost in self.costs.items():
            lines.append(f"  {name:<8} {cost:9.1f} gradient evaluations, {self.bytes[name] / 2**20:9.1f} MiB (counted)")
        return "\n".join(lines)


def available_memory(device: torch.device) -> float:
    """Half of the memory that is free on the device, in bytes."""
    if device.type == "cuda":
        return 0.5 * torch.cuda.mem_get_info(device)[0]
    try:
        return 0.5 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2.0**31


def plan(
    lin: Linearization, loss: Loss, metric: Metric, kind: str = "auto", depth: int | None = None, memory_limit: Any = None
) -> Plan:
    """Weigh dense against Krylov.

    One gradient evaluation is counted as 6·n·P multiply-adds, which is exact for fully connected networks and too
    little for weight sharing; the dense way is therefore preferred slightly too rarely for convolutions.

    Raises:
        MemoryLimitError: neither fits.
        InputError: an unknown kind or depth.
    """
    if kind not in ("auto", "dense", "krylov"):
        raise InputError(f"basis={kind!r}: use 'auto', 'dense', 'krylov' or a Basis made with jumpstart.bases.")
    if depth is not None and (not isinstance(depth, int) or depth < 1):
        raise InputError(f"depth={depth!r}: give a number of Krylov vectors of at least 1.")
    if memory_limit is not None and not memory_limit > 0:
        raise InputError(f"memory_limit={memory_limit!r}: give a positive number of bytes.")
    limit = float(memory_limit) if memory_limit is not None else available_memory(lin.theta.device)
    n, p, size = lin.u.numel(), lin.theta.numel(), lin.u.element_size()
    samples = max(1, lin.u.shape[0])
    c = n / samples
    gradient_flops = 6.0 * samples * p
    small = min(n, p)
    layered = assemble.layered(lin) and n <= p
    dense_flops = (2.0 * n * n * (p / 50 if layered and metric.root is None else p)) + EIGH_FLOPS * small**3
    if not loss.quadratic:
        dense_flops += 20 * EIGH_FLOPS * small**3  # one factorization for each Rosenbrock step
    dense_cost = (c + 1) * PULL + GRADIENT + dense_flops / gradient_flops
    dense_bytes = 8.0 * (4 * small * small + (0 if layered else 3 * n * p))
    k = min(depth or DEPTH, n, p)
    krylov_cost = k * (PUSH + PULL)
    krylov_bytes = float(size * k * (p + n) + 8 * k * n)
    least_bytes = float(size * 2 * k * n + 8 * k * n) if not metric.decays else krylov_bytes
    costs, needs = {"dense": dense_cost, "krylov": krylov_cost}, {"dense": dense_bytes, "krylov": krylov_bytes}
    fits = {"dense": dense_bytes <= limit, "krylov": min(krylov_bytes, least_bytes) <= limit}
    if kind != "auto":
        if not fits[kind]:
            raise MemoryLimitError(_too_small(kind, needs, limit))
        return Plan(kind, k, costs, needs, limit, "asked for")
    if not any(fits.values()):
        raise MemoryLimitError(_too_small("any basis", needs, limit))
    # Dense answers every horizon exactly, Krylov with an error bound: dense is worth a few times the cost.
    if fits["dense"] and dense_cost <= 4 * krylov_cost:
        return Plan("dense", k, costs, needs, limit, "exact, and affordable")
    if fits["krylov"]:
        why = "dense would not fit" if not fits["dense"] else "dense would cost more than four times as much"
        return Plan("krylov", k, costs, needs, limit, why)
    return Plan("dense", k, costs, needs, limit, "Krylov would not fit")


def _too_small(what: str, needs: dict[str, float], limit: float) -> str:
    table = ", ".join(f"{name} {value / 2**20:.1f} MiB" for name, value in needs.items())
    return (
        f"memory_limit of {limit / 2**20:.2f} MiB is too small for {what} (needed: {table}): raise it, take fewer "
        "samples, lower depth, or restrict params."
    )


def build(
    lin: Linearization,
    loss: Loss,
    metric: Metric,
    kind: str | Basis = "auto",
    depth: int | None = None,
    memory_limit: Any = None,
    kept: Tensor | None = None,
) -> tuple[Basis, Plan | None]:
    """The basis that was asked for, or the cheaper one that fits; ``kept`` directions are recycled into Krylov."""
    if isinstance(kind, Basis):
        return kind, None
    chosen = plan(lin, loss, metric, kind, depth, memory_limit)
    if chosen.kind == "dense":
        return bases.dense(lin, metric), chosen
    if kept is not None and kept.shape[0]:
        return bases.recycled(lin, loss, metric, kept, chosen.depth), chosen
    side = "auto" if chosen.bytes["krylov"] <= chosen.limit else "outputs"
    return bases.krylov(lin, loss, metric, chosen.depth, side=side), chosen
