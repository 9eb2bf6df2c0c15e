"""The monitor says what a gated optimizer would do, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jumpstart import gating
from jumpstart.errors import InputError
from jumpstart.optim import GatedAdamW

from ..problems import randn

X, Y = randn(0, 60, 4), randn(1, 60, 2)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def train(net, optimizer, steps=25, each=lambda: None):
    for k in range(steps):
        rows = slice(6 * (k % 10), 6 * (k % 10) + 6)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(X[rows]), Y[rows]).backward()
        optimizer.step()
        each()


@pytest.mark.parametrize("rule", ["hard", "soft", "snr"])
def test_it_reads_what_a_gated_optimizer_does(rule):
    net = model()
    optimizer = GatedAdamW(net.parameters(), lr=0.01, rule=rule)
    monitor = gating.Monitor(net, optimizer, rule=rule)
    gates = []
    train(
        net,
        optimizer,
        each=lambda: gates.append({n: float(optimizer.gate(p).mean()) for n, p in net.named_parameters()}),
    )
    assert [reading.step for reading in monitor.history] == list(range(2, 26))
    for reading in monitor.history:
        assert reading.open == pytest.approx(gates[reading.step - 1], rel=1e-9)
    assert 0 < monitor.history[-1].share < 1


def test_training_is_unchanged_and_watching_ends():
    found = []
    for watched in (False, True):
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        if watched:
            with gating.Monitor(net, optimizer, every=5, keep=3) as monitor:
                train(net, optimizer)
            assert [reading.step for reading in monitor.history] == [15, 20, 25]
            train(net, optimizer, 2)
            assert monitor.step == 25
        else:
            train(net, optimizer)
            train(net, optimizer, 2)
        found.append(torch.cat([p.detach().reshape(-1) for p in net.parameters()]))
    assert torch.equal(*found)


def test_the_decrease_is_unbiased():
    """Averaged over many runs along noise with a known mean it is the square of that mean; m̂² alone is far above."""
    g = torch.Generator().manual_seed(0)
    net = nn.Linear(4000, 1, bias=False).double()
    monitor = gating.Monitor(net)
    for _ in range(300):
        net.weight.grad = 0.05 + torch.randn(1, 4000, generator=g, dtype=torch.float64)
        reading = monitor.look()
    assert reading.decrease / 4000 == pytest.approx(0.05**2, abs=6 * (2 / 4000) ** 0.5 / 19 + 0.0005)
    assert reading.kept > reading.decrease  # what is left out was mostly below its noise


def test_bad_input():
    net = model()
    for options, words in (
        ({"rule": "ajar"}, "ajar"),
        ({"statistics": "guess"}, "guess"),
        ({"beta": 1.0}, "beta=1"),
        ({"every": 0}, "every=0"),
        ({"alpha": -1.0}, "alpha"),
    ):
        with pytest.raises(InputError, match=words):
            gating.Monitor(net, **options)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    gating.Monitor(net, optimizer, statistics="exact")
    with pytest.raises(InputError, match=r"js\.gating\.record"):
        train(net, optimizer, 1)


def test_gradients_that_are_not_finite_are_not_taken_in():
    net = model()
    monitor = gating.Monitor(net)
    for p in net.parameters():
        p.grad = torch.full_like(p, float("nan"))
    assert monitor.look() is None
    for _ in range(2):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        reading = monitor.look()
    assert reading.share == 1.0


def test_groups():
    net = nn.ModuleDict({"body": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "router": nn.Linear(4, 2)})
    gated, plain = gating.groups(net, never=["*router*"])
    assert [p.shape for p in gated["params"]] == [(4, 3)]
    assert len(plain["params"]) == 5
    assert plain["rule"] is None
    optimizer = GatedAdamW(gating.groups(net))
    assert [group["rule"] for group in optimizer.param_groups] == ["hard", None]
    with pytest.raises(InputError, match=r"\*gate\*"):
        gating.groups(net, never=["*gate*"])
    with pytest.raises(InputError, match="list of patterns"):
        gating.groups(net, never="*router*")
