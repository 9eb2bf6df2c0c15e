"""Candidates of a jump: the bend of the network along the step, scales, chord corrections, and what is measured."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import jumpstart as js
from jumpstart.flow.horizon import parse
from jumpstart.jumping.candidates import Proposal, attempt
from jumpstart.jumping.trust import Trust
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric

from ..problems import classes, mlp, randn, relative, slope


def proposal(loss="mse", exact=False, second_order=True, metric=None, seed=0):
    y = randn(1, 7, 3) if loss == "mse" else classes(1, 7, 3)
    objective = js.supervised(mlp(seed), randn(seed, 7, 4), y, loss)
    lin = linearize(objective)
    found = js.solve(objective, basis=js.bases.dense(lin, metric or Metric()))
    return Proposal(lin, objective.loss, found.basis, found.flow, second_order, exact)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_bend_by_a_difference_is_half_the_second_derivative_to_third_order(loss):
    found = proposal(loss)
    c = found.flow.at(parse(0.3))[0]
    scales, errors = np.geomspace(1e-2, 1, 7), []
    for s in scales:
        displacement = found.basis.displacement(s * c)
        exact = 0.5 * found.lin.second(displacement)
        errors.append(float((found.bend(displacement, s * c) - exact).norm()))
        assert relative(Proposal(*list(vars(found).values())[:5], True).bend(displacement, s * c), exact) < 1e-12
    assert abs(slope(scales[2:], errors[2:]) - 3) < 0.2
    assert errors[-1] < 0.2 * float((0.5 * found.lin.second(found.basis.displacement(c))).norm())


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.1])
def test_a_bend_that_is_known_gives_the_same_candidate(scale):
    """½ f''[sδ, sδ] = s²·½ f''[δ, δ]."""
    found = proposal(exact=True)
    t = 0.5 / float(found.flow.start.rates.max())
    c = found.flow.at(parse(t))[0]
    bend = found.bend(found.basis.displacement(c), c)
    one, other = found.candidate(c, t, scale), found.candidate(c, t, scale, bend)
    assert one.corrected
    assert other.corrected
    assert relative(other.displacement, one.displacement) < 1e-12
    plain = proposal(second_order=False).candidate(c, t, scale)
    assert not plain.corrected
    assert relative(plain.displacement, scale * found.basis.displacement(c)) < 1e-12


def test_the_correction_solves_for_the_bend_with_the_flows_filter():
    """δ₂ = −Q V φ Vᵀ Eᵀ B ½f''[δ₁, δ₁], here by SVD of the explicit Jacobian."""
    found = proposal(exact=True)
    t = 2.0 / float(found.flow.start.rates.max())
    c = found.flow.at(parse(t))[0]
    first = found.basis.displacement(c)
    u, s, vh = torch.linalg.svd(found.lin.jacobian(), full_matrices=False)
    beta = 2 / 21
    filters = -torch.expm1(-beta * s**2 * t) / s
    bend = 0.5 * found.lin.second(first)
    second = -vh.T @ (filters * (u.T @ bend.reshape(-1)))
    assert relative(found.candidate(c, t).displacement, first + second) < 1e-9


def test_what_is_measured_is_the_real_network():
    found = proposal(metric=Metric(None, 0.2))
    displacement = 0.1 * randn(3, 255)
    u, loss = found.measure(displacement)
    theta = found.lin.theta + displacement
    assert torch.equal(u, found.lin.outputs(theta))
    expected = torch.nn.functional.mse_loss(u, found.loss.targets) + 0.1 * theta.square().sum()
    assert loss == pytest.approx(float(expected), rel=1e-13)
    assert math.isnan(found.measure(displacement * math.nan)[1])


def test_reuse_only_ever_lowers_the_loss():
    found = proposal(second_order=False)
    for t in (0.01, 0.3, 3.0):
        start = found.candidate(found.flow.at(parse(t))[0], t)
        losses = [found.reuse(start, count)[0].loss for count in range(4)]
        assert all(b <= a for a, b in itertools.pairwise(losses))


@pytest.mark.parametrize("family", ["horizon", "scale"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_an_attempt_writes_nothing(loss, family):
    found = proposal(loss)
    before = found.lin.theta.clone()
    result = attempt(found, Trust(), family=family)
    assert result.outcome.accepted
    assert result.best is not None
    assert result.best.loss < result.before
    assert torch.equal(found.lin.theta, before)
    weights = torch.cat([p.detach().reshape(-1) for p in found.lin.net.model.parameters()])
    assert torch.equal(weights, before)
