"""A forecast of the gradient along a training run: its linearization within the span of the run, from real gradients.

Between points θ_i whose gradients g_i are known, g(θ) ≈ g_0 + Y S⁺(θ − θ_0), with θ_i − θ_0 in S and g_i − g_0 in Y:
the multisecant model of quasi-Newton methods and of Anderson acceleration. It holds at every θ_i exactly, and is the
action of the Hessian on the run's own directions, which no product with a Jacobian is needed for. Source:
docs/theory.md, section 10.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SECANTS = 8  # chosen on problems that no published figure is of (docs/decisions/0024, 0025)


class Forecast:
    """A vector function of θ from its newest known values: the gradient, or the outputs.

    Attributes:
        points: (position (P,), value (m,)) pairs, newest last.
    """

    def __init__(self, points: tuple[tuple[Tensor, Tensor], ...] = ()) -> None:
        self.points = points[-(SECANTS + 1) :]
        self._base: Tensor | None = None

    def including(self, position: Tensor, value: Tensor) -> Forecast:
        """One that knows one point more; a point that is known already moves to the front."""
        kept = tuple(point for point in self.points if not torch.equal(point[0], position))
        return Forecast((*kept, (position, value)))

    def __call__(self, theta: Tensor) -> Tensor:
        """The value (m,) expected at θ (P,)."""
        if self._base is None:
            self._prepare()
        assert self._base is not None
        if self._inverse is None:
            return self._value
        return torch.addmv(self._value, self._slopes, self._inverse @ (theta - self._base))

    def _prepare(self) -> None:
        self._base, self._value = self.points[-1]
        self._inverse: Tensor | None = None
        if len(self.points) == 1:
            return
        positions, values = (torch.stack(found) for found in zip(*self.points[::-1], strict=True))  # newest first
        steps, slopes = positions[1:] - positions[:-1], values[1:] - values[:-1]
        lengths = torch.linalg.vector_norm(steps, dim=1, keepdim=True, dtype=torch.float64)  # squares underflow
        lengths = lengths.to(steps.dtype)
        steps, slopes = steps / lengths, slopes / lengths
        gram = (steps @ steps.T).double().cpu().numpy()
        # A direction nearer to the span of newer ones than rounding in its gradient tells apart says nothing.
        kept = _independent(gram, max(1e2 * torch.finfo(steps.dtype).eps, 1e-13) ** 0.75)
        if len(kept) < len(gram):
            gram, steps, slopes = gram[np.ix_(kept, kept)], steps[kept], slopes[kept]
        self._inverse = torch.from_numpy(np.linalg.inv(gram)).to(steps) @ steps
        self._slopes = slopes.T


def _independent(gram: np.ndarray, least: float) -> list[int]:
    """Which of some unit vectors are further from the span of those before them, squared, than ``least``."""
    try:
        if bool((np.diagonal(np.linalg.cholesky(gram)) ** 2 > least).all()):  # the same numbers, all of them kept
            return list(range(len(gram)))
    except np.linalg.LinAlgError:
        pass  # one of them is in the span of the others
    kept: list[int] = []
    rows: list[np.ndarray] = []  # of the triangular factor
    for i in range(len(gram)):
        row = np.zeros(len(kept))
        for j, at in enumerate(kept):
            row[j] = (gram[i, at] - row[:j] @ rows[j][:j]) / rows[j][j]
        left = gram[i, i] - row @ row
        if left > least or not kept:
            kept.append(i)
            rows.append(np.append(row, max(left, 1e-300) ** 0.5))
    return kept
