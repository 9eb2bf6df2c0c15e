"""The forecast against functions that are known: exact at its points, and on what is linear within their span."""

from __future__ import annotations

import pytest
import torch

from jumpstart.skipping.forecast import SECANTS, Forecast

from ..problems import randn, relative


def spd(seed, size):
    a = randn(seed, size, size)
    return a @ a.T / size + torch.eye(size, dtype=torch.float64)


def known(function, points):
    found = Forecast()
    for point in points:
        found = found.including(point, function(point))
    return found


@pytest.mark.parametrize("count", [1, 2, 3, SECANTS + 1])
@pytest.mark.parametrize(("size", "outputs"), [(30, 30), (30, 7), (8, 50)])  # more and fewer outputs than weights
def test_it_holds_at_every_point_it_knows(count, size, outputs):
    w = randn(1, outputs, size)
    points = [randn(2 + k, size) for k in range(count)]
    forecast = known(lambda p: torch.tanh(w @ p), points)
    for point in points:
        assert forecast(point).shape == (outputs,)
        assert relative(forecast(point), torch.tanh(w @ point)) < 1e-10


def test_with_one_point_it_is_that_value_everywhere():
    forecast = known(torch.sin, [randn(1, 5)])
    assert torch.equal(forecast(randn(2, 5)), torch.sin(randn(1, 5)))


@pytest.mark.parametrize("size", [1, 3, SECANTS])
def test_a_linear_function_is_known_everywhere_once_secants_span(size):
    """The gradient of a quadratic loss."""
    h, b = spd(3, size), randn(4, size)
    points = [randn(10 + k, size) for k in range(size + 1)]
    forecast = known(lambda p: h @ p - b, points)
    for k in range(5):
        far = 10 * randn(50 + k, size)
        assert relative(forecast(far), h @ far - b) < 1e-8


def test_within_the_span_of_a_run_a_linear_function_is_known_whatever_the_size():
    size = 200
    h, b, origin, span = spd(5, size), randn(6, size), randn(7, size), randn(8, size, 3)
    points = [origin + span @ randn(20 + k, 3) for k in range(4)]
    forecast = known(lambda p: h @ p - b, points)
    inside = origin + span @ randn(30, 3)
    assert relative(forecast(inside), h @ inside - b) < 1e-9
    outside = randn(31, size)  # what no secant says is taken for nothing: the nearest point inside
    step = span @ torch.linalg.lstsq(span, (outside - points[-1])[:, None]).solution[:, 0]
    assert relative(forecast(outside), h @ (points[-1] + step) - b) < 1e-9


def test_only_the_newest_points_are_kept():
    h, b = spd(3, 2), randn(4, 2)
    points = [randn(10 + k, 2) for k in range(SECANTS + 4)]
    forecast = known(lambda p: h @ p - b, points)
    assert len(forecast.points) == SECANTS + 1
    assert torch.equal(forecast.points[-1][0], points[-1])


def test_a_point_known_already_moves_to_the_front_with_its_new_value():
    a, b = randn(1, 6), randn(2, 6)
    forecast = known(torch.sin, [a, b]).including(a, torch.zeros(6, dtype=torch.float64))
    assert len(forecast.points) == 2
    assert torch.equal(forecast(a), torch.zeros(6, dtype=torch.float64))
    assert relative(forecast(b), torch.sin(b)) < 1e-12
    assert torch.equal(known(torch.sin, [a, a, a])(b), torch.sin(a))


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-6, 1e-7])
def test_secants_that_are_nearly_parallel_do_not_blow_up_in_float32(apart):
    """Steps of a run that creeps: differences of gradients are rounding there, and must not be divided by nothing."""
    size = 50
    h = spd(3, size).float()
    origin, way, aside = (randn(4 + k, size).float() for k in range(3))
    noise = torch.Generator().manual_seed(1)

    def gradient(p):
        exact = h @ p
        return exact * (1 + 1e-7 * torch.randn(size, generator=noise))

    points = [origin - k * way + apart * k * k * aside for k in range(5, -1, -1)]
    forecast = known(gradient, points)
    ahead = origin + 5 * way
    moved = torch.linalg.vector_norm(h @ (ahead - origin))
    assert torch.linalg.vector_norm(forecast(ahead) - h @ ahead) < 0.02 * moved
    other = origin + aside / aside.norm() * way.norm()  # across: where it knows next to nothing it may say nothing
    assert torch.linalg.vector_norm(forecast(other) - h @ origin) < 3 * torch.linalg.vector_norm(h @ (other - origin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1e-30, 1e-15, 1e15])
def test_steps_of_any_length_give_finite_forecasts(dtype, length):
    """A rate at the end of its decay: the squares of such steps have no place in float32."""
    way = randn(1, 6).to(dtype) * length
    points = [torch.zeros(6, dtype=dtype), way]
    forecast = known(lambda p: p / length, points)
    assert bool(torch.isfinite(forecast(2 * way)).all())
    assert relative(forecast(2 * way).double(), 2 * randn(1, 6)) < 1e-5


def test_forecasts_with_another_point_leave_the_old_one_as_it_was():
    a, b, c = (randn(k, 4) for k in range(3))
    first = known(torch.sin, [a, b])
    said = first(c).clone()
    second = first.including(c, torch.sin(c))
    assert torch.equal(first(c), said)
    assert relative(second(c), torch.sin(c)) < 1e-12
