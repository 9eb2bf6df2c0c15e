"""Reference solutions against their equations, boundaries, finite differences and other quadratures."""

from __future__ import annotations

import math

import torch

from experiments.pinn.references import BURGERS, burgers, cole_hopf, corner_series, finite_differences, lshape

from ..problems import randn


def test_the_series_solves_the_equation():
    points = 1.8 * torch.sigmoid(randn(0, 40, 2)) - 0.9
    points = points[~(points > -0.05).all(1)]
    assert len(points) > 10
    hessian = torch.func.vmap(torch.func.hessian(lambda z: corner_series(z[None], 60)[0]))(points)
    assert torch.allclose(hessian.diagonal(dim1=1, dim2=2).sum(1), torch.tensor(-1.0).double(), atol=1e-6)


def test_the_series_vanishes_on_all_six_sides():
    s = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    sides = [(2 * s - 1, -one), (-one, 2 * s - 1), (one, -s), (-s, one), (zero, s), (s, zero)]
    values = torch.cat([corner_series(torch.stack(side, 1)) for side in sides])
    assert float(values.abs().max()) < 1e-4


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
    """The same quotient by the trapezoidal rule, which converges as fast for what decays like a Gaussian."""
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    eta = torch.linspace(-2.5, 2.5, 8001, dtype=torch.float64)
    for t in (0.05, 0.4, 0.99):
        y = x[:, None] - eta
        exponent = -eta.square() / (4 * BURGERS * t) - torch.cos(math.pi * y) / (2 * math.pi * BURGERS)
        share = torch.exp(exponent - exponent.amax(1, keepdim=True))
        exact = -(share * torch.sin(math.pi * y)).sum(1) / share.sum(1)
        torch.testing.assert_close(cole_hopf(x, t), exact, rtol=0, atol=1e-12)


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
