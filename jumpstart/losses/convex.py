"""Any convex loss, by autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from .base import Loss, require_convex, require_finite_targets


class Convex(Loss):
    """Any convex loss, by autograd: Φ = mean over samples of ``fn(row of u, row of targets)``.

    Args:
        fn: maps one sample's outputs and targets to a scalar; torch operations only, convex in the outputs.
        targets: (n, …) tensor, row i belonging to sample i.

    Raises:
        NonConvexError: a sample's Hessian has a negative eigenvalue (on the first use of the curvature).
    """

    def __init__(self, fn: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> None:
        if not callable(fn):
            raise InputError(f"Convex needs a function (outputs, targets) -> scalar for one sample, got {fn!r}.")
        require_finite_targets(targets)
        self.fn, self.targets = fn, targets.detach()

    def check(self, u: Tensor) -> None:
        if u.dim() == 0 or u.shape[0] != self.targets.shape[0]:
            raise ShapeError(f"outputs {tuple(u.shape)} and targets {tuple(self.targets.shape)} differ in samples.")
        loss = self.fn(u[0], self.targets[0])
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ShapeError(f"the loss of one sample must be a scalar tensor, got {got}.")
        self._hessian(u)

    def _one(self, row: Tensor, target: Tensor) -> Tensor:
        return self.fn(row, target).reshape(()) / self.targets.shape[0]

    def _over(self, u: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply ``rows`` (which maps (n, …) to (n, …)) under every leading dimension of u."""
        lead = u.dim() - self._rank
        for _ in range(lead):
            rows = torch.vmap(rows)
        return rows(u)

    _rank = 1

    def to(self, u: Tensor) -> Loss:
        twin = copy.copy(super().to(u))
        assert isinstance(twin, Convex)
        twin._rank = u.dim()
        return twin

    def per_sample(self, u: Tensor) -> Tensor:
        return self._over(u, lambda x: torch.vmap(self._one)(x, self.targets))

    def grad(self, u: Tensor) -> Tensor:
        return self._over(u, lambda x: torch.vmap(torch.func.grad(self._one))(x, self.targets))

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(self.grad, (u.expand_as(v).contiguous(),), (v,))[1]

    def _hessian(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shape = u.shape[1:]

        def one(row: Tensor, target: Tensor) -> Tensor:
            return self._one(row.reshape(shape), target)

        hessians = torch.vmap(torch.func.hessian(one))(u.flatten(1) if u.dim() > 1 else u[:, None], self.targets)
        lam, vectors = torch.linalg.eigh(hessians)
        require_convex(lam, "a sample's loss")
        return lam.clamp_min(0).sqrt(), vectors

    def sqrt(self, u: Tensor, v: Tensor) -> Tensor:
        root, vectors = self._hessian(u)
        flat = v.reshape(*v.shape[: v.dim() - u.dim()], u.shape[0], -1)
        return torch.einsum("nij,nj,...nj->...ni", vectors, root, flat).reshape(v.shape)

    def sqrt_t(self, u: Tensor, v: Tensor) -> Tensor:
        root, vectors = self._hessian(u)
        flat = v.reshape(*v.shape[: v.dim() - u.dim()], u.shape[0], -1)
        return (torch.einsum("nij,...ni->...nj", vectors, flat) * root).reshape(v.shape)

    def with_targets(self, targets: Tensor) -> Convex:
        return Convex(self.fn, targets)
