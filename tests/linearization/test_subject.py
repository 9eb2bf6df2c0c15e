"""Derivatives are probed once for a model, and not for every minibatch of it; whatever may change them is seen."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart.errors import InconsistentError

from ..problems import fill, randn

module = importlib.import_module("jumpstart.linearization.linearize")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)
        self.stopped, self.scale, self.padding = False, 1.0, None

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if self.stopped or bool(x[0, 0] > 100):
            h = h + h.detach()
        return self.scale * self.b(h)


def batch(seed):
    return randn(seed, 6, 3), randn(seed + 1, 6, 2)


@pytest.fixture
def probes(monkeypatch):
    found, own = [], module.require_consistent
    monkeypatch.setattr(module, "require_consistent", lambda lin: found.append(lin) or own(lin))
    return found


def again(first, seed=7, **options):
    """Another minibatch of the same model, given what was found of the first."""
    objective = js.supervised(first.model, *batch(seed), **options)
    objective.consistent = first.consistent
    module.linearize(objective)
    return objective


def first_of(model):
    objective = js.supervised(model, *batch(3))
    module.linearize(objective)
    return objective


@pytest.mark.parametrize("function", [False, True])
def test_a_wrapped_loop_probes_its_minibatches_once(probes, function):
    torch.manual_seed(0)
    model, count = fill(Net(), 0), iter(range(100))

    def objective():
        x, y = batch(next(count))
        return js.Objective(model, lambda net: net(x), js.losses.mse(y)) if function else js.supervised(model, x, y)

    optimizer = js.JumpOptimizer(torch.optim.SGD(model.parameters(), 0.01), objective, at=2, budget=None, search=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that the data change
        for _ in range(16):
            x, y = batch(next(count))
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    assert optimizer.jumps >= 2
    assert len(probes) == 1


def test_other_data_are_the_same_subject(probes):
    first = first_of(fill(Net(), 0))
    again(first)
    again(first, seed=9)
    assert len(probes) == 1


def test_new_objectives_know_nothing_of_each_other(probes):
    model = fill(Net(), 0)
    first_of(model)
    first_of(model)
    assert len(probes) == 2


CHANGES = {
    "an attribute": lambda m: setattr(m, "scale", 2.0),
    "a mode": lambda m: m.b.eval(),
    "a hook": lambda m: m.a.register_forward_hook(lambda *_: None),
    "a hook on a parameter": lambda m: m.a.weight.register_hook(lambda g: None),
    "a frozen parameter": lambda m: m.a.weight.requires_grad_(False),
    "a layer": lambda m: setattr(m, "b", fill(nn.Linear(5, 2), 3)),
    "a parameter": lambda m: setattr(m.b, "bias", nn.Parameter(m.b.bias.detach().clone())),
    "a parametrization": lambda m: nn.utils.parametrizations.weight_norm(m.a),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_probed_again(probes, what):
    model = fill(Net(), 0)
    first = first_of(model)
    CHANGES[what](model)
    again(first)
    assert len(probes) == 2


def test_a_fault_that_comes_later_is_refused():
    model = fill(Net(), 0)
    first = first_of(model)
    model.stopped = True
    with pytest.raises(InconsistentError):
        again(first)


def test_a_branch_that_the_data_take_is_another_subject():
    model = fill(Net(), 0)
    first, (x, y) = first_of(model), batch(5)
    x[0] = torch.tensor([101.0, 0.1, -0.1])
    objective = js.supervised(model, x, y)
    objective.consistent = first.consistent
    with pytest.raises(InconsistentError):
        module.linearize(objective)


def test_padding_that_one_batch_has_is_seen_in_it():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Parameter(randn(0, 6, 4)), nn.Linear(4, 2)

        def forward(self, i):
            pad = 0 if bool((i == 0).any()) else None
            return self.out(torch.tanh(F.embedding(i, self.table, padding_idx=pad).mean(1)))

    model = fill(Words(), 0)
    one = js.supervised(model, torch.arange(1, 6)[:, None], randn(1, 5, 2))
    module.linearize(one)
    other = js.supervised(model, torch.arange(0, 5)[:, None], randn(1, 5, 2))
    other.consistent = one.consistent
    assert not one.still_responds
    assert module.linearize(other).still_responds


def test_a_solution_leaves_what_it_found():
    objective = js.supervised(fill(Net(), 0), *batch(3))
    js.solve(objective)
    assert len(objective.consistent) == 1
