"""Population-risk gates: pure rules on a mean and the variance of that mean, for modes and for optimizers alike.

Source: Litman & Guo, arXiv:2605.01172; docs/theory.md, section 6.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError
from ..utils.brief import brief


def hard(mean_square: Tensor, noise: Tensor, alpha: float = 1.0) -> Tensor:
    """1 where m̂² > α ŝ, else 0; ŝ is the variance of the mean, not of one sample (equation 14).

    Args:
        mean_square, noise: m̂² and ŝ, the variance of the mean, (…) each; what is returned has their shape. alpha: α.
    """
    return mean_square.clone().gt_(_times(alpha, noise))  # in place: a mask of booleans takes five times as long


def soft(mean_square: Tensor, noise: Tensor, alpha: float = 1.0, lam: float = 1.0) -> Tensor:
    """(m̂² − αŝ)₊ / ((m̂² − αŝ)₊ + λŝ): opens gradually above the hard rule's threshold.

    Args:
        mean_square, noise: m̂² and ŝ, the variance of the mean, (…) each; what is returned has their shape.
        alpha, lam: α and λ.
    """
    signal = torch.sub(mean_square, noise, alpha=alpha).clamp_min_(0)
    return _ratio(signal, torch.add(signal, noise, alpha=lam))


def snr(mean_square: Tensor, noise: Tensor, lam: float = 1.0) -> Tensor:
    """m̂² / (m̂² + λŝ): Wiener's gate, never quite shut.

    Args:
        mean_square, noise: m̂² and ŝ, the variance of the mean, (…) each; what is returned has their shape. lam: λ.
    """
    return _ratio(mean_square, torch.add(mean_square, noise, alpha=lam))


RULES = {"hard": hard, "soft": soft, "snr": snr}
"""Rules by the names that ``gate=``, ``rule=`` and :class:`Gate` take."""


@dataclass(frozen=True)
class Gate:
    """A rule by its name, with its options: what is kept of a gate, so that it can be asked again of other data.

    Raises:
        InputError: an unknown rule or option, or a value that is negative or not finite.
    """

    rule: str
    options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InputError(f"gate={brief(self.rule)} is none of {sorted(RULES)}.")
        known = [
            name for name in inspect.signature(RULES[self.rule]).parameters if name not in ("mean_square", "noise")
        ]
        for name, value in self.options.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in known or not number or not 0 <= value < math.inf:
                raise InputError(f"gate {self.rule!r}: {name}={brief(value)}; it takes {known}, numbers of 0 or more.")

    @staticmethod
    def named(rule: str | Gate | None) -> Gate | None:
        """A gate from its rule's name; None is none."""
        if not (rule is None or isinstance(rule, (str, Gate))):
            raise InputError(f"gate={brief(rule)}: give the name of a rule, a Gate, or None.")
        return Gate(rule) if isinstance(rule, str) else rule

    def __call__(self, mean_square: Tensor, noise: Tensor) -> Tensor:
        """How far to open, in [0, 1], for m̂² and the variance of the mean."""
        return RULES[self.rule](mean_square, noise, **self.options)


def _times(factor: float, noise: Tensor) -> Tensor:
    return noise if factor == 1 else factor * noise


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    # 0/0 is a mode without signal or noise: closed. No absolute ε, which would shut the gate on small gradients.
    return above / below.clamp_min(torch.finfo(below.dtype).tiny)
