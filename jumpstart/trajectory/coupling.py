"""Whether what a record says of the samples' moves holds for moves that it has not seen: the test against circularity.

"What the run left alone does not transfer" is circular as long as channel and transfer are read off from one run. A
readout of one half (of a run, of the samples, of the queries) must tell the moves at queries in the other half from the
moves at the samples there; moves that are permuted among the samples show what would be found by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, NonFiniteError, ShapeError
from ..utils.brief import brief
from ..utils.values import require_count


@dataclass(frozen=True)
class Coupling:
    """Predicted against real moves at query points.

    Attributes:
        predicted, real: (m,). correlation: Pearson's. error: ‖predicted − real‖ / ‖real‖. permuted: correlations (p,)
            with the samples' moves permuted. chance: share of these, and of itself, that are as high.
    """

    predicted: Tensor
    real: Tensor
    correlation: float
    error: float
    permuted: Tensor
    chance: float


def coupling(readout: Tensor, moved: Tensor, shown: Tensor, permutations: int = 200, seed: int = 0) -> Coupling:
    """How well a readout tells moves at queries from moves of the samples.

    Args:
        readout: (m, N), of :meth:`jumpstart.trajectory.Operators.readout`, from one half. moved: of the outputs on the
            samples (N,), in the other half. shown: at the queries (m,), there, too.
        permutations: of the samples, for the baseline. seed: of these; the global random state is left alone.

    Raises:
        ShapeError, NonFiniteError, InputError: shapes that do not belong together, numbers that are none, no moves.
    """
    moved, real = moved.reshape(-1), shown.reshape(-1)
    if readout.dim() != 2 or readout.shape != (real.numel(), moved.numel()):
        raise ShapeError(
            f"coupling: a readout of shape {tuple(readout.shape)} for moves of {moved.numel()} outputs on samples and "
            f"{real.numel()} at queries: give (m, N), (N,) and (m,)."
        )
    require_count("coupling", "permutations", permutations)
    if not all(bool(torch.isfinite(t).all()) for t in (readout, moved, real)):
        raise NonFiniteError("coupling: readout or moves hold NaN or infinity.")
    if not bool((real != 0).any()) or real.numel() < 2:
        raise InputError(f"coupling: moves at the queries {brief(real)}: two at least, and not all of them zero.")
    readout, moved = readout.to(real), moved.to(real)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(len(moved), generator=generator) for _ in range(permutations)])
    predicted = readout @ moved
    permuted = torch.tensor([_correlation(readout @ moved[order.to(moved.device)], real) for order in orders])
    found = _correlation(predicted, real)
    return Coupling(
        predicted, real, found, float(torch.linalg.vector_norm(predicted - real) / torch.linalg.vector_norm(real)),
        permuted, (1 + int((permuted >= found).sum())) / (1 + permutations),
    )  # fmt: skip


def _correlation(one: Tensor, two: Tensor) -> Any:
    """Pearson's; 0 where one of them does not vary."""
    a, b = one - one.mean(), two - two.mean()
    size = float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    return float(torch.dot(a, b)) / size if size > 0 and math.isfinite(size) else 0.0
