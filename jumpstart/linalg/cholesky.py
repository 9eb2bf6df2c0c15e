"""Gram matrices and their damped Cholesky factors, by torch alone.

scipy's LAPACK would bring a second pool of threads beside torch's, which spins where the machine is busy
(docs/decisions/0018-guard-and-threads.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.cost import EIGEN, PRODUCTS
from ..utils.threads import many

LARGEST = 1e300  # diagonal entry of a matrix that can be damped
SMALL, BLOCK, LARGE = 512, 64, 128  # columns of a block of a Gram matrix: BLOCK up to SMALL columns in all, else LARGE


def lower_gram(rows: Tensor) -> Tensor:
    """The lower triangle of rowsᵀ·rows (P, P) for rows (N, P); what stands above it is undefined.

    By blocks of columns, so that it takes little more than half of the multiplications of a matrix product.
    """
    p = rows.shape[1]
    block = BLOCK if p <= SMALL else LARGE
    if p <= block or rows.device.type != "cpu":
        return rows.T @ rows
    found = rows.new_zeros(p, p)
    with many(p * rows.numel() / PRODUCTS["cpu"]):
        for at in range(0, p, block):
            end = min(at + block, p)
            torch.mm(rows[:, at:end].T, rows[:, :end], out=found[at:end, :end])
    return found


@dataclass(frozen=True)
class Factor:
    """M + shift = L Lᵀ for a symmetric M, of which the lower triangle was read."""

    lower: Tensor
    shift: float

    def solve(self, b: Tensor) -> Tensor:
        """(M + shift)⁻¹ b for b (P,)."""
        half = torch.linalg.solve_triangular(self.lower, b[:, None], upper=False)
        return torch.linalg.solve_triangular(self.lower.T, half, upper=True)[:, 0]


def factor(matrix: Tensor, shift: float, least: float) -> Factor:
    """Factor M + shift; where rounding has made that indefinite, the shift grows from ``least`` until it is not.

    Raises:
        torch.linalg.LinAlgError: no shift below 1e6 times the largest diagonal entry is enough (M is not finite).
    """
    least, top, diagonal = max(least, 1e-300), None, matrix.diagonal().clone()
    while top is None or shift <= top:
        try:  # in place, which saves a copy of M
            matrix.diagonal().add_(shift)
            with many(len(matrix) ** 3 / 3 / EIGEN["cpu"]):
                lower, info = torch.linalg.cholesky_ex(matrix)
        finally:
            matrix.diagonal().copy_(diagonal)
        # NaN passes LAPACK's own test; one question in all, since each waits for a GPU.
        if bool(torch.isfinite(lower.diagonal()).all() & (info == 0)):
            return Factor(lower, shift)
        if top is None:
            largest = float(diagonal.max())
            if not largest < LARGEST:  # infinite, or NaN
                break
            top = 1e6 * max(largest, shift, least)
        shift = max(4 * shift, least)
    raise torch.linalg.LinAlgError("no damping makes the matrix positive definite: it is not finite.")
