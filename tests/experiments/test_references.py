"""The L-shape's reference solution against the equation, its boundary and finite differences."""

from __future__ import annotations

import torch

from experiments.pinn.references import corner_series, finite_differences, lshape

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
