"""``GatedAdamW``: torch's AdamW, each coordinate moved as far as its signal beats its noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..gating.averages import Average, exponential
from .adapters import ADAM, Adapter, Group, State, adam, averaged, register
from .gated import Gated
from .gates import BEGUN, VARIANCE, ajar
from .twin import unwrapped


class GatedAdamW(Gated, torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) behind a population-risk gate (arXiv:2605.01172).

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, foreach, fused: as torch's, and torch's own code. Where
            neither foreach nor fused is said, its fused kernel is used on a CPU. Decay is outside the gate.
        rule: "hard" (open where m̂² > α Var m̂), "soft", "snr" (m̂²/(m̂² + α Var m̂)); None in a group is never gated.
        statistics: "streaming" keeps one average more a coordinate, of squared deviations of a gradient from the
            average before it; "exact" takes the variance over the batch's samples, which ``js.gating.record`` sees.
        correction: True holds m̂² against its own variance, (1 − β₁)/(1 + β₁) of a batch's; False is the published
            streaming form, which asks for 1/0.05 times as much at β₁ = 0.9, and with exact statistics the batch's own
            mean in place of m̂. ``js.gating.open_rate`` says what each leaves open without a signal.
        alpha: the noise is multiplied by it; ``js.gating.finite_sample(batch, samples)`` for a fixed set.
        reduce: the gate is one a "parameter" (each coordinate), a "row", or a "tensor".
        rho: of the streaming variance.
        isometry: strength λ of a step down ‖WᵀW − I‖² beside the gradient's, for matrices (AdamO, arXiv:2606.09762);
            with ``rule=None`` that is AdamO itself.

    Memory: one number more a coordinate (streaming), and a copy of weights during a step. The first step is not gated.

    Raises:
        InputError: a gate's option is unknown or out of range. Torch's own errors for its own.

    Example:
        >>> from jumpstart.optim import GatedAdamW
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = GatedAdamW(model.parameters(), lr=1e-3, rule="snr")
        >>> model(torch.ones(5, 3)).sum().backward()
        >>> _ = optimizer.step()
    """

    AVERAGE: ClassVar[str] = "exp_avg"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
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
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach, fused=fused)
        self._gate(
            rule=rule, statistics=statistics, correction=correction, alpha=alpha, reduce=reduce, rho=rho,
            isometry=isometry,
            fused=self._fused(foreach, fused),
        )  # fmt: skip

    @staticmethod
    def _averaged(group: Group, count: int) -> Average | None:
        return exponential(float(group["betas"][0]), count)

    def _own(self) -> Callable[..., Any]:
        return unwrapped(torch.optim.AdamW.step)


def _metric(state: State, group: Group) -> Tensor:
    """Adam's, as far as the gate stands open."""
    average = GatedAdamW._averaged(group, int(state["step"]))
    return adam(state, group) * ajar(group, state, GatedAdamW.AVERAGE, average)


# With exact statistics, and where rule=None, the state is AdamW's, and so is what is known of it.
register(
    Adapter(
        "GatedAdamW",
        types=(GatedAdamW,),
        state=(*ADAM, VARIANCE, BEGUN),
        optional=("max_exp_avg_sq",),
        group=("betas", "eps", "rule"),
        metric=_metric,
        moments={"exp_avg": averaged},
    )
)
