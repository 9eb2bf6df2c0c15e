"""Population-risk gates: pure rules on a mean and the variance of that mean, for modes and for optimizers alike.

Source: Litman & Guo, arXiv:2605.01172; docs/theory.md, section 6.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor

from ..errors import InputError


def hard(mean_square: Tensor, noise: Tensor, alpha: float = 1.0) -> Tensor:
    """1 where m̂² > α ŝ, else 0; ŝ is the variance of the mean, not of one sample."""
    return (mean_square > alpha * noise).to(mean_square.dtype)


def soft(mean_square: Tensor, noise: Tensor, alpha: float = 1.0, lam: float = 1.0) -> Tensor:
    """(m̂² − αŝ)₊ / ((m̂² − αŝ)₊ + λŝ): opens gradually above the hard rule's threshold."""
    signal = (mean_square - alpha * noise).clamp_min(0)
    return _ratio(signal, signal + lam * noise)


def snr(mean_square: Tensor, noise: Tensor, lam: float = 1.0) -> Tensor:
    """m̂² / (m̂² + λŝ): Wiener's gate, never quite shut."""
    return _ratio(mean_square, mean_square + lam * noise)


RULES = {"hard": hard, "soft": soft, "snr": snr}


def apply(rule: str, mean_square: Tensor, noise: Tensor, **options: float) -> Tensor:
    """A gate in [0, 1] by the rule's name."""
    if rule not in RULES:
        raise InputError(f"gate={rule!r} is none of {sorted(RULES)}.")
    known = [name for name in inspect.signature(RULES[rule]).parameters if name not in ("mean_square", "noise")]
    for name, value in options.items():
        if name not in known or not 0 <= value < math.inf:
            raise InputError(f"gate {rule!r}: {name}={value!r}; it takes {known}, numbers of 0 or more.")
    return RULES[rule](mean_square, noise, **options)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    # 0/0 is a mode without signal or noise: closed. No absolute ε, which would shut the gate on small gradients.
    return torch.where(below > 0, above / below.clamp_min(torch.finfo(below.dtype).tiny), torch.zeros_like(above))
