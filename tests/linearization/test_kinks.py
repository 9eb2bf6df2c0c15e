"""Weights that lie on kinks of the model are told; ordinary networks with kinks somewhere are not."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart.errors import KinkWarning

from ..problems import fill, randn


class Abs(nn.Module):
    def forward(self, x):
        return x.abs()


def unbiased(act, dtype=torch.float64):
    model = fill(nn.Sequential(nn.Linear(3, 8), act, nn.Linear(8, 2)), 0).to(dtype)
    nn.init.zeros_(model[0].bias)
    return model


def blank(n=12, blanks=2, dtype=torch.float64):
    x = randn(0, n, 3)
    x[:blanks] = 0
    return x.to(dtype), randn(1, n, 2).to(dtype)


def told(objective):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        solution = js.solve(objective)
    return solution, [str(w.message) for w in seen if w.category is KinkWarning]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh(0, 1), Abs()])
def test_a_blank_sample_and_biases_of_0_are_told(act, dtype):
    x, y = blank(dtype=dtype)
    _, messages = told(js.supervised(unbiased(act, dtype), x, y))
    assert len(messages) == 1
    assert "rows 0, 1 of" in messages[0]


def test_training_really_leaves_the_linearized_run_there():
    """Else the warning would be a false alarm: a tiny step of SGD, against the linearized one, at the blank samples."""
    x, y = blank()
    model = unbiased(Abs())
    solution, messages = told(js.supervised(model, x, y))
    before, rate = model(x).detach(), 1e-4
    F.mse_loss(model(x), y).backward()
    torch.optim.SGD(model.parameters(), lr=rate).step()
    miss = (model(x).detach() - solution.outputs(js.steps(1, lr=rate))).norm(dim=1)
    moved = (model(x).detach() - before).norm(dim=1)
    assert messages
    assert bool((miss[:2] > 0.01 * moved[:2]).all())
    assert bool((miss[2:] < 1e-2 * moved[2:]).all())


def test_it_is_told_once_and_not_by_a_jump():
    objective = js.supervised(unbiased(nn.ReLU()), *blank())
    with warnings.catch_warnings():
        warnings.simplefilter("error", KinkWarning)
        js.jump(js.supervised(unbiased(nn.ReLU()), *blank()))
    assert len(told(objective)[1]) == 1
    assert not told(objective)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [0, 60])
def test_ordinary_networks_are_not(dtype, steps):
    alarms = 0
    for seed in range(6):
        act = (nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh())[seed % 3]
        model = fill(nn.Sequential(nn.Linear(3, 32), act, nn.Linear(32, 32), act, nn.Linear(32, 2)), seed).to(dtype)
        if seed % 2:
            for layer in model[::2]:
                nn.init.zeros_(layer.bias)
        x, y = randn(seed, 20, 3).to(dtype), randn(seed + 9, 20, 2).to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        alarms += len(told(js.supervised(model, x, y))[1])
    assert alarms == 0
