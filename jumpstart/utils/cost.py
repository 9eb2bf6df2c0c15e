"""What things cost: network passes in gradient evaluations, and the work inside a pass, counted, never timed.

The unit is one gradient evaluation, a forward and a backward pass. A backward pass costs two forward passes and a
forward-mode pass carries value and tangent, which gives the weights below (docs/decisions/0003-cost-unit.md). They are
conventions, the same for jumped and stepped runs. Seconds are predicted from counts, so that a choice between two ways
is the same whenever it is made; no clock decides an answer (docs/decisions/0016-counted-choices.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..errors import BudgetError
from .guard import drawing

FORWARD = 1 / 3
PULL = 2 / 3  # backward alone, through a graph that is already there
GRADIENT = FORWARD + PULL
PUSH = 1.0  # forward mode: value and tangent, with its overhead
SECOND = 2.0  # forward over forward
SECOND_PULL = 2.0  # forward over a gradient evaluation: value and tangent of it

# Rates of one CPU thread of the machine that the published figures come from, and of a data-centre GPU.
PRODUCTS = {"cpu": 4e10, "cuda": 1e13}  # flop/s of matrix products in float64; twice that in float32
EIGEN = {"cpu": 5e10, "cuda": 1e12}  # of eigendecompositions, in float64, beside what they take to move numbers
SINGULAR = {"cpu": 2e10, "cuda": 1e12}  # of orthogonalizations and singular values
MOVED = {"cpu": 3e7, "cuda": 1e9}  # entries of a symmetric matrix that an eigendecomposition gets through a second
ELEMENTS = {"cpu": 7e8, "cuda": 1e11}  # numbers that elementwise operations write a second
CALL = {"cpu": 3e-6, "cuda": 1e-5}  # seconds that an operation takes on nothing
TRANSFORM = 2.5e-5  # seconds that torch.func adds to an operation of a product, whatever its size
RECORD = 1.5e-3  # seconds that recording a network's layers, or batching samples, takes on nothing


def rate(table: dict[str, float], device: torch.device) -> float:
    """What a table says of a device; of an unknown one what it says of a CPU."""
    return table.get(device.type, table["cpu"])


@dataclass
class Ledger:
    """Counts of network passes; a part of the batch counts as its fraction of a pass.

    Attributes:
        dense: work without the network, in steps of the user's loop. step_seconds: what such a step is predicted to
            take; 0 where nobody asks for dense work.
        allowance: most of both together, for whoever has a budget.
    """

    forwards: float = 0.0
    pulls: float = 0.0
    pushes: float = 0.0
    seconds: float = 0.0  # second directional derivatives
    gradients: float = 0.0
    second_pulls: float = 0.0  # derivatives of a vjp along the weights
    dense: float = 0.0
    step_seconds: float = 0.0
    allowance: float = math.inf

    @property
    def gradient_evaluations(self) -> float:
        """The counts in units of one gradient evaluation."""
        return (
            FORWARD * self.forwards
            + PULL * self.pulls
            + PUSH * self.pushes
            + SECOND * self.seconds
            + GRADIENT * self.gradients
            + SECOND_PULL * self.second_pulls
        )

    @property
    def spent(self) -> float:
        """Network passes and dense work together."""
        return self.gradient_evaluations + self.dense

    def charge(self, seconds: float) -> None:
        """Book dense work of so many predicted seconds, before it is done.

        Raises:
            BudgetError: it would exceed the allowance; nothing is booked.
        """
        if self.step_seconds > 0:
            self.require(seconds / self.step_seconds)
            self.dense += seconds / self.step_seconds

    def require(self, cost: float) -> None:
        """Raise unless so much more may be spent."""
        if self.spent + cost > self.allowance:
            error = BudgetError(
                f"the budget of {self.allowance:.4g} steps' worth of work is used up: {self.spent:.4g} are spent, and "
                f"the next piece takes {cost:.3g}."
            )
            error.needed = cost
            raise error


@dataclass(frozen=True)
class Work:
    """Operations of a piece of code: flops of matrix products, numbers written by all of them, calls."""

    flops: float = 0.0
    elements: float = 0.0
    calls: int = 0

    def seconds(self, dtype: torch.dtype, device: torch.device) -> float:
        """What that should take on one thread of a CPU, or on a GPU."""
        kind = device.type if device.type in PRODUCTS else "cpu"
        faster = 1.0 if dtype == torch.float64 else 2.0
        return (
            self.flops / (faster * PRODUCTS[kind]) + self.elements / (faster * ELEMENTS[kind]) + self.calls * CALL[kind]
        )


CALLS = 12  # operations that an optimizer's step takes for each tensor, as Adam's by itself
WRITES = 6.0  # numbers that it writes for each number in them


def optimizer_step(theta: torch.Tensor, calls: int) -> float:
    """Seconds that an optimizer's own step of so many operations is predicted to take, on weights θ (P,)."""
    kind = theta.device.type if theta.device.type in CALL else "cpu"
    return calls * CALL[kind] + WRITES * theta.numel() / ELEMENTS[kind]


def loop_step(work: Work, theta: torch.Tensor, tensors: int) -> float:
    """Seconds that a step of a training loop is predicted to take, a forward pass being ``work``."""
    return work.seconds(theta.dtype, theta.device) / FORWARD + optimizer_step(theta, CALLS * tensors)


class Counting(TorchDispatchMode):
    """Counts the operations inside: ``with Counting() as count: …; count.work``.

    Attributes:
        drew: whether one of them took random numbers from a global generator; a mode sees its own thread alone.
        coarsest: the floating dtype with the largest ε that a product, sum or function was computed in, or None.
        random: names of the operations that drew random numbers, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.elements, self.calls, self.drew = 0.0, 0.0, 0, False
        self.coarsest: torch.dtype | None = None
        self.random: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls += 1
        packet = getattr(func, "_overloadpacket", None)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        found = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if _counts(t)]
        self.elements += sum(t.numel() for t in found)
        for t in found:
            if t.is_floating_point() and (self.coarsest is None or _eps(t.dtype) > _eps(self.coarsest)):
                self.coarsest = t.dtype
        if torch.Tag.nondeterministic_seeded in func.tags:
            if kwargs.get("generator") is None:
                self.drew = True
                drawing()
            if str(packet) not in self.random:
                self.random.append(str(packet))
        return out

    @property
    def work(self) -> Work:
        return Work(self.flops, self.elements, self.calls)


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _counts(t: Any) -> bool:
    return isinstance(t, torch.Tensor) and not t._is_view()
