"""Terms on domains: what a weight means, other points of the same set, and points drawn by residual."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import grad

import jumpstart as js
from jumpstart import errors
from jumpstart.domains import Box, Interval
from jumpstart.objectives import drawn

from ..problems import fill, randn

SQUARE = Box((-1.0, 0.0), (1.0, 2.0))


def net(seed=0, inputs=2):
    return fill(nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, 1)), seed)


def slope(net, x):
    return grad(lambda z: net(z)[0])(x)[0] - x[1]


def both(net, x):
    return torch.cat([net(x), 2 * net(x) - x[0]])


@torch.no_grad()
def mean_square(fn, model, points):
    return float(torch.func.vmap(lambda x: fn(model, x))(points).reshape(len(points), -1).square().sum(1).mean())


def test_a_weight_is_on_the_mean_of_squares_whatever_the_number():
    model = net()
    for count in (7, 50):
        terms = js.Term(slope, SQUARE, weight=3.0, count=count), js.Term(both, SQUARE, count=11, seed=4)
        objective = js.residual(model, *terms)
        expected = 1.5 * mean_square(slope, model, SQUARE.points(count)) + 0.5 * mean_square(
            both, model, SQUARE.points(11, 4)
        )
        assert objective.value(objective.theta()) == pytest.approx(expected, rel=1e-12)
        more = objective.resampled({"slope": SQUARE.points(200, 1)})
        expected = 1.5 * mean_square(slope, model, SQUARE.points(200, 1)) + expected
        assert [len(part.points) for part in more.parts] == [200, 11]
        assert more.terms()[0].loss == pytest.approx(1.5 * mean_square(slope, model, SQUARE.points(200, 1)), rel=1e-12)


def test_as_many_points_as_are_usual_for_the_kind_of_set():
    objective = js.residual(net(), js.Term(slope, SQUARE), js.Term(both, SQUARE.face(1, "low")))
    assert [len(part.points) for part in objective.parts] == [drawn.COUNT, drawn.ON_FACES]
    assert bool((objective.parts[1].points[:, 1] == 0).all())


def test_points_come_in_the_models_dtype():
    objective = js.residual(net().float(), js.Term(both, SQUARE, count=9))
    assert objective.parts[0].points.dtype == torch.float32
    assert objective.unseen(0).parts[0].points.dtype == torch.float32


def test_a_function_draws_points_as_well():
    def inner(count, generator):
        return torch.rand(count, 2, generator=generator) * 0.5

    objective = js.residual(net(), js.Term(both, inner, count=20, seed=3))
    assert len(objective.parts[0].points) == 20 and float(objective.parts[0].points.max()) <= 0.5
    assert not torch.equal(objective.unseen(0).parts[0].points, objective.parts[0].points)


def test_unseen_points_are_others_of_the_same_set_and_of_terms_that_have_one():
    model = net()
    fixed = js.Term(both, randn(5, 8, 2), name="fixed")
    objective = js.residual(model, js.Term(slope, SQUARE, weight=2.0, count=40), fixed)
    unseen = objective.unseen(7)
    assert [part.name for part in unseen.parts] == ["slope"]
    points = unseen.parts[0].points
    assert len(points) == drawn.LEAST and bool(SQUARE.contains(points).all())
    assert not set(map(tuple, points.tolist())) & set(map(tuple, objective.parts[0].points.tolist()))
    assert torch.equal(points, objective.unseen(7).parts[0].points)
    assert not torch.equal(points, objective.unseen(8).parts[0].points)
    theta = objective.theta()
    assert unseen.value(theta) == pytest.approx(mean_square(slope, model, points), rel=1e-12)
    assert objective.drawn_loss(theta) == pytest.approx(objective.terms()[0].loss, rel=1e-12)
    assert objective.drawn_loss(theta, 7) == pytest.approx(unseen.value(theta), rel=1e-12)
    assert js.residual(model, fixed).unseen(0) is None


def test_numbers_that_a_residual_reads_are_read_anew():
    scale = {"by": 1.0}
    objective = js.residual(net(), js.Term(lambda net, x: scale["by"] * net(x)[0], SQUARE, count=20))
    theta = objective.theta()
    unseen = objective.unseen(0)
    first = unseen.drawn_loss(theta)
    scale["by"] = 3.0
    assert unseen.drawn_loss(theta) == pytest.approx(9 * first, rel=1e-10)


def bump(net, x):
    """Nine in a tenth of the interval, a constant elsewhere."""
    return torch.where((x[0] > 0.4) & (x[0] < 0.5), 9.0, 1.0) + 0.0 * net(x)[0] + 1e-9 * net(x)[0]


def test_points_are_drawn_in_proportion_to_the_residual_and_a_constant():
    """Of the mean 0.9·1 + 0.1·9 = 1.8: density 9/1.8 + 1 = 6 in the tenth, 1/1.8 + 1 = 1.56 elsewhere, so 30%."""
    count = 3000
    objective = js.residual(net(inputs=1), js.Term(bump, Interval(0.0, 1.0), weight=5.0, count=count))
    theta = objective.theta()
    for seed in range(3):
        other = objective.refined(theta, 1 + seed)
        points = other.parts[0].points[:, 0]
        share = float(((points > 0.4) & (points < 0.5)).double().mean())
        exact = 0.1 * 6 / (0.1 * 6 + 0.9 * (1 / 1.8 + 1))
        # drawn without putting back from a pool six times as large, in which there are not that many
        assert exact - 0.08 < share < exact
        assert len(points) == count and bool(((points >= 0) & (points <= 1)).all())
        assert len(points.unique()) == count
    assert torch.equal(objective.refined(theta, 3).parts[0].points, other.parts[0].points)


def test_a_grown_set_weighs_as_much():
    objective = js.residual(net(inputs=1), js.Term(bump, Interval(0.0, 1.0), weight=5.0, count=100))
    other = objective.refined(objective.theta(), 1, growth=1.5)
    assert len(other.parts[0].points) == 150
    inside = ((other.parts[0].points > 0.4) & (other.parts[0].points < 0.5)).double().mean()
    assert other.value(other.theta()) == pytest.approx(2.5 * float(81 * inside + 1 - inside), rel=1e-6)


def test_a_zero_residual_draws_evenly():
    model = net(inputs=1)
    for p in model[2].parameters():
        nn.init.zeros_(p)
    objective = js.residual(model, js.Term(lambda net, x: net(x)[0], Interval(0.0, 1.0), count=400))
    points = objective.refined(objective.theta(), 1).parts[0].points
    assert float(points.mean()) == pytest.approx(0.5, abs=0.05)


def test_a_residual_that_is_infinite_somewhere_is_named_with_the_point():
    def singular(net, x):
        return net(x)[0] + torch.where(x[0] > 0.999, math.inf, 0.0)

    objective = js.residual(net(inputs=1), js.Term(singular, Interval(0.0, 1.0), count=200, seed=6))
    assert bool((objective.parts[0].points <= 0.999).all())
    with pytest.raises(errors.NonFiniteError, match=r"'singular' is inf at the point \[0\.999\d*\] of Interval"):
        objective.refined(objective.theta(), 1)


def test_between_given_points_is_halfway_to_the_nearest():
    model = net(inputs=1)
    points = torch.tensor([[0.0], [0.1], [0.45], [0.9], [0.9]], dtype=torch.float64)
    objective = js.residual(model, js.Term(lambda net, x: net(x)[0] - x[0], points, 2.0))
    other, own = objective.between(objective.theta())
    assert own == pytest.approx(objective.value(objective.theta()))
    x = torch.tensor([[0.05], [0.05], [0.275], [0.675]], dtype=torch.float64)
    with torch.no_grad():
        expected = 5 * float((model(x) - x).square().mean())
    assert other == pytest.approx(expected, rel=1e-12)


def test_rows_that_hold_more_than_places_say_nothing_between_points():
    """A table of values beside the coordinates: halfway its own error would be taken for the network's."""
    rows = torch.cat([randn(0, 12, 1), randn(1, 12, 1)], 1)
    table = js.residual(net(inputs=1), js.Term(lambda net, row: net(row[:1])[0] - row[1], rows))
    single = js.residual(net(inputs=1), js.Term(lambda net, x: net(x)[0], rows[:1, :1]))
    weighed = js.residual(net(inputs=1), js.Term(lambda net, x: net(x)[0], rows[:, :1], torch.ones(12)))
    for objective in (table, single, weighed):
        assert objective.between(objective.theta()) is None


def test_a_residual_that_is_infinite_between_its_points_is_no_error():
    points = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    objective = js.residual(
        net(inputs=1),
        js.Term(lambda net, x: net(x)[0] + torch.where((x[0] - 0.125).abs() < 0.01, math.inf, 0.0), points),
    )
    assert objective.between(objective.theta())[0] == math.inf


BAD = {
    "count 0": (lambda: js.Term(slope, SQUARE, count=0), ["count=0", "at least 1"]),
    "count in words": (lambda: js.Term(slope, SQUARE, count="many"), ["'many'"]),
    "negative seed": (lambda: js.Term(slope, SQUARE, seed=-1), ["seed=-1"]),
    "a weight for each point": (lambda: js.Term(slope, SQUARE, weight=torch.ones(9), count=9), ["Box(", "one number"]),
    "weight 0": (lambda: js.Term(slope, SQUARE, weight=0.0), ["0.0", "positive"]),
    "count of given points": (lambda: js.Term(slope, randn(0, 5, 2), count=9), ["count=9", "js.domains.Box"]),
    "seed of given points": (lambda: js.Term(slope, randn(0, 5, 2), seed=2), ["seed=2"]),
    "a kind of domain": (lambda: js.Term(slope, Box), ["Box", "made with its numbers"]),
    "other coordinates": (lambda: js.Term(slope, Interval(0.0, 1.0), count=5), ["slope"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_terms_are_named(name):
    make, words = BAD[name]
    with pytest.raises(errors.JumpstartError) as caught:
        js.residual(net(), make())
    assert all(word in str(caught.value) for word in words), str(caught.value)
