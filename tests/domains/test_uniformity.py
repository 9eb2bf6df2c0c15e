"""Points are spread by measure, and far more evenly than random ones: shares and means against areas and integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jumpstart.domains import Box, Disk, Interval, Polygon
from jumpstart.domains.drawing import draw, share

from .sets import DISK, L_SHAPE, LENS, PIERCED, SQUARE, STAR, winding

COUNT = 4096
RANDOM = 1 / math.sqrt(COUNT)  # how far a share or mean of random points is off, times its standard deviation


def _circular(x, start, end):
    angle = np.arctan2(x[:, 1], x[:, 0]) % (2 * np.pi)
    return (angle >= start) & (angle < end)


# a domain, a function of points, its mean over the domain by an integral done by hand
MEANS = {
    "box, x²y³": (Box((-1, 0), (1, 1)), lambda x: x[:, 0] ** 2 * x[:, 1] ** 3, 1 / 12),
    "interval, x⁴": (Interval(-1, 2), lambda x: x[:, 0] ** 4, 33 / 15),
    "disk, x²": (DISK, lambda x: x[:, 0] ** 2, 1 / 4),
    "disk, r⁴": (DISK, lambda x: (x**2).sum(1) ** 2, 1 / 3),
    "disk, a quarter": (DISK, lambda x: (x > 0).all(1), 1 / 4),
    "disk, inner half": (DISK, lambda x: (x**2).sum(1) < 0.5, 1 / 2),
    "circle, x²": (DISK.boundary(), lambda x: x[:, 0] ** 2, 1 / 2),
    "circle, an arc": (DISK.boundary(), lambda x: _circular(x, 1.0, 3.0), 1 / np.pi),
    "ball, z²": (Disk((0, 0, 0), 1), lambda x: x[:, 2] ** 2, 1 / 5),
    "ball, xy": (Disk((0, 0, 0), 1), lambda x: x[:, 0] ** 2 * x[:, 1] ** 2, 1 / 35),
    "sphere, z²": (Disk((0, 0, 0), 1).boundary(), lambda x: x[:, 2] ** 2, 1 / 3),
    "sphere, a cap": (Disk((0, 0, 0), 1).boundary(), lambda x: x[:, 0] > 0.5, 1 / 4),
    "ball of five, x²": (Disk((0,) * 5, 1), lambda x: x[:, 3] ** 2, 1 / 7),
    "ball of five, inner half": (Disk((0,) * 5, 1), lambda x: (x**2).sum(1) < 0.5**0.4, 1 / 2),
    "sphere of five, x²": (Disk((0,) * 5, 1).boundary(), lambda x: x[:, 1] ** 2, 1 / 5),
    "L-shape, an arm": (Polygon(L_SHAPE), lambda x: x[:, 1] > 0, 1 / 3),
    "L-shape, x": (Polygon(L_SHAPE), lambda x: x[:, 0], -1 / 6),
    "L-shape as a difference, x": (SQUARE - Box((0, 0), (1, 1)), lambda x: x[:, 0], -1 / 6),
    "L-shape as a union, x": (Box((-1, -1), (1, 0)) | Box((-1, -1), (0, 1)), lambda x: x[:, 0], -1 / 6),
    "edges, a side": (Polygon(L_SHAPE).boundary(), lambda x: x[:, 1] == -1, 1 / 4),
    "edges, inner ones": (Polygon(L_SHAPE).boundary(), lambda x: (x == 0).any(1), 1 / 4),
    "triangle, x + y": (Polygon([(0, 0), (3, 0), (0, 6)]), lambda x: x.sum(1), 3.0),
    "triangle, xy": (Polygon([(0, 0), (1, 0), (0, 1)]), lambda x: x[:, 0] * x[:, 1], 1 / 12),
    "faces, x": (Box((0, 0), (2, 1)).boundary(), lambda x: x[:, 0], 1.0),
    "faces, a long one": (Box((0, 0), (2, 1)).boundary(), lambda x: x[:, 1] == 0, 1 / 3),
    "faces of three, z": (Box((0, 0, 0), (1, 2, 3)).boundary(), lambda x: x[:, 2] == 3, 2 / 22),
    "two faces": (Box((0, 0), (2, 1)).initial() | Box((0, 0), (2, 1)).face(0, "low"), lambda x: x[:, 1] == 0, 2 / 3),
    "a face twice": (Interval(0, 1).face(0, "low") | Interval(0, 1).boundary(), lambda x: x[:, 0] == 0, 1 / 2),
    "pairs, y": (Box((0, 0), (1, 1)).periodic(0), lambda x: x[:, 1] ** 2, 1 / 3),
    "pierced, a quarter": (PIERCED, lambda x: (x > 0).all(1), 1 / 4),
    "pierced, near": (PIERCED, lambda x: (x**2).sum(1) < 4, 3 * np.pi / (16 - np.pi)),
    "pierced, its circle": (PIERCED.boundary(), lambda x: (x**2).sum(1) < 2, np.pi / (8 + np.pi)),
    "two disks, the left half": (DISK | Disk((1, 0), 1), lambda x: x[:, 0] < 0.5, 1 / 2),
    "two disks, the lens": (
        DISK | Disk((1, 0), 1),
        lambda x: ((x**2).sum(1) < 1) & (((x - [1, 0]) ** 2).sum(1) < 1),
        LENS / (2 * np.pi - LENS),
    ),
    "lens, upper half": (DISK & Disk((1, 0), 1), lambda x: x[:, 1] > 0, 1 / 2),
    "disk in time, x²t": (DISK * Interval(0, 2), lambda x: x[:, 0] ** 2 * x[:, 2], 1 / 4),
    "circle in time, early": ((DISK * Interval(0, 2)).boundary(), lambda x: x[:, 2] < 0.5, 1 / 4),
    "slab, t": ((DISK * Interval(0, 2)).slab(1, 1.5), lambda x: x[:, 2], 1.25),
    "a cylinder's ends": ((Interval(0, 1) * DISK).boundary(), lambda x: np.isin(x[:, 0], (0, 1)), 1 / 2),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_are_integrals_and_converge_faster_than_random(name):
    domain, fn, exact = MEANS[name]
    values = np.array([fn(domain.points(COUNT, seed).numpy()).astype(float) for seed in range(8)])
    off = np.sqrt(np.mean((values.mean(1) - exact) ** 2))
    assert off < 0.35 * values.std() * RANDOM + 1e-12, f"{off:.2g}, random points {values.std() * RANDOM:.2g}"
    assert abs(values.mean() - exact) < 0.2 * values.std() * RANDOM + 1e-12


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_errors_fall_faster_than_the_root_of_the_number(dim):
    box = Box((0,) * dim, (1,) * dim)
    counts = [256, 4096]
    off = []
    for count in counts:
        means = [float(box.points(count, seed).exp().prod(1).mean()) for seed in range(16)]
        off.append(math.sqrt(np.mean((np.array(means) / (math.e - 1) ** dim - 1) ** 2)))
    assert off[1] < off[0] / 8, f"{off}: a sixteenth of random points' would be a quarter"


@pytest.mark.parametrize("count", [1, 3, 100, 1000, 1500])
def test_counts_that_are_no_power_of_two_are_cut(count):
    x = Box((0, 0), (1, 1)).points(count, 4).numpy()
    assert x.shape == (count, 2)
    inside = (x < 0.5).all(1).mean()
    assert abs(inside - 0.25) <= 3 / count + 1e-3 if count > 3 else True
    assert np.unique(x, axis=0).shape == x.shape


def test_points_are_inside_and_not_on_the_boundary():
    """1/x and log x are finite at all of them."""
    x = Box((0, 0), (1, 1)).points(2**15).numpy()
    assert (x > 0).all() and (x < 1).all()


def test_random_boxes_share_their_points_by_volume():
    rng = np.random.default_rng(0)
    for _ in range(40):
        dim = int(rng.integers(1, 7))
        low = rng.normal(size=dim) * 10.0 ** rng.integers(-3, 4)
        edge = 10.0 ** rng.uniform(-3, 3, dim)
        box = Box(low, low + edge)
        assert box.measure == pytest.approx(np.prod(edge), rel=1e-9)
        x = box.points(1024, int(rng.integers(100)))
        assert bool(box.contains(x).all())
        cut = rng.uniform(0.2, 0.8, dim)
        below = (x.numpy() < low + cut * edge).all(1).mean()
        assert abs(below - np.prod(cut)) < 0.5 * RANDOM * 2
        faces = box.boundary().points(1024, 1)
        assert bool(box.contains(faces).all()) and bool(box.boundary().contains(faces).all())
        axis = int(rng.integers(dim))
        on = np.isin(faces.numpy()[:, axis], (box.low[axis], box.high[axis])).mean()
        areas = np.prod(edge) / edge
        assert abs(on - areas[axis] / areas.sum()) < 0.02


def star(rng) -> np.ndarray:
    """A simple polygon, seldom convex: vertices at growing angles around the origin, then turned, flattened, moved."""
    count = int(rng.integers(3, 40))
    angles = np.cumsum(rng.uniform(0.3, 1.0, count))
    angles *= 2 * np.pi / (angles[-1] + 0.3)
    vertices = rng.uniform(0.2, 1.0, (count, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
    if count < 5:
        vertices = np.array([[0, 0], [1, 0.1], [0.9, 1], [0.1, 0.8]])[: max(count, 3)]
    vertices = vertices @ rng.normal(size=(2, 2)) + rng.normal(size=2) * 5
    return vertices if rng.random() < 0.5 else vertices[::-1]


def test_random_polygons_share_their_points_by_area():
    rng = np.random.default_rng(1)
    for trial in range(40):
        vertices = star(rng)
        polygon = Polygon(vertices)
        x, y = vertices.T
        following = np.roll(vertices, -1, 0)
        cross = x * following[:, 1] - following[:, 0] * y
        area = abs(cross.sum()) / 2
        assert polygon.measure == pytest.approx(area, rel=1e-9), trial
        found = polygon.points(2048, trial)
        assert bool(polygon.contains(found).all())
        assert winding(found.numpy(), vertices).mean() > 0.999  # the winding number knows no edge
        center = (cross[:, None] * (vertices + following)).sum(0) / (6 * cross.sum() / 2)
        spread = found.numpy().std(0)
        assert (np.abs(found.numpy().mean(0) - center) < 0.5 * spread / math.sqrt(2048)).all(), trial
        around = rng.uniform(vertices.min(0), vertices.max(0), (500, 2))
        assert (polygon.contains(around).numpy() == winding(around, vertices)).all()
        edges = np.hypot(*(following - vertices).T)
        on = polygon.boundary().points(2048, trial)
        assert bool(polygon.contains(on).all()) and bool(polygon.boundary().contains(on).all())
        middle = (((vertices + following) / 2) * edges[:, None]).sum(0) / edges.sum()
        assert np.abs(on.numpy().mean(0) - middle).max() < 0.01 * edges.sum() / 6
        assert polygon.boundary().measure == pytest.approx(edges.sum())


def test_a_star_against_its_triangles():
    """A mean over a polygon that is far from convex, by signed triangles to the origin: exact for polynomials."""
    a, b = np.array(STAR, float), np.roll(np.array(STAR, float), -1, 0)
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    second = (cross / 12 * (a[:, 0] ** 2 + a[:, 0] * b[:, 0] + b[:, 0] ** 2)).sum() / (cross.sum() / 2)
    x = Polygon(STAR).points(COUNT, 1).numpy()
    assert abs((x[:, 0] ** 2).mean() - second) < 0.35 * (x[:, 0] ** 2).std() * RANDOM


def test_no_coordinate_of_the_sequence_is_zero_or_one():
    """They are the middles of 2⁵² cells; a point at a corner of the cube would come too seldom to be met by chance."""
    seen = []

    def candidates(u):
        seen.append(u)
        return u, np.ones(len(u), dtype=bool)

    draw(candidates, 2, 100, 0, "the cube")
    share(candidates, 2, "the cube")
    assert all((u * 2.0**53 % 2 == 1).all() for u in seen) and len(seen) == 2
