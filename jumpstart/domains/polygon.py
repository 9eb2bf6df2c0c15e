"""Simple polygons, convex or not, and their edges."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..errors import InputError, ShapeError
from ..utils.brief import brief
from .box import THIN
from .composed import Composable
from .domain import STEP, Array, all_of
from .drawing import shared_out
from .given import texts, vector

BLOCK = 2**22  # entries of points × edges at once
SHOWN = 12  # vertices in a repr


@dataclass(frozen=True, repr=False)
class Polygon(Composable):
    """A simple polygon from its vertices in order, either way around; the last is joined to the first.

    ``Polygon([(-1, -1), (1, -1), (1, 0), (0, 0), (0, 1), (-1, 1)])`` is an L-shape.

    Raises:
        ShapeError: fewer than three vertices. InputError: vertices that are no points, or edges that cross, quoted.
    """

    vertices: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        given = self.vertices
        if isinstance(given, (str, bytes, dict)) or not (isinstance(given, torch.Tensor) or np.iterable(given)):
            raise InputError(f"Polygon: vertices must be a sequence of points (x, y), got {brief(given)}.")
        found = [vector(vertex, f"Polygon: vertex {i}", 2, 2) for i, vertex in enumerate(given)]
        if len(found) > 1 and found[0] == found[-1]:  # closed, as many files have it
            found.pop()
        if len(found) < 3:
            raise ShapeError(f"Polygon: at least three vertices, got {len(found)}: {brief(given)}.")
        object.__setattr__(self, "vertices", tuple(found))
        _require_simple(np.array(found))

    def __repr__(self) -> str:
        if len(self.vertices) <= SHOWN:
            return f"Polygon([{', '.join(map(texts, self.vertices))}])"
        first = ", ".join(map(texts, self.vertices[: SHOWN // 3]))
        check = zlib.crc32(self._corners.tobytes())  # what is not shown differs as well
        return f"Polygon([{first}, …]: {len(self.vertices)} vertices, crc {check:08x})"

    @property
    def dim(self) -> int:
        """Coordinates of a point."""
        return 2

    @property
    def intrinsic_dim(self) -> int:
        """As many: it is no face."""
        return 2

    @property
    def _cube(self) -> int:
        return 2

    @property
    def measure(self) -> float:
        """Area."""
        return abs(_area(self._corners))

    @cached_property
    def _corners(self) -> Array:
        return np.array(self.vertices)

    @cached_property
    def _trapezoids(self) -> tuple[Array, Array]:
        return trapezoids(self._corners)

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        pieces, areas = self._trapezoids
        which, place = shared_out(areas, u[:, 0])
        y0, y1, left0, left1, right0, right1 = pieces[which].T
        below, above = right0 - left0, right1 - left1
        # the height below which there is that share of the area; the width in between is linear in it
        t = place * (below + above) / (below + np.sqrt(below**2 + (above**2 - below**2) * place))
        left = left0 + (left1 - left0) * t
        x = left + (below + (above - below) * t) * u[:, 1]
        return np.stack([x, y0 + (y1 - y0) * t], 1), all_of(u)

    def _inside(self, x: Array, slack: float) -> Array:
        found = np.concatenate([_crossings(part, *self._edges) % 2 == 1 for part in _blocks(x, len(self.vertices))])
        if slack == 0:
            return found
        near = _nearest(x, *self._edges)[0] <= abs(slack) * np.abs(self._corners).max()
        return found | near if slack > 0 else found & ~near

    @cached_property
    def _edges(self) -> tuple[Array, Array]:
        return self._corners, np.roll(self._corners, -1, 0)

    def boundary(self) -> Edges:
        """Its edges."""
        return Edges(self)

    def _pieces(self) -> list[Edges]:
        return [Edges(self)]


@dataclass(frozen=True, repr=False)
class Edges(Composable):
    """The edges of a polygon; :meth:`Polygon.boundary` makes it."""

    polygon: Polygon

    def __repr__(self) -> str:
        return f"{self.polygon!r}.boundary()"

    @property
    def dim(self) -> int:
        return 2

    @property
    def intrinsic_dim(self) -> int:
        return 1

    @property
    def _cube(self) -> int:
        return 1

    @cached_property
    def _lengths(self) -> Array:
        start, end = self.polygon._edges
        return np.linalg.norm(end - start, axis=1)

    @property
    def measure(self) -> float:
        """Length."""
        return float(self._lengths.sum())

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        start, end = self.polygon._edges
        which, place = shared_out(self._lengths, u[:, 0])
        return start[which] + (end - start)[which] * place[:, None], all_of(u)

    def _inside(self, x: Array, slack: float) -> Array:
        return _nearest(x, *self.polygon._edges)[0] <= abs(slack) * np.abs(self.polygon._corners).max()

    def _across(self, x: Array, slack: float) -> Array:
        start, end = self.polygon._edges
        edge = _nearest(x, start, end)[1]
        length = self._lengths[edge, None]
        along = (end - start)[edge] / length
        step = np.maximum(STEP * length, 4 * slack * np.abs(start).max())
        return step * np.stack([along[:, 1], -along[:, 0]], 1)


def trapezoids(corners: Array) -> tuple[Array, Array]:
    """Trapezoids (y0, y1, left at y0 and y1, right at y0 and y1) that a polygon consists of, and their areas.

    Between two neighbouring heights of vertices the edges that pass do not cross; every second gap is inside.
    """
    start, end = corners, np.roll(corners, -1, 0)
    heights = np.unique(corners[:, 1])
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    found = []
    for y0, y1 in pairwise(heights):
        passing = (low <= y0) & (high >= y1)
        a, b = start[passing], end[passing]
        slope = (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
        at = np.stack([a[:, 0] + slope * (y - a[:, 1]) for y in (y0, y1)], 1)
        at = at[np.argsort(at.sum(1), kind="stable")]
        for left, right in zip(at[::2], at[1::2], strict=True):
            found.append((y0, y1, *left, *np.maximum(left, right)))
    pieces = np.array(found)
    y0, y1, left0, left1, right0, right1 = pieces.T
    areas = (y1 - y0) * (right0 - left0 + right1 - left1) / 2
    return pieces[areas > 0], areas[areas > 0]


def _blocks(x: Array, edges: int) -> list[Array]:
    """Points (n, 2) as pieces (m, 1, 2), few enough to be held against all edges at once."""
    block = max(1, BLOCK // edges)
    return [x[at : at + block, None] for at in range(0, max(len(x), 1), block)]


def _nearest(x: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """How far the nearest edge is from each point, and which it is."""
    found = [_distance(part, start, end) for part in _blocks(x, len(start))]
    return np.concatenate([part.min(1) for part in found]), np.concatenate([part.argmin(1) for part in found])


def _crossings(x: Array, start: Array, end: Array) -> Array:
    """How many edges a ray to the right of each point (n, 1, 2) crosses."""
    above = (start[:, 1] > x[..., 1]) != (end[:, 1] > x[..., 1])
    rise = np.where(end[:, 1] == start[:, 1], 1.0, end[:, 1] - start[:, 1])
    at = start[:, 0] + (x[..., 1] - start[:, 1]) * (end[:, 0] - start[:, 0]) / rise
    return (above & (x[..., 0] < at)).sum(1)


def _distance(x: Array, start: Array, end: Array) -> Array:
    """Of points (n, 1, 2) from segments (m, 2): (n, m)."""
    along = end - start
    t = np.clip(((x - start) * along).sum(-1) / (along**2).sum(-1), 0.0, 1.0)
    return np.linalg.norm(x - start - t[..., None] * along, axis=-1)


def _area(corners: Array) -> float:
    """Signed: positive where the vertices go around counterclockwise."""
    x, y = (corners - corners[0]).T  # from a corner, so that nothing is lost far from the origin
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _cross(a: Array, b: Array) -> Array:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _require_simple(corners: Array) -> None:
    """Raise where edges cross, touch or double back, or where there is no area."""
    count, reach = len(corners), float(np.abs(corners).max())
    along = np.roll(corners, -1, 0) - corners
    length = np.hypot(along[:, 0], along[:, 1])
    if (length <= THIN * reach).any():
        i = int(np.argmin(length))
        raise InputError(
            f"Polygon: vertices {i} and {(i + 1) % count} are both {texts(corners[i].tolist())}; leave one out."
        )
    start, end = corners, np.roll(corners, -1, 0)
    flat = THIN * reach * length  # a cross product below which a point counts as on the edge
    for i in range(count):
        later = slice(i + 2, count - (i == 0))  # without neighbours
        touching = _touch(start[i], end[i], flat[i], start[later], end[later], flat[later])
        if touching.any():
            j = i + 2 + int(np.argmax(touching))
            raise InputError(
                f"Polygon: the edges {_edge(corners, i)} and {_edge(corners, j)} cross or touch. The vertices must be "
                "in order around a simple polygon; make what consists of several of them with |."
            )
        after = (i + 1) % count
        if abs(_cross(along[i], along[after])) <= flat[i] * 2 and along[i] @ along[after] < 0:
            raise InputError(f"Polygon: the edge {_edge(corners, after)} goes back along {_edge(corners, i)}.")
    if abs(_area(corners)) <= THIN * reach * length.max():
        raise InputError("Polygon: its vertices are on a line, so that it has no area.")


def _touch(a: Array, b: Array, flat: float, c: Array, d: Array, flats: Array) -> Array:
    """Whether the segment a–b and each of c–d have a point in common, up to rounding."""

    def side(value: Array, tolerance: Any) -> Array:
        return np.where(np.abs(value) <= tolerance, 0.0, np.sign(value))

    apart = (np.maximum(a, b) < np.minimum(c, d)) | (np.maximum(c, d) < np.minimum(a, b))
    one = side(_cross(b - a, c - a), flat) * side(_cross(b - a, d - a), flat)
    other = side(_cross(d - c, a - c), flats) * side(_cross(d - c, b - c), flats)
    return ~apart.any(-1) & (one <= 0) & (other <= 0)


def _edge(corners: Array, i: int) -> str:
    return f"{texts(corners[i].tolist())}–{texts(corners[(i + 1) % len(corners)].tolist())}"
