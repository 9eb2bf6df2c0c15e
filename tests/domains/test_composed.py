"""Products, unions, differences, intersections: what belongs to them, and their boundaries where sets touch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jumpstart.domains import Box, Disk, Interval, Polygon
from jumpstart.errors import InputError

from .sets import DISK, L_SHAPE, SQUARE

UNIT = Box((0, 0), (1, 1))
NEXT = Box((1, 0), (2, 1))  # touches it along a whole face
RADII = np.random.default_rng(0).uniform(-2.5, 2.5, (4000, 2))


def _in_disk(x, center=(0.0, 0.0), radius=1.0):
    return ((x - np.array(center)) ** 2).sum(1) <= radius**2


def _in_box(x, low, high):
    return ((x >= low) & (x <= high)).all(1)


SETS = {
    "disk": (DISK, _in_disk),
    "box": (UNIT, lambda x: _in_box(x, (0, 0), (1, 1))),
    "L": (Polygon(L_SHAPE), lambda x: _in_box(x, -1, 1) & ~_in_box(x, 0, 1)),
    "off": (Disk((0.5, 0.5), 0.7), lambda x: _in_disk(x, (0.5, 0.5), 0.7)),
}


@pytest.mark.parametrize("a", SETS)
@pytest.mark.parametrize("b", SETS)
def test_membership_is_that_of_sets(a, b):
    (one, in_one), (two, in_two) = SETS[a], SETS[b]
    first, second = in_one(RADII), in_two(RADII)
    assert ((one | two).contains(RADII).numpy() == (first | second)).all()
    assert ((one & two).contains(RADII).numpy() == (first & second)).all()
    assert ((one - two).contains(RADII).numpy() == (first & ~second)).all()
    nested = (one | two) - (one & two)
    assert (nested.contains(RADII).numpy() == (first ^ second)).all()


@pytest.mark.parametrize("a", SETS)
@pytest.mark.parametrize("b", SETS)
def test_boundaries_divide_inside_from_outside(a, b):
    """Around each point of a boundary, a small circle has points of the set and others."""
    one, two = SETS[a][0], SETS[b][0]
    angle = np.linspace(0, 2 * np.pi, 17)[:-1]
    circle = 1e-5 * np.stack([np.cos(angle), np.sin(angle)], 1)
    for whole in (one | two, one & two, one - two):
        if whole in (one - one, UNIT & SETS["L"][0], SETS["L"][0] & UNIT):
            continue  # nothing is left of it
        x = whole.boundary().points(300).numpy()
        assert bool(whole.contains(x).all())
        around = whole.contains((x[:, None] + circle).reshape(-1, 2)).reshape(len(x), -1)
        assert bool(around.any(1).all()) and not bool(around.all(1).any())


def test_sets_that_touch_have_no_boundary_between_them_and_no_other_is_lost():
    both = UNIT | NEXT
    assert both.boundary().measure == pytest.approx(6, rel=2e-3) and both.measure == pytest.approx(2, rel=1e-3)
    x = both.boundary().points(2000).numpy()
    assert not ((x[:, 0] == 1) & (x[:, 1] > 0.01) & (x[:, 1] < 0.99)).any()
    assert not bool(both.boundary().contains(torch.tensor([[1.0, 0.5]], dtype=torch.float64)).any())
    apart = UNIT - NEXT  # nothing is taken away: the face that both share stays
    assert apart.boundary().measure == pytest.approx(4, rel=2e-3) and apart.measure == pytest.approx(1, rel=1e-3)
    assert bool(apart.boundary().contains(torch.tensor([[1.0, 0.5]])).all())
    half = Box((0, 0), (2, 1)) - NEXT  # three faces in common, of which nothing may be left
    x = half.boundary().points(2000).numpy()
    assert half.boundary().measure == pytest.approx(4, rel=2e-3) and (x[:, 0] <= 1).all()
    assert not bool(half.boundary().contains(torch.tensor([[1.5, 0.0], [2.0, 0.5]])).any())


def test_a_hole_in_a_hole_and_three_dimensions():
    ring = (Disk((0, 0), 2) - DISK) | Disk((0, 0), 0.5)
    assert ring.boundary().measure == pytest.approx(7 * math.pi, rel=2e-3)
    assert ring.measure == pytest.approx(3.25 * math.pi, rel=2e-3)
    shell = Box((-1,) * 3, (1,) * 3) - Disk((0, 0, 0), 1)
    assert shell.measure == pytest.approx(8 - 4 * math.pi / 3, rel=5e-3)
    assert shell.boundary().measure == pytest.approx(24 + 4 * math.pi, rel=2e-3)


def test_the_same_l_shape_three_ways():
    ways = [Polygon(L_SHAPE), SQUARE - Box((0, 0), (1, 1)), Box((-1, -1), (1, 0)) | Box((-1, -1), (0, 1))]
    for way in ways:
        assert way.measure == pytest.approx(3, rel=1e-3) and way.boundary().measure == pytest.approx(8, rel=2e-3)
        for other in ways:
            assert bool(way.contains(other.points(500)).all())
            assert bool(way.boundary().contains(other.boundary().points(500)).all())


def test_far_from_the_origin_and_tiny():
    for shift, size in ((1e6, 1.0), (0.0, 1e-9), (-3e4, 1e-3), (5.0, 1e7)):
        ring = Disk((shift, shift), 2 * size) - Box((shift, shift), (shift + size, shift + size))
        assert ring.measure / size**2 == pytest.approx(4 * math.pi - 1, rel=1e-3)
        assert ring.boundary().measure / size == pytest.approx(4 * math.pi + 4, rel=2e-3)
        assert bool(ring.boundary().contains(ring.boundary().points(500)).all())


def test_space_and_time():
    both = (DISK - Disk((0.5, 0), 0.2)) * Interval(0, 2)
    assert both.dim == 3 and both.measure == pytest.approx(2 * 0.96 * math.pi, rel=2e-3)
    assert both.boundary().measure == pytest.approx(2 * 2.4 * math.pi, rel=2e-3)
    assert bool((both.initial().points(50)[:, 2] == 0).all()) and bool((both.final().points(50)[:, 2] == 2).all())
    early = both.slab(0.5, 0.75)
    t = early.points(200)[:, 2]
    assert 0.5 <= float(t.min()) < 0.51 and 0.74 < float(t.max()) <= 0.75
    assert bool((early.initial().points(5)[:, 2] == 0.5).all())
    assert early == (DISK - Disk((0.5, 0), 0.2)) * Interval(0.5, 0.75)


def test_a_box_and_its_factors():
    """Interval * Interval draws the very points of the box; its boundary is that of space."""
    product, box = Interval(-1, 1) * Interval(0, 2), Box((-1, 0), (1, 2))
    assert torch.equal(product.points(100), box.points(100))
    assert product.boundary().measure == 4 and box.boundary().measure == 8
    assert product.boundary().measure == box.boundary(axes=[0]).measure
    assert (Interval(0, 1) * Interval(0, 1)) * DISK == Interval(0, 1) * (Interval(0, 1) * DISK)
    assert box.slab(0, 1) == Box((-1, 0), (1, 1)) and Interval(0, 2).slab(0, 1) == Interval(0, 1)
    assert box.face(-1, "low") == box.initial() and box.face(1, "high") == box.final()


def test_periodic_pairs():
    box = Box((0, -1, 0), (1, 1, 5))
    rows = box.periodic(1).points(64)
    low, high = rows[:, :3], rows[:, 3:]
    assert bool((low[:, 1] == -1).all()) and bool((high[:, 1] == 1).all())
    assert torch.equal(low[:, [0, 2]], high[:, [0, 2]])
    torus = Box((0, 0), (1, 2)).periodic(0) | Box((0, 0), (1, 2)).periodic(1)
    assert torus.measure == pytest.approx(3, rel=1e-3)
    along = torus.points(3000).numpy()
    assert abs((along[:, 0] != along[:, 2]).mean() - 2 / 3) < 5e-3
    moved = rows.clone()
    moved[:, 3] += 1e-3
    assert not bool(box.periodic(1).contains(moved).any())


def test_parts_of_faces():
    walls = SQUARE.boundary()
    inlet = walls & Box((-2, -0.5), (-0.5, 0.5))
    rest = walls - Box((-2, -0.5), (-0.5, 0.5))
    assert inlet.measure == pytest.approx(1, rel=5e-3) and rest.measure == pytest.approx(7, rel=2e-3)
    assert (inlet & SQUARE).measure == pytest.approx(1, rel=5e-3)
    assert (walls - Box((-1, -1), (1, 0))).measure == pytest.approx(4, rel=2e-3)  # which shares faces with it
    assert torch.equal((inlet | rest).contains(walls.points(500)), torch.ones(500, dtype=torch.bool))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNIT | UNIT.initial(), "sets of dimension 2 and 1.*a js.Term of its own"),
        (lambda: UNIT - UNIT.initial(), "has no volume, so that nothing would be taken away"),
        (lambda: UNIT.initial() & UNIT.face(0, "low"), "two sets without volume"),
        (lambda: UNIT | Interval(0, 1), "points of 2 and of 1 coordinates"),
        (lambda: UNIT & UNIT.periodic(0), "points of 2 and of 4 coordinates"),
        (lambda: UNIT * 3, "expected a domain.*got 3"),
        (lambda: 3 * UNIT, "expected a domain.*got 3"),
        (lambda: None | UNIT, "expected a domain.*got None"),
        (lambda: UNIT.periodic(0) * Interval(0, 1), "cannot be a factor.*periodic"),
        (lambda: (UNIT - UNIT).points(1), "no points are found.*measure zero"),
        (lambda: (UNIT & NEXT).measure, "no points are found"),
        (lambda: (UNIT - Box((0, 0), (1, 0.99995))).points(10), "fewer than one in 10,000"),
        (lambda: (UNIT * Interval(0, 1) - UNIT * Interval(0, 0.5)).boundary(), "compose the factors first"),
        (lambda: (DISK * UNIT).initial(), "time is the last factor, which must be an Interval"),
        (lambda: (DISK * UNIT).slab(0, 1), "time is the last factor"),
        (lambda: (DISK * Interval(0, 1)).slab(0.5, 2), r"slab\(0.5, 2\): the last axis goes from 0 to 1"),
        (lambda: UNIT.initial().boundary(), "no boundary to draw from"),
        (lambda: (UNIT.boundary() - NEXT).boundary(), "no volume, and so no boundary"),
        (lambda: UNIT.boundary().boundary(), "no volume, and so no boundary"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_where_boundaries_touch_without_crossing_no_point_is_off_the_set():
    """A circle that touches a line is closer to it than a step across, over a length that is thousands of steps."""
    for whole, length in (
        (UNIT & DISK, 2 + math.pi / 2),  # the disk touches two faces, at (0, 1) and (1, 0)
        (SQUARE - DISK, 8 + 2 * math.pi),
        (SQUARE | Disk((0, 2), 1), 8 + 2 * math.pi),
        (Disk((0, 0), 2) - Disk((1, 0), 1), 6 * math.pi),
    ):
        assert whole.boundary().measure == pytest.approx(length, rel=2e-3)
        x = whole.boundary().points(20_000)
        assert bool(whole.contains(x).all())
        assert not bool(whole.contains(x * (1 + 1e-9) + 1e-9).all()), "on the edge: not all remain inside"


def test_intervals_with_a_gap():
    gap = Interval(0, 3) - Interval(1, 2)
    assert gap.measure == pytest.approx(2, rel=1e-3) and gap.boundary().measure == 4
    assert sorted(gap.boundary().points(8)[:, 0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted((Interval(0, 1) | Interval(1, 2)).boundary().points(4)[:, 0].tolist()) == [0, 0, 2, 2]
    assert (gap * Interval(0, 5)).boundary().measure == 20
