"""The linearized run of a squared loss by implicit Euler: what Cholesky factors, sketches and damped CG share.

A step of length t, δz = −(βAᵀA + W + 1/t)⁻¹(Aᵀg + W z₀), is the damped least-squares step of Levenberg and Marquardt
with damping 1/t: it starts along the gradient and ends at the same point as the flow. Without decay it is Aᵀs with
(βAAᵀ + 1/t) s = −g, on the outputs' side. Where curvature is constant but not one number, B = S Sᵀ, the same holds of
SᵀA, S⁺g and β = 1. Source: docs/theory.md, section 9.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from ..errors import InputError
from ..flow.horizon import Parsed, Steps, Times
from ..flow.run import LinearizedRun
from ..linearization.problem import LinearizedProblem

EPS = torch.finfo(torch.float64).eps


class ImplicitEuler(LinearizedRun):
    """Coefficients c are a scaled displacement z − z₀ (P,), or cotangents s (N,) with z − z₀ = Aᵀs.

    Args:
        problem: whose loss is quadratic.
    """

    def __init__(self, problem: LinearizedProblem) -> None:
        assert problem.loss.quadratic
        self.problem = problem
        self.u = problem.lin.u.detach().double()
        self.loss, curvature = problem.loss.to(self.u), problem.loss.curvature
        self.plain, self.beta = curvature is not None, 1.0 if curvature is None else float(curvature)

    def weighed(self, v: Tensor) -> Tensor:
        """Sᵀ v for outputs v (…, N); v itself where B is a number."""
        return v if self.plain else self.loss.sqrt_t(self.u, v.reshape(-1, *self.u.shape)).reshape(v.shape)

    def unweighed(self, v: Tensor) -> Tensor:
        """S v for v (N,), the way back into Aᵀ; v itself where B is a number."""
        return v if self.plain else self.loss.sqrt(self.u, v.reshape(self.u.shape)).reshape(-1)

    def reduced(self, g: Tensor) -> Tensor:
        """S⁺ g (N,) for a gradient g, which is in the range of S; g itself where B is a number."""
        return g.reshape(-1) if self.plain else self.loss.sqrt_inverse(self.u, g).reshape(-1)

    @abc.abstractmethod
    def solve(self, force: Tensor, t: float, correction: bool) -> Tensor:
        """−(M + 1/t)⁻¹ force in coefficients; a ``correction`` to a step may be coarser than the step."""

    @abc.abstractmethod
    def force(self, g: Tensor, decayed: Tensor | None) -> Tensor:
        """What a gradient g (outputs' shape, float64) pulls at coefficients with; ``decayed`` as in ``response``."""

    @abc.abstractmethod
    def scaled(self, c: Tensor) -> Tensor:
        """z − z₀ (P,)."""

    @abc.abstractmethod
    def image(self, c: Tensor) -> Tensor:
        """SᵀA (z − z₀) (N,)."""

    def coefficients(self, horizon: Parsed) -> Tensor:
        """(T, size); each horizon costs a solve."""
        return torch.stack([self.solve(self.initial_gradient, t, False) for t in _times(horizon)])

    def response(self, g: Tensor, horizon: Parsed, c: Tensor | None = None, decayed: Tensor | None = None) -> Tensor:
        pushed = self.force(g.double(), decayed)
        return torch.stack([self.solve(pushed, t, True) for t in _times(horizon)])

    def outputs(self, c: Tensor) -> Tensor:
        """Where B has no curvature (masked entries) they stay what they were."""
        moved = self.image(c).reshape(self.u.shape)
        return self.u + (moved if self.plain else self.loss.sqrt_t_inverse(self.u, moved))

    def predicted_loss(self, c: Tensor) -> Tensor:
        return self.loss.value(self.outputs(c))

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return self.beta * v.double() if self.plain else self.loss.hvp(self.u, v.double())

    def displacement(self, c: Tensor) -> Tensor:
        return self.problem.jacobian.displacement(self.scaled(c))


def longest(trace: float, precision: float = EPS) -> float:
    """The horizon beyond which a matrix of squares, whose rates add up to ``trace``, has no digits for slow modes."""
    return 1 / (0.5 * precision * trace) if trace > 0 else 1e16


def _times(horizon: Parsed) -> tuple[float, ...]:
    if isinstance(horizon, Steps):
        raise InputError("implicit steps need a flow time (lr × steps) instead of js.steps: use basis='dense'.")
    assert isinstance(horizon, Times)
    return horizon.values
