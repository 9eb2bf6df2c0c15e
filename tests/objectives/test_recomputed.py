"""Layers that a backward pass runs once more (activation checkpoints): at the weights and modes that were asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import jumpstart as js
from jumpstart.objectives import pure

from ..problems import mlp, randn, relative


class Checkpointed(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        for layer in self.inside:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


@pytest.mark.parametrize("chunk", [None, 3])
def test_gradients_at_other_weights_than_the_models_are_right(chunk):
    plain, x, y = mlp(1), randn(2, 8, 4), randn(3, 8, 3)
    found = []
    for model in (plain, Checkpointed(plain)):
        objective = js.supervised(model, x, y, chunk=chunk)
        theta = objective.theta() + 0.3 * randn(4, objective.space.size)
        found.append(objective.evaluate(theta))
        assert torch.equal(objective.theta(), torch.cat([p.detach().reshape(-1) for p in plain.parameters()]))
    for a, b in zip(*found, strict=True):
        assert relative(a, b) < 1e-12


def test_modes_are_those_of_the_objective():
    plain, x, y = mlp(1), randn(2, 8, 4), randn(3, 8, 3)
    model = Checkpointed(nn.Sequential(*plain[:2], nn.Dropout(0.5), nn.BatchNorm1d(12).double(), *plain[2:]))
    objective = js.supervised(model, x, y, training=False)
    theta = objective.theta() + 0.3 * randn(4, objective.space.size)
    own = objective.evaluate(theta)[1]
    assert model.training
    assert model.inside[2].training
    model.eval()
    torch.nn.utils.vector_to_parameters(theta, model.parameters())
    nn.functional.mse_loss(model.inside(x), y).backward()
    assert relative(own, torch.cat([p.grad.reshape(-1) for p in model.parameters()])) < 1e-12


def test_an_evaluation_swaps_weights_once(monkeypatch):
    """The forward and the backward pass of a gradient find the weights that were swapped in for both."""
    calls, kept = [], pure.functional_call
    monkeypatch.setattr(pure, "functional_call", lambda *a, **k: calls.append(1) or kept(*a, **k))
    model, x, y = mlp(1), randn(2, 8, 4), randn(3, 8, 3)
    objective = js.supervised(model, x, y)
    theta = objective.theta() + 0.1
    objective.evaluate(theta)
    calls.clear()
    value, gradient, u = objective.evaluate(theta)
    assert len(calls) == 1
    torch.nn.utils.vector_to_parameters(theta, model.parameters())
    own = nn.functional.mse_loss(model(x), y)
    assert relative(value, own.detach()) < 1e-14
    assert relative(u, model(x).detach()) < 1e-14
    assert (
        relative(gradient, torch.cat([g.reshape(-1) for g in torch.autograd.grad(own, list(model.parameters()))]))
        < 1e-12
    )
