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
PANELS, PANEL = 1000, 192  # from PANELS columns on a factor is found by panels of so many


def lower_gram(rows: Tensor) -> Tensor:
    """The lower triangle of rowsᵀ·rows (P, P) for rows (N, P); what stands above it is undefined.

    By blocks of columns, so that it takes little more than half of the multiplications of a matrix product.
    """
    p = rows.shape[1]
    block = BLOCK if p <= SMALL else LARGE
    if p <= block or rows.device.type != "cpu":
        return rows.T @ rows
    found = rows.new_empty(p, p)
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
    least, top = max(least, 1e-300), None
    while top is None or shift <= top:
        shifted = matrix.clone()
        shifted.diagonal().add_(shift)
        with many(len(matrix) ** 3 / 3 / EIGEN["cpu"]):
            lower = _lower(shifted)
        if lower is not None:
            return Factor(lower, shift)
        if top is None:
            largest = float(matrix.diagonal().max())
            if not largest < LARGEST:  # infinite, or NaN
                break
            top = 1e6 * max(largest, shift, least)
        shift = max(4 * shift, least)
    raise torch.linalg.LinAlgError("no damping makes the matrix positive definite: it is not finite.")


def _lower(matrix: Tensor) -> Tensor | None:
    """L of a matrix (P, P) of which the lower triangle is read, perhaps in its place; what stands above L is undefined.
    None where there is no such L.

    Large ones by panels, in place: torch's own takes and clears two further matrices, a tenth of a jump at P = 1,185.
    """
    p = len(matrix)
    if p < PANELS or matrix.device.type != "cpu":
        return _finite(*torch.linalg.cholesky_ex(matrix))
    for at in range(0, p, PANEL):
        end = min(at + PANEL, p)
        corner = _finite(*torch.linalg.cholesky_ex(matrix[at:end, at:end]))
        if corner is None:
            return None
        matrix[at:end, at:end] = corner
        panel = torch.linalg.solve_triangular(corner, matrix[end:, at:end].T, upper=False).T.contiguous()
        matrix[end:, at:end] = panel
        for row in range(end, p, LARGE):
            last = min(row + LARGE, p)
            matrix[row:last, end:last].addmm_(panel[row - end : last - end], panel[: last - end].T, alpha=-1)
    return matrix


def _finite(lower: Tensor, info: Tensor) -> Tensor | None:
    """A factor, if it is one: NaN passes LAPACK's own test. One question in all, since each waits for a GPU."""
    return lower if bool(torch.isfinite(lower.diagonal()).all() & (info == 0)) else None
