"""Averages of gradients and their own variance: what a signal is, and what must be called noise beside it.

An optimizer's momentum is Σ_k w_k g_k. Were the gradients independent with mean μ and variance σ², its mean would be
W μ with W = Σ w_k, and the average m̂ = Σ w_k g_k / W would have variance V σ² with V = Σ w_k² / W². For an exponential
average of t gradients

    V_t = (1 − β)(1 + β^t) / ((1 + β)(1 − β^t))  →  (1 − β)/(1 + β),

1/19 at β = 0.9. A gate that holds m̂² against σ² itself asks for more than four standard deviations; one that holds it
against V_t σ² asks for one. Source: docs/gates.md; the gate itself is Litman & Guo's, arXiv:2605.01172.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError
from ..utils.brief import brief

STATISTICS = ("streaming", "exact")  # where the variance that a gate asks for comes from
HALF = {"hard": 1.0, "soft": 2.0, "snr": 1.0}  # m̂² over αŝ (soft: over ŝ, at α = 1) where a gate is half open


@dataclass(frozen=True)
class Average:
    """Weights w_1 … w_t of an average, summed.

    Attributes:
        total: W = Σ w. square: Σ w².
    """

    total: float
    square: float

    @property
    def variance(self) -> float:
        """V: the variance of the average, in variances of one gradient; infinite where nothing is averaged yet."""
        return self.square / self.total**2 if self.total > 0 else float("inf")


def exponential(beta: float, count: int) -> Average:
    """m ← β m + (1 − β) g from m = 0, after so many gradients: Adam's, and Muon's."""
    return Average(1 - beta**count, (1 - beta) ** 2 * (1 - beta ** (2 * count)) / (1 - beta**2))


def momentum(mu: float, dampening: float, count: int) -> Average:
    """b ← μ b + (1 − τ) g from b = g: torch's SGD."""
    if count == 0:
        return Average(0.0, 0.0)
    if mu == 0:  # the newest alone; torch dampens the first one neither
        rest = 1.0 if count == 1 else 1 - dampening
        return Average(rest, rest**2)
    before = mu ** (count - 1)
    rest = (1 - dampening) * (1 - before) / (1 - mu)
    squares = (1 - dampening) ** 2 * (1 - before**2) / (1 - mu**2)
    return Average(before + rest, before**2 + squares)


def finite_sample(batch: int, samples: int) -> float:
    """α for batches of ``batch`` out of a fixed set of so many samples, in place of fresh ones: b/(n − b).

    It grows without bound towards full batches, where every sample is seen and nothing is left to generalize to.

    Raises:
        InputError: the batch is not smaller than the set: α would be infinite, and every gate shut.
    """
    if not 0 < batch < samples:
        raise InputError(
            f"alpha for batches of {brief(batch)} out of {brief(samples)} samples is b/(n − b): give a smaller batch "
            "than the set; at full batch it is infinite and every gate is shut."
        )
    return batch / (samples - batch)


def open_rate(
    rule: str = "hard",
    statistics: str = "streaming",
    correction: bool = True,
    *,
    signal: float = 0.0,
    batch: int | None = None,
    beta: float = 0.9,
    rho: float = 0.99,
    alpha: float = 1.0,
    divided: bool = False,
) -> float:
    """The share of coordinates whose gate is more than half open: with no signal, the false-open rate.

    Settled averages of independent Gaussian gradients are supposed.

    Args:
        rule, statistics, correction, alpha: as of the optimizers. signal: |μ|/σ of one batch's gradient.
        batch: samples of a batch, which exact statistics need. beta, rho: of the averages.
        divided: the variance of the mean is divided by b − 1 once more, as many have done.

    Raises:
        InputError: exact or divided statistics without ``batch``, or a batch below two.
    """
    if (statistics == "exact" or divided) and (batch is None or batch < 2):
        raise InputError(f"batch={brief(batch)}: exact statistics need the samples of a batch, at least 2.")
    from scipy.special import ncfdtr, ndtr, stdtr  # optimizers need none of it, and it takes a third of a second

    settled = (1 - beta) / (1 + beta)
    degrees = float(batch - 1) if statistics == "exact" and batch is not None else (1 + rho) / (1 - rho)
    averaged = statistics == "streaming" or correction
    variance = settled if averaged else 1.0  # of what is held against the noise
    at = alpha + 1.0 if rule == "soft" else HALF[rule] * alpha
    if statistics == "streaming" and not correction:
        at *= (1 + settled) / settled  # the deviation from the last average holds that one's noise as well
    if divided and batch is not None:
        at /= batch - 1
    away = abs(signal) / variance**0.5
    if away == 0:
        return float(2 * stdtr(degrees, -(at**0.5)))
    below = float(ncfdtr(1.0, degrees, away**2, at))
    return 1 - (float(ndtr(at**0.5 - away)) if math.isnan(below) else below)  # far out the series fails
