"""The linearization's matrices as linear operators: J, A = J D^½, K = A Aᵀ, and G = Aᵀ B A + W.

Products cost network passes and are counted in the linearization's ledger. In scaled coordinates z = D^{−½}θ the
network is u₀ + A (z − z₀); docs/theory.md, equations 1, 2 and 7.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..linalg.cholesky import lower_gram
from ..linalg.operator import LinearOperator
from ..losses.base import Loss
from ..objectives.diagnosis import underivable
from .linearize import Linearization
from .metric import Metric

BLOCK = 2**22  # numbers of the Jacobian that travel at once


class Jacobian(LinearOperator):
    """A = J D^½ (N, P) between scaled weights and flattened outputs; J itself in the plain metric.

    A product costs a jvp, one with the transpose a vjp.
    """

    def __init__(self, lin: Linearization, metric: Metric | None = None) -> None:
        super().__init__((lin.u.numel(), lin.theta.numel()), lin.theta.dtype, lin.theta.device)
        self.lin, self.metric = lin, Metric() if metric is None else metric

    def apply(self, v: Tensor) -> Tensor:
        return self.lin.jvp(self.metric.scale(v)).reshape(-1)

    def apply_adjoint(self, w: Tensor) -> Tensor:
        return self.metric.scale(self.lin.vjp(w.reshape(self.lin.u.shape).to(self.lin.u.dtype)))

    def image(self, v: Tensor) -> Tensor:
        """A v shaped like the outputs."""
        return self.lin.jvp(self.metric.scale(v.to(self.dtype)))

    def displacement(self, z: Tensor) -> Tensor:
        """δθ (P,) for a displacement z (P,) in scaled coordinates."""
        return self.metric.scale(z.to(self.dtype))


class GraphJacobian(LinearOperator):
    """A = J D^½ (N, P) through graphs that are made once and kept: both products cost backward passes alone.

    Where the derivative of some operation has none, A v is that of the linearization.
    """

    def __init__(self, lin: Linearization, metric: Metric | None = None) -> None:
        super().__init__((lin.u.numel(), lin.theta.numel()), lin.theta.dtype, lin.theta.device)
        self.lin, self.metric = lin, Metric() if metric is None else metric
        with torch.enable_grad():
            self._theta = lin.theta.detach().clone().requires_grad_()
        self._rows = self._started() if lin.shards is None else lin.shards.world.attempt("graphs", self._started)
        lin.ledger.gradients += 1
        self._pushing: tuple[Tensor, Tensor] | None = None
        self._underivable = False

    def _started(self) -> Tensor | None:
        """The outputs of the parts, flattened, with their graph; None without a part."""
        lin, rows = self.lin, []
        with torch.enable_grad():
            net = lin.net.bind(self._theta)
            for part in lin.parts:
                with part.translated(lin.net.model):
                    rows.append(part.outputs(net).reshape(-1))
            return torch.cat(rows) if rows else None

    def apply(self, v: Tensor) -> Tensor:
        scaled = self.metric.scale(v)
        self.lin.ledger.pushes += 1
        shards = self.lin.shards
        if shards is None:
            return self._along(scaled)
        shape = (-1, *shards.shape[1:])
        return shards.rows("A v", lambda: [self._along(scaled).view(shape)] if self.lin.parts else []).reshape(-1)

    def _along(self, v: Tensor) -> Tensor:
        """J v of the parts, flattened."""
        if not self._underivable:
            try:
                return self._transposed(v)
            except (NotImplementedError, RuntimeError) as error:
                if not underivable(error):
                    raise
                self._underivable = True
        return torch.cat([rows.reshape(-1) for rows in self.lin.jvp_rows(v)]).detach()

    def _transposed(self, v: Tensor) -> Tensor:
        assert self._rows is not None
        if self._pushing is None:  # J·v is the derivative of Jᵀw, which is linear in w, along v
            with torch.enable_grad():
                cotangent = torch.zeros_like(self._rows).requires_grad_()
                pulled = torch.autograd.grad(self._rows, self._theta, cotangent, create_graph=True)[0]
            self._pushing = (pulled, cotangent)
        pulled, cotangent = self._pushing
        return torch.autograd.grad(pulled, cotangent, v, retain_graph=True)[0]

    def apply_adjoint(self, w: Tensor) -> Tensor:
        self.lin.ledger.pulls += 1
        own = self.lin.mine(w.reshape(self.lin.u.shape)).reshape(-1)
        return self.metric.scale(self.lin.total("A^T w", lambda: self._pulled(own)))

    def _pulled(self, w: Tensor) -> Tensor:
        """Jᵀ w (P,) of the parts."""
        if self._rows is None:
            return torch.zeros_like(self.lin.theta)
        return torch.autograd.grad(self._rows, self._theta, w.to(self._rows.dtype), retain_graph=True)[0]


class Explicit(LinearOperator):
    """A = J D^½ (N, P) in float64, formed: of several processes, each holds its own rows.

    A product is local rows gathered, or local sums added up: one agreement and one collective.
    """

    def __init__(self, lin: Linearization, metric: Metric) -> None:
        j = lin.rows().double()
        self.rows = j if metric.root is None else j * metric.root.double()
        self.lin = lin
        super().__init__((lin.u.numel(), lin.theta.numel()), torch.float64, lin.theta.device)

    def apply(self, v: Tensor) -> Tensor:
        shards = self.lin.shards
        if shards is None:
            return self.rows @ v
        return shards.rows("A v", lambda: [(self.rows @ v).view(-1, *shards.shape[1:])]).reshape(-1)

    def apply_adjoint(self, w: Tensor) -> Tensor:
        own = self.lin.mine(w.reshape(self.lin.u.shape)).reshape(-1)
        return self.lin.total("A^T w", lambda: self.rows.T @ own)

    def dense(self) -> Tensor:
        """All rows (N, P), on every process."""
        shards = self.lin.shards
        if shards is None:
            return self.rows
        c = math.prod(shards.shape[1:])
        stacked = shards.world.stacked("A", lambda: self.rows.reshape(-1, c * self.shape[1]), shards.counts)
        return shards.ordered(stacked).view(-1, self.shape[1])

    def gram(self, dual: bool) -> Tensor:
        """The lower triangle of AAᵀ (N, N), or of AᵀA (P, P), which is a sum over processes of P² numbers."""
        if not dual:
            return self.lin.total("A^T A", lambda: lower_gram(self.rows))
        shards = self.lin.shards
        if shards is None:
            return lower_gram(self.rows.T)
        # Columns of A travel, a block at a time, so that nobody holds all of it.
        n, p = self.shape
        c, found = math.prod(shards.shape[1:]), self.rows.new_zeros(n, n)
        for columns in range(0, p, max(1, BLOCK // n)):
            block = self.rows[:, columns : columns + max(1, BLOCK // n)]
            flat = block.reshape(-1, c * block.shape[1])
            stacked = shards.world.stacked("columns of A", flat.contiguous, shards.counts)
            found += lower_gram(shards.ordered(stacked).view(n, block.shape[1]).T)
        return found

    def symmetric(self) -> Tensor:
        """AAᵀ (N, N), whole."""
        lower = self.gram(True).tril()
        return lower + lower.tril(-1).T


class Kernel(LinearOperator):
    """K = A_left A_rightᵀ (M, N): rows are the outputs of ``left`` (query points, say), columns those of ``right``.

    A product costs a vjp on the right and a jvp on the left.
    """

    def __init__(self, left: LinearOperator, right: LinearOperator | None = None) -> None:
        self.left, self.right = left, left if right is None else right
        super().__init__((self.left.shape[0], self.right.shape[0]), left.dtype, left.device)

    def apply(self, v: Tensor) -> Tensor:
        return self.left.apply(self.right.apply_adjoint(v))

    def apply_adjoint(self, w: Tensor) -> Tensor:
        return self.right.apply(self.left.apply_adjoint(w))


class GaussNewton(LinearOperator):
    """G = Aᵀ B A + W (P, P), symmetric: B the loss's curvature at u₀, W the metric's weight decay."""

    def __init__(self, jacobian: Jacobian, loss: Loss) -> None:
        super().__init__((jacobian.shape[1], jacobian.shape[1]), jacobian.dtype, jacobian.device)
        self.jacobian, self.loss = jacobian, loss

    def apply(self, v: Tensor) -> Tensor:
        return self.pulled(v, self.jacobian.image(v))

    def apply_adjoint(self, w: Tensor) -> Tensor:
        return self.apply(w)

    def pulled(self, v: Tensor, image: Tensor) -> Tensor:
        """G v where A v, shaped like the outputs, is known already."""
        a, metric = self.jacobian, self.jacobian.metric
        found = a.apply_adjoint(self.loss.hvp(a.lin.u, image))
        return found + metric.decay * v if metric.decays else found


def require_finite_derivatives(derivatives: Tensor) -> None:
    """Refuse A, its kernel, their diagonal or a product with them where NaN or infinity stands in it."""
    if not bool(torch.isfinite(derivatives).all()):
        raise NonFiniteError(
            "the network's derivatives hold NaN or infinity at the present weights, though its outputs do not (a "
            "square root or a norm at 0, say): move off that point, or add a small constant under the root."
        )
