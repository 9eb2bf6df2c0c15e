"""What holds graphs is freed as soon as nobody has it: a circle keeps gigabytes until the garbage collector comes."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.linearization.products import Linearization

from ..problems import fill, randn

HORIZONS = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)


def solved(basis):
    def use(objective):
        solution = js.solve(objective, basis=basis)
        solution.loss(HORIZONS), solution.parameters(HORIZONS)
        if basis == "dense":
            solution.risk(HORIZONS)
        solution.check(2.0)

    return use


USES = {
    "solve, dense": solved("dense"), "solve, Krylov": solved("krylov"), "jump": js.jump,
    "fit": lambda objective: js.fit(objective, jumps=4, progress=False),
    "shares of a run": lambda objective: js.jump(objective, search="scale"),
}  # fmt: skip


def used(name, loss):
    """A reference to the model of one use, which nobody else should have any more."""
    model = fill(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), 0)
    y = (randn(2, 20, 1) > 0).double()
    USES[name](js.supervised(model, randn(1, 20, 3), y, loss=loss))
    return weakref.ref(model)


@pytest.fixture
def born(monkeypatch):
    """Linearizations that are made meanwhile and are still there; the collector does not come."""
    used("solve, dense", "mse")  # what is imported on first use keeps its frames
    found: weakref.WeakSet = weakref.WeakSet()
    begin = Linearization.__init__

    def begun(self, *args, **keywords):
        found.add(self)
        begin(self, *args, **keywords)

    monkeypatch.setattr(Linearization, "__init__", begun)
    gc.collect()
    gc.disable()
    yield found
    gc.enable()


@pytest.mark.parametrize("loss", ["mse", "logistic"])
@pytest.mark.parametrize("name", USES)
def test_graphs_are_freed_without_the_collector(name, loss, born):
    model = used(name, loss)
    assert len(born) == 0
    assert model() is None
