"""Implicit steps without a Jacobian: conjugate gradients on the outputs' side, preconditioned from the last jump.

The step of ``resolvent``, δ = Aᵀs with (βAAᵀ + 1/t)s = −g, for networks whose Jacobian is too large to form. Products
with AAᵀ are a vjp and a jvp through graphs that are made once. Every product tells something of the spectrum: the pairs
(s, AAᵀs) of one jump make a Nyström approximation (Frangella, Tropp & Udell, SIAM J. Matrix Anal. 44, 2023) that
preconditions the next, whose kernel differs little. Source: docs/theory.md, section 9.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..flow.horizon import Times
from ..linalg.cholesky import Factor, factor
from ..linalg.nystrom import Nystrom
from ..linearization.linearize import Linearization
from ..linearization.metric import Metric
from ..linearization.ntk.collocation import gathered_kernel
from ..losses.base import Loss

RANK = 200  # pairs kept for the preconditioner
TOLERANCE = 1e-2  # of the residual of a step, relative to its gradient; the real loss decides on the step
COARSE = 0.1  # of that of a correction
LEARN = 8  # new pairs after which the preconditioner is made again within a jump
DEPTH = 30  # products a solve may take where no depth is asked for
GATHERED = 6000  # outputs up to which the kernel is gathered and factored instead


class Iterative:
    """The linearized run of a squared loss by implicit Euler, matrix-free; it answers what ``Resolvent`` answers.

    Coefficients c are cotangents s (N,) with z − z₀ = Aᵀs.

    Args:
        depth: most products a solve may take. None gathers the kernel and factors it where that is possible
            (``gathered``) and there are at most 6,000 outputs; otherwise at most 30.
        sketch: of the last jump; of the same outputs (other points make it useless, but not wrong).

    Raises:
        InputError: weight decay, which leaves the span of Aᵀ.
    """

    kind = "matrix-free"
    route = "conjugate gradients"

    def __init__(
        self, lin: Linearization, loss: Loss, metric: Metric, depth: int | None = None, sketch: Nystrom | None = None
    ) -> None:
        assert loss.curvature is not None
        if depth is not None and (not isinstance(depth, int) or depth < 1):
            raise InputError(f"depth={depth!r}: give a number of products of at least 1, or None.")
        if metric.decays:
            raise InputError("matrix-free jumps know no weight decay: leave it out, or use basis='krylov'.")
        self.lin, self.loss, self.metric, self.depth = lin, loss, metric, depth or DEPTH
        self.u = lin.u.detach().double()
        self._loss, self._beta = loss.to(self.u), float(loss.curvature)
        self.size = self.u.numel()
        self._sketch = sketch if sketch is not None and sketch.vectors.shape[0] == self.size else None
        self._tests: list[Tensor] = []
        self._images: list[Tensor] = []
        self._learned = 0
        self._solutions: list[tuple[Tensor, Tensor]] = []  # and A Aᵀ times them
        with torch.enable_grad():
            self._theta = lin.theta.detach().clone().requires_grad_()
            net = lin.net.bind(self._theta)
            self._rows = torch.cat([part.outputs(net).reshape(-1) for part in lin.parts])
        lin.ledger.gradients += 1
        self.slope = self._loss.grad(self.u).reshape(-1)
        self._factors: dict[float, Factor] = {}
        self._pushing: tuple[Tensor, Tensor] | None = None
        kernel = None
        if depth is None and metric.root is None and self.size <= GATHERED:
            kernel = gathered_kernel(lin)
        self.matrix = None if kernel is None else self._beta * kernel.double()
        if self.matrix is not None:
            self.fastest = float(self.matrix.diagonal().sum())  # from above; enough to set horizons by
        else:
            norm = torch.dot(self.slope, self.slope).clamp_min(1e-300)
            self.fastest = float(torch.dot(self.slope, self.product(self.slope)) / norm)  # from below

    # -- products ----------------------------------------------------------------------------------------------

    def pull(self, s: Tensor) -> Tensor:
        """Aᵀ s (P,)."""
        self.lin.ledger.pulls += 1
        found = torch.autograd.grad(self._rows, self._theta, s.to(self._rows.dtype), retain_graph=True)[0]
        return self.metric.scale(found)

    def push(self, z: Tensor) -> Tensor:
        """A z (N,)."""
        self.lin.ledger.pushes += 1
        if self._pushing is None:  # J·v is the derivative of Jᵀw, which is linear in w, along v
            with torch.enable_grad():
                cotangent = torch.zeros_like(self._rows).requires_grad_()
                pulled = torch.autograd.grad(self._rows, self._theta, cotangent, create_graph=True)[0]
            self._pushing = (pulled, cotangent)
        pulled, cotangent = self._pushing
        v = self.metric.scale(z.to(pulled.dtype))
        return torch.autograd.grad(pulled, cotangent, v, retain_graph=True)[0].double()

    def product(self, s: Tensor) -> Tensor:
        """βAAᵀ s (N,), remembered for the sketch."""
        if self.matrix is not None:
            return self.matrix @ s
        found = self._beta * self.push(self.pull(s))
        if bool(torch.isfinite(found).all()):
            self._tests.append(s)
            self._images.append(found)
        return found

    def sketch(self) -> Nystrom | None:
        """What this jump has learned, and the last ones: the preconditioner of the next."""
        if not self._tests:
            return None
        tests, images = torch.stack(self._tests[self._learned :]), torch.stack(self._images[self._learned :])
        if self._sketch is not None:
            old = self._sketch
            tests = torch.cat([tests, old.vectors.T])
            images = torch.cat([images, old.values[:, None] * old.vectors.T])
        found = Nystrom.of(tests, images)
        if found is None or found.values.numel() <= RANK:
            return found
        return Nystrom(found.vectors[:, :RANK], found.values[:RANK])

    # -- as a basis and as a flow ------------------------------------------------------------------------------

    def displacement(self, c: Tensor) -> Tensor:
        """δθ (P,) for coefficients c."""
        return self.metric.scale(self.pull(c)).to(self.lin.theta.dtype)

    @property
    def longest(self) -> float:
        """Beyond this, rounding of the products decides."""
        eps = torch.finfo(self.lin.u.dtype).eps
        return 1 / (eps * self.fastest) if self.fastest > 0 else 1e16

    def opening(self) -> float:
        """A horizon to start from."""
        return 1e2 / self.fastest if self.fastest > 0 else 1.0

    def at_time(self, t: float) -> Tensor:
        """Coefficients (N,) at one flow time."""
        return self._solve(self.slope, t, TOLERANCE)

    def at(self, horizon: Times) -> Tensor:
        """Coefficients (T, N) at each horizon."""
        return torch.stack([self.at_time(t) for t in horizon.values])

    def outputs(self, c: Tensor) -> Tensor:
        """Linearized outputs, shaped like u."""
        return self.u + (self._image(c)).reshape(self.u.shape)

    def predicted(self, c: Tensor) -> Tensor:
        """Φ of the linearized outputs."""
        return self._loss.value(self.outputs(c))

    def response(self, g: Tensor, horizon: Times, c: Tensor | None = None, decayed: Tensor | None = None) -> Tensor:
        """How the step answers a gradient g met on the way, (T, N); see ``ReducedFlow.response``."""
        return torch.stack([self._solve(g.double().reshape(-1), t, COARSE) for t in horizon.values])

    def curve(self, u: Tensor, v: Tensor) -> Tensor:
        """B v."""
        return self._beta * v.double()

    def length(self, c: Tensor) -> Tensor:
        """‖z − z₀‖ = √(sᵀAAᵀs)."""
        return torch.dot(c, self._image(c)).clamp_min(0).sqrt()

    def _image(self, c: Tensor) -> Tensor:
        """AAᵀ c; products are linear, so that solutions and their multiples are read off from those made already."""
        for known, image in self._solutions:
            scale = torch.dot(c, known) / torch.dot(known, known).clamp_min(1e-300)
            if bool(torch.linalg.vector_norm(c - scale * known) <= 1e-12 * torch.linalg.vector_norm(c)):
                return scale * image
        return self.product(c) / self._beta

    def _direct(self, force: Tensor, t: float) -> Tensor:
        assert self.matrix is not None
        if t not in self._factors:
            self._factors.clear()
            self._factors[t] = factor(self.matrix, 1 / t, torch.finfo(self.lin.u.dtype).eps * self.fastest)
        found = self._factors[t].solve(force)
        rest = force - self.matrix @ found - self._factors[t].shift * found
        return -(found + self._factors[t].solve(rest))

    def _solve(self, force: Tensor, t: float, tolerance: float) -> Tensor:
        """−(βAAᵀ + 1/t)⁻¹ force by a Cholesky factor where the kernel is there, else by conjugate gradients."""
        if self.matrix is not None:
            return self._direct(force, t)
        shift = 1 / t
        if len(self._tests) >= self._learned + LEARN:  # a second solve knows what the first has met
            self._sketch, self._learned = self.sketch(), len(self._tests)
        x, kx = torch.zeros_like(force), torch.zeros_like(force)
        r = force.clone()
        target = tolerance * torch.linalg.vector_norm(force)
        sketch = self._sketch
        y = r if sketch is None else sketch.solve(r, shift)
        p, ry = y, torch.dot(r, y)
        for _ in range(self.depth):
            kp = self.product(p)
            curve = torch.dot(p, kp) + shift * torch.dot(p, p)
            if not bool(curve > 0):
                break
            step = ry / curve
            x, kx = x + step * p, kx + step * kp
            r = r - step * (kp + shift * p)
            if bool(torch.linalg.vector_norm(r) <= target):
                break
            y = r if sketch is None else sketch.solve(r, shift)
            ry, before = torch.dot(r, y), ry
            p = y + (ry / before) * p
        self._solutions.append((-x, -kx / self._beta))
        return -x
