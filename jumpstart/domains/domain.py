"""What a domain is: a set that points of the unit cube are mapped to, of which a predicate may keep a part."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..utils.brief import brief
from .drawing import draw, share
from .given import rows, whole

ROUNDING = 32.0  # machine precisions by which a point may lie beside a set and still be on it
EPS = ROUNDING * float(np.finfo(np.float64).eps)
STEP = 1e-7  # of a set's size: how far beside its boundary is looked for what lies on either side

Array = NDArray[Any]


class Domain:
    """A set that collocation points are drawn from.

    ``points(count, seed)`` draws from it, ``contains(x)`` asks whether points belong to it, ``measure`` is its length,
    area or volume. Domains are values: they never change, are equal when they are written equally, and can be pickled.
    ``a * b`` is the product (coordinates side by side), ``a | b`` the union, ``a - b`` the difference, ``a & b`` the
    intersection.

    A subclass says how many coordinates of the unit cube it needs (``_cube``), maps them (``_candidates``: points, and
    which of them are accepted; the rest is left out, and drawn on) from a cube of volume ``_envelope``, and answers
    ``_inside``. All else follows.
    """

    dim: int  # coordinates of a point
    intrinsic_dim: int  # of the set itself: one less than ``dim`` for a face
    _cube: int
    _interval: ClassVar[bool] = False  # may be the time of a product

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def _inside(self, x: Array, slack: float) -> Array:
        """Whether points belong to the set, widened (or, below zero, narrowed) by that share of its coordinates."""
        raise NotImplementedError

    @property
    def _envelope(self) -> float:
        """The measure of what the unit cube is mapped to, accepted or not."""
        return self.measure

    @property
    def measure(self) -> float:
        """Length, area or volume in the set's own dimension (the number of points where that is zero).

        By a formula where there is one; for unions that overlap, differences, intersections and their boundaries
        estimated by the share of 16,384 or more low-discrepancy points that belong to it, good to three digits.
        """
        return self._envelope * self._share

    @cached_property
    def _share(self) -> float:
        """Of candidates that are accepted."""
        return share(self._candidates, self._cube, repr(self))

    def points(self, count: int, seed: int = 0) -> Tensor:
        """``count`` low-discrepancy points: (count, dim), float64, on the CPU.

        The same for the same count and seed, others for another seed; fewer are the first of more.

        Raises:
            InputError: a count below 1, or a set in which (nearly) no points are found.
        """
        count = whole(count, f"{self!r}.points: count", 1)
        seed = whole(seed, f"{self!r}.points: seed", 0)
        # from_numpy, because a default device of the user's has no say in where these are
        return torch.from_numpy(np.ascontiguousarray(draw(self._candidates, self._cube, count, seed, repr(self))))

    def contains(self, x: Any) -> Tensor:
        """Whether points (n, dim) are inside or on the set, up to the rounding of their dtype: (n,) bool."""
        given, eps = rows(x, self.dim, f"{self!r}.contains")
        finite = np.flatnonzero(np.isfinite(given).all(axis=1))
        inside = np.zeros(len(given), dtype=bool)
        inside[finite] = self._inside(given[finite], ROUNDING * eps)
        found = torch.from_numpy(inside)
        return found.to(x.device) if isinstance(x, Tensor) else found

    def boundary(self) -> Domain:
        """The boundary, points in proportion to its measure.

        Raises:
            InputError: the set is a boundary itself.
        """
        raise InputError(f"{self!r} has no boundary to draw from; take that of the full-dimensional set it is part of.")


def all_of(x: Array) -> Array:
    """Every candidate is accepted."""
    return np.ones(len(x), dtype=bool)


def require_domain(value: Any, what: str) -> Domain:
    if not isinstance(value, Domain):
        raise InputError(f"{what}: expected a domain (js.domains.Box, Disk, …), got {brief(value)}.")
    return value
