"""Linear operators: a matrix known by its products alone."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from ..errors import ShapeError


class LinearOperator(abc.ABC):
    """A real (m, n) matrix: ``operator @ x``, ``operator.T @ y``, for vectors and for matrices column by column.

    What is multiplied is brought to the operator's own dtype and device; so is what comes back.
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = torch.Size(shape), dtype, device

    @abc.abstractmethod
    def apply(self, v: Tensor) -> Tensor:
        """The product (m,) with one vector (n,)."""

    @abc.abstractmethod
    def apply_adjoint(self, w: Tensor) -> Tensor:
        """The transpose's product (n,) with one vector (m,)."""

    def __matmul__(self, x: Tensor) -> Tensor:
        return _product(self.apply, self, x, self.shape[1])

    @property
    def T(self) -> LinearOperator:
        """The transpose, which is the adjoint of a real matrix."""
        return Adjoint(self)

    def dense(self) -> Tensor:
        """The matrix (m, n) itself: one product a row or a column, whichever are fewer."""
        m, n = self.shape
        if m < n:
            return self.T.dense().T
        return self @ torch.eye(n, dtype=self.dtype, device=self.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} × {self.shape[1]}, {self.dtype})"


class Adjoint(LinearOperator):
    """The transpose of an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        m, n = operator.shape
        super().__init__((n, m), operator.dtype, operator.device)
        self.operator = operator

    def apply(self, v: Tensor) -> Tensor:
        return self.operator.apply_adjoint(v)

    def apply_adjoint(self, w: Tensor) -> Tensor:
        return self.operator.apply(w)

    @property
    def T(self) -> LinearOperator:
        return self.operator


class Matrix(LinearOperator):
    """An explicit matrix (m, n)."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__((rows.shape[0], rows.shape[1]), rows.dtype, rows.device)
        self.rows = rows

    def apply(self, v: Tensor) -> Tensor:
        return self.rows @ v

    def apply_adjoint(self, w: Tensor) -> Tensor:
        return self.rows.T @ w

    def dense(self) -> Tensor:
        return self.rows


def _product(apply, operator: LinearOperator, x: Tensor, n: int) -> Tensor:
    if x.dim() not in (1, 2) or x.shape[0] != n:
        raise ShapeError(
            f"{operator!r} @ a tensor of shape {tuple(x.shape)}: give a vector ({n},) or a matrix ({n}, k) of columns."
        )
    x = x.to(operator.device, operator.dtype)
    if x.dim() == 1:
        return apply(x)
    if x.shape[1] == 0:
        return x.new_zeros(operator.shape[0], 0)
    return torch.stack([apply(column) for column in x.T], dim=1)
