"""Fluctuations at rest against simulated runs, a path found by optimization, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.trajectory import Diffusion
from jumpstart.trajectory.diffusion import exit_time

from ..problems import fill, randn


def resting(n: int = 30, d: int = 3, outputs: int = 1):
    """Linear regression at its minimum."""
    x, y = randn(0, n, d), randn(1, n, outputs)
    model = nn.Linear(d, outputs, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return model, x, y, js.supervised(model, x, y, "mse")


def steps(weights, x, y, lr, batch, generator):
    """One minibatch step of many linear runs (runs, d) with one output."""
    rows = torch.randint(len(x), (len(weights), batch), generator=generator)
    off = (x[rows] * weights[:, None]).sum(-1) - y[rows, 0]
    return weights - lr * 2 * (x[rows] * off[..., None]).mean(1)


def test_runs_wander_and_leave_as_it_says():
    model, x, y, objective = resting()
    query = randn(2, 2, 3)
    lr, batch, runs = 0.02, 4, 1500
    found = Diffusion(objective, lr, batch, queries=query)
    generator, start = torch.Generator().manual_seed(3), model.weight.detach()
    w, total = start.repeat(runs, 1), 0.0
    for step in range(900):
        w = steps(w, x, y, lr, batch, generator)
        if step >= 300 and step % 20 == 0:
            total = total + (w - start).T @ (w - start) / runs / 30
    for shown, told in ((x, found.covariance), (query, found.seen)):
        real = shown @ total @ shown.T
        assert float((real - told).norm() / told.norm()) < 0.03
    along = torch.tensor([1.0, 0.0]).double()
    far = 2.0 * found.deviation(along, queries=True)
    told = found.escape(along, far, queries=True)
    w, inside, times = start.repeat(runs, 1), torch.ones(runs, dtype=torch.bool), torch.zeros(runs).double()
    while bool(inside.any()):
        w = steps(w, x, y, lr, batch, generator)
        times += inside
        inside &= ((w - start) @ query[0]).abs() <= far
    assert float(times.mean()) == pytest.approx(told.steps, rel=0.1)
    assert told.action == pytest.approx(2.0)


def test_the_covariance_is_the_sum_over_past_steps():
    """C = Σ Sʲ Q Sᵀʲ, written out with explicit Jacobians; two outputs, and a loss that is not quadratic."""
    model = fill(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)), 0)
    x, y, lr, batch = randn(1, 9, 3), (randn(2, 9, 2) > 0).double(), 0.5, 3
    objective = js.supervised(model, x, y, "logistic")
    found = Diffusion(objective, lr, batch, replacement=False)
    names = list(dict(model.named_parameters()))
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def outputs(theta):
        pieces = theta.split([p.numel() for p in model.parameters()])
        weights = {k: v.view(p.shape) for k, v, p in zip(names, pieces, model.parameters(), strict=True)}
        return torch.func.functional_call(model, weights, (x,))

    jacobian = torch.func.jacrev(lambda theta: outputs(theta).reshape(-1))(flat)
    each = torch.func.jacrev(
        lambda theta: nn.functional.binary_cross_entropy_with_logits(outputs(theta), y, reduction="none").mean(1)
    )(flat)
    bend = torch.func.hessian(lambda u: nn.functional.binary_cross_entropy_with_logits(u.view(9, 2), y))(
        outputs(flat).reshape(-1).detach()
    )
    step = torch.eye(18).double() - lr * jacobian @ jacobian.T @ bend
    kicks = jacobian @ (each - each.mean(0)).T
    noise = lr**2 / batch * (9 - batch) / 8 * kicks @ kicks.T / 9
    total, power = noise, step
    for _ in range(22):  # of 2ʲ steps
        total, power = total + power @ total @ power.T, power @ power
    torch.testing.assert_close(found.covariance, total, rtol=1e-6, atol=1e-9 * float(total.abs().max()))


def test_no_path_costs_less_than_the_action():
    """The least Σ ½ ηᵀ Q⁻¹ η over kicks η that end in a deviation, by least squares."""
    model, x, y, _ = resting(12, 2)  # by a loss that bends differently at every sample, so that S is not symmetric
    found = Diffusion(js.supervised(model, x, (y > 0).double(), "logistic"), 0.5, 4)
    v = x @ randn(5, 2)  # what weights reach
    left = torch.linalg.qr(x)[0]
    step, noise = (left.T @ found._left @ m @ found._left.T @ left for m in (found._step, found._noise))
    root, length = torch.linalg.cholesky(noise), 500
    blocks = [torch.linalg.matrix_power(step, length - 1 - j) @ root for j in range(length)]
    kicks = torch.linalg.lstsq(torch.cat(blocks, 1), left.T @ v, driver="gelsd").solution
    assert found.action(v) == pytest.approx(0.5 * float(kicks.square().sum()), rel=1e-9)
    path, here = found.path(v, length), torch.zeros(2).double()
    for j, kick in enumerate(kicks.view(length, 2)):
        here = step @ here + root @ kick
        torch.testing.assert_close(left.T @ path[j + 1], here, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(path[-1], v)


def test_one_mode_in_closed_form():
    """Of u ← ρu + σξ the variance is σ²/(1 − ρ²), the relaxation 1 − ρ; times grow as the exponential of the action."""
    x, y = torch.ones(4, 1).double(), torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]).double()
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    found = Diffusion(js.supervised(model, x, y, "mse"), 0.01, 2)
    kept, variance = 1 - 0.02, 0.01**2 / 2 * (4 * 2.5)
    one = torch.tensor([1.0, 0, 0, 0]).double()
    assert found.deviation(one) ** 2 == pytest.approx(variance / (1 - kept**2))
    answers = [found.escape(one, z * found.deviation(one)) for z in (1.0, 3.0, 50.0)]
    assert answers[0].relaxation == pytest.approx(0.02) and answers[2].steps == math.inf
    assert answers[1].action == pytest.approx(4.5)
    # far out: √(2π) e^{z²/2} / 2z
    assert exit_time(6.0) == pytest.approx(math.sqrt(2 * math.pi) * math.exp(18) / 12, rel=0.05)
    assert exit_time(1e-3) == pytest.approx(5e-7, rel=1e-3)


def test_a_direction_that_still_drifts_is_told():
    model, x, _, objective = resting()
    with torch.no_grad():
        model.weight.add_(1.0)
    found = Diffusion(objective, 0.02, 4)
    direction = x @ torch.ones(3).double()
    with pytest.warns(RuntimeWarning, match="does not rest"):
        found.escape(direction, found.deviation(direction))


def test_bad_input_is_named():
    _, _, _, objective = resting()
    for options, said in (
        ({"lr": 0.0, "batch": 4}, "lr=0.0"),
        ({"lr": 0.1, "batch": 0}, "batch"),
        ({"lr": 0.1, "batch": 30, "replacement": False}, "no minibatch"),
        ({"lr": 50.0, "batch": 4}, "Take a lower lr"),
    ):
        with pytest.raises(errors.InputError, match=said):
            Diffusion(objective, **options)
    model, x, y, _ = resting()
    with pytest.raises(errors.InputError, match="does not bend"):
        Diffusion(js.supervised(model, x, 100 * y, "huber"), 0.02, 4)
    found = Diffusion(objective, 0.02, 4)
    with pytest.raises(errors.InputError, match="distance=-1"):
        found.escape(torch.ones(30), -1)
    with pytest.raises(errors.ShapeError, match="29"):
        found.action(torch.ones(29))
    with pytest.raises(errors.ShapeError, match="0 query outputs"):
        found.escape(torch.ones(2), 1.0, queries=True)
    exact = nn.Linear(2, 1, bias=False).double()
    x = randn(0, 2, 2)
    with pytest.raises(errors.InputError, match="no noise"):
        Diffusion(js.supervised(exact, x, exact(x).detach(), "mse"), 0.1, 1)
