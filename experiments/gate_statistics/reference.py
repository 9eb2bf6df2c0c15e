"""A gated AdamW to be read, parameter by parameter, with the known mistakes as switches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BETA, BETA2, RHO, EPS = 0.9, 0.999, 0.99, 1e-8


@dataclass(frozen=True)
class Switches:
    """All off, this is ``GatedAdamW(statistics="streaming", correction=True)``.

    Attributes:
        uncorrected: m̂² against the noise of one batch, in place of its own.
        divided: the noise is divided by this, b − 1 for who does not know that it is of a mean.
        epsilon: added to a soft or snr gate's denominator. first: the first step is gated, by ŝ = m̂².
        inside: weights decay as far as the gate is open. alpha: times the noise.
    """

    uncorrected: bool = False
    divided: float = 1.0
    epsilon: float = 0.0
    first: bool = False
    inside: bool = False
    alpha: float = 1.0


class Reference:
    """Steps ``parameters`` by their gradients; ``open`` is the mean gate of each step."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, decay: float = 0.0, rule: str = "hard",
        switches: Switches = Switches(),
    ) -> None:  # fmt: skip
        self.parameters, self.lr, self.decay = list(parameters), lr, decay
        self.rule, self.switches = rule, switches
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.open: list[float] = []

    @torch.no_grad()
    def step(self) -> None:
        opened = total = 0.0
        for p in self.parameters:
            assert p.grad is not None
            gate, direction = self.gate(p, p.grad)
            left = 1 - self.lr * self.decay
            p.mul_(1 - gate * (1 - left) if self.switches.inside else left)
            p.sub_(self.lr * gate * direction)
            opened, total = opened + float(gate.sum()), total + gate.numel()
        self.open.append(opened / total)

    def gate(self, p: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """How far to open, and Adam's direction."""
        on = self.switches
        state = self.state.setdefault(p, {"t": 0, **{key: torch.zeros_like(g) for key in ("m", "v", "s")}})
        before, t = state["t"], state["t"] + 1
        state["t"] = t
        if on.uncorrected or on.first:  # as published: from an average that starts at zero
            deviation, excess = g - state["m"], 1.0
        elif before:
            deviation, excess = g - state["m"] / (1 - BETA**before), 1 + variance(before)
        else:
            deviation, excess = torch.zeros_like(g), 1.0
        state["s"] = RHO * state["s"] + (1 - RHO) * deviation**2 / excess
        state["m"] = BETA * state["m"] + (1 - BETA) * g
        state["v"] = BETA2 * state["v"] + (1 - BETA2) * g**2
        mean, square = state["m"] / (1 - BETA**t), state["v"] / (1 - BETA2**t)
        direction = mean / (square.sqrt() + EPS)
        if t == 1 and not on.first:
            return torch.ones_like(g), direction  # one gradient says nothing of its noise
        count = t if on.uncorrected or on.first else t - 1
        noise = state["s"] / (1 - RHO**count) * (on.alpha / on.divided)
        if not on.uncorrected and not (on.first and t == 1):
            noise = noise * variance(t)
        return opened(self.rule, mean**2, noise, on.epsilon), direction


def variance(t: int) -> float:
    """Of an average of t gradients, in variances of one."""
    return (1 - BETA) * (1 + BETA**t) / ((1 + BETA) * (1 - BETA**t))


def opened(rule: str, square: Tensor, noise: Tensor, epsilon: float) -> Tensor:
    if rule == "hard":
        return (square > noise).to(square.dtype)
    above = square if rule == "snr" else (square - noise).clamp_min(0)
    return above / (above + noise + epsilon).clamp_min(torch.finfo(square.dtype).tiny)
