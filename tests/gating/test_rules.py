"""Gate rules: limits, scale, and the unbiased estimate by Monte Carlo."""

from __future__ import annotations

import pytest
import torch

import jumpstart as js
from jumpstart import gating as gate
from jumpstart.errors import InputError
from jumpstart.flow.horizon import parse

from ..problems import generator, mlp, randn, relative


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# rule, options, m̂², ŝ → expected gate
TABLE = [
    ("hard", {}, 2.0, 1.0, 1.0),
    ("hard", {}, 1.0, 1.0, 0.0),
    ("hard", {}, 0.5, 1.0, 0.0),
    ("hard", {"alpha": 3.0}, 2.0, 1.0, 0.0),
    ("hard", {}, 1e-300, 0.0, 1.0),
    ("hard", {}, 0.0, 0.0, 0.0),
    ("soft", {}, 3.0, 1.0, 2 / 3),
    ("soft", {"alpha": 2.0, "lam": 0.5}, 3.0, 1.0, 1 / 1.5),
    ("soft", {}, 0.9, 1.0, 0.0),
    ("soft", {}, 5.0, 0.0, 1.0),
    ("soft", {}, 0.0, 0.0, 0.0),
    ("snr", {}, 1.0, 1.0, 0.5),
    ("snr", {"lam": 4.0}, 1.0, 1.0, 0.2),
    ("snr", {}, 5.0, 0.0, 1.0),
    ("snr", {}, 0.0, 1.0, 0.0),
    ("snr", {}, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("rule", "options", "mean", "noise", "expected"), TABLE)
def test_table(rule, options, mean, noise, expected):
    assert float(gate.Gate(rule, options)(tensor(mean), tensor(noise))) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("rule", gate.RULES)
@pytest.mark.parametrize("unit", [1e-20, 1e-150, 1e-290, 1e20, 1e150])
def test_gates_do_not_depend_on_the_units_of_the_gradient(rule, unit):
    mean, noise = torch.rand(2, 500, dtype=torch.float64, generator=generator(0))
    expected = gate.Gate(rule)(mean, noise)
    assert relative(gate.Gate(rule)(unit * mean, unit * noise), expected) < 1e-13
    assert float(expected.min()) >= 0
    assert float(expected.max()) <= 1
    more = gate.Gate(rule)(1.5 * mean, noise)
    assert bool((more >= expected).all())


def test_float32_at_tiny_gradients():
    """m̂² ~ 1e-20 in float32: an absolute ε of 1e-8 would shut every gate."""
    mean, noise = torch.tensor([4e-20, 1e-20]), torch.tensor([1e-20, 1e-20])
    assert gate.snr(mean, noise).tolist() == pytest.approx([0.8, 0.5], rel=1e-5)
    assert gate.soft(mean, noise).tolist() == pytest.approx([0.75, 0.0], rel=1e-5)
    assert gate.hard(mean, noise).tolist() == [1.0, 0.0]


def test_moments_by_hand():
    scores = tensor([1.0, 2.0, 6.0], [0.0, 0.0, 0.0])
    mean, noise = gate.moments(scores)  # samples' own gradients 3, 6, 18: mean 9, variance (36 + 9 + 81)/3 = 42
    assert mean.tolist() == [81.0, 0.0]
    assert noise.tolist() == [21.0, 0.0]


def test_the_estimate_is_unbiased():
    """E[μ² − σ²/(n − 1)] is the square of the true mean; without the correction it is off by the variance / n."""
    n, trials, truth, spread = 8, 400_000, 0.3, 1.7
    own = truth + spread * torch.randn(trials, n, dtype=torch.float64, generator=generator(3))
    mean, noise = gate.moments(own / n)
    error = (mean - noise).std() / trials**0.5
    assert float((mean - noise).mean()) == pytest.approx(truth**2, abs=4 * float(error))
    assert float(mean.mean()) - truth**2 == pytest.approx(spread**2 / n, rel=0.02)
    filters = tensor([2.0, 0.5], [0.0, 1.0])
    found = gate.population_decrease(tensor(3.0, 5.0), tensor(1.0, 1.0), filters)
    assert found.tolist() == [6.0, 4.0]


@pytest.mark.parametrize("rule", gate.RULES)
def test_gates_on_a_flow_scale_its_modes(rule):
    objective = js.supervised(mlp(0), randn(0, 9, 4), randn(1, 9, 3))
    plain, gated = js.solve(objective), js.solve(objective, gate=rule)
    expected = gate.Gate(rule)(*gate.moments(plain.flow.scores()))
    assert 0 < float(expected.mean()) < 1
    for t in (0.1, 10.0):
        c = plain.flow.start.into(plain.flow.coefficients(parse(t)))
        assert relative(gated.flow.start.into(gated.flow.coefficients(parse(t))), c * expected) < 1e-12
    assert bool((gated.flow.gated(None).gates == 1).all())


def test_misuse():
    with pytest.raises(InputError, match="ajar"):
        gate.Gate("ajar")
    with pytest.raises(InputError, match="two samples"):
        gate.moments(torch.ones(3, 1))
