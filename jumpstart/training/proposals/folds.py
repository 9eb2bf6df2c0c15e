"""A head with many weights: Newton steps by conjugate gradients, its damping by cross-validation.

The Hessian of a head with C outputs on q directions has (C q)² entries, and leaving each sample out takes its inverse.
Here it is only ever multiplied by; what a sample's loss is without it is seen on folds, each of which is left out from
a fit of its own (the others count as before, without renormalization). All folds are fitted together, so that a
product with all of their Hessians is two large matrix products. What is compared is computed in float32, the fit itself
in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ...utils.cost import PRODUCTS


class Problem(Protocol):
    """What is used of a :class:`.convex_head.HeadProblem`."""

    features: Tensor
    shape: torch.Size
    bias: bool
    loss: Any
    classes: int
    sizes: Tensor

    @property
    def rows(self) -> Tensor: ...
    @property
    def size(self) -> int: ...
    def bends(self, u: Tensor) -> Tensor: ...
    def charge(self, flops: float, table: dict[str, float]) -> None: ...
    def fit_of(self, w: Tensor, damping: float, left_out: float) -> Any: ...


FOLDS = 3
TYPICAL = 150  # products with all Hessians, of a whole path
NEWTON, INNER = 30, 60  # steps, and of conjugate gradients within one
FORCING = 0.5  # of a slope that is left by the inner ones
COMPARED, SETTLED = 1e-2, 1e-9  # of the loss: what a step takes off after which fits are compared, or done
SHARES = [10.0 ** (k / 2) for k in range(2, -17, -1)]  # dampings, of the largest curvature
PATIENCE = 2  # dampings in a row that are no better


def work(problem: Problem) -> float:
    """Flops that a whole path is expected to take."""
    return TYPICAL * FOLDS * 4.0 * len(problem.features) * problem.size


def fit_by_folds(problem: Problem, damping: float | None, tell: Callable[[Any], None]) -> Any:
    """At a damping, or at the one with the lowest loss of the samples left out."""
    z, n = problem.rows, len(problem.features)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(
        z.device
    )  # sorted data have classes in rows
    fold = torch.empty_like(order)
    fold[order] = torch.arange(n, device=z.device) % FOLDS
    present = torch.stack([(fold != k).to(z) for k in range(FOLDS)])
    together = _Together(problem, z.float(), present.float())
    if damping is None:
        damping = _chosen(together, tell)
    else:
        together.settle(damping, COMPARED)
    out = together.left_out()
    alone = _Together(problem, z, z.new_ones(1, n))
    alone.w = together.w.double().mean(0, keepdim=True)
    alone.settle(damping, SETTLED)
    return problem.fit_of(alone.w[0], damping, out)


def _chosen(together: _Together, tell: Callable[[Any], None]) -> float:
    """Down from strong dampings, each from the last one's weights."""
    scale = together.scale()
    best, kept, worse = (math.inf, 0.0), together.w, 0
    for share in SHARES:
        together.settle(share * scale, COMPARED)
        out = together.left_out()
        tell(together.problem.fit_of(together.w.double().mean(0), share * scale, out))
        if out < best[0]:
            best, kept, worse = (out, share * scale), together.w, 0
        else:
            worse += 1
            if worse == PATIENCE:
                break
    together.w = kept
    return best[1]


class _Together:
    """Fits of weights w (k, C, q) to the samples that are present (k, n) in each."""

    def __init__(self, problem: Problem, z: Tensor, present: Tensor) -> None:
        self.problem, self.z, self.present = problem, z, present
        self.w = z.new_zeros(len(present), problem.classes, z.shape[1])
        self.rounding = 10 * torch.finfo(z.dtype).eps  # of a loss
        self.loss = problem.loss.to(z.new_zeros(problem.shape))

    def outputs(self, w: Tensor) -> Tensor:
        """(k, n, C)."""
        k, c, q = w.shape
        return (self.z @ w.reshape(k * c, q).T).reshape(len(self.z), k, c).transpose(0, 1)

    def pulled(self, v: Tensor) -> Tensor:
        """(k, C, q): what cotangents (k, n, C) of those present come to."""
        k, n, c = v.shape
        v = (v * self.present[..., None]).permute(0, 2, 1).reshape(k * c, n)
        return (v @ self.z).reshape(k, c, -1)

    def _each(self, of: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """A function of the loss for each fit's outputs (k, n, C)."""
        shape, (k, n) = self.problem.shape, given[0].shape[:2]
        return torch.stack([of(*(x[i].reshape(shape) for x in given)).reshape(n, -1) for i in range(k)])

    def losses(self, u: Tensor) -> Tensor:
        """(k, n)."""
        return self._each(self.loss.per_sample, u).reshape(len(u), -1)

    def left_out(self) -> float:
        """The loss of the samples, each where it is absent."""
        return float((self.losses(self.outputs(self.w)) * (1 - self.present)).sum())

    def curvatures(self) -> Tensor:
        """(C, q): the Hessian's diagonal, without damping, with all samples at the fits' mean."""
        u = self.outputs(self.w.mean(0, keepdim=True))[0].double().reshape(self.problem.shape)
        return self.problem.bends(u).diagonal(dim1=1, dim2=2).to(self.z).T @ self.z.square()

    def scale(self) -> float:
        """The largest curvature along a direction of the features, where nothing is fitted yet."""
        return float(self.curvatures().mean(0)[: len(self.problem.sizes)].max())

    def settle(self, damping: float, tolerance: float) -> None:
        """Newton steps until another would take less than ``tolerance`` off each loss."""
        free = self.z.new_full((self.z.shape[1],), damping)
        if self.problem.bias:
            free[-1] = 0.0
        loss, u = self.loss, self.outputs(self.w)
        diagonal = (self.curvatures() + free).clamp_min(1e-30)
        value = self._total(u, self.w, free)
        zero = self.losses(torch.zeros_like(u[:1])).sum()
        least = self.rounding * zero  # separable samples have a loss of next to nothing
        for _ in range(NEWTON):
            slope = self.pulled(self._each(loss.grad, u)) + free * self.w

            def product(v: Tensor, u: Tensor = u) -> Tensor:
                self.problem.charge(4.0 * len(self.z) * v.numel(), PRODUCTS)
                return self.pulled(self._each(loss.hvp, u, self.outputs(v))) + free * v

            step = _conjugate(product, -slope, diagonal)
            fall = -(slope * step).sum((1, 2))
            if not bool((fall > torch.maximum(tolerance * value.abs(), least)).any()):
                return
            moved = self.outputs(step)
            length = torch.ones_like(value)
            for _ in range(30):
                at = length[:, None, None]
                ahead = self._total(u + at * moved, self.w + at * step, free)
                short = ~(ahead <= value - 1e-4 * length * fall + self.rounding * value.abs())
                if not bool(short.any()):
                    break
                length = torch.where(short, 0.5 * length, length)
            at = length[:, None, None]
            self.w, u = self.w + at * step, u + at * moved
            value = self._total(u, self.w, free)

    def _total(self, u: Tensor, w: Tensor, free: Tensor) -> Tensor:
        return (self.losses(u) * self.present).sum(1) + 0.5 * (free * w.square()).sum((1, 2))


def _conjugate(product: Callable[[Tensor], Tensor], b: Tensor, diagonal: Tensor) -> Tensor:
    """H⁻¹ b (k, C, q), roughly, for k Hessians side by side."""
    x, r = torch.zeros_like(b), b
    y = r / diagonal
    p, rho = y, (r * y).sum((1, 2), keepdim=True)
    enough = FORCING**2 * rho
    for _ in range(INNER):
        going = rho > enough  # who is done stays where it is
        if not bool(going.any()):
            break
        hp = product(p)
        bend = (p * hp).sum((1, 2), keepdim=True)
        length = torch.where(going & (bend > 0), rho / bend.clamp_min(1e-30), 0.0)
        x, r = x + length * p, r - length * hp
        y = r / diagonal
        new = (r * y).sum((1, 2), keepdim=True)
        p, rho = y + torch.where(going, new / rho.clamp_min(1e-30), 0.0) * p, torch.where(going, new, rho)
    return x
