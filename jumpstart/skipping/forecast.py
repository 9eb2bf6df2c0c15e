"""A forecast of the gradient along a training run: its linearization within the span of the run, from real gradients.

Between points θ_i whose gradients g_i are known, g(θ) ≈ g_0 + Y S⁺(θ − θ_0), with θ_i − θ_0 in S and g_i − g_0 in Y:
the multisecant model of quasi-Newton methods and of Anderson acceleration. It holds at every θ_i exactly, and is the
action of the Hessian on the run's own directions, which no product with a Jacobian is needed for. Source:
docs/theory.md, section 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

SECANTS = 5  # chosen on problems that no published figure is of: 1 to 8 were tried (docs/decisions/0024)


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
        steps = torch.stack([position - self._base for position, _ in self.points[:-1]])
        slopes = torch.stack([value - self._value for _, value in self.points[:-1]])
        lengths = torch.linalg.vector_norm(steps, dim=1, keepdim=True, dtype=torch.float64)  # squares underflow
        lengths = lengths.to(steps.dtype)
        steps, slopes = steps / lengths, slopes / lengths
        eps = torch.finfo(steps.dtype).eps
        gram = (steps @ steps.T).double()
        # Directions nearer to each other than rounding in their gradients tells apart count as one.
        inverse = torch.linalg.pinv(gram, hermitian=True, rtol=max(1e2 * eps, 1e-13) ** 0.75)
        self._inverse = inverse.to(steps.dtype) @ steps
        self._slopes = slopes.T
