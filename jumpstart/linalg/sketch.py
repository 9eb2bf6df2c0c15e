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
    if width == rows.shape[1]:
        return torch.eye(width, dtype=rows.dtype, device=rows.device)
    if width == len(rows):
        return torch.linalg.qr(rows.T)[0]
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(width, (len(rows),), generator=generator, device="cpu")
    other = (first + 1 + torch.randint(width - 1, (len(rows),), generator=generator, device="cpu")) % width
    # Added and taken away, so that the sums are right on average.
    if rows.device.type == "cpu":
        sums = rows.new_zeros(width, rows.shape[1]).index_add_(0, first, rows).index_add_(0, other, rows, alpha=-1)
    else:  # where rows would be added in no order
        signs = torch.zeros(width, len(rows), dtype=rows.dtype)
        each = torch.arange(len(rows))
        signs[first, each], signs[other, each] = 1.0, -1.0
        sums = signs.to(rows.device) @ rows
    return torch.linalg.qr(sums.T)[0]
