"""The linearized run of a squared loss by implicit Euler: what damped Cholesky and damped conjugate gradients share.

A step of length t, δz = −(βAᵀA + W + 1/t)⁻¹(Aᵀg + W z₀), is the damped least-squares step of Levenberg and Marquardt
with damping 1/t: it starts along the gradient and ends at the same point as the flow. Without decay it is Aᵀs with
(βAAᵀ + 1/t) s = −g, on the outputs' side. Source: docs/theory.md, section 9.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from ..errors import InputError
from ..flow.horizon import Parsed, Steps, Times
from ..flow.run import LinearizedRun
from ..linearization.problem import LinearizedProblem


class ImplicitEuler(LinearizedRun):
    """Coefficients c are a scaled displacement z − z₀ (P,), or cotangents s (N,) with z − z₀ = Aᵀs.

    Args:
        problem: whose loss is a multiple of the squared distance.
    """

    def __init__(self, problem: LinearizedProblem) -> None:
        assert problem.loss.curvature is not None
        self.problem = problem
        self.u = problem.lin.u.detach().double()
        self.loss, self.beta = problem.loss.to(self.u), float(problem.loss.curvature)

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
        """A (z − z₀) (N,)."""

    def coefficients(self, horizon: Parsed) -> Tensor:
        """(T, size); each horizon costs a solve."""
        return torch.stack([self.solve(self.initial_gradient, t, False) for t in _times(horizon)])

    def response(self, g: Tensor, horizon: Parsed, c: Tensor | None = None, decayed: Tensor | None = None) -> Tensor:
        pushed = self.force(g.double(), decayed)
        return torch.stack([self.solve(pushed, t, True) for t in _times(horizon)])

    def outputs(self, c: Tensor) -> Tensor:
        return self.u + self.image(c).reshape(self.u.shape)

    def predicted_loss(self, c: Tensor) -> Tensor:
        return self.loss.value(self.outputs(c))

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return self.beta * v.double()

    def displacement(self, c: Tensor) -> Tensor:
        return self.problem.jacobian.displacement(self.scaled(c))


def _times(horizon: Parsed) -> tuple[float, ...]:
    if isinstance(horizon, Steps):
        raise InputError("implicit steps need a flow time (lr × steps) instead of js.steps: use basis='dense'.")
    assert isinstance(horizon, Times)
    return horizon.values
