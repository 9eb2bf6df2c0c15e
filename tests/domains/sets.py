"""Domains with what is known of them: measures, and membership by formulas of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jumpstart.domains import Box, Disk, Domain, Interval, Polygon

L_SHAPE = [(-1, -1), (1, -1), (1, 0), (0, 0), (0, 1), (-1, 1)]
LENS = 2 * math.pi / 3 - math.sqrt(3) / 2  # of two unit disks whose centers are 1 apart
STAR = [(0, 3), (-1, 1), (-3, 1), (-1.5, -0.5), (-2, -3), (0, -1), (2, -3), (1.5, -0.5), (3, 1), (1, 1)]


@dataclass(frozen=True)
class Row:
    """A domain, its dimension and measure, and whether points (n, dim) away from edges are in it."""

    domain: Domain
    dim: int
    intrinsic_dim: int
    measure: float
    inside: Callable[[np.ndarray], np.ndarray]
    exact: bool = True  # the measure comes from a formula


def _ball(x: np.ndarray, center: tuple[float, ...], radius: float) -> np.ndarray:
    return ((x - np.array(center)) ** 2).sum(1) <= radius**2 * (1 + 1e-12)


def _l(x: np.ndarray) -> np.ndarray:
    return (np.abs(x) <= 1).all(1) & ~((x > 0).all(1))


def _unit(x: np.ndarray, *spans: tuple[float, float]) -> np.ndarray:
    return np.all([(x[:, i] >= a - 1e-12) & (x[:, i] <= b + 1e-12) for i, (a, b) in enumerate(spans)], 0)


BOX = Box((-1, 0), (1, 1))
SQUARE = Box((-1, -1), (1, 1))
DISK = Disk((0, 0), 1)
PIERCED = Box((-2, -2), (2, 2)) - DISK

ROWS = {
    "interval": Row(Interval(-1, 2), 1, 1, 3, lambda x: _unit(x, (-1, 2))),
    "ends": Row(Interval(-1, 2).boundary(), 1, 0, 2, lambda x: (x[:, 0] == -1) | (x[:, 0] == 2)),
    "box": Row(BOX, 2, 2, 2, lambda x: _unit(x, (-1, 1), (0, 1))),
    "box of five": Row(Box((0,) * 5, (1, 2, 3, 4, 5)), 5, 5, 120, lambda x: _unit(x, *[(0, i + 1) for i in range(5)])),
    "box of twenty": Row(Box((-1,) * 20, (1,) * 20), 20, 20, 2.0**20, lambda x: _unit(x, *[(-1, 1)] * 20)),
    "initial": Row(BOX.initial(), 2, 1, 2, lambda x: (x[:, 1] == 0) & (np.abs(x[:, 0]) <= 1)),
    "final": Row(BOX.final(), 2, 1, 2, lambda x: (x[:, 1] == 1) & (np.abs(x[:, 0]) <= 1)),
    "face": Row(BOX.face(0, "high"), 2, 1, 1, lambda x: (x[:, 0] == 1) & (x[:, 1] >= 0) & (x[:, 1] <= 1)),
    "faces": Row(BOX.boundary(), 2, 1, 6, lambda x: (np.abs(x[:, 0]) == 1) | (x[:, 1] == 0) | (x[:, 1] == 1)),
    "walls": Row(BOX.boundary(axes=[0]), 2, 1, 2, lambda x: np.abs(x[:, 0]) == 1),
    "two faces": Row(BOX.initial() | BOX.face(0, "low"), 2, 1, 3, lambda x: (x[:, 1] == 0) | (x[:, 0] == -1), False),
    "slab": Row(BOX.slab(0.25, 0.5), 2, 2, 0.5, lambda x: _unit(x, (-1, 1), (0.25, 0.5))),
    "pairs": Row(
        BOX.periodic(0),
        4,
        1,
        1,
        lambda x: (x[:, 0] == -1) & (x[:, 2] == 1) & (x[:, 1] == x[:, 3]) & (x[:, 1] >= 0) & (x[:, 1] <= 1),
    ),
    "disk": Row(Disk((1, -2), 3), 2, 2, 9 * math.pi, lambda x: _ball(x, (1, -2), 3)),
    "circle": Row(
        Disk((1, -2), 3).boundary(), 2, 1, 6 * math.pi, lambda x: np.abs(np.hypot(x[:, 0] - 1, x[:, 1] + 2) - 3) < 1e-12
    ),
    "ball": Row(Disk((1, 0, 2), 2), 3, 3, 32 * math.pi / 3, lambda x: _ball(x, (1, 0, 2), 2)),
    "sphere": Row(
        Disk((1, 0, 2), 2).boundary(), 3, 2, 16 * math.pi, lambda x: abs(((x - [1, 0, 2]) ** 2).sum(1) - 4) < 1e-12
    ),
    "ball of five": Row(Disk((0,) * 5, 2), 5, 5, 32 * 8 * math.pi**2 / 15, lambda x: _ball(x, (0,) * 5, 2)),
    "sphere of five": Row(
        Disk((0,) * 5, 2).boundary(), 5, 4, 16 * 8 * math.pi**2 / 3, lambda x: abs((x**2).sum(1) - 4) < 1e-12
    ),
    "polygon": Row(Polygon(L_SHAPE), 2, 2, 3, _l),
    "edges": Row(
        Polygon(L_SHAPE).boundary(), 2, 1, 8, lambda x: (np.abs(x) == 1).any(1) | ((x == 0).any(1) & (x >= 0).all(1))
    ),
    "L-shape": Row(SQUARE - Box((0, 0), (1, 1)), 2, 2, 3, _l, False),
    "its boundary": Row(
        (SQUARE - Box((0, 0), (1, 1))).boundary(),
        2,
        1,
        8,
        lambda x: (np.abs(x) == 1).any(1) | ((x == 0).any(1) & (x >= 0).all(1)),
        False,
    ),
    "pierced": Row(PIERCED, 2, 2, 16 - math.pi, lambda x: (np.abs(x) <= 2).all(1) & ~_ball(x, (0, 0), 1 - 1e-9), False),
    "its edge": Row(
        PIERCED.boundary(),
        2,
        1,
        16 + 2 * math.pi,
        lambda x: (np.abs(x) == 2).any(1) | (np.abs(np.hypot(*x.T) - 1) < 1e-12),
        False,
    ),
    "two disks": Row(
        DISK | Disk((1, 0), 1), 2, 2, 2 * math.pi - LENS, lambda x: _ball(x, (0, 0), 1) | _ball(x, (1, 0), 1), False
    ),
    "lens": Row(DISK & Disk((1, 0), 1), 2, 2, LENS, lambda x: _ball(x, (0, 0), 1) & _ball(x, (1, 0), 1), False),
    "its arcs": Row(
        (DISK & Disk((1, 0), 1)).boundary(),
        2,
        1,
        4 * math.pi / 3,
        lambda x: _ball(x, (0, 0), 1 + 1e-7) & _ball(x, (1, 0), 1 + 1e-7),
        False,
    ),
    "part of a wall": Row(
        BOX.face(0, "low") & Box((-2, 0.25), (0, 0.5)),
        2,
        1,
        0.25,
        lambda x: (x[:, 0] == -1) & (x[:, 1] >= 0.25) & (x[:, 1] <= 0.5),
        False,
    ),
    "the rest of it": Row(
        BOX.face(0, "low") - Box((-1, 0.25), (0, 0.5)),
        2,
        1,
        0.75,
        lambda x: (x[:, 0] == -1) & ((x[:, 1] <= 0.25) | (x[:, 1] >= 0.5)),
        False,
    ),
    "space and time": Row(
        DISK * Interval(0, 2), 3, 3, 2 * math.pi, lambda x: _ball(x[:, :2], (0, 0), 1) & _unit(x[:, 2:], (0, 2))
    ),
    "boundary in time": Row(
        (DISK * Interval(0, 2)).boundary(),
        3,
        2,
        4 * math.pi,
        lambda x: (np.abs(np.hypot(x[:, 0], x[:, 1]) - 1) < 1e-12) & _unit(x[:, 2:], (0, 2)),
    ),
    "initial disk": Row(
        (DISK * Interval(0, 2)).initial(), 3, 2, math.pi, lambda x: _ball(x[:, :2], (0, 0), 1) & (x[:, 2] == 0)
    ),
    "product of regions": Row(
        (Interval(0, 1) * DISK).boundary(),
        3,
        2,
        4 * math.pi,
        lambda x: np.isin(x[:, 0], (0, 1)) | (np.abs(np.hypot(x[:, 1], x[:, 2]) - 1) < 1e-12),
    ),
    "star": Row(
        Polygon(STAR),
        2,
        2,
        abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(STAR, STAR[1:] + STAR[:1], strict=True))) / 2,
        lambda x: winding(x, STAR),
    ),
}


def winding(x: np.ndarray, vertices: list[tuple[float, float]]) -> np.ndarray:
    """Whether a polygon goes around points: by the angle that its edges are seen under, which sums to ±2π."""
    start = np.array(vertices, dtype=float)[None] - x[:, None]
    end = np.roll(start, -1, 1)
    angle = np.arctan2(start[..., 0] * end[..., 1] - start[..., 1] * end[..., 0], (start * end).sum(-1))
    return np.abs(angle.sum(1)) > np.pi
