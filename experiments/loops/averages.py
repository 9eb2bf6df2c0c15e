"""Averages of weights along a run, beside it: exponential, and of the last at intervals (LAWA)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

EMA, LAWA = "EMA", "LAWA"
LATEST = 6  # weights in LAWA's mean


class Ema:
    """A moving average of weights, taken in after each step."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay, self.taken = parameters, decay, 0
        self.mean = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        self.taken += 1
        share = min(self.decay, self.taken / (self.taken + 10))  # as is usual while it is young
        torch._foreach_lerp_(self.mean, list(self.parameters), 1 - share)

    def weights(self) -> list[Tensor]:
        return self.mean


class Lawa:
    """The mean of the last weights at intervals of so many steps."""

    def __init__(self, parameters: Sequence[Tensor], interval: float) -> None:
        self.parameters, self.interval, self.taken = parameters, int(interval), 0
        self.kept: list[list[Tensor]] = []

    @torch.no_grad()
    def step(self) -> None:
        self.taken += 1
        if self.taken % self.interval == 0:
            self.kept = [*self.kept[1 - LATEST :], [p.detach().clone() for p in self.parameters]]

    def weights(self) -> list[Tensor]:
        if not self.kept:
            return [p.detach() for p in self.parameters]
        return [torch.stack(same).mean(0) for same in zip(*self.kept, strict=True)]


KINDS: dict[str, Callable[[Sequence[Tensor], float], Any]] = {EMA: Ema, LAWA: Lawa}
