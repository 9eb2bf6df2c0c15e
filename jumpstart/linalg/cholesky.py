"""Gram matrices and their damped Cholesky factors: by LAPACK in place on one thread, by torch on more or on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from scipy.linalg import get_blas_funcs, get_lapack_funcs
from torch import Tensor

LARGEST = 1e300  # diagonal entry of a matrix that can be damped
_syrk: Any = get_blas_funcs("syrk", dtype=numpy.float64)
_potrf: Any = get_lapack_funcs("potrf", dtype=numpy.float64)
_potrs: Any = get_lapack_funcs("potrs", dtype=numpy.float64)


def _in_place(t: Tensor) -> bool:
    """Whether scipy's routines serve best: on several threads, its pool of them and torch's get in each other's way."""
    return t.device.type == "cpu" and torch.get_num_threads() == 1


def lower_gram(rows: Tensor) -> Tensor:
    """The lower triangle of rowsᵀ·rows (P, P) for rows (N, P) in float64; what stands above it is undefined.

    On a single thread of a CPU this takes half of the multiplications of a matrix product.
    """
    if not _in_place(rows) or rows.numel() == 0:
        return rows.T @ rows
    rows = rows if rows.is_contiguous() or rows.T.is_contiguous() else rows.contiguous()
    # BLAS reads columns first: it sees a C-ordered (N, P) as its transpose, without a copy.
    if rows.is_contiguous():
        found = _syrk(1.0, rows.numpy().T, lower=0)
    else:
        found = _syrk(1.0, rows.numpy(), trans=1, lower=0)
    return torch.from_numpy(found.T)


@dataclass(frozen=True)
class Factor:
    """M + shift = L Lᵀ for a symmetric M, of which the lower triangle was read."""

    lower: Tensor
    shift: float

    def solve(self, b: Tensor) -> Tensor:
        """(M + shift)⁻¹ b for b (P,)."""
        if not _in_place(self.lower):
            return torch.cholesky_solve(b[:, None], self.lower)[:, 0]
        found, _ = _potrs(self.lower.numpy().T, b.numpy(), lower=0)
        return torch.from_numpy(found)


def factor(matrix: Tensor, shift: float, least: float) -> Factor:
    """Factor M + shift; where rounding has made that indefinite, the shift grows from ``least`` until it is not.

    Raises:
        torch.linalg.LinAlgError: no shift below 1e6 times the largest diagonal entry is enough (M is not finite).
    """
    least, top = max(least, 1e-300), None
    while top is None or shift <= top:
        damped = matrix.clone(memory_format=torch.contiguous_format)
        damped.diagonal().add_(shift)
        if _in_place(damped):
            upper, info = _potrf(damped.numpy().T, lower=0, clean=0, overwrite_a=1)
            lower = torch.from_numpy(upper.T)
        else:
            lower, info = torch.linalg.cholesky_ex(damped)
        # NaN passes LAPACK's own test; one question in all, since each waits for a GPU.
        if bool(torch.isfinite(lower.diagonal()).all() & (info == 0)):
            return Factor(lower, shift)
        if top is None:
            largest = float(matrix.diagonal().max())
            if not largest < LARGEST:  # infinite, or NaN
                break
            top = 1e6 * max(largest, shift, least)
        shift = max(4 * shift, least)
    raise torch.linalg.LinAlgError("no damping makes the matrix positive definite: it is not finite.")
