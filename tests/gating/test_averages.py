"""Averages and their variance against explicit weights; open rates against simulated batches."""

from __future__ import annotations

import pytest
import torch

from jumpstart import gating
from jumpstart.errors import InputError
from jumpstart.gating.averages import exponential, momentum
from jumpstart.optim import GatedAdamW


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_exponential_averages(beta, count):
    weights = [(1 - beta) * beta ** (count - k) for k in range(1, count + 1)]
    found = exponential(beta, count)
    assert found.total == pytest.approx(sum(weights), rel=1e-12)
    assert found.square == pytest.approx(sum(w * w for w in weights), rel=1e-12)
    assert found.variance == pytest.approx((1 - beta) * (1 + beta**count) / ((1 + beta) * (1 - beta**count)), rel=1e-9)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("dampening", [0.0, 0.4])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_momentum_is_that_of_torch(mu, dampening, count):
    """The weights of torch's own buffer, read off from unit gradients."""
    weights = []
    for k in range(count):
        p = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        optimizer = torch.optim.SGD([p], lr=1.0, momentum=mu, dampening=dampening)
        for i in range(count):
            p.grad = torch.tensor(float(i == k), dtype=torch.float64)
            before = float(p.detach())
            optimizer.step()
        weights.append(before - float(p.detach()))
    if mu == 0:
        weights[-1] = 1.0 if count == 1 else 1 - dampening  # torch leaves dampening out without momentum
    found = momentum(mu, dampening, count)
    assert found.total == pytest.approx(sum(weights), rel=1e-12)
    assert found.square == pytest.approx(sum(w * w for w in weights), rel=1e-12)


def settled(rule, correction, signal, seed):
    """The share of streaming gates that are more than half open, after 500 steps along signal + noise."""
    g = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.zeros(20_000, dtype=torch.float64))
    optimizer = GatedAdamW([p], lr=0.0, rule=rule, correction=correction)
    for _ in range(500):
        p.grad = signal + torch.randn(p.shape, generator=g, dtype=torch.float64)
        optimizer.step()
    return float((optimizer.gate(p) > 0.5).double().mean())


@pytest.mark.parametrize("rule", ["hard", "soft", "snr"])
@pytest.mark.parametrize(("correction", "signal"), [(True, 0.0), (True, 0.3), (False, 0.0), (False, 1.0)])
def test_streaming_open_rates(rule, correction, signal):
    expected = gating.open_rate(rule, "streaming", correction, signal=signal)
    found = settled(rule, correction, signal, 3)
    assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 20_000) ** 0.5 + 0.004)


@pytest.mark.parametrize("rule", ["hard", "soft", "snr"])
@pytest.mark.parametrize(("batch", "signal"), [(8, 0.0), (8, 2.0), (128, 0.0), (128, 0.5)])
@pytest.mark.parametrize("divided", [False, True])
def test_exact_open_rates(rule, batch, signal, divided):
    """The batch rule; divided once more it leaves most of them open without a signal."""
    g = torch.Generator().manual_seed(batch)
    own = signal * batch**0.5 + batch**0.5 * torch.randn(20_000, batch, generator=g, dtype=torch.float64)
    noise = own.var(1) / batch / (batch - 1 if divided else 1)
    found = float((gating.Gate(rule)(own.mean(1).square() / batch, noise / batch) > 0.5).double().mean())
    expected = gating.open_rate(rule, "exact", False, signal=signal * batch**0.5, batch=batch, divided=divided)
    assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 20_000) ** 0.5 + 1e-4)


def test_the_figures_that_people_know():
    assert gating.open_rate("hard", "exact", False, batch=512) == pytest.approx(0.318, abs=1e-3)
    assert gating.open_rate(batch=None) == pytest.approx(0.3185, abs=1e-3)
    assert 5e-6 < gating.open_rate(correction=False) < 3e-5
    assert gating.open_rate("hard", "exact", False, batch=8, divided=True) == pytest.approx(0.717, abs=0.005)
    assert gating.open_rate(signal=11.0) == pytest.approx(1.0)
    with pytest.raises(InputError, match="at least 2"):
        gating.open_rate("hard", "exact", batch=1)


def test_a_finite_set():
    assert gating.finite_sample(50, 200) == pytest.approx(1 / 3)
    for batch, whole in ((200, 200), (300, 200), (0, 200)):
        with pytest.raises(InputError, match="every gate is shut"):
            gating.finite_sample(batch, whole)
