"""A linear layer on given features, fitted to any loss: ridge, Newton, and what leaving samples out says.

Minimized is Φ(X Wᵀ + b) + ½ λ‖W‖²; the bias is free. Where Φ = ½β‖u − y‖² both the fit and its leave-one-out loss are
closed forms. Other losses are fitted by Newton's method, and a sample's outputs without itself are those of one Newton
step away from the fit (approximate leave-one-out, Rad and Maleki 2020): with A = X_i H⁻¹ X_iᵀ and B its own Hessian,
u_i + A (I − B A)⁻¹ ∇ℓ_i, exact where B is constant. Where the Hessians would
take too long, folds are left out in place of samples (:mod:`.folds`). All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...errors import InputError, MemoryLimitError
from ...losses.base import Loss
from ...utils.cost import EIGEN, PRODUCTS, Ledger, rate
from . import folds

DENSE = 2e11  # flops of a path of dampings with Hessians, seconds; dearer ones go by folds
LARGEST = 8_000  # weights of a Newton step's Hessian, 512 MB
NEWTON = 100  # steps
SETTLED = 1e-14  # of the loss
RIDGE = [10.0 ** (k / 4) for k in range(8, -49, -1)]  # dampings, of the largest curvature
PATH = [10.0**k for k in range(2, -9, -1)]
TYPICAL = 50  # Hessians of a whole path: three steps at each damping, and what leaving out takes
PATIENCE = 2  # dampings in a row without a better leave-one-out loss


@dataclass(frozen=True)
class Fit:
    """Weights W (C, d) and bias (C,) or None, the damping λ, training loss and leave-one-out loss (both without λ)."""

    weight: Tensor
    bias: Tensor | None
    damping: float
    training: float
    leave_one_out: float


class HeadProblem:
    """Features and a loss on what a linear layer makes of them.

    Args:
        features: X (n, d), in float64. u: any outputs, for their shape (n,) or (n, C).
    """

    def __init__(self, features: Tensor, u: Tensor, loss: Loss, bias: bool, ledger: Ledger | None = None) -> None:
        self.features, self.shape, self.bias = features, u.shape, bias
        self.loss, self.ledger = loss.to(u.new_zeros(u.shape, dtype=torch.float64)), ledger or Ledger()
        self.classes = u[0].numel()
        n, d = features.shape
        self.charge(20.0 * n * d * min(n, d), EIGEN)
        # Weights that lower the loss lie in the span of the features: as many as have a rank, orthogonal.
        self.center = features.mean(0) if bias else torch.zeros_like(features[0])
        left, sizes, right = torch.linalg.svd(features - self.center, full_matrices=False)
        keep = sizes > torch.finfo(torch.float64).eps * max(n, d) * (sizes[0] if len(sizes) else 0.0)
        self.left, self.sizes, self.right = left[:, keep], sizes[keep], right[keep]

    def charge(self, flops: float, table: dict[str, float]) -> None:
        self.ledger.charge(flops / rate(table, self.features.device))

    def require(self) -> None:
        """Raise where a whole path of dampings would take more than may be spent.

        Raises:
            BudgetError: says how much.
        """
        flops = folds.work(self) if self.by_folds else self.path_flops
        if self.loss.curvature is None and self.ledger.step_seconds > 0:
            self.ledger.require(flops / rate(PRODUCTS, self.features.device) / self.ledger.step_seconds)

    def fit(self, damping: float | None = None, tell: Callable[[Fit], None] = lambda fit: None) -> Fit:
        """At a damping λ, or at the one with the lowest leave-one-out loss.

        Args:
            tell: called with every fit that is compared.
        """
        if not len(self.sizes):  # features that are all the same: there is the bias alone
            return self.newton_fit(damping or 0.0)[0]
        return self._ridge(damping, tell) if self.loss.curvature is not None else self._path(damping, tell)

    # ---- squared losses ----------------------------------------------------------------------------------------

    def _ridge(self, damping: float | None, tell: Callable[[Fit], None]) -> Fit:
        beta, targets = float(self.loss.curvature or 0.0), self.loss.targets.double().reshape(len(self.features), -1)
        mean = targets.mean(0) if self.bias else torch.zeros_like(targets[0])
        pulled = self.left.T @ (targets - mean)
        squares = beta * self.sizes.square()
        best: Fit | None = None
        for lam in [share * float(squares[0]) for share in RIDGE] if damping is None else [damping]:
            shrink = squares / (squares + lam)
            u = self.left @ (shrink[:, None] * pulled) + mean
            leverage = self.left.square() @ shrink + (1 / len(u) if self.bias else 0.0)
            left_out = (u - targets) / (1 - leverage).clamp_min(1e-300)[:, None]
            rows = shrink / self.sizes
            weight = (rows[:, None] * pulled).T @ self.right
            training, out = (0.5 * beta * float(miss.square().sum()) for miss in (u - targets, left_out))
            fit = Fit(weight, mean - weight @ self.center if self.bias else None, lam, training, out)
            tell(fit)
            if best is None or fit.leave_one_out < best.leave_one_out:
                best = fit
        assert best is not None
        return best

    # ---- other losses ------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Weights that the features tell apart."""
        return self.classes * (len(self.sizes) + self.bias)

    @property
    def path_flops(self) -> float:
        """Of a whole path of dampings with Hessians."""
        return TYPICAL * (2.0 * len(self.features) * self.size**2 + self.size**3 / 3)

    @property
    def by_folds(self) -> bool:
        """Whether folds are left out, because to leave out each sample would take too long, or too much memory."""
        return self.loss.curvature is None and (self.path_flops > DENSE or self.size > LARGEST)

    @property
    def rows(self) -> Tensor:
        """Z (n, q): features in their own axes, and a one for the bias."""
        z = self.left * self.sizes
        return torch.cat([z, z.new_ones(len(z), 1)], 1) if self.bias else z

    def _path(self, damping: float | None, tell: Callable[[Fit], None]) -> Fit:
        """Down from strong dampings, each from the last one's weights, then halfway to either side of the best."""
        if self.by_folds:
            return folds.fit_by_folds(self, damping, tell)
        if damping is not None:
            fit, _ = self.newton_fit(damping)
            tell(fit)
            return fit
        z, zero = self.rows, self.features.new_zeros(self.shape)
        bends = self.bends(zero).diagonal(dim1=1, dim2=2).mean(1)
        scale = float(torch.linalg.eigvalsh((z * bends[:, None]).T @ z)[-1])
        best, start, worse = None, None, 0
        starts: dict[float, Tensor] = {}
        for share in PATH:
            fit, start = self.newton_fit(share * scale, start)
            tell(fit)
            starts[fit.damping] = start
            if best is None or fit.leave_one_out < best.leave_one_out:
                best, worse = fit, 0
            else:
                worse += 1
                if worse == PATIENCE:
                    break
        assert best is not None
        middle = best
        for factor in (10**0.5, 10**-0.5):
            fit, _ = self.newton_fit(middle.damping * factor, starts[middle.damping])
            tell(fit)
            best = fit if fit.leave_one_out < best.leave_one_out else best
        return best

    def newton_fit(self, damping: float, start: Tensor | None = None) -> tuple[Fit, Tensor]:
        """The fit at one damping by Newton's method from weights ``start`` (C, q) on :attr:`rows`, and such weights."""
        z, c = self.rows, self.classes
        w = z.new_zeros(c, z.shape[1]) if start is None else start
        free = torch.full((z.shape[1],), damping, dtype=z.dtype, device=z.device)
        if self.bias:
            free[-1] = 0.0

        def total(w: Tensor) -> float:
            return float(self.loss.value(self.outputs(z, w)) + 0.5 * (free * w.square()).sum())

        value = total(w)
        for _ in range(NEWTON):
            u = self.outputs(z, w)
            slope = self.loss.grad(u).reshape(len(z), c).T @ z + free * w
            factor = self.factor(z, self.bends(u), free)
            step = -torch.cholesky_solve(slope.reshape(-1, 1), factor).reshape(w.shape)
            fall = -float((slope * step).sum())
            if not fall > SETTLED * max(abs(value), 1e-300):
                break
            length = 1.0
            while not total(w + length * step) <= value - 1e-4 * length * fall and length > 1e-8:
                length *= 0.5
            if length <= 1e-8:
                break
            w = w + length * step
            value = total(w)
        return self.fit_of(w, damping, self._leave_one_out(z, w, self.outputs(z, w), free)), w

    def fit_of(self, w: Tensor, damping: float, left_out: float) -> Fit:
        """Of weights (C, q) on :attr:`rows`."""
        weight = (w[:, : len(self.sizes)]) @ self.right
        bias = w[:, -1] - weight @ self.center if self.bias else None
        return Fit(weight, bias, damping, float(self.loss.value(self.outputs(self.rows, w))), left_out)

    def outputs(self, z: Tensor, w: Tensor) -> Tensor:
        """u (n, …) of weights w (C, q) on rows z (n, q)."""
        return (z @ w.T).reshape(self.shape)

    def bends(self, u: Tensor) -> Tensor:
        """Each sample's own Hessian of the loss in its outputs, (n, C, C)."""
        probes = torch.eye(self.classes, dtype=u.dtype, device=u.device)
        probes = probes[:, None].expand(-1, len(u), -1).reshape(self.classes, *self.shape)
        return self.loss.hvp(u, probes).reshape(self.classes, len(u), self.classes).permute(1, 2, 0)

    @cached_property
    def unseen(self) -> bool:
        """Whether biases that all move alike change no loss, as with classes: no curvature, so that any will do."""
        bends = self.bends(self.features.new_zeros(self.shape))
        return self.bias and float(bends.sum(2).abs().max()) <= 1e-10 * float(bends.abs().max())

    def factor(self, z: Tensor, bends: Tensor, free: Tensor) -> Tensor:
        """Cholesky factor of the Hessian (C·q, C·q), by outputs first."""
        c, q = self.classes, z.shape[1]
        size = c * q
        if size > LARGEST:
            raise MemoryLimitError(
                f"fit_head: {size} weights that the features tell apart ({q} directions, {c} outputs) are more than "
                f"the {LARGEST} whose Hessian is kept, by which each sample is left out: take fewer samples."
            )
        self.charge(2.0 * len(z) * size**2, PRODUCTS)
        self.charge(size**3 / 3, PRODUCTS)
        h = z.new_empty(c, q, c, q)
        for i in range(c):
            for j in range(i + 1):
                h[i, :, j] = (z * bends[:, i, j, None]).T @ z
                if j < i:
                    h[j, :, i] = h[i, :, j].T
        if self.unseen:
            h[:, -1, :, -1] += h.diagonal(dim1=0, dim2=2).diagonal().mean()
        h = h.reshape(size, size)
        h.diagonal().add_(free.repeat(c))
        h.diagonal().add_(1e-13 * h.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(h)
        if bool(failed):
            raise InputError(
                f"fit_head: at damping {float(free[0]):.3g} rounding is all that holds some weights: every sample "
                "is told apart for certain: give more damping, or damping=None."
            )
        return factor

    def _leave_one_out(self, z: Tensor, w: Tensor, u: Tensor, free: Tensor) -> float:
        c, q, n = self.classes, z.shape[1], len(z)
        bends = self.bends(u)
        inverse = torch.cholesky_inverse(self.factor(z, bends, free)).reshape(c, q, c, q)
        self.charge(2.0 * n * (c * q) ** 2 + (c * q) ** 3, PRODUCTS)
        a = z.new_empty(n, c, c)
        for i in range(c):
            for j in range(i + 1):
                a[:, i, j] = ((z @ inverse[i, :, j]) * z).sum(1)
                a[:, j, i] = a[:, i, j]
        g = self.loss.grad(u).reshape(n, c, 1)
        eye = torch.eye(c, dtype=z.dtype, device=z.device)
        try:
            shift = a @ torch.linalg.solve(eye - bends @ a, g)
        except torch.linalg.LinAlgError:  # a sample that its weights stand on alone: without it anything goes
            return math.inf
        out = float(self.loss.value(u + shift.reshape(u.shape)))
        return out if math.isfinite(out) else math.inf
