"""The streaming variance of a gradient: an average of its squared deviations from the average before it.

A gradient and the average m̂ of those before it are independent, so that E (g − m̂)² = (1 + V) σ², V the variance of the
average in variances of one gradient (``averages``). Each deviation is divided by 1 + V as it enters, and their average
by 1 − ρᵗ, the sum of the weights of so many. As published, deviations enter as they are, the first from m̂ = 0.
Source: docs/gates.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .averages import Average


@dataclass(frozen=True)
class Entry:
    """How a gradient enters: s ← ρ s + weight (g − share·m)², with m as an optimizer keeps it."""

    rho: float
    share: float
    weight: float

    def take(self, variance: Tensor, gradient: Tensor, average: Tensor) -> None:
        """Into the variance, in its own dtype."""
        deviation = torch.sub(gradient.to(variance.dtype), average, alpha=self.share)
        variance.mul_(self.rho).addcmul_(deviation, deviation, value=self.weight)


def unbiased(before: Average, rho: float) -> Entry:
    """A deviation from the mean before, less the noise that this mean has of its own."""
    return Entry(rho, 1 / before.total, (1 - rho) / (1 + before.variance))


def published(before: Average, rho: float, from_zero: float) -> Entry:
    """A deviation from an average from zero, whose weights have the sum ``from_zero``, taken as it is."""
    return Entry(rho, from_zero / before.total, 1 - rho)


def factor(times: float, rho: float, seen: int) -> float:
    """What the variance is to be multiplied by, after so many entries, to be ``times`` that of one gradient."""
    return times / (1 - rho**seen)
