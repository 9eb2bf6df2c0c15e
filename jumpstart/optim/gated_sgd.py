"""``GatedSGD``: torch's SGD, each coordinate moved as far as its signal beats its noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..gating.averages import Average, momentum
from .adapters import Adapter, Group, State, accumulated, register
from .gated import Gated
from .gates import BEGUN, VARIANCE, ajar
from .twin import unwrapped


class GatedSGD(Gated, torch.optim.SGD):
    """SGD behind a population-risk gate (arXiv:2605.01172).

    Args:
        params, lr, momentum, dampening, nesterov, maximize, foreach, fused: as torch's, and torch's own code. Streaming
            statistics need momentum, whose average is the signal.
        weight_decay: decoupled, weights ← (1 − lr·decay) weights, and outside the gate; torch's SGD adds it to the
            gradient.
        rule, statistics, correction, alpha, reduce, rho, isometry: of the gate, as of :class:`GatedAdamW`.

    Raises:
        InputError: a gate's option is unknown or out of range; streaming statistics without momentum.

    Example:
        >>> from jumpstart.optim import GatedSGD
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = GatedSGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> model(torch.ones(5, 3)).sum().backward()
        >>> _ = optimizer.step()
    """

    AVERAGE: ClassVar[str] = "momentum_buffer"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        rule: str | None = "hard",
        statistics: str = "streaming",
        correction: bool = True,
        alpha: float = 1.0,
        reduce: str = "parameter",
        rho: float = 0.99,
        isometry: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize, foreach=foreach, fused=fused
        )
        self._gate(
            rule=rule, statistics=statistics, correction=correction, alpha=alpha, reduce=reduce, rho=rho,
            isometry=isometry,
            fused=self._fused(foreach, fused),
        )  # fmt: skip

    @staticmethod
    def _averaged(group: Group, count: int) -> Average | None:
        return momentum(float(group["momentum"]), float(group["dampening"]), count) if group["momentum"] else None

    def _own(self) -> Callable[..., Any]:
        return _decoupled


def _decoupled(optimizer: torch.optim.Optimizer) -> None:
    """Torch's step with weight decay beside the gradient, as its AdamW and Muon have it."""
    kept = [group["weight_decay"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            if decay := float(group["weight_decay"]):
                for p in (p for p in group["params"] if p.grad is not None):
                    p.mul_(1 - float(group["lr"]) * decay)
            group["weight_decay"] = 0.0
        unwrapped(torch.optim.SGD.step)(optimizer)
    finally:
        for group, decay in zip(optimizer.param_groups, kept, strict=True):
            group["weight_decay"] = decay


def _metric(state: State, group: Group) -> Tensor:
    """The gate; plain steps where it is not kept."""
    average = GatedSGD._averaged(group, int(state["step"]))
    return ajar(group, state, GatedSGD.AVERAGE, average)


register(
    Adapter(
        "GatedSGD",
        types=(GatedSGD,),
        state=("step", "momentum_buffer", VARIANCE, BEGUN),
        group=("momentum", "dampening", "rule"),
        metric=_metric,
        moments={"momentum_buffer": accumulated},
    )
)
register(  # with exact statistics, or never gated
    Adapter(
        "GatedSGD without a variance",
        types=(GatedSGD,),
        state=("step",),
        optional=("momentum_buffer",),
        group=("momentum", "dampening", "rule"),
        moments={"momentum_buffer": accumulated},
    )
)
