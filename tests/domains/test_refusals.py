"""What cannot be a domain, and the words that say so; numbers of all kinds that can."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from jumpstart.domains import Box, Disk, Interval, Polygon
from jumpstart.errors import InputError, NonFiniteError, ShapeError

NAN, INF = float("nan"), float("inf")
BOX = Box((-1, 0), (1, 1))


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Box((0, 1), (1, 1)), InputError, r"from 1 to 1 along axis 1.*box\.face\(axis, 'low'\)"),
        (lambda: Box((2,), (1,)), InputError, "from 2 to 1 along axis 0"),
        (lambda: Box((0, NAN), (1, 1)), NonFiniteError, "Box: low, coordinate 1, must be finite, got nan"),
        (lambda: Box((0,), (10**400,)), NonFiniteError, "must be finite"),
        (lambda: Box((0, 0), (1,)), ShapeError, "low has 2 coordinates and high 1"),
        (lambda: Box(0, 1), InputError, "js.domains.Interval"),
        (lambda: Box(torch.tensor(0.0), 1), InputError, "js.domains.Interval"),
        (lambda: Box((), ()), ShapeError, "1 to 20 coordinates, got 0"),
        (lambda: Box((0,) * 21, (1,) * 21), ShapeError, "1 to 20 coordinates, got 21"),
        (lambda: Box(np.zeros((2, 2)), np.ones((2, 2))), ShapeError, "one-dimensional"),
        (lambda: Box(([1], 2), (3, 3)), InputError, "coordinate 0, must be a number"),
        (lambda: Box("ab", "cd"), InputError, "sequence of numbers"),
        (lambda: Box({0, 1}, {2, 3}), InputError, "sequence of numbers"),
        (lambda: Box((True, 0), (2, 2)), InputError, "must be a number, got True"),
        (lambda: Box((0j, 0), (2, 2)), InputError, "must be a number"),
        (lambda: Box((1e15,), (1e15 + 1,)), InputError, "cannot tell its points apart"),
        (lambda: Box((-1e308,), (1e308,)), InputError, "its measure is inf"),
        (lambda: Box((0,) * 20, (1e-20,) * 20), InputError, "its measure is 0.0"),
        (lambda: Interval(1, 0), InputError, "Interval: from 1 to 0"),
        (lambda: Interval(0, INF), NonFiniteError, "Interval: b must be finite"),
        (lambda: Interval((0,), 1), InputError, "Interval: a must be a number"),
        (lambda: BOX.face(2, "low"), InputError, "axis 2 of 2"),
        (lambda: BOX.face(0, "left"), InputError, "side must be 'low' or 'high', got 'left'"),
        (lambda: BOX.face(0.0, "low"), InputError, "whole number"),
        (lambda: BOX.boundary(axes=[]), InputError, "axes is empty"),
        (lambda: BOX.boundary(axes=0), InputError, "sequence of axes, got 0"),
        (lambda: BOX.boundary(axes=[5]), InputError, "axis 5 of 2"),
        (lambda: BOX.periodic(-3), InputError, "axis -3 of 2"),
        (lambda: BOX.slab(0.5, 0.5), InputError, r"slab\(0.5, 0.5\): the last axis goes from 0 to 1"),
        (lambda: BOX.slab(-1, 0.5), InputError, "from 0 to 1"),
        (lambda: Disk((0, 0), 0), InputError, "radius must be above 0, got 0"),
        (lambda: Disk((0, 0), -1), InputError, "radius must be above 0, got -1"),
        (lambda: Disk((0, 0), INF), NonFiniteError, "radius must be finite"),
        (lambda: Disk((0,), 1), InputError, "js.domains.Interval"),
        (lambda: Disk(0, 1), InputError, "sequence of numbers"),
        (lambda: Disk((1e9, 0), 1e-9), InputError, "cannot tell its points apart"),
        (lambda: Disk((0, 0), 1e-200), InputError, "not hold its volume"),
        (lambda: Polygon([(0, 0), (1, 1)]), ShapeError, "at least three vertices, got 2"),
        (lambda: Polygon([(0, 0), (1, 1), (0, 0)]), ShapeError, "at least three vertices"),
        (lambda: Polygon(7), InputError, "sequence of points"),
        (
            lambda: Polygon([(0, 0, 0), (1, 0, 0), (0, 1, 0)]),
            ShapeError,
            "vertex 0 must have 2 to 2 coordinates, got 3",
        ),
        (lambda: Polygon([(0, 0), (1, NAN), (0, 1)]), NonFiniteError, "vertex 1, coordinate 1, must be finite"),
        (
            lambda: Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]),
            InputError,
            r"\(0, 0\)–\(1, 1\) and \(1, 0\)–\(0, 1\) cross",
        ),
        (lambda: Polygon([(0, 0), (2, 0), (2, 2), (1, 0), (0, 2)]), InputError, "cross or touch"),
        (lambda: Polygon([(0, 0), (1, 0), (1, 0), (0, 1)]), InputError, r"vertices 1 and 2 are both \(1, 0\)"),
        (lambda: Polygon([(0, 0), (1, 0), (2, 0)]), InputError, "goes back along"),
        (lambda: Polygon([(0, 0), (4, 0), (4, 1), (4, -1)]), InputError, "cross or touch|goes back"),
        (lambda: BOX.points(0), InputError, "count must be at least 1, got 0"),
        (lambda: BOX.points(2.5), InputError, "count must be a whole number, got 2.5"),
        (lambda: BOX.points(True), InputError, "whole number"),
        (lambda: BOX.points(3, seed=-1), InputError, "seed must be at least 0"),
        (lambda: BOX.points(3, seed="a"), InputError, "seed must be a whole number"),
        (lambda: BOX.contains(torch.zeros(3)), ShapeError, r"points must have shape \(n, 2\)"),
        (lambda: BOX.contains(torch.zeros(3, 3)), ShapeError, r"shape \(3, 3\)"),
        (lambda: BOX.contains(torch.zeros(3, 2, dtype=torch.complex64)), InputError, "real numbers"),
        (lambda: BOX.contains([[0, 0]]), InputError, "a tensor or an array"),
    ],
)
def test_refusals(make, kind, words):
    with pytest.raises(kind, match=words) as caught:
        make()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("as_given", [list, tuple, np.array, torch.tensor, lambda v: np.array(v, dtype=np.float32)])
def test_numbers_of_all_kinds(as_given):
    assert Box(as_given([-1, 0]), as_given([1, 1])) == BOX
    assert Disk(as_given([0, 0]), as_given(2)) if as_given not in (list, tuple) else True
    assert Polygon(as_given([[0, 0], [1, 0], [0, 1]])) == Polygon([(0, 0), (1, 0), (0, 1)])
    assert repr(Box(as_given([-1, 0]), as_given([1, 1]))) == "Box((-1, 0), (1, 1))"


def test_numbers_one_by_one():
    for number in (1, 1.0, np.float32(1), np.int64(1), np.array(1.0), torch.tensor(1), Fraction(1)):
        assert Interval(0, number) == Interval(0, 1)
        assert Disk((0, number), number) == Disk((0, 1), 1)
    assert Box(torch.tensor([0.0, 0.0], requires_grad=True), (1, 1)) == Box((0, 0), (1, 1))
    assert repr(Interval(0, 0.5)) == "Interval(0, 0.5)" and repr(Interval(-1e-3, 1e20)) == "Interval(-0.001, 1e+20)"
    assert Polygon([(0, 0), (1, 0), (0, 1), (0, 0)]) == Polygon([(0, 0), (1, 0), (0, 1)])  # closed, as files have it


def test_what_is_equal_and_what_is_not():
    assert Interval(0, 1) != Box((0,), (1,)) and Box((0,), (1,)) != Box((0,), (2,))
    assert len({Box((0,), (1,)), Box((0.0,), (1.0,)), Interval(0, 1)}) == 2
    assert BOX.face(1, "low") == BOX.initial() and BOX.initial() != BOX.final()


def test_a_polygon_of_many_vertices_is_not_printed_whole():
    angle = np.linspace(0, 2 * np.pi, 121)[:-1]
    one, two = (Polygon(np.stack([r * np.cos(angle), np.sin(angle)], 1)) for r in (1.0, 1 + 1e-9))
    assert "120 vertices" in repr(one) and len(repr(one)) < 250
    assert repr(one) != repr(two) and one != two
    assert one.measure == pytest.approx(60 * np.sin(2 * np.pi / 120))
    assert (one - Disk((0, 0), 0.5)).boundary().measure == pytest.approx(3 * np.pi, rel=2e-3)


def test_contains_answers_where_the_points_are():
    assert BOX.contains(torch.zeros(2, 2, requires_grad=True)).tolist() == [True, True]
    assert BOX.contains(torch.zeros(0, 2)).shape == (0,)
    assert Polygon([(0, 0), (1, 0), (0, 1)]).boundary().contains(np.zeros((0, 2))).shape == (0,)
    assert BOX.contains(torch.zeros(2, 2, dtype=torch.int64)).tolist() == [True, True]
    assert BOX.contains(torch.tensor([[1 + 1e-9, 0.5], [1 + 1e-15, 0.5]], dtype=torch.float64)).tolist() == [
        False,
        True,
    ]


def _meet(a, b, c, d) -> bool:
    """Whether two segments with whole coordinates have a point in common: exact, by the signs of whole numbers."""

    def turn(p, q, r):
        return np.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))

    def on(p, q, r):
        return turn(p, q, r) == 0 and all(min(p[i], q[i]) <= r[i] <= max(p[i], q[i]) for i in (0, 1))

    if turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0:
        return True
    return on(a, b, c) or on(a, b, d) or on(c, d, a) or on(c, d, b)


def _simple(vertices) -> bool:
    count = len(vertices)
    edges = [(vertices[i], vertices[(i + 1) % count]) for i in range(count)]
    for i, (a, b) in enumerate(edges):
        c, d = edges[(i + 1) % count]
        along, after = np.subtract(b, a), np.subtract(d, c)
        if a == b or (along[0] * after[1] == along[1] * after[0] and along @ after < 0):
            return False
        if any(_meet(a, b, *edges[j]) for j in range(count) if j != i and (j - i) % count not in (1, count - 1)):
            return False
    return True


def test_polygons_are_refused_exactly_where_they_are_not_simple():
    rng = np.random.default_rng(5)
    taken = refused = 0
    for _ in range(1500):
        vertices = [tuple(int(v) for v in row) for row in rng.integers(0, 6, (int(rng.integers(3, 8)), 2))]
        if vertices[0] == vertices[-1]:
            continue  # closed, which is another polygon
        scale, shift = 10.0 ** rng.integers(-6, 7), float(rng.integers(-3, 4))
        moved = [(scale * (x + shift), scale * (y + shift)) for x, y in vertices]
        if _simple(vertices):
            polygon = Polygon(moved)
            area = abs(
                sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(vertices, vertices[1:] + vertices[:1], strict=True))
            )
            assert polygon.measure == pytest.approx(scale**2 * area / 2)
            assert bool(polygon.contains(polygon.points(64)).all())
            assert polygon._trapezoids[1].sum() == pytest.approx(polygon.measure, rel=1e-9)
            taken += 1
        else:
            with pytest.raises(InputError):
                Polygon(moved)
            refused += 1
    assert taken > 200 and refused > 500
