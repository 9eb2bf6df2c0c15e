"""What gradient flow keeps, by integrating it; and the way back to a balance without changing the function."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn
from torch.func import functional_call

from jumpstart import errors
from jumpstart.trajectory import balance, rebalance

from ..problems import fill, randn


def deep(act=nn.ReLU, bias=True):
    return fill(
        nn.Sequential(nn.Linear(3, 6, bias), act(), nn.Linear(6, 5, bias), act(), nn.Linear(5, 2, bias)), 3
    )  # fmt: skip


def flowed(model, x, y, time):
    """Gradient flow of the mean of squares, by an integrator of scipy's."""
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def unpacked(flat):
        found, at = {}, 0
        for name, shape in shapes.items():
            found[name] = flat[at : at + shape.numel()].view(shape)
            at += shape.numel()
        return found

    def slope(_, theta):
        loss = lambda flat: (functional_call(model, unpacked(flat), (x,)) - y).square().mean()  # noqa: E731
        return -torch.func.grad(loss)(torch.from_numpy(theta)).numpy()

    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()
    end = solve_ivp(slope, (0, time), start, rtol=1e-7, atol=1e-9).y[:, -1]
    twin = copy.deepcopy(model)
    twin.load_state_dict(unpacked(torch.from_numpy(np.ascontiguousarray(end))))
    return twin


@pytest.mark.parametrize("act", [nn.Identity, lambda: nn.LeakyReLU(0.2)])
def test_gradient_flow_keeps_it_and_steps_do_not(act):
    model, x, y = deep(act), randn(0, 12, 3), randn(1, 12, 2)
    before, after = balance(model), balance(flowed(model, x, y, 0.5))
    assert list(before) == ["0", "2"]
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(15):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    assert max(float((balance(model)[name] - value).abs().max()) for name, value in before.items()) > 1e-3


@pytest.mark.parametrize("bias", [True, False])
def test_the_way_back_keeps_the_function(bias):
    model, other = deep(bias=bias), deep(bias=bias)
    target = balance(model)
    fill(other, 8)
    x = randn(2, 20, 3)
    was = other(x).detach()
    rebalance(other, target)
    torch.testing.assert_close(other(x).detach(), was, rtol=1e-11, atol=1e-12)
    for name, value in balance(other).items():
        torch.testing.assert_close(value, target[name], rtol=0, atol=1e-11)


def test_only_units_that_have_it_are_asked():
    with pytest.raises(errors.InputError, match="no two Linear layers"):
        balance(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    mixed = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    assert list(balance(nn.Sequential(mixed, nn.ReLU()))) == ["0.2"]
    shared = nn.Linear(3, 3)
    with pytest.raises(errors.InputError, match="no two Linear layers"):
        balance(nn.Sequential(shared, nn.ReLU(), shared))


def test_what_cannot_be_reached_changes_nothing():
    model = deep()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(errors.InputError, match="target has the layers"):
        rebalance(model, {"0": torch.zeros(6)})
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    with pytest.raises(errors.InputError, match="no weights"):
        rebalance(model, balance(deep()))
    assert torch.equal(model[0].weight, before["0.weight"])
