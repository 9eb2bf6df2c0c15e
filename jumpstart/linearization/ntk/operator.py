"""The kernel as a ``linear_operator`` (gpytorch's), matrix-free: products of one vjp and one jvp, nothing stored."""

from __future__ import annotations

import torch
from linear_operator import LinearOperator
from torch import Tensor

from ..linearize import Linearization
from ..metric import Metric
from ..operators import Jacobian, Kernel


class NTKOperator(LinearOperator):
    """K = J_left D J_rightᵀ (M, N) between the flattened outputs of two linearizations at the same weights.

    A product with one vector costs a vjp on the right and a jvp on the left. Use ``to_dense()``, solvers and
    preconditioners of ``linear_operator`` and gpytorch on it; for the dense kernel of small problems
    ``linearization.ntk.train_kernel`` is faster. Built by :func:`ntk_operator`; the base class takes copies of an
    operator apart into tensors and keywords, hence the ``anchor``, which gives dtype and device.
    """

    def __init__(self, anchor: Tensor, *, left: Linearization, right: Linearization, metric: Metric) -> None:
        super().__init__(anchor, left=left, right=right, metric=metric)
        self.left, self.right, self.metric = left, right, metric

    def _product(self, w: Tensor) -> Tensor:
        return Kernel(Jacobian(self.left, self.metric), Jacobian(self.right, self.metric)).apply(w)

    def _matmul(self, rhs: Tensor) -> Tensor:
        columns = rhs[:, None] if rhs.dim() == 1 else rhs
        found = torch.stack([self._product(column) for column in columns.T], dim=-1)
        return found[:, 0] if rhs.dim() == 1 else found

    def _size(self) -> torch.Size:
        return torch.Size((self.left.u.numel(), self.right.u.numel()))

    def _transpose_nonbatch(self) -> NTKOperator:
        return ntk_operator(self.right, self.left, self.metric)

    def _diagonal(self) -> Tensor:
        if self.left is not self.right:
            return super()._diagonal()
        eye = torch.eye(self.left.u.numel(), dtype=self.left.u.dtype, device=self.left.u.device)
        jacobian = Jacobian(self.left, self.metric)
        return torch.stack([jacobian.apply_adjoint(row).square().sum() for row in eye])


def ntk_operator(left: Linearization, right: Linearization | None = None, metric: Metric | None = None) -> NTKOperator:
    """The kernel between two linearizations: rows ``left`` (query points, say), columns ``right`` or the same."""
    right = left if right is None else right
    return NTKOperator(left.u, left=left, right=right, metric=Metric() if metric is None else metric)
