"""Other optimizers that weigh coordinates by their noise or sign, a few lines each, with credit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Rival(torch.optim.Optimizer):
    """Decoupled decay, then a step along ``update``."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"m": torch.zeros_like(p), "v": torch.zeros_like(p), "t": 0}
                state["t"] += 1
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(self.update(p.grad, state), alpha=group["lr"])

    def update(self, g: Tensor, state: dict[str, Any]) -> Tensor:
        raise NotImplementedError


class MSVAG(Rival):
    """Momentum SGD, each coordinate times m²/(m² + ρs). Balles & Hennig 2018, arXiv:1705.07774, Algorithm 2."""

    BETA = 0.9

    def update(self, g: Tensor, state: dict[str, Any]) -> Tensor:
        beta, t = self.BETA, state["t"]
        state["m"].lerp_(g, 1 - beta)
        state["v"].lerp_(g.square(), 1 - beta)
        if t == 1:
            return g  # of whose noise nothing is known
        mean, square = state["m"] / (1 - beta**t), state["v"] / (1 - beta**t)
        rho = (1 - beta) * (1 + beta**t) / ((1 + beta) * (1 - beta**t))
        noise = (square - mean.square()).clamp_min(0) / (1 - rho)
        return mean * mean.square() / (mean.square() + rho * noise).clamp_min(torch.finfo(g.dtype).tiny)


class Cautious(Rival):
    """AdamW without the coordinates whose step is against the gradient. Liang et al. 2024, arXiv:2411.16085."""

    def update(self, g: Tensor, state: dict[str, Any]) -> Tensor:
        state["m"].lerp_(g, 0.1)
        state["v"].lerp_(g.square(), 0.001)
        mean, square = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
        step = mean / (square.sqrt() + 1e-8)
        mask = (step * g > 0).to(g.dtype)
        return step * mask / mask.mean().clamp_min(1e-3)
