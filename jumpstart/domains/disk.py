"""Disks, balls in any dimension, and the circles and spheres around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from ..errors import InputError
from .box import MOST, THIN
from .composed import Composable
from .domain import STEP, Array, all_of
from .given import number, text, texts, vector


@dataclass(frozen=True, repr=False)
class Disk(Composable):
    """A disk, ``Disk((0, 0), 1)``; with more coordinates in the center a ball.

    Args:
        center: (d,). radius: above 0.

    Raises:
        InputError: numbers that make no disk, quoted.
    """

    center: Sequence[float]
    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "center", vector(self.center, "Disk: center", most=MOST))
        object.__setattr__(self, "radius", number(self.radius, "Disk: radius"))
        if len(self.center) == 1:
            raise InputError(f"Disk: center has one coordinate, {texts(self.center)}; take js.domains.Interval.")
        if self.radius <= 0:
            raise InputError(f"Disk: radius must be above 0, got {text(self.radius)}.")
        if self.radius < THIN * max(map(abs, self.center)) or not 0 < self.measure < math.inf:
            raise InputError(
                f"Disk: radius {text(self.radius)} around {texts(self.center)}: float64 cannot tell its points apart, "
                "or not hold its volume; scale or shift the coordinates."
            )

    def __repr__(self) -> str:
        return f"Disk({texts(self.center)}, {text(self.radius)})"

    @property
    def dim(self) -> int:
        """Coordinates of a point."""
        return len(self.center)

    @property
    def intrinsic_dim(self) -> int:
        """As many: it is no face."""
        return len(self.center)

    @property
    def _cube(self) -> int:
        return 1 + self.boundary()._cube

    @property
    def measure(self) -> float:
        """Area or volume."""
        return _volume(self.dim) * self.radius**self.dim

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        length = u[:, :1] ** (1 / self.dim)
        return self.center + self.radius * length * _directions(self.dim, u[:, 1:]), all_of(u)

    def _inside(self, x: Array, slack: float) -> Array:
        return np.linalg.norm(x - self.center, axis=1) <= self.radius + slack * _reach(self)

    def boundary(self) -> Sphere:
        """The circle or sphere."""
        return Sphere(self)

    def _pieces(self) -> list[Sphere]:
        return [Sphere(self)]


@dataclass(frozen=True, repr=False)
class Sphere(Composable):
    """The circle or sphere around a disk; :meth:`Disk.boundary` makes it."""

    disk: Disk

    def __repr__(self) -> str:
        return f"{self.disk!r}.boundary()"

    @property
    def dim(self) -> int:
        return self.disk.dim

    @property
    def intrinsic_dim(self) -> int:
        return self.disk.dim - 1

    @property
    def _cube(self) -> int:
        return self.dim - 1 if self.dim <= 3 else self.dim

    @property
    def measure(self) -> float:
        """Circumference or area."""
        return self.dim * self.disk.measure / self.disk.radius

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        return self.disk.center + self.disk.radius * _directions(self.dim, u), all_of(u)

    def _inside(self, x: Array, slack: float) -> Array:
        off = np.linalg.norm(x - self.disk.center, axis=1) - self.disk.radius
        return np.abs(off) <= abs(slack) * _reach(self.disk)

    def _across(self, x: Array, slack: float) -> Array:
        away = x - self.disk.center
        step = max(STEP * self.disk.radius, 4 * slack * _reach(self.disk))
        return step * away / np.linalg.norm(away, axis=1, keepdims=True)


def _directions(dim: int, u: Array) -> Array:
    """Unit vectors, uniform over the sphere: by angle, by height and angle, else by a normal vector."""
    if dim > 3:
        z = ndtri(u)
        return z / np.linalg.norm(z, axis=1, keepdims=True)
    angle = 2 * np.pi * u[:, -1]
    around = np.stack([np.cos(angle), np.sin(angle)], 1)
    if dim == 2:
        return around
    height = 1 - 2 * u[:, :1]  # Archimedes: as uniform as on the cylinder around it
    return np.concatenate([np.sqrt(1 - height**2) * around, height], 1)


def _volume(dim: int) -> float:
    """Of the unit ball."""
    return math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)


def _reach(disk: Disk) -> float:
    """The largest coordinate, which rounding is relative to."""
    return max(map(abs, disk.center)) + disk.radius
