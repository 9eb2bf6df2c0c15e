"""Weights for each collocation point, by what the residual is there: rules that ``js.fit(weigh=…)`` asks on its way.

A rule is any function ``rule(points, sizes, weights) -> weights`` of a term's points (m, d), the norm (m,) of its
residual at each, and the weights (m,) that it gave before (ones at first, and at points that are new). Weights are
factors of |fn|² in the mean over the term's points, not negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import InputError
from .utils.brief import brief


class Rule(Protocol):
    """What a function that weighs points takes and gives."""

    def __call__(self, points: Tensor, sizes: Tensor, weights: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Attention:
    """Residual-based attention (Anagnostopoulos, Toscano, Stergiopulos & Karniadakis 2024, arXiv:2307.00379).

    Each point has λ ← decay · λ + rate · |r| / max |r|, and counts λ². A point where the residual stays the largest
    tends to λ = rate / (1 − decay), one where it vanishes is forgotten; λ is 1 at first. The paper's 0.999 and 0.01 are
    for every step of Adam; these are for every look of a fit, once in five jumps.
    """

    decay: float = 0.9
    rate: float = 0.1

    def __post_init__(self) -> None:
        _require("Attention", "decay", self.decay, 0.0, 1.0)
        _require("Attention", "rate", self.rate, 0.0, math.inf)

    def __call__(self, points: Tensor, sizes: Tensor, weights: Tensor) -> Tensor:
        largest = sizes.max()
        share = sizes / largest if float(largest) > 0 else torch.zeros_like(sizes)
        return (self.decay * weights.sqrt() + self.rate * share).square()


@dataclass(frozen=True)
class Causal:
    """Causal weights in time (Wang, Sankaran & Perdikaris 2024, arXiv:2203.07404).

    Time is cut into slabs; a point in slab i counts exp(−steepness · Σ of the mean squares in the slabs before): little
    until the equation holds at all earlier times.

    Raises:
        InputError: a number out of range, quoted.

    Args:
        steepness: ε of the paper, per unit of the residual's mean square. axis: of time. slabs: how many, of equal
            length.
    """

    steepness: float = 1.0
    axis: int = -1
    slabs: int = field(default=32, kw_only=True)

    def __post_init__(self) -> None:
        _require("Causal", "steepness", self.steepness, 0.0, math.inf)
        for name, least in (("axis", -(10**6)), ("slabs", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                bound = f" of at least {least}" if least > 0 else ""
                raise InputError(f"Causal({name}={brief(value)}): give a whole number{bound}.")

    def __call__(self, points: Tensor, sizes: Tensor, weights: Tensor) -> Tensor:
        if not -points.shape[1] <= self.axis < points.shape[1]:
            raise InputError(f"Causal(axis={self.axis}): points have {points.shape[1]} coordinates.")
        times = points[:, self.axis]
        first, span = times.min(), times.max() - times.min()
        if not float(span) > 0:  # all at one time, such as an initial condition
            return torch.ones_like(sizes)
        slab = ((times - first) / span * self.slabs).long().clamp_max(self.slabs - 1)
        zero = sizes.new_zeros(self.slabs)
        total, count = (zero.scatter_add(0, slab, each) for each in (sizes.square(), torch.ones_like(sizes)))
        before = (total / count.clamp_min(1)).cumsum(0).roll(1)
        before[0] = 0
        return torch.exp(-self.steepness * before)[slab]


def weighed(rule: Rule, points: Tensor, sizes: Tensor, weights: Tensor, term: str) -> Tensor:
    """What a rule gives, checked: (m,) weights, not negative, not all zero.

    Args:
        points: (m, d). sizes, weights: (m,) norms of the residual there, and the weights before. term: its name.

    Raises:
        InputError: the rule gave something else.
    """
    found: Any = rule(points, sizes, weights)
    if not isinstance(found, Tensor) or found.shape != sizes.shape:
        raise InputError(f"fit: weigh={brief(rule)} gave {brief(found)} for {len(sizes)} points of {term!r}.")
    found = found.detach().to(sizes)
    if not bool((torch.isfinite(found) & (found >= 0)).all()) or not bool((found > 0).any()):
        raise InputError(
            f"fit: weigh={brief(rule)} gave weights for {term!r} that are negative, not finite, or all zero: "
            f"{brief(found)}."
        )
    return found


def _require(kind: str, name: str, value: Any, low: float, high: float) -> None:
    """A number in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
        raise InputError(f"{kind}({name}={brief(value)}): give a number of at least {low:g} and below {high:g}.")
