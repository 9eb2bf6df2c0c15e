"""Dense jumps by one Cholesky factorization a horizon, where eigenvectors would cost ten times as much.

An implicit Euler step of length t of the linearized flow, δ = −(AᵀBA + W + 1/t)⁻¹(Aᵀg + W z₀), is the damped
least-squares step of Levenberg and Marquardt with damping 1/t: it starts along the gradient and ends at the same point
as the flow. It is taken on the smaller side, parameters or outputs. Source: docs/theory.md, section 9.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..flow.horizon import Times
from ..linalg.cholesky import Factor, factor, lower_gram
from ..linearization.linearize import Linearization
from ..linearization.metric import Metric
from ..losses.base import Loss

SAFE = 1e-8  # damping over the trace from which a solve has eight digits as it is


class Resolvent:
    """The linearized run of a squared loss, by implicit Euler; it answers what a basis and its reduced flow answer.

    Coefficients c are the scaled displacement z − z₀ (P,), or cotangents s (N,) with z − z₀ = Aᵀs, whichever is
    shorter (with weight decay always the former).

    Args:
        lin: the linearization, whose explicit Jacobian is formed. loss: a multiple of the squared distance.
        metric: D and weight decay.
    """

    kind = "dense"
    route = "cholesky"

    def __init__(self, lin: Linearization, loss: Loss, metric: Metric) -> None:
        assert loss.curvature is not None
        self.lin, self.loss, self.metric = lin, loss, metric
        self.u = lin.u.detach().double()
        self._loss, self._beta = loss.to(self.u), float(loss.curvature)
        j = lin.jacobian().double()
        self.rows = j if metric.root is None else j * metric.root.double()  # A (N, P)
        n, p = self.rows.shape
        self.dual = n < p and not metric.decays
        self.size = n if self.dual else p
        self.matrix = lower_gram(self.rows.T if self.dual else self.rows)  # its lower triangle
        if self._beta != 1:
            self.matrix.mul_(self._beta)
        if not bool(torch.isfinite(self.matrix.diagonal()).all()):
            raise NonFiniteError(
                "the network's derivatives hold NaN or infinity at the present weights, though its outputs do not (a "
                "square root or a norm at 0, say): move off that point, or add a small constant under the root."
            )
        self._z0 = metric.unscale(lin.theta).double()
        if metric.decays:
            self.matrix.diagonal().add_(metric.decay.double() if isinstance(metric.decay, Tensor) else metric.decay)
        self.slope = self._force(self._loss.grad(self.u), None)
        self._factors: dict[float, Factor] = {}
        self._image: tuple[Tensor, Tensor] = (self.slope.new_empty(0), self.u)  # the last step and A times it
        self._pulled = self._image

    # -- as a basis --------------------------------------------------------------------------------------------

    def displacement(self, c: Tensor) -> Tensor:
        """δθ (P,) for coefficients c."""
        return self.metric.scale(self._scaled(c).to(self.lin.theta.dtype))

    # -- as a flow ---------------------------------------------------------------------------------------------

    @cached_property
    def fastest(self) -> float:
        """The largest rate, by a few products."""
        v = self.slope
        for _ in range(6):
            v = v / torch.linalg.vector_norm(v).clamp_min(1e-300)
            w = self._times(v)
            top, v = float(torch.dot(v, w)), w
        return top

    @cached_property
    def trace(self) -> float:
        """The sum of all rates."""
        return float(self.matrix.diagonal().sum())

    def opening(self) -> float:
        """A horizon to start from: a thousand relaxation times of the fastest mode, or a little less."""
        return 1e3 / self.trace if self.trace > 0 else 1.0

    @property
    def longest(self) -> float:
        """The horizon at which the factorization still has digits for every mode."""
        return 1 / (0.5 * torch.finfo(torch.float64).eps * self.trace) if self.trace > 0 else 1e16

    def at_time(self, t: float) -> Tensor:
        """Coefficients (size,) at one flow time."""
        return self._solve(self.slope, t)

    def outputs(self, c: Tensor) -> Tensor:
        """Linearized outputs, shaped like u."""
        known, moved = self._image
        if known is not c:  # the same step is asked for several times, and each time reads all of A
            moved = self.rows @ self._scaled(c)
            self._image = (c, moved)
        return self.u + moved.reshape(self.u.shape)

    def predicted(self, c: Tensor) -> Tensor:
        """Φ of the linearized outputs."""
        return self._loss.value(self.outputs(c))

    def at(self, horizon: Times) -> Tensor:
        """Coefficients (T, size) at each horizon; each costs a factorization."""
        return torch.stack([self._solve(self.slope, t) for t in horizon.values])

    def response(self, g: Tensor, horizon: Times, c: Tensor | None = None, decayed: Tensor | None = None) -> Tensor:
        """How the step answers a gradient g (outputs' shape) met on the way, (T, size); as ``ReducedFlow.response``."""
        pushed = self._force(g.double(), decayed, start=False)
        return torch.stack([self._solve(pushed, t) for t in horizon.values])

    def curve(self, u: Tensor, v: Tensor) -> Tensor:
        """B v."""
        return self._beta * v.double()

    def length(self, c: Tensor) -> Tensor:
        """‖z − z₀‖ for coefficients c."""
        return torch.linalg.vector_norm(self._scaled(c))

    def _scaled(self, c: Tensor) -> Tensor:
        """z − z₀ (P,)."""
        if not self.dual:
            return c
        known, z = self._pulled
        if known is not c:
            z = self.rows.T @ c
            self._pulled = (c, z)
        return z

    def _force(self, g: Tensor, decayed: Tensor | None, start: bool = True) -> Tensor:
        """Aᵀg + W z (P,), or g itself on the outputs' side."""
        if self.dual:
            return g.reshape(-1)
        force = self.rows.T @ g.reshape(-1)
        if self.metric.decays and (start or decayed is not None):
            force = force + self.metric.decay * (self._z0 if decayed is None else self._z0 + decayed)
        return force

    def _times(self, c: Tensor) -> Tensor:
        """M c by products with A, which keep what squaring A has lost."""
        if self.dual:
            return self._beta * (self.rows @ (self.rows.T @ c))
        moved = self._beta * (self.rows.T @ (self.rows @ c))
        return moved + self.metric.decay * c if self.metric.decays else moved

    def _solve(self, force: Tensor, t: float) -> Tensor:
        """−(M + 1/t)⁻¹ force, with one step of refinement where damping leaves rounding room to grow."""
        if t not in self._factors:
            if len(self._factors) > 1:  # each is as large as the matrix
                self._factors.pop(next(iter(self._factors)))
            self._factors[t] = factor(self.matrix, 1 / t, torch.finfo(torch.float64).eps * self.trace)
        held = self._factors[t]
        found = held.solve(force)
        if held.shift < SAFE * self.trace:
            found = found + held.solve(force - self._times(found) - held.shift * found)
        return -found
