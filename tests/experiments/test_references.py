"""Reference solutions against their equations, boundaries, finite differences and other quadratures."""

from __future__ import annotations

import math

import torch

from experiments.pinn.lshape import boundary, corner_series, finite_differences, lshape
from experiments.pinn.references import BURGERS, burgers, cole_hopf, trapezoidal

from ..problems import randn


def test_the_series_solves_the_equation():
    points = 1.8 * torch.sigmoid(randn(0, 40, 2)) - 0.9
    points = points[~(points > -0.05).all(1)]
    assert len(points) > 10
    hessian = torch.func.vmap(torch.func.hessian(lambda z: corner_series(z[None], 30)[0]))(points)
    assert torch.allclose(hessian.diagonal(dim1=1, dim2=2).sum(1), torch.tensor(-1.0).double(), atol=1e-7)


def test_the_series_vanishes_on_all_six_sides():
    """What is left over is harmonic, so that its largest value bounds the error everywhere."""
    edge = boundary(300)
    assert len(edge) == 3600 and bool((edge.abs().amax(1) <= 1).all()) and not bool((edge > 0).all(1).any())
    assert float(corner_series(edge).abs().max()) < 2e-12
    assert 1e-6 < float(corner_series(edge, 200, corners=False).abs().max()) < 1e-4


def test_the_series_without_logarithms_is_the_same_away_from_the_outer_corners():
    points = 0.3 * torch.sigmoid(randn(1, 30, 2)) - 0.4
    torch.testing.assert_close(corner_series(points), corner_series(points, 200, corners=False), rtol=0, atol=1e-5)


def test_finite_differences_approach_the_series():
    errors = []
    for count in (20, 80):
        points, u = finite_differences(count)
        errors.append(float((u - corner_series(points)).norm() / u.norm()))
    assert errors[1] < 0.005
    assert errors[1] < 0.3 * errors[0]


def test_the_missing_quadrant_has_no_values():
    x, y, u = lshape(16)
    assert torch.equal(u.isnan(), (x[:, None] > 0) & (y[None] > 0))
    assert torch.allclose(u[8:, :8], u[:8, 8:].T, atol=1e-6)  # symmetric


def test_burgers_by_another_quadrature():
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    for t in (0.05, 0.4, 0.99):
        torch.testing.assert_close(cole_hopf(x, t), trapezoidal(x, t), rtol=0, atol=1e-12)


def test_burgers_solves_its_equation_and_begins_where_it_should():
    x, _, u = burgers()
    assert u.shape == (256, 100) and torch.equal(u[:, 0], -torch.sin(math.pi * x))
    z = torch.linspace(-0.9, 0.9, 13, dtype=torch.float64)
    h, k = 1e-3, 1e-4
    at = lambda x, t: cole_hopf(x, t)  # noqa: E731
    for time in (0.1, 0.3):  # before the shock is thin
        here = at(z, time)
        slope = (8 * (at(z + h, time) - at(z - h, time)) - at(z + 2 * h, time) + at(z - 2 * h, time)) / (12 * h)
        bend = (at(z + h, time) - 2 * here + at(z - h, time)) / h**2
        change = (at(z, time + k) - at(z, time - k)) / (2 * k)
        assert float((change + here * slope - BURGERS * bend).abs().max()) < 1e-3
