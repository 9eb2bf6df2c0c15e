"""The reported error bound of truncated bases: it holds, and is within 100× of the error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import bases
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.problem import LinearizedProblem

from ..problems import PROBLEMS, Frozen, Problem, classes, cnn, fill, mlp, problem_of, randn


def wide(seed):
    """More weights than outputs: the run ends at the targets."""
    return Problem(mlp(seed, 5, 20, 2), randn(seed, 20, 5), randn(seed + 50, 20, 2), randn(seed, 2, 5))


def images(seed):
    return Problem(cnn(seed, 1), randn(seed, 30, 1, 6, 6), randn(seed + 50, 30, 1), randn(seed, 2, 1, 6, 6))


def narrow(seed):
    """More outputs than weights: the run ends away from the targets."""
    model = fill(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), seed)
    return Problem(model, randn(seed, 60, 3), randn(seed + 50, 60, 1), randn(seed, 2, 3))


WIDE = {"mlp": wide, "cnn": images}
TIMES = np.concatenate([np.geomspace(1e-3, 1e5, 17), [math.inf]])


def errors_and_bounds(p, depth, side, times=TIMES):
    objective = js.supervised(p.model, p.x, p.y)
    lin = linearize(objective)
    found = js.solve(objective, basis=bases.krylov(LinearizedProblem(lin, objective.loss, Metric()), depth, side=side))
    exact = js.solve(objective, basis=bases.dense(problem_of(lin, Metric()), route="svd"))
    for t in times:
        error = float((found.outputs(t) - exact.outputs(t)).norm())
        yield t, error, found.error_bound(t), float(exact.outputs(t).norm())


@pytest.mark.parametrize("side", ["parameters", "outputs"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("name", WIDE)
def test_bound_holds_and_is_within_a_hundredfold(name, depth, side):
    worst, seen = 0.0, 0
    for seed in (0, 1, 2):
        for t, error, bound, size in errors_and_bounds(WIDE[name](seed), depth, side):
            assert error <= bound, (seed, t, error, bound)
            if error > 1e-12 * size:
                worst, seen = max(worst, bound / error), seen + 1
    print(f"{name}, depth {depth}, {side}: bound ≤ {worst:.1f} × error in {seen} cases")
    assert seen > 10
    assert worst <= 100


@pytest.mark.parametrize("name", PROBLEMS)
def test_dense_bound_is_rounding_and_holds(name):
    p = PROBLEMS[name](1)
    oracle = Frozen(p)
    found = js.solve(js.supervised(p.model, p.x, p.y), basis="dense")
    for t in (0.0, 1e-3, 1.0, 50.0, math.inf):
        bound = found.error_bound(t)
        assert float(np.linalg.norm(found.outputs(t).numpy() - oracle.state(t)[0])) <= bound
        assert bound < 1e-9 * (1 + float(found.outputs(0.0).norm()))


@pytest.mark.parametrize("depth", [1, 4, 10])
def test_bound_holds_where_the_end_misses_the_targets(depth):
    for seed in (0, 1):
        for t, error, bound, _ in errors_and_bounds(narrow(seed), depth, "parameters"):
            assert error <= bound, (seed, t)


def other_bases(lin, loss):
    g = torch.stack([lin.vjp(loss.grad(lin.u)), lin.vjp(randn(5, *lin.u.shape)), lin.theta])
    return {
        "prefix": bases.span(problem_of(lin, Metric()), g),
        "recycled": bases.recycled(LinearizedProblem(lin, loss, Metric()), g[1:], 4),
        "leading modes": bases.dense(problem_of(lin, Metric()), route="svd", rank=5),
    }


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("kind", ["prefix", "recycled", "leading modes", "krylov"])
def test_bound_holds_for_other_bases_and_losses(kind, loss):
    for seed in (0, 1) if loss == "mse" else (0,):
        y = randn(seed + 50, 9, 3) if loss == "mse" else classes(seed, 9, 3)
        objective = js.supervised(mlp(seed), randn(seed, 9, 4), y, loss)
        lin = linearize(objective)
        table = other_bases(lin, objective.loss) | {
            "krylov": bases.krylov(LinearizedProblem(lin, objective.loss, Metric()), 5)
        }
        found, exact = js.solve(objective, basis=table[kind]), js.solve(objective, basis="dense")
        for t in (1e-3, 0.1, 1.0, 10.0, 100.0, math.inf):
            error = 0.0 if math.isinf(t) and loss != "mse" else float((found.outputs(t) - exact.outputs(t)).norm())
            assert error <= found.error_bound(t), (seed, t)


@pytest.mark.parametrize("stretch", [0.3, 0.99])
def test_bound_for_steps(stretch):
    p = wide(0)
    objective = js.supervised(p.model, p.x, p.y)
    exact = js.solve(objective, basis="dense")
    lr = stretch / float(exact.spectrum[0])
    for depth in (2, 5):
        found = js.solve(objective, basis="krylov", depth=depth)
        for count in (1, 3, 10, 100, 3000):
            horizon = js.steps(count, lr)
            error = float((found.outputs(horizon) - exact.outputs(horizon)).norm())
            assert error <= found.error_bound(horizon), (depth, count)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_basis_of_everything_has_no_defect_damped_or_not(loss, rate):
    """All modes, without saying that they are all: the quadrature of what is left out has to find nothing."""
    y = randn(50, 9, 3) if loss == "mse" else classes(0, 9, 3)
    objective = js.supervised(mlp(0), randn(0, 9, 4), y, loss)
    problem = LinearizedProblem(linearize(objective), objective.loss, Metric())
    basis = replace(bases.dense(problem), complete=False, remainder=None)
    found = js.solve(objective, basis=basis).damped(rate)
    assert not found.flow.basis.complete
    assert found.error_bound(5.0) < 1e-9


def test_nothing_left_out_at_time_zero():
    p = wide(0)
    found = js.solve(js.supervised(p.model, p.x, p.y), basis="krylov", depth=3)
    assert found.error_bound(0.0) == 0.0


def test_steps_are_bounded_where_they_are_stable_and_said_to_be_unbounded_elsewhere():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).double()
    x, y = torch.randn(12, 3).double(), torch.randn(12, 2).double()
    objective = js.supervised(model, x, y)
    exact = js.solve(objective, basis="dense")
    top = float(exact.spectrum[0])
    for depth in (3, 6):
        partial = js.solve(objective, basis="krylov", depth=depth)
        for count in (5, 100, 5000):
            horizon = js.steps(count, 0.9 / top)
            miss = float((partial.outputs(horizon) - exact.outputs(horizon)).norm())
            assert miss <= partial.error_bound(horizon) < math.inf
        assert partial.error_bound(js.steps(5, 2.5 / top)) == math.inf
    assert js.solve(objective, basis="krylov", depth=3, gate="hard").error_bound(1.0) == math.inf


def test_the_quadrature_sees_a_run_that_turns_early():
    """A saturated classifier comes to rest long before 10⁻³ t: nodes by time alone said 32 for an error of 407."""

    class Sharp(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(5, 3, 5, 3)

        def forward(self, x):
            return 1000 * self.inner(x)

    objective = js.supervised(Sharp(), randn(5, 5, 3), torch.tensor([0, 1, 2, 1, 0]), "cross_entropy")
    short = js.solve(objective, "krylov")
    error = float((short.outputs(2.0) - js.solve(objective, "dense").outputs(2.0)).norm())
    assert 100 < error < short.error_bound(2.0)
