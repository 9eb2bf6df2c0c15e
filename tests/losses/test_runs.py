"""Runs under every loss: the linearized flow against an ODE solver, and jumps, fits and wrapped loops on a toy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import jumpstart as js
from jumpstart.losses import Convex

from ..problems import integrate, jacobian, mlp, randn, relative
from .rows import ROWS, RUN, Row, mean_over


def setting(row: Row, scale: float = 1.0):
    """A network with outputs of the row's shape, inputs, and an objective of its loss."""
    n, *inner = row.shape
    out = math.prod(inner)
    model = mlp(3, d=4, width=6, out=out)
    with torch.no_grad():
        model[-1].weight.mul_(scale)
    if tuple(inner) != (out,):
        model.append(torch.nn.Flatten(0) if not inner else torch.nn.Unflatten(1, inner))
    x = randn(8, n, 4)
    loss = row.make(row.targets)
    return model, x, js.supervised(model, x, loss=loss)


def exact(row: Row, model, x, times) -> np.ndarray:
    """(T, …) outputs of the linearized run u̇ = −K ∇Φ(u), ∇Φ by autograd of torch's loss, by scipy."""
    j = jacobian(model, x).numpy()
    kernel = j @ j.T
    with torch.no_grad():
        u0 = model(x)
    slope = torch.func.grad(lambda u: row.reference(u, row.targets))

    def force(u):
        return -kernel @ slope(torch.from_numpy(u).reshape(row.shape)).reshape(-1).numpy()

    return integrate(force, u0.numpy().reshape(-1), times, rtol=1e-9, atol=1e-11).reshape(len(times), *row.shape)


@pytest.mark.parametrize("name", RUN)
def test_the_flow_against_an_ode_solver(name):
    row = ROWS[name]
    model, x, objective = setting(row, scale=2.0)
    solution = js.solve(objective, "dense")
    times = [s / solution.spectrum.max().item() if solution.spectrum.max() > 0 else s for s in (0.3, 3.0, 20.0)]
    found = solution.outputs(torch.tensor(times, dtype=torch.float64))
    assert relative(found, exact(row, model, x, times)) < 2e-6


@pytest.mark.parametrize("name", RUN)
def test_jumps_lower_every_loss(name):
    row = ROWS[name]
    model, x, objective = setting(row)
    result = js.jump(objective)
    with torch.no_grad():
        reached = float(row.reference(model(x), row.targets))
    assert result.accepted
    assert reached == pytest.approx(result.actual, rel=1e-10)
    assert reached < result.before
    optimizer = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 1e-3), objective, at=2, search=True)
    for _ in range(2):
        optimizer.zero_grad()
        row.reference(model(x), row.targets).backward()
        optimizer.step()
    assert optimizer.results[0].accepted
    fitted = js.fit(objective, jumps=1)
    assert fitted.loss < reached


@pytest.mark.parametrize("name", ["mse, mask and weights", "huber, delta", "cross_entropy, weights"])
def test_leaving_samples_out_of_weighted_runs(name):
    """Sample i's rows of the gradient set to zero, and its own term of the loss read, n times it."""
    row = ROWS[name]
    model, x, objective = setting(row)
    solution = js.solve(objective, "dense")
    t, n = 2.0, row.shape[0]
    left = solution.leave_out(torch.tensor([t]), tolerance=1e-8)
    j = jacobian(model, x).numpy()
    kernel = j @ j.T
    with torch.no_grad():
        u0 = model(x).numpy().reshape(-1)
    slope = torch.func.grad(lambda u: row.reference(u, row.targets))
    for i in (0, 3):

        def force(u, i=i):
            g = slope(torch.from_numpy(u).reshape(row.shape))
            g[i] = 0
            return -kernel @ g.reshape(-1).numpy()

        end = torch.from_numpy(integrate(force, u0, [t], rtol=1e-9, atol=1e-11)[0]).reshape(row.shape)
        assert relative(left.outputs[0, i], end[i]) < 1e-5
        changed = end.clone()
        changed[i] += 0.5  # what sample i adds to the loss is told by moving it alone
        moved = row.reference(changed, row.targets) - row.reference(end, row.targets)
        there = objective.loss.per_sample(changed)[i] - objective.loss.per_sample(end)[i]
        assert float(there) == pytest.approx(float(moved), rel=1e-9)
        assert float(left.losses[0, i]) == pytest.approx(n * float(objective.loss.per_sample(end)[i]), rel=1e-5)


def test_huber_at_the_end_of_training_and_far_from_its_targets():
    """All residuals are in the linear part at first: no curvature, and no rate to start from."""
    row = Row(js.losses.Huber, lambda u, y: F.huber_loss(u, y), 20 * torch.sign(randn(1, 6, 3)), (6, 3))
    model, x, objective = setting(row)
    solution = js.solve(objective, "dense")
    assert not bool(objective.loss.hvp(objective.outputs(objective.theta()), torch.ones(6, 3).double()).any())
    times = [10.0, 300.0]
    assert relative(solution.outputs(torch.tensor(times)), exact(row, model, x, times)) < 1e-6
    assert float(solution.loss(math.inf)) < 1e-8
    result = js.jump(objective)
    assert result.accepted


def test_curvature_that_only_looked_constant():
    """Quadratic for 4000 around 5000, linear where the network is and where one looks: the closed form is given up."""

    def distant(u, y):
        return F.huber_loss(u - 5000 - y, torch.zeros_like(u), delta=4000.0, reduction="sum") / 4000

    row = Row(lambda y: Convex(distant, y), mean_over(distant), randn(1, 6, 3), (6, 3))
    model, x, objective = setting(row)
    assert objective.loss.quadratic
    solution = js.solve(objective, "dense")
    times = [3.0, 3000.0, 30000.0]
    truth = exact(row, model, x, times)
    assert np.abs(truth[1:]).max() > 2000  # where it bends
    for t, u in zip(times, truth, strict=True):
        assert relative(solution.outputs(t), u) < 1e-6
    assert js.jump(objective).accepted


def test_other_targets_of_a_quadratic_function():
    """Its gradient is not B (u − y): targets hold a mask here."""
    row = ROWS["function, masked squares"]
    model, x, objective = setting(row)
    many = torch.stack([row.targets, row.targets.flip(0), -row.targets.flip(1).abs() * 0 + row.targets.roll(1, 0)])
    sweep = js.solve(objective, "dense").with_targets(many)
    found = sweep.outputs(4.0)
    for y, u in zip(many, found, strict=True):
        other = Row(row.make, row.reference, y, row.shape)
        assert relative(u, exact(other, model, x, [4.0])[0]) < 1e-6
        assert relative(js.solve(objective, "dense").with_targets(y).outputs(4.0), u) < 1e-9


def test_masked_targets_swept():
    row = ROWS["mse, mask and weights"]
    model, x, objective = setting(row)
    many = torch.stack([row.targets, row.targets.flip(0)])
    for y, u in zip(many, js.solve(objective, "dense").with_targets(many).outputs(4.0), strict=True):
        assert relative(u, exact(Row(row.make, row.reference, y, row.shape), model, x, [4.0])[0]) < 1e-6


def test_checks_on_new_samples_know_no_weights():
    row = ROWS["mse, mask and weights"]
    _, _, objective = setting(row)
    query, y = randn(30, 6, 4), randn(31, 6, 3)
    check = js.solve(objective, "dense").check(1e-3, query, y)
    assert check.query.losses[0] == pytest.approx(float(F.mse_loss(check.query.linearized, y)), rel=1e-9)


def test_gcv_knows_no_weights():
    _, _, objective = setting(ROWS["mse, weights"])
    with pytest.raises(js.errors.InputError, match="gcv"):
        js.solve(objective, "dense").risk(1.0, "gcv")


def test_a_loss_below_zero():
    row = ROWS["poisson"]
    model, _, _ = setting(row)
    x = randn(8, 6, 4)
    y = row.targets + 6
    with torch.no_grad():
        model[-1].bias.fill_(1.5)
    objective = js.supervised(model, x, y, loss="poisson")
    fitted = js.fit(objective, jumps=6)
    assert fitted.loss < fitted.start < 0
    assert fitted.jumps == 6
    lowest = float((y - y * y.log()).mean())
    assert lowest - 1e-12 <= fitted.loss < lowest + 0.05 * (fitted.start - lowest)
