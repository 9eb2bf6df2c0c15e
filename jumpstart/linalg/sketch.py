"""The row space of a tall or wide matrix, as far as its large singular values go, from a few random sums of its rows.

Every row is added to one of the sums and taken from another, which costs two passes over the matrix. A sparse embedding
in the sense of Martinsson & Tropp, Randomized numerical linear algebra (Acta Numerica 29, 2020), section 9.2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_space(rows: Tensor, width: int, seed: int) -> Tensor:
    """Orthonormal columns (P, width) that nearly hold the leading right singular vectors of ``rows`` (N, P).

    Args:
        width: from 2 to the smaller of N and P, which is the whole row space. Half as many more than singular values
            that matter are enough where the others fall off.
    """
    if width == min(rows.shape):
        return torch.linalg.qr(rows.T)[0]
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(width, (len(rows),), generator=generator, device="cpu")
    other = (first + 1 + torch.randint(width - 1, (len(rows),), generator=generator, device="cpu")) % width
    sums = rows.new_zeros(width, rows.shape[1])
    sums.index_add_(0, first.to(rows.device), rows)
    sums.index_add_(0, other.to(rows.device), rows, alpha=-1)  # so that the sums are right on average
    return torch.linalg.qr(sums.T)[0]
