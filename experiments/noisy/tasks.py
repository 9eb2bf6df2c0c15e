"""What is fitted: noisy samples, a network, its loss on a minibatch, and its error against the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

SPLIT = 0.2  # of the noisy samples, for validation
NOISE = 1000  # its seeds are other than those of weights and minibatches


@dataclass(frozen=True)
class Samples:
    """Places and what was measured there, noise and all."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> Samples:
        return Samples(self.x[rows], self.y[rows])

    def split(self, seed: int) -> tuple[Samples, Samples]:
        """80% to train on and 20% to validate with."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held = round(SPLIT * len(self))
        return self[order[held:]], self[order[:held]]


@dataclass(frozen=True)
class Task:
    """A problem, for seeds that draw noise, weights and minibatches.

    Attributes:
        levels: standard deviations of the noise. rate: the base rate, factors of which are tried.
        samples: at a level, of a seed. network: of a seed. loss: on a minibatch, with what else is drawn.
        look: the error against the truth, the less the better, and the mean squared misfit to each set of samples.
        within: a factor of the error that is called no loss (``allowance``); ``shown`` turns an error into ``unit``.
        contenders, factors, control, looks: fewer of them where a run is dear; empty or 0: what is usual.
        more: what else is told of a model at the end of its run, and how it is called in a table.
    """

    name: str
    levels: tuple[float, ...]
    rate: float
    steps: int
    batch: int
    samples: Callable[[float, int], Samples]
    network: Callable[[int], nn.Module]
    loss: Callable[[nn.Module, Samples, torch.Generator], Tensor]
    look: Callable[[nn.Module, Sequence[Samples]], list[float]]
    within: float
    allowance: str
    unit: str
    shown: Callable[[float], float] = float
    contenders: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()
    control: tuple[float, ...] = ()
    looks: int = 0
    more: Callable[[nn.Module], dict[str, float]] | None = None
    titles: dict[str, str] = field(default_factory=dict)


def noisy(truth: Tensor, level: float, seed: int) -> Tensor:
    """The truth and Gaussian noise."""
    return truth + level * torch.randn(truth.shape, generator=torch.Generator().manual_seed(NOISE + seed))
