"""Other optimizers that weigh coordinates by their noise or sign, a few lines each, with credit.

A parameter is of ``members`` networks, first dimension outermost, and what is averaged over a tensor is averaged over
each member's part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jumpstart.gating import samples


class Rival(torch.optim.Optimizer):
    """Steps one parameter at a time along ``update``; decay is decoupled."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float = 0.01, members: int = 1) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.members = members

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {name: torch.zeros_like(p) for name in ("m", "v", "r")} | {"t": 0}
                state["t"] += 1
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(self.update(p, p.grad, state), alpha=group["lr"])

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def mean(self, values: Tensor) -> Tensor:
        """Of each member's part, shaped to broadcast."""
        found = values.reshape(self.members, -1).mean(1)
        return found.repeat_interleave(len(values) // self.members).view(-1, *[1] * (values.dim() - 1))


def adam(g: Tensor, state: dict[str, Any]) -> Tensor:
    """Adam's direction at torch's defaults; moments are updated."""
    state["m"].lerp_(g, 0.1)
    state["v"].lerp_(g.square(), 0.001)
    mean, square = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
    return mean / (square.sqrt() + 1e-8)


class MSVAG(Rival):
    """M-SVAG: momentum SGD, each coordinate times m²/(m² + ρs). Balles & Hennig 2018, arXiv:1705.07774, Algorithm 2.

    The rate multiplies an average of gradients: ten times what torch's SGD with momentum 0.9 calls its rate.
    """

    BETA = 0.9

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> Tensor:
        beta, t = self.BETA, state["t"]
        state["m"].lerp_(g, 1 - beta)
        state["v"].lerp_(g.square(), 1 - beta)
        mean, square = state["m"] / (1 - beta**t), state["v"] / (1 - beta**t)
        if t == 1:
            return mean  # one gradient says nothing of its noise
        rho = (1 - beta) * (1 + beta**t) / ((1 + beta) * (1 - beta**t))
        noise = (square - mean.square()).clamp_min(0) / (1 - rho)
        return mean * mean.square() / (mean.square() + rho * noise).clamp_min(torch.finfo(g.dtype).tiny)


class Cautious(Rival):
    """AdamW without the coordinates whose step is against the gradient. Liang et al. 2024, arXiv:2411.16085."""

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> Tensor:
        step = adam(g, state)
        mask = (step * g > 0).to(g.dtype)
        return step * mask / self.mean(mask).clamp_min(1e-3)


class VRAdam(Rival):
    """AdamW on gradients times their averaged, per-tensor normalized g²/σ² in [0.1, 1].

    GSNR: Liu et al. 2020, arXiv:2001.07384; VRGD: Jiang et al. 2023, arXiv:2309.13681, whose σ² is of devices' means;
    here it is of the batch's samples.
    """

    LEAST, BETA = 0.1, 0.9

    def update(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> Tensor:
        noise = samples.noise(p)
        assert noise is not None, "record the model"
        ratio = g.square() / noise.clamp_min(torch.finfo(g.dtype).tiny)
        ratio = (ratio / self.mean(ratio).clamp_min(torch.finfo(g.dtype).tiny)).clamp(self.LEAST, 1)
        state["r"].lerp_(ratio, 1 - self.BETA)
        samples.used(p)
        return adam(g * state["r"] / (1 - self.BETA ** state["t"]), state)
