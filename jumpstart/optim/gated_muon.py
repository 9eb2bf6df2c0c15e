"""``GatedMuon``: torch's Muon, its orthogonalized step taken where the signal beats the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from ..gating.averages import Average, exponential
from .adapters import Adapter, Group, mixed, no_metric, register
from .gated import Gated
from .gates import BEGUN, VARIANCE
from .twin import unwrapped


class GatedMuon(Gated, torch.optim.Muon):
    """Muon (Jordan et al., 2024) behind a population-risk gate (arXiv:2605.01172), for matrices; torch 2.9 or newer.

    The gate is of the momentum that is orthogonalized, and multiplies what that gives.

    Args:
        params, lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn: as torch's, and
            torch's own code. Decay is outside the gate.
        rule, statistics, correction, alpha, reduce, rho, isometry: of the gate, as of :class:`GatedAdamW`.

    Raises:
        InputError: a gate's option is unknown or out of range. Torch's own errors for its own.

    Example:
        >>> from jumpstart.optim import GatedMuon
        >>> model = torch.nn.Linear(3, 4, bias=False)
        >>> optimizer = GatedMuon(model.parameters(), lr=0.02)
        >>> model(torch.ones(5, 3)).sum().backward()
        >>> _ = optimizer.step()
    """

    AVERAGE: ClassVar[str] = "momentum_buffer"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        rule: str | None = "hard",
        statistics: str = "streaming",
        correction: bool = True,
        alpha: float = 1.0,
        reduce: str = "parameter",
        rho: float = 0.99,
        isometry: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)
        self._gate(
            rule=rule,
            statistics=statistics,
            correction=correction,
            alpha=alpha,
            reduce=reduce,
            rho=rho,
            isometry=isometry,
        )

    @staticmethod
    def _averaged(group: Group, count: int) -> Average | None:
        return exponential(float(group["momentum"]), count) if group["momentum"] else None

    def _own(self) -> Callable[..., Any]:
        return unwrapped(torch.optim.Muon.step)


register(
    Adapter(
        "GatedMuon",
        types=(GatedMuon,),
        state=("step", "momentum_buffer"),
        optional=(VARIANCE, BEGUN),
        metric=no_metric("GatedMuon", "it orthogonalizes its update"),
        moments={"momentum_buffer": mixed},
    )
)
