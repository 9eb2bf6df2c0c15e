"""Which basis: from the measured time of one forward pass and counted flops, under a memory limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MemoryLimitError
from ..flow import bases
from ..flow.basis import Basis
from ..linearization.linearize import Linearization, rounding_error
from ..linearization.metric import Metric
from ..linearization.ntk import assemble
from ..linearization.ntk.collocation import gatherable
from ..losses.base import Loss
from ..utils.cost import FORWARD, PULL, PUSH
from ..utils.memory import available_memory
from .damped_cg import GATHERED, Iterative
from .damped_cholesky import Resolvent

BasisLike = str | Basis | Callable[[Linearization, Loss, Metric], Basis]

DEPTH = 12  # Krylov vectors where none are asked for (docs/decisions/0005)
EIGH_FLOPS = 25.0  # eigh of an N×N matrix costs about this many N³, at the rate of a matrix product
LARGE = 2.5e7  # entries of a Jacobian beyond which its kernel is gathered without forming it
CHOLESKIES = 2.0  # factors a jump takes, on average
BLAS3 = 4.0  # how much faster than an eigendecomposition a matrix product or a Cholesky factor runs
PATIENCE = 4.0  # dense answers every horizon exactly, so it is worth this many times the cost of Krylov
RATES = {"cpu": 8e9, "cuda": 1e12}  # flop/s in float64 that factorizations reach, per CPU thread or per GPU


@dataclass(frozen=True)
class Plan:
    """A choice and the reasons for it: predicted seconds and bytes of each way that was weighed."""

    kind: str
    depth: int
    seconds: dict[str, float]
    bytes: dict[str, float]
    limit: float
    reason: str

    def explain(self) -> str:
        """A few lines for people."""
        lines = [f"basis: {self.kind} ({self.reason}); memory limit {self.limit / 2**30:.1f} GiB"]
        for name, cost in self.seconds.items():
            lines.append(f"  {name:<8} {1e3 * cost:9.1f} ms, {self.bytes[name] / 2**20:9.1f} MiB (predicted)")
        return "\n".join(lines)


def plan(
    lin: Linearization,
    loss: Loss,
    metric: Metric,
    kind: str = "auto",
    depth: int | None = None,
    memory_limit: Any = None,
    cholesky: bool = False,
) -> Plan:
    """Weigh dense against Krylov: network passes at the measured time of one, factorizations at counted flops.

    Args:
        cholesky: dense means a Gram matrix and its Cholesky factors (``resolvent``), not eigenvectors.

    Only a borderline choice can differ between two runs; name the basis where it must not.

    Raises:
        MemoryLimitError: neither fits.
        InputError: an unknown kind or depth.
    """
    if kind not in ("auto", "dense", "krylov"):
        raise InputError(
            f"basis={kind!r}: use 'auto', 'dense', 'krylov' (for jumps also 'matrix-free') or a Basis made with "
            "jumpstart.bases."
        )
    if depth is not None and (not isinstance(depth, int) or depth < 1):
        raise InputError(f"depth={depth!r}: give a number of Krylov vectors of at least 1.")
    if memory_limit is not None and not (isinstance(memory_limit, (int, float)) and memory_limit > 0):
        raise InputError(f"memory_limit={memory_limit!r}: give a positive number of bytes.")
    limit = float(memory_limit) if memory_limit is not None else available_memory(lin.theta.device)
    n, p, size = lin.u.numel(), lin.theta.numel(), lin.u.element_size()
    c = n / max(1, lin.u.shape[0])
    gradient = 3 * lin.forward_seconds  # FORWARD = 1/3 of a gradient evaluation
    rate = RATES.get(lin.theta.device.type, 8e9) * (torch.get_num_threads() if lin.theta.device.type == "cpu" else 1)
    small, large = min(n, p), max(n, p)
    layered = assemble.layered(lin) and n <= p and not cholesky  # which forms the Jacobian
    # Layer by layer, a layer of in·out weights costs in + out multiply-adds a pair of outputs instead of in·out.
    pairs = 2.0 * n * n * min(p, 4 * p**0.5) if layered and metric.root is None else 2.0 * small * small * large
    flops = pairs + EIGH_FLOPS * small**3
    if not loss.quadratic:
        flops += 20 * EIGH_FLOPS * small**3  # a flow that is integrated renews its factorization so often
    if cholesky:
        flops = (small * small * large + CHOLESKIES * small**3 / 3) / BLAS3
    passes = ((c + 1) * PULL + FORWARD) if layered else lin.jacobian_pulls() * PULL + FORWARD
    dense_bytes = 8.0 * (4 * small * small + (0 if layered else 3 * n * p))
    k = min(depth or DEPTH, p if metric.decays else min(n, p))  # decay leads out of the span of Jᵀ
    krylov_bytes = float(size * k * (p + n) + 8 * k * n)
    least_bytes = float(size * 2 * k * n + 8 * k * n) if not metric.decays else krylov_bytes
    costs = {"dense": passes * gradient + flops / rate, "krylov": k * (PUSH + PULL) * gradient}
    needs = {"dense": dense_bytes, "krylov": krylov_bytes}
    fits = {"dense": dense_bytes <= limit, "krylov": min(krylov_bytes, least_bytes) <= limit}
    if kind != "auto":
        if not fits[kind]:
            raise MemoryLimitError(_too_small(kind, needs, limit))
        return Plan(kind, k, costs, needs, limit, "asked for")
    if not any(fits.values()):
        raise MemoryLimitError(_too_small("any basis", needs, limit))
    if fits["dense"] and costs["dense"] <= PATIENCE * costs["krylov"]:
        return Plan("dense", k, costs, needs, limit, "exact, and affordable")
    if fits["krylov"]:
        why = "dense would not fit" if not fits["dense"] else f"dense would take over {PATIENCE:g} times as long"
        return Plan("krylov", k, costs, needs, limit, why)
    return Plan("dense", k, costs, needs, limit, "Krylov would not fit")


def _too_small(what: str, needs: dict[str, float], limit: float) -> str:
    table = ", ".join(f"{name} {value:.0f} bytes" for name, value in needs.items())
    return (
        f"memory_limit of {limit:.0f} bytes is too small for {what} (needed: {table}): raise it, take fewer "
        "samples, lower depth, or restrict params."
    )


def build(
    lin: Linearization,
    loss: Loss,
    metric: Metric,
    kind: BasisLike = "auto",
    depth: int | None = None,
    memory_limit: Any = None,
    kept: Tensor | None = None,
) -> tuple[Basis, Plan | None]:
    """The basis that was asked for, or the cheaper one that fits; ``kept`` directions are recycled into Krylov."""
    if kept is not None and (not isinstance(kind, str) or kind == "dense"):
        raise InputError("recycle= keeps directions in a Krylov basis: leave basis at 'auto' or 'krylov'.")
    if isinstance(kind, Basis):
        if kind.images.shape[1:] != lin.u.shape or not torch.equal(kind.lin.theta, lin.theta):
            raise InputError(
                f"basis: it was built for outputs {tuple(kind.images.shape[1:])} at the weights of that time; here are "
                f"outputs {tuple(lin.u.shape)}, or the weights have moved since. Give a function (lin, loss, metric) "
                "-> Basis to build it afresh."
            )
        if metric.root is not None or metric.decays:
            raise InputError(
                "basis: a finished Basis has its metric and decay in it; leave metric and weight_decay out."
            )
        return kind, None
    if not isinstance(kind, str) and callable(kind):
        made = kind(lin, loss, metric)
        if not isinstance(made, Basis):
            raise InputError(f"basis: the function returned {type(made).__name__}, not a Basis from js.bases.")
        return made, None
    kind = "krylov" if kept is not None and kept.shape[0] else kind
    chosen = plan(lin, loss, metric, kind, depth, memory_limit)
    if chosen.kind == "dense":
        return bases.dense(lin, metric), chosen
    if kept is not None and kept.shape[0]:
        return bases.recycled(lin, loss, metric, kept, chosen.depth), chosen
    side = "auto" if chosen.bytes["krylov"] <= chosen.limit else "outputs"
    return bases.krylov(lin, loss, metric, chosen.depth, side=side), chosen


def resolvent_fits(lin: Linearization, loss: Loss) -> bool:
    """Whether jumps march unless told otherwise: squared loss of residuals, whose Jacobian is formed anyway."""
    return loss.curvature is not None and not assemble.layered(lin)


def implicit(
    lin: Linearization, loss: Loss, metric: Metric, kind: BasisLike, memory_limit: Any = None
) -> tuple[Resolvent | Iterative, Plan] | None:
    """Implicit steps in a dense basis's place; None where dense is not asked for, does not fit or is slow.

    By a :class:`Resolvent`; for large networks on residuals at points by a gathered kernel (:class:`Iterative`).
    """
    if kind not in ("auto", "dense") or loss.curvature is None:
        return None
    n, p = lin.u.numel(), lin.theta.numel()
    plain = metric.root is None and not metric.decays
    if plain and n < p and n * p > LARGE and n <= GATHERED and all(gatherable(part) for part in lin.parts):
        limit = available_memory(lin.theta.device) if memory_limit is None else float(memory_limit)
        needs = {"dense": 8.0 * 6 * n * n}
        if needs["dense"] <= limit:
            return Iterative(lin, loss, metric), Plan("dense", 0, {}, needs, limit, "kernel gathered layer by layer")
    chosen = plan(lin, loss, metric, str(kind), None, memory_limit, cholesky=True)
    return (Resolvent(lin, loss, metric), chosen) if chosen.kind == "dense" else None


def explain(chosen: Plan | None, basis: Basis, rates: Tensor, lin: Linearization, seconds: float) -> str:
    """A few lines for people: the choice, what it was expected to cost and has cost, and the modes it found.

    Args:
        seconds: what linearizing and building the basis took; 0 where they were not measured.
    """
    lines = [chosen.explain() if chosen is not None else f"basis: {basis.kind} (given)"]
    if seconds:
        lines.append(f"  took     {1e3 * seconds:9.1f} ms (linearization included)")
    lines.append(f"  so far   {lin.ledger.gradient_evaluations:9.1f} gradient evaluations spent")
    dtype = str(lin.u.dtype).removeprefix("torch.")
    lines.append(
        f"  network in {dtype}, modes and flow in float64; rounding of the outputs ≲ {rounding_error(lin):.1g}"
    )
    moving = rates[rates > 0]
    fast = 1 / float(moving.max()) if moving.numel() else math.inf
    slow = 1 / float(moving.min()) if moving.numel() else math.inf
    route = f", {basis.route}" if basis.route else ""
    lines.append(f"  {basis.size} modes ({basis.kind}{route}), relaxation times {fast:.3g} to {slow:.3g}")
    return "\n".join(lines)
