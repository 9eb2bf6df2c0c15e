"""Boxes of any dimension, intervals, their faces, and pairs of points on opposite faces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ..errors import InputError, ShapeError
from ..utils.brief import brief
from .composed import Composable, Union
from .domain import STEP, Array, all_of
from .given import axis_of, number, text, texts, vector

MOST = 20  # coordinates of a box: more than that no low-discrepancy sequence fills
SIDES = ("low", "high")
THIN = 1e-12  # an edge shorter than this beside its own coordinates has too few float64 numbers


@dataclass(frozen=True, repr=False)
class Box(Composable):
    """A box, from its low corner to its high one: ``Box((-1, 0), (1, 1))`` is [−1, 1] × [0, 1].

    In problems of space and time, time is the last axis: :meth:`initial`, :meth:`final` and :meth:`slab` mean that.

    Args:
        low, high: one number a coordinate, (d,), low below high.

    Raises:
        ShapeError: corners of different length. InputError: corners, axes, sides or times that cannot be used, quoted.
    """

    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0:
                raise InputError(
                    f"Box: {name} is {brief(value)}; give one number a coordinate, or js.domains.Interval."
                )
            object.__setattr__(self, name, vector(value, f"Box: {name}", most=MOST))
        if len(self.low) != len(self.high):
            raise ShapeError(f"Box: low has {len(self.low)} coordinates and high {len(self.high)}.")
        _require_edges(self, "Box")

    def __repr__(self) -> str:
        return f"Box({texts(self.low)}, {texts(self.high)})"

    @property
    def dim(self) -> int:
        """Coordinates of a point."""
        return len(self.low)

    @property
    def intrinsic_dim(self) -> int:
        """As many: it is no face."""
        return len(self.low)

    @property
    def _cube(self) -> int:
        return len(self.low)

    @property
    def measure(self) -> float:
        """Length, area or volume."""
        return math.prod(high - low for low, high in zip(self.low, self.high, strict=True))

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        low, high = np.array(self.low), np.array(self.high)
        return np.clip(low + (high - low) * u[:, : self.dim], low, high), all_of(u)

    def _inside(self, x: Array, slack: float) -> Array:
        reach = slack * _reach(self)
        return np.max(np.maximum(self.low - x, x - self.high) - reach, axis=1) <= 0.0

    def face(self, axis: int, side: Literal["low", "high"]) -> Face:
        """The face across an axis, at its low or high end: ``side`` "low" or "high"."""
        return Face(self, axis, side)

    def initial(self) -> Face:
        """The low face of the last axis, which is time."""
        return self.face(-1, "low")

    def final(self) -> Face:
        """The high face of the last axis, which is time."""
        return self.face(-1, "high")

    def slab(self, start: float, end: float) -> Box:
        """The part between the times ``start`` and ``end`` (of the last axis)."""
        start, end = _within(self, start, end)
        return Box((*self.low[:-1], start), (*self.high[:-1], end))

    def boundary(self, axes: Sequence[int] | None = None) -> Union:
        """All faces, or those across some axes: of a box of space and time, ``axes=`` those of space."""
        if axes is None:
            chosen, given = list(range(self.dim)), ""
        else:
            if isinstance(axes, (str, bytes)) or not np.iterable(axes):
                raise InputError(f"{self!r}.boundary: axes must be a sequence of axes, got {brief(axes)}.")
            chosen = sorted({axis_of(axis, self.dim, f"{self!r}.boundary") for axis in axes})
            given = f"axes={tuple(chosen)}"
            if not chosen:
                raise InputError(f"{self!r}.boundary: axes is empty; give at least one, or leave it out for all.")
        faces = tuple(self.face(axis, side) for axis in chosen for side in SIDES)
        return Union(faces, name=f"{self!r}.boundary({given})", disjoint=True)

    def periodic(self, axis: int) -> Pairs:
        """Pairs of a point of the low face across an axis and its partner on the high one, side by side in a row."""
        return Pairs(self, axis)

    def _pieces(self) -> list[Any]:
        return [self.face(axis, side) for axis in range(self.dim) for side in SIDES]


class Interval(Box):
    """An interval [a, b]: one coordinate."""

    _interval: ClassVar[bool] = True

    def __init__(self, a: float, b: float) -> None:
        object.__setattr__(self, "low", (number(a, "Interval: a"),))
        object.__setattr__(self, "high", (number(b, "Interval: b"),))
        _require_edges(self, "Interval")

    def __repr__(self) -> str:
        return f"Interval({text(self.low[0])}, {text(self.high[0])})"

    def slab(self, start: float, end: float) -> Interval:
        """The part between the times ``start`` and ``end``."""
        return Interval(*_within(self, start, end))


@dataclass(frozen=True, repr=False)
class Face(Composable):
    """A face of a box; :meth:`Box.face` makes it."""

    box: Box
    axis: int
    side: Literal["low", "high"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", axis_of(self.axis, self.box.dim, f"{self.box!r}.face"))
        if self.side not in SIDES:
            raise InputError(f"{self.box!r}.face: side must be 'low' or 'high', got {brief(self.side)}.")

    def __repr__(self) -> str:
        return f"{self.box!r}.face({self.axis}, {self.side!r})"

    @property
    def dim(self) -> int:
        return self.box.dim

    @property
    def intrinsic_dim(self) -> int:
        return self.box.dim - 1

    @property
    def _cube(self) -> int:
        return self.box.dim - 1

    @property
    def value(self) -> float:
        """The coordinate that all points of the face share."""
        return (self.box.low if self.side == "low" else self.box.high)[self.axis]

    @property
    def measure(self) -> float:
        """Its length, area or volume; 1 for the end of an interval."""
        return math.prod(np.delete(np.subtract(self.box.high, self.box.low), self.axis).tolist())

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        # any number within stands for the coordinate that is fixed
        x = self.box._candidates(np.insert(u[:, : self._cube], self.axis, 0.5, axis=1))[0]
        x[:, self.axis] = self.value
        return x, all_of(u)

    def _inside(self, x: Array, slack: float) -> Array:
        on = np.abs(x[:, self.axis] - self.value) <= abs(slack) * _reach(self.box)[self.axis]
        rest = x.copy()
        rest[:, self.axis] = (self.box.low[self.axis] + self.box.high[self.axis]) / 2
        return on & self.box._inside(rest, slack)

    def _across(self, x: Array, slack: float) -> Array:
        step = np.zeros(self.dim)
        edge = self.box.high[self.axis] - self.box.low[self.axis]
        step[self.axis] = max(STEP * edge, 4 * slack * _reach(self.box)[self.axis])
        return np.broadcast_to(step, x.shape)


@dataclass(frozen=True, repr=False)
class Pairs(Composable):
    """Points of two opposite faces, paired: rows (2·dim,); :meth:`Box.periodic` makes them."""

    _paired: ClassVar[bool] = True

    box: Box
    axis: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", axis_of(self.axis, self.box.dim, f"{self.box!r}.periodic"))

    def __repr__(self) -> str:
        return f"{self.box!r}.periodic({self.axis})"

    @property
    def dim(self) -> int:
        return 2 * self.box.dim

    @property
    def intrinsic_dim(self) -> int:
        return self.box.dim - 1

    @property
    def _cube(self) -> int:
        return self.box.dim - 1

    @property
    def measure(self) -> float:
        """That of one of the faces."""
        return self.box.face(self.axis, "low").measure

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        x = self.box.face(self.axis, "low")._candidates(u)[0]
        partner = x.copy()
        partner[:, self.axis] = self.box.high[self.axis]
        return np.concatenate([x, partner], 1), all_of(u)

    def _inside(self, x: Array, slack: float) -> Array:
        low, high = x[:, : self.box.dim], x[:, self.box.dim :]
        other = np.abs(np.delete(high - low, self.axis, 1)) <= abs(slack) * np.delete(_reach(self.box), self.axis)
        faces = [
            self.box.face(self.axis, side)._inside(part, slack) for side, part in zip(SIDES, (low, high), strict=True)
        ]
        return faces[0] & faces[1] & other.all(1)


def _reach(box: Box) -> Array:
    """The largest coordinate along each axis, which rounding is relative to."""
    return np.maximum(np.abs(box.low), np.abs(box.high))


def _require_edges(box: Box, what: str) -> None:
    for axis, (low, high) in enumerate(zip(box.low, box.high, strict=True)):
        if not low < high:
            where = "" if what == "Interval" else f" along axis {axis}"
            raise InputError(
                f"{what}: from {text(low)} to {text(high)}{where}; the first must be below the second. For a set "
                "without extent there, take a face of a larger one: box.face(axis, 'low')."
            )
        if high - low < THIN * max(abs(low), abs(high)):
            raise InputError(
                f"{what}: from {text(low)} to {text(high)} along axis {axis}: float64 cannot tell its points apart; "
                "scale or shift that coordinate."
            )
    if not 0 < box.measure < np.inf:
        raise InputError(f"{what}: its measure is {box.measure} in float64; scale the coordinates.")


def _within(box: Box, start: Any, end: Any) -> tuple[float, float]:
    start, end = number(start, f"{box!r}.slab: start"), number(end, f"{box!r}.slab: end")
    if not box.low[-1] <= start < end <= box.high[-1]:
        raise InputError(
            f"{box!r}.slab({text(start)}, {text(end)}): the last axis goes from {text(box.low[-1])} to "
            f"{text(box.high[-1])}, and a slab from a time in it to a later one."
        )
    return start, end
