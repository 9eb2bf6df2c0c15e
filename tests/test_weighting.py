"""Weights of collocation points: rules against their formulas, and what a fit makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import grad

import jumpstart as js
from jumpstart import errors
from jumpstart.domains import Box
from jumpstart.fitting.fit import Fit
from jumpstart.linearization.linearize import linearize

from .problems import fill, flat

BOX = Box((-1.0, 0.0), (1.0, 1.0))


def net(seed=0):
    return fill(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), seed)


def equation(net, z):
    slopes = grad(lambda z: net(z)[0])(z)
    return slopes[1] + slopes[0]


def start(net, z):
    return net(z)[0] - torch.sin(math.pi * z[0])


def problem(model, count=40):
    return js.residual(model, js.Term(equation, BOX, 2.0, count=count), js.Term(start, BOX.initial(), count=20))


class Interrupt:
    """Of a run, after so many jumps."""

    def __init__(self, after):
        self.left = after

    def __call__(self, result):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_attention_by_its_formula():
    sizes, weights = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([1.0, 4.0, 0.25])
    found = js.weighting.Attention(decay=0.5, rate=0.2)(torch.zeros(3, 2), sizes, weights)
    assert found.tolist() == pytest.approx([(0.5 + 0.05) ** 2, (1.0 + 0.2) ** 2, 0.25**2])
    for _ in range(200):
        found = js.weighting.Attention(0.9, 0.1)(torch.zeros(3, 2), sizes, found)
    assert found.sqrt().tolist() == pytest.approx([0.25, 1.0, 0.0], abs=1e-6)  # rate / (1 − decay) times the share
    assert js.weighting.Attention(1 / 2, 0.1)(torch.zeros(2, 1), torch.zeros(2), torch.ones(2)).tolist() == [0.25, 0.25]


def test_causal_by_a_loop():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=generator, dtype=torch.float64)
    sizes = torch.rand(200, generator=generator, dtype=torch.float64)
    found = js.weighting.Causal(0.7, axis=1, slabs=5)(points, sizes, torch.ones(200, dtype=torch.float64))
    times = points[:, 1].contiguous()
    edges = torch.linspace(float(times.min()), float(times.max()), 6, dtype=torch.float64)
    slab = torch.bucketize(times, edges[1:-1], right=True)
    for i in range(200):
        before = sum(float(sizes[slab == k].square().mean()) for k in range(int(slab[i])))
        assert float(found[i]) == pytest.approx(math.exp(-0.7 * before))


def test_causal_at_one_time_weighs_all_alike():
    found = js.weighting.Causal()(torch.zeros(4, 2), torch.arange(4.0), torch.ones(4))
    assert found.tolist() == [1.0] * 4


def test_weighed_objective_is_the_weighted_sum_of_squares():
    model = net(1)
    objective = problem(model)
    theta = objective.theta()
    weights = torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights[5] = 0.0
    other = objective.with_weights({"equation": weights})
    first, second = objective.parts
    rows = torch.stack([equation(model, z) for z in first.points])
    edge = torch.stack([start(model, z) for z in second.points])
    expected = 0.5 * (2.0 * (weights * rows.square()).mean() + edge.square().mean())
    assert other.value(theta) == pytest.approx(float(expected.detach()), rel=1e-12)
    scale = torch.cat([(2.0 * weights / 40).sqrt(), torch.full((20,), 20**-0.5, dtype=torch.float64)])
    plain = torch.cat([torch.full((40,), (2.0 / 40) ** 0.5, dtype=torch.float64), scale[40:]])
    jacobian = linearize(objective).jacobian() / plain[:, None]
    assert torch.allclose(linearize(other).jacobian(), scale[:, None] * jacobian, rtol=1e-10, atol=1e-12)
    assert other.drawn_loss(theta) == pytest.approx(objective.value(theta), rel=1e-12)  # every point alike
    assert other.resampled({"equation": first.points}).value(theta) == pytest.approx(objective.value(theta), rel=1e-12)
    again = other.weighed(theta, lambda points, sizes, before: before)
    assert again.value(theta) == pytest.approx(other.value(theta), rel=1e-12)
    seen = []
    other.weighed(theta, lambda points, sizes, before: seen.append(sizes) or before)
    assert torch.allclose(seen[0], rows.detach().abs())  # a weight of zero hides no residual


@pytest.mark.parametrize("rule", [js.weighting.Attention(), js.weighting.Causal(10.0)], ids=["attention", "causal"])
def test_a_fit_with_a_rule_solves_and_goes_on_where_it_was_interrupted(rule, tmp_path):
    whole, halved = net(2), net(2)
    found = js.fit(problem(whole), jumps=40, weigh=rule)
    assert found.generalization < 1e-3 * found.start
    states = list(Fit(problem(net(2)), jumps=12, weigh=rule).steps())
    assert states[3].emphasis is None and states[11].emphasis is not None
    assert float(states[11].emphasis.std()) > 0
    with pytest.raises(KeyboardInterrupt):
        js.fit(problem(halved), jumps=40, weigh=rule, path=tmp_path / "fit", callback=Interrupt(17))
    again = js.fit(problem(halved), jumps=40, weigh=rule, path=tmp_path / "fit")
    assert again.loss == pytest.approx(found.loss, rel=1e-6)
    assert torch.allclose(flat(halved), flat(whole), rtol=1e-6, atol=1e-9)


def test_a_rule_is_part_of_what_a_checkpoint_belongs_to(tmp_path):
    js.fit(problem(net()), jumps=6, weigh=js.weighting.Attention(), path=tmp_path / "fit")
    with pytest.raises(errors.ArchiveError, match="weigh"):
        js.fit(problem(net()), jumps=12, path=tmp_path / "fit")


REFUSED = {
    "no rule": (dict(weigh="attention"), ["'attention'", "js.weighting.Attention()"]),
    "wrong shape": (dict(weigh=lambda points, sizes, weights: weights[:3]), ["40 points", "'equation'"]),
    "negative": (dict(weigh=lambda points, sizes, weights: -weights), ["negative"]),
    "NaN": (dict(weigh=lambda points, sizes, weights: weights * math.nan), ["not finite"]),
    "nothing": (dict(weigh=lambda points, sizes, weights: None), ["None"]),
    "no such axis": (dict(weigh=js.weighting.Causal(axis=2)), ["axis=2", "2 coordinates"]),
    "moved by hand": (dict(weigh=js.weighting.Causal(), resample=lambda jump: {}), ["resample=", "weigh="]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    keywords, words = REFUSED[case]
    model = net()
    before = flat(model).clone()
    with pytest.raises(errors.InputError) as error:
        js.fit(problem(model), jumps=6, **keywords)
    assert all(word in str(error.value) for word in words), error.value
    assert torch.isfinite(flat(model)).all() and before.shape == flat(model).shape


def test_given_points_are_refused():
    points = torch.rand(5, 2, dtype=torch.float64)
    with pytest.raises(errors.InputError, match="weight=, one for each"):
        js.fit(js.residual(net(), js.Term(equation, points)), jumps=3, weigh=js.weighting.Attention())


@pytest.mark.parametrize(
    ("kind", "keywords"),
    [
        ("Attention", {"decay": 1.0}), ("Attention", {"rate": -1}), ("Causal", {"steepness": -1.0}),
        ("Causal", {"slabs": 1}), ("Causal", {"axis": 0.5}), ("Causal", {"steepness": math.nan}),
    ],
)  # fmt: skip
def test_rules_that_are_none(kind, keywords):
    with pytest.raises(errors.InputError, match="give a"):
        getattr(js.weighting, kind)(**keywords)
