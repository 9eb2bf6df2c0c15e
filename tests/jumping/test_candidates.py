"""Candidates of a jump: the bend of the network along the step, scales, chord corrections, and what is measured."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import jumpstart as js
from jumpstart.flow.horizon import parse
from jumpstart.jumping.candidates import AlongFlow, Scaled
from jumpstart.jumping.search import GridSearch
from jumpstart.jumping.state import Memory
from jumpstart.jumping.trust import Trust
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.problem import LinearizedProblem, linearized

from ..problems import classes, mlp, randn, relative, slope


def descent(loss="mse", exact=False, geodesic=True, metric=None, seed=0, kind=AlongFlow):
    y = randn(1, 7, 3) if loss == "mse" else classes(1, 7, 3)
    objective = js.supervised(mlp(seed), randn(seed, 7, 4), y, loss)
    plain = linearized(objective)
    problem = LinearizedProblem(plain.lin, plain.loss, metric or Metric())
    return kind(js.solve(objective, basis=js.bases.dense(problem)).flow, geodesic, exact)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_bend_by_a_difference_is_half_the_second_derivative_to_third_order(loss):
    found = descent(loss)
    c = found.run.coefficients(parse(0.3))[0]
    scales, errors = np.geomspace(1e-2, 1, 7), []
    for s in scales:
        displacement = found.run.displacement(s * c)
        exact = 0.5 * found.problem.lin.second(displacement)
        errors.append(float((found.curvature_term(displacement, s * c) - exact).norm()))
        assert relative(AlongFlow(found.run, True, True).curvature_term(displacement, s * c), exact) < 1e-12
    assert abs(slope(scales[2:], errors[2:]) - 3) < 0.2
    assert errors[-1] < 0.2 * float((0.5 * found.problem.lin.second(found.run.displacement(c))).norm())


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.1])
def test_a_bend_that_is_known_gives_the_same_candidate(scale):
    """½ f''[sδ, sδ] = s²·½ f''[δ, δ]."""
    found = descent(exact=True)
    t = 0.5 / float(found.run.start.rates.max())
    c = found.run.coefficients(parse(t))[0]
    bend = found.curvature_term(found.run.displacement(c), c)
    one, other = found.candidate(c, t, scale), found.candidate(c, t, scale, bend)
    assert one.corrected
    assert other.corrected
    assert relative(other.displacement, one.displacement) < 1e-12
    plain = descent(geodesic=False).candidate(c, t, scale)
    assert not plain.corrected
    assert relative(plain.displacement, scale * found.run.displacement(c)) < 1e-12


def test_the_correction_solves_for_the_bend_with_the_flows_filter():
    """δ₂ = −Q V φ Vᵀ Eᵀ B ½f''[δ₁, δ₁], here by SVD of the explicit Jacobian."""
    found = descent(exact=True)
    t = 2.0 / float(found.run.start.rates.max())
    c = found.run.coefficients(parse(t))[0]
    first = found.run.displacement(c)
    u, s, vh = torch.linalg.svd(found.problem.lin.jacobian(), full_matrices=False)
    beta = 2 / 21
    filters = -torch.expm1(-beta * s**2 * t) / s
    bend = 0.5 * found.problem.lin.second(first)
    second = -vh.T @ (filters * (u.T @ bend.reshape(-1)))
    assert relative(found.candidate(c, t).displacement, first + second) < 1e-9


def test_second_order_is_believed_up_to_half_of_the_first_and_no_further():
    """Along one step, ½ f''[δ, δ] grows with the square of the share that is taken: δ₂/δ₁ grows in proportion."""
    found = descent(exact=True)
    t = 2.0 / float(found.run.start.rates.max())
    c = found.run.coefficients(parse(t))[0]
    bend = found.curvature_term(found.run.displacement(c), c)
    second = found.run.response(bend, parse(t))[0]  # of a squared loss, whose B is a number
    limit = 0.5 / (found.problem.loss.curvature * float(second.norm() / c.norm()))
    for share, believed in ((0.99 * limit, True), (1.01 * limit, False), (10 * limit, False)):
        candidate = found.candidate(c, t, share)
        assert candidate.corrected == believed
        assert torch.equal(candidate.displacement, candidate.first) == (not believed)


def test_what_is_measured_is_the_real_network():
    found = descent(metric=Metric(None, 0.2))
    displacement = 0.1 * randn(3, 255)
    u, _, loss = found.problem.measure(displacement)
    theta = found.problem.lin.theta + displacement
    assert torch.equal(u, found.problem.lin.outputs(theta))
    expected = torch.nn.functional.mse_loss(u, found.problem.loss.targets) + 0.1 * theta.square().sum()
    assert loss == pytest.approx(float(expected), rel=1e-13)
    assert math.isnan(found.problem.measure(displacement * math.nan)[-1])


def test_reuse_only_ever_lowers_the_loss():
    found = descent(geodesic=False)
    for t in (0.01, 0.3, 3.0):
        start = found.candidate(found.run.coefficients(parse(t))[0], t)
        losses = [found.chord(start, count)[0].loss for count in range(4)]
        assert all(b <= a for a, b in itertools.pairwise(losses))


@pytest.mark.parametrize("kind", [AlongFlow, Scaled])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_search_writes_nothing(loss, kind):
    found = descent(loss, kind=kind)
    before = found.problem.lin.theta.clone()
    result = GridSearch()(found, Trust(), Memory())
    assert result.outcome.accepted
    assert result.best is not None
    assert result.best.loss < result.before
    assert torch.equal(found.problem.lin.theta, before)
    weights = torch.cat([p.detach().reshape(-1) for p in found.problem.lin.net.model.parameters()])
    assert torch.equal(weights, before)
