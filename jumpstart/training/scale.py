"""Whether a loop's gradients are the objective's, but for a factor: a sum in place of a mean, a scaled loss."""

from __future__ import annotations

import torch
from torch import Tensor

LOOKS = 3  # comparisons after which a factor may be said; no steps are skipped before, either
FAR = 3.0  # times the objective's, or less than its inverse: minibatches do not do that in the mean
SURELY = 3.0  # standard errors
NUMBERS = 6


class Scale:
    """Minibatches' gradients gᵢ beside the objective's hᵢ, as sums over those that were compared.

    Where the objective is all of the data, hᵢ = ∇Φ and the mean of ⟨gᵢ, hᵢ⟩ / ‖hᵢ‖² is the factor c. Where it is a
    sample as well, of r times as many rows, E⟨g, h⟩ = c‖∇Φ‖², E‖h‖² = ‖∇Φ‖² + s and E‖g‖² = c²(‖∇Φ‖² + r s), s being
    the sample's noise, of which c is the positive root of r E‖h‖² c² − (r − 1) E⟨g, h⟩ c − E‖g‖² = 0.

    Attributes:
        count: comparisons.
    """

    def __init__(self, numbers: tuple[float, ...] = (0.0,) * NUMBERS) -> None:
        self.numbers = numbers  # count, Σ share, Σ share², Σ ⟨g, h⟩, Σ ‖h‖², Σ ‖g‖²

    @property
    def count(self) -> int:
        return int(self.numbers[0])

    def including(self, loops: Tensor, own: Tensor) -> Scale:
        """One that has seen this pair (P,) as well; ``own`` is not 0."""
        dot, square = float(torch.dot(loops, own)), float(torch.dot(own, own))
        share = dot / square
        seen = (1.0, share, share**2, dot, square, float(torch.dot(loops, loops)))
        return Scale(tuple(a + b for a, b in zip(self.numbers, seen, strict=True)))

    def times(self, rate: float | None) -> float:
        """The factor; ``rate`` is r, None where the objective is all of the data."""
        count, shares, _, dot, own, loops = self.numbers
        if rate is None:
            return shares / count
        linear = (rate - 1) * dot
        return (linear + (linear**2 + 4 * rate * own * loops) ** 0.5) / (2 * rate * own)

    def surely(self, rate: float | None) -> bool:
        """Whether the factor is far from 1, beyond the noise of what was compared."""
        count, shares, squares = self.numbers[:3]
        if count < LOOKS:
            return False
        times, error = self.times(rate), 0.0
        if rate is None:
            error = (max(0.0, squares / count - (shares / count) ** 2) / (count - 1)) ** 0.5
        return times + SURELY * error < 1 / FAR or times - SURELY * error > FAR
