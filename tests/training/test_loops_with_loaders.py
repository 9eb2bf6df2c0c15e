"""A wrapped loop whose objective comes from its own loader: both modes, stopped and resumed, all data at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jumpstart as js

from ..problems import flat, mlp, randn

N, BATCH = 400, 8
X = randn(0, N, 4)
Y = torch.tanh(X[:, :3]) + 0.05 * randn(1, N, 3)
DATA = TensorDataset(X, Y)
# Skips follow minibatches where a step is small.
MODES = {"skip": (0.003, {"skip": 20, "budget": 1.0}), "search": (0.05, {"search": True, "at": 10, "budget": None})}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def start(mode, samples=32):
    model, (rate, options) = mlp(0), mode
    inner = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    data = js.from_loader(model, DataLoader(DATA, BATCH, shuffle=True), "mse", samples)
    judge = {"judge": data.acceptance} if "search" in options else {}
    return model, js.JumpOptimizer(inner, data, **options, **judge)


def train(model, optimizer, steps):
    """The batch of a step depends on the step alone, so that a loop can be resumed."""
    for _ in range(steps):
        rows = torch.arange(optimizer.taken * BATCH, (optimizer.taken + 1) * BATCH) % N
        optimizer.zero_grad()
        nn.functional.mse_loss(model(X[rows]), Y[rows]).backward()
        optimizer.step()


@modes
@pytest.mark.filterwarnings("ignore:this loop is not told")
def test_interrupted_and_resumed(mode, tmp_path):
    """Stopped at any step, through a file: to the bit, jumps and what they are tried on included."""
    model, optimizer = start(mode)
    states = {}
    for step in range(80):
        states[step] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        train(model, optimizer, 1)
    assert any(result.accepted for result in optimizer.results)
    for stop in (3, 45, 67):
        torch.save(states[stop], tmp_path / "run.pt")
        again, resumed = start(mode)
        weights, state = torch.load(tmp_path / "run.pt", weights_only=False)
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        train(again, resumed, 80 - stop)
        assert torch.equal(flat(again), flat(model)), stop
        assert resumed.effective_steps == optimizer.effective_steps


@modes
@pytest.mark.filterwarnings("ignore:this loop is not told")
def test_random_numbers_are_the_loops(mode):
    """A wrapped loop leaves the global generator where a bare one does."""
    model, optimizer = start(mode)
    torch.manual_seed(0)
    train(model, optimizer, 80)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert optimizer.results


def test_all_of_the_data_need_no_others():
    """Full-batch training: there is nobody else to ask, and skips are followed exactly."""
    model = mlp(0)
    inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = js.from_loader(model, DATA, "mse", N, fixed=True)
    assert data.whole
    optimizer = js.JumpOptimizer(inner, data, skip=20)
    for _ in optimizer.steps(100):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(X), Y).backward()
        optimizer.step()
    assert optimizer.skipped >= 20, list(map(str, optimizer.results))
    bare = mlp(0)
    inner = torch.optim.SGD(bare.parameters(), lr=0.05, momentum=0.9)
    for _ in range(optimizer.effective_steps):
        inner.zero_grad()
        nn.functional.mse_loss(bare(X), Y).backward()
        inner.step()
    loss, own = (float(nn.functional.mse_loss(m(X), Y).detach()) for m in (bare, model))
    assert own == pytest.approx(loss, rel=0.02)
