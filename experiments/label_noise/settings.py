"""Tasks, contenders, and what is chosen among: four settings each, the same factors of a base rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from jumpstart.optim.gated_adamw import GatedAdamW
from jumpstart.report.records import Row

from .. import rivals
from ..common import cifar10
from .networks import convolutional, perceptron

FACTORS = (1 / 30, 1 / 10, 1 / 3, 1.0)
BETWEEN_FACTORS = (
    1 / 300**0.5,
    1 / 30**0.5,
    1 / 3**0.5,
)  # of AdamW alone, so that no gate is ahead of a gap in the grid
DECAYS = (0.1, 0.3, 1.0, 3.0)  # in place of torch's 0.01, at the base rate
FIRST = 100  # seed of the tuning
SPLIT = 0.2  # of the training samples, for validation
REPORTED, STOPPED, TUNING = "reported", "stopped", "tuning"


@dataclass(frozen=True)
class Task:
    """``count`` training samples of ``data()``, the rest held out; ``rate`` is the base rate."""

    name: str
    data: Callable[[], tuple[Tensor, Tensor]]
    network: Callable[[], nn.Sequential]
    count: int
    epochs: int
    rate: float
    classes: int = 10
    batch: int = 64
    noises: tuple[float, ...] = (0.0, 0.2, 0.4)
    contenders: tuple[str, ...] = ()  # all, if none are named


@cache
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)


@cache
def images() -> tuple[Tensor, Tensor]:
    return cifar10(400)


@cache
def toy() -> tuple[Tensor, Tensor]:
    """Three clouds that touch."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    return 2 * torch.nn.functional.one_hot(y, 4) + torch.randn(240, 4, generator=generator), y


@dataclass(frozen=True)
class Setting:
    """A factor of the base rate, decay, and an average's own parameter (epochs)."""

    factor: float
    decay: float = 0.01
    average: float | None = None

    @property
    def told(self) -> Row:
        return {"factor": self.factor, "decay": self.decay, "average": self.average}


@dataclass(frozen=True)
class Contender:
    """How an optimizer is made from parameters, a number of members, a rate and a decay.

    ``base``: its own base rate, in the task's. ``exact``: the model is recorded.
    """

    make: Callable[[Any, int, float, float], torch.optim.Optimizer]
    exact: bool = False
    base: float = 1.0
    settings: tuple[Setting, ...] = tuple(Setting(factor) for factor in FACTORS)
    gate: bool = False


def _adamw(parameters: Any, members: int, rate: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)


def gated(rule: str, statistics: str, correction: bool) -> Contender:
    def make(parameters: Any, members: int, rate: float, decay: float) -> torch.optim.Optimizer:
        return GatedAdamW(
            parameters, lr=rate, weight_decay=decay, rule=rule, statistics=statistics, correction=correction
        )

    return Contender(make, statistics == "exact", gate=True)


def rival(kind: type[rivals.Rival], exact: bool = False, base: float = 1.0) -> Contender:
    # Weights shrink by rate × decay a step, which is to be as much whatever the rate's unit.
    return Contender(lambda p, members, rate, decay: kind(p, rate, decay / base, members), exact, base)


ADAMW, BETWEEN = "AdamW", "AdamW, rates between"
DECAY, EARLY, EMA, LAWA = "AdamW, more decay", "AdamW, stopped early", "AdamW, EMA", "AdamW, LAWA"
AVERAGES = {EMA: (2.0, 10.0), LAWA: (1.0, 5.0)}  # epochs: of EMA's memory, and between LAWA's weights
CONTENDERS = {
    ADAMW: Contender(_adamw),
    BETWEEN: Contender(_adamw, settings=tuple(Setting(factor) for factor in BETWEEN_FACTORS)),
    DECAY: Contender(_adamw, settings=tuple(Setting(1.0, decay) for decay in DECAYS)),
    "hard, exact, batch": gated("hard", "exact", False),
    "hard, exact, averaged": gated("hard", "exact", True),
    "hard, streaming, corrected": gated("hard", "streaming", True),
    "hard, streaming, as published": gated("hard", "streaming", False),
    "soft, streaming, as published": gated("soft", "streaming", False),
    "snr, streaming, corrected": gated("snr", "streaming", True),
    "snr, streaming, as published": gated("snr", "streaming", False),
    "M-SVAG": rival(rivals.MSVAG, base=100.0),
    "Cautious AdamW": rival(rivals.Cautious),
    "VR-Adam (GSNR)": rival(rivals.VRAdam, exact=True),
}
NAMES = (*(name for name in CONTENDERS if name != BETWEEN), EMA, LAWA, EARLY)
GATES = tuple(name for name, contender in CONTENDERS.items() if contender.gate)
FEWER = (ADAMW, BETWEEN, "hard, exact, batch", "hard, streaming, corrected", "snr, streaming, as published")

TASKS = {
    "digits": Task("digits", digits, perceptron(64, 128, 10), 1000, 100, 1e-2),
    "cifar": Task("cifar", images, convolutional, 2000, 20, 3e-3, noises=(0.4,), contenders=FEWER),
    "toy": Task("toy", toy, perceptron(4, 16, 3), 80, 4, 3e-2, 3, 16, (0.0, 0.4)),
}
