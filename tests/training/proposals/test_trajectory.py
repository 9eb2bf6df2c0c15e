"""The best point in a span: dense least squares, and SciPy's minimum for another loss."""

import pytest
import scipy.optimize
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.losses import CrossEntropy, mse
from jumpstart.training.proposals import Trajectory
from jumpstart.training.proposals.trajectory import within_span

from ...problems import randn
from .here import here


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_it_is_dense_least_squares_in_the_span(damping):
    k, n = 4, 30
    u, y, images, roots = randn(0, n, 2), randn(1, n, 2), randn(2, k, n, 2), randn(3, k, k)
    c = within_span(mse(y), u, images, damping * roots.T @ roots)
    rows = torch.cat([images.flatten(1).T * (2 / (2 * n)) ** 0.5, damping**0.5 * roots])
    right = torch.cat([(y - u).reshape(-1) * (2 / (2 * n)) ** 0.5, torch.zeros(k).double()])
    assert torch.allclose(c, torch.linalg.lstsq(rows, right, driver="gelsd").solution, rtol=1e-9)


def test_directions_that_depend_on_each_other_do_no_harm():
    u, y, one = randn(0, 30, 1), randn(1, 30, 1), randn(2, 1, 30, 1)
    c = within_span(mse(y), u, torch.cat([one, 2 * one]), torch.zeros(2, 2).double())
    alone = within_span(mse(y), u, one, torch.zeros(1, 1).double())
    assert torch.allclose(c[0] + 2 * c[1], alone[0], rtol=1e-9)


def test_cross_entropy_is_minimized_to_the_end():
    k, n = 3, 40
    u, images = randn(0, n, 4), randn(1, k, n, 4)
    loss, damping = CrossEntropy(torch.arange(n) % 4), 0.05 * torch.eye(k).double()
    c = within_span(loss, u, images, damping)

    def total(c):
        c = torch.from_numpy(c)
        moved = u + torch.einsum("k,kno->no", c, images)
        return float(nn.functional.cross_entropy(moved, torch.arange(n) % 4) + 0.5 * c @ damping @ c)

    truth = scipy.optimize.minimize(total, [0.0] * k, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    assert total(c.numpy()) <= truth.fun + 1e-10
    assert c.tolist() == pytest.approx(truth.x.tolist(), abs=1e-5)


def test_of_a_linear_model_it_is_the_best_point_that_there_is():
    model = nn.Linear(6, 1).double()
    x, y = randn(0, 40, 6), randn(1, 40, 1)
    objective = js.supervised(model, x, y)
    theta = objective.theta()
    moved = 0.1 * randn(2, 3, len(theta))
    found = Trajectory(updates=3, damping=[1e-12]).propose(here(objective, list(theta + moved)))
    design = torch.cat([x, torch.ones(40, 1, dtype=x.dtype)], 1)
    c = torch.linalg.lstsq(design @ moved.T, y.reshape(-1) - design @ theta).solution
    assert len(found) == 1
    assert torch.allclose(found[0].displacement, c @ moved, rtol=1e-6)
    assert found[0].loss == pytest.approx(objective.value(theta + c @ moved), rel=1e-9)


def test_it_keeps_as_many_updates_as_it_spans():
    found, kept = [], Trajectory(every=10, updates=3)
    for step in range(1, 41):
        if kept.ready(step):
            found.append((step, [int(weights[0]) for weights in kept.seen()]))
        if kept.wants(step, lambda at: at % 10 == 0):
            kept.keep(step, {0: torch.tensor(float(step))})
        assert len(kept.kept) <= 3
    assert found == [(step, [step - 3, step - 2, step - 1]) for step in (10, 20, 30, 40)]


@pytest.mark.parametrize("damping", [(), 0.1, [-1.0], [True], [float("inf")]])
def test_dampings_that_are_none_are_refused(damping):
    with pytest.raises(InputError, match="damping="):
        Trajectory(damping=damping)
