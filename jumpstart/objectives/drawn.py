"""Points that are drawn from a domain: at first evenly, later where the residual is large.

Residual-based adaptive distribution, RAD: of candidates drawn evenly, points are chosen at random with probabilities in
proportion to |r| / mean |r| + 1 (Wu, Zhu, Tan, Kartha & Lu 2023, arXiv:2207.10289, k = c = 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor, nn

from ..domains import Domain
from ..errors import InputError, NonFiniteError
from ..utils.brief import brief
from .collocation import Points
from .parts import weight_scale
from .pure import Bound

COUNT, ON_FACES = 1000, 200  # points that are drawn, if nobody says how many; of sets thinner than their space
POOL = 6  # candidates for each point that is kept
LEAST = 500  # unseen points of a term: a mean over fewer misses what few points have missed
UNSEEN = 2**20  # seeds of points that are never trained on begin here
DRAWS = 100  # seeds that one renewal may take


def part(
    fn: Callable[[Callable[..., Any], Tensor], Tensor], domain: Domain, weight: Any, count: int | None, seed: int,
    model: nn.Module,
) -> Points:  # fmt: skip
    """A term on points drawn evenly from a domain; its weight is that of the mean of squares.

    Raises:
        InputError: a count below 1, a seed that is none, a weight for each point.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < UNSEEN:
        raise InputError(f"a term's seed={brief(seed)}: give a whole number, 0 to {UNSEEN - 1:,}.")
    if count is None:
        count = COUNT if domain.intrinsic_dim == domain.dim else ON_FACES
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"a term's count={brief(count)}: give how many points are drawn, at least 1.")
    if isinstance(weight, Tensor) and weight.numel() > 1:
        raise InputError(
            f"a term on {domain!r} has a weight for each of {weight.numel()} points, but its points are drawn and "
            "renewed: give one number, or multiply by the root of a function of the point in the residual."
        )
    points = like(model, domain.points(count, seed))
    found = Points(fn, points, weight_scale(weight, points) / math.sqrt(count))
    found.domain = domain
    return found


def like(model: nn.Module, points: Tensor) -> Tensor:
    """In the dtype and on the device of the model's parameters."""
    own = next((p for p in model.parameters() if p.is_floating_point()), None)
    return points if own is None else points.to(own.device, own.dtype)


def elsewhere(part: Points, seed: int, count: int | None = None) -> Points:
    """The same term at other points of its domain, as many if no number is given."""
    assert part.domain is not None
    return part.at(part.domain.points(len(part.points) if count is None else count, seed).to(part.points))


def between(part: Points) -> Points | None:
    """The same term halfway between each of its points and the nearest other one.

    None where that says nothing: fewer than two places, a weight for each point, or points whose rows hold more than
    coordinates of the network (values that were looked up), as far as a traced residual shows.
    """
    if part.local is None or not isinstance(part.scale, float):
        return None
    asked = [range(*place.columns) for place in part.local.places if place.columns is not None]
    points = part.points
    if len(asked) < len(part.local.places) or {i for some in asked for i in some} != set(range(points.shape[-1])):
        return None
    plain = points.detach().double().cpu().numpy()
    span = np.ptp(plain, axis=0)
    distinct = np.unique(plain / np.where(span > 0, span, 1), axis=0)
    if len(distinct) < 2:
        return None
    places: Any = KDTree(distinct).query(distinct, k=2)[1]
    nearest = places[:, 1]
    halfway = 0.5 * (distinct + distinct[nearest]) * np.where(span > 0, span, 1)
    return part.at(torch.from_numpy(halfway).to(points))


def unseen(part: Points, seed: int) -> Points:
    """The same term at other points of its domain, twice as many and at least ``LEAST``."""
    return elsewhere(part, UNSEEN + seed, max(2 * len(part.points), LEAST))


def _rows(part: Points, net: Bound) -> Tensor:
    return part.outputs(net)


def by_residual(
    part: Points, probe: Points, net: Bound, seed: int, growth: float, rows: Callable[[Points, Bound], Tensor] = _rows
) -> Points:
    """The same term at points drawn anew by residual.

    Args:
        rows: of a part, asked of whoever evaluates them.
        probe: the term at any points; residuals are asked at as many at a time, so that its fast way goes through them.
    """
    assert part.domain is not None
    count = math.ceil(growth * len(part.points))
    chunks = [elsewhere(probe, seed * DRAWS + i) for i in range(math.ceil(POOL * count / len(probe.points)))]
    sizes = torch.cat([magnitudes(chunk, net, rows) for chunk in chunks])
    candidates = torch.cat([chunk.points for chunk in chunks])
    bad = ~torch.isfinite(sizes)
    if bool(bad.any()):
        raise NonFiniteError(
            f"the residual {part.name!r} is {float(sizes[bad][0])} at the point {candidates[bad][0].tolist()} of "
            f"{part.domain!r}: leave such points out of the domain, or write the residual so that it is finite there."
        )
    return part.at(candidates[by_size(sizes, count, seed).to(candidates.device)])


def by_size(sizes: Tensor, count: int, seed: int) -> Tensor:
    """Which ``count`` candidates are chosen, by their residuals: at random in proportion to |r| / mean |r| + 1."""
    mean = float(sizes.mean())
    weights = (sizes / mean if mean > 0 else torch.zeros_like(sizes)) + 1
    return torch.multinomial(weights.cpu(), count, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def magnitudes(part: Points, net: Bound, rows: Callable[[Points, Bound], Tensor] = _rows) -> Tensor:
    """The residual's norm at each of the term's points (m,), without weights; float64."""
    plain = part.weighed(None)
    found = rows(plain, net).double().reshape(len(part.points), -1)
    return torch.linalg.vector_norm(found, dim=1) / plain.scale
