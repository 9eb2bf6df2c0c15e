"""``js.solve`` against scipy: expm of the dense kernel, ODE integration of frozen and of true gradient flow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

import jumpstart as js
from jumpstart import bases
from jumpstart.flow.horizon import parse
from jumpstart.flow.reduced_flow import ReducedFlow
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.problem import LinearizedProblem
from jumpstart.solver.solution import Solution

from ..problems import PROBLEMS, Frozen, at, flat, integrate, jacobian, mlp, problem_of, randn, relative, slope, vector

SEEDS = (0, 1, 2)
INF = math.inf


def solution(objective, built, lin=None):
    lin = lin or linearize(objective)
    return Solution(objective, ReducedFlow(built, objective.loss), None)


def solved(objective, route, metric=None):
    """A dense solution by a given route."""
    lin = linearize(objective)
    return solution(objective, bases.dense(problem_of(lin, metric), route=route), lin)


def horizons(oracle):
    return [1e-12, *(f / oracle.top for f in (1e-6, 1e-3, 0.1, 1.0, 10.0, 300.0, 9e3, 1e8)), 1e30, INF]


@pytest.mark.parametrize("route", ["auto", "kernel", "svd", "gram"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_dense_against_expm(name, route):
    worst = 0.0
    for seed in SEEDS:
        p = PROBLEMS[name](seed)
        oracle = Frozen(p)
        found = solved(js.supervised(p.model, p.x, p.y), route)
        times = horizons(oracle)
        many_u = found.outputs(torch.tensor(times, dtype=torch.float64))
        many_q = found.predict(p.query, torch.tensor(times, dtype=torch.float64))
        for i, t in enumerate(times):
            u, q = oracle.state(t)
            worst = max(worst, relative(found.outputs(t), u), relative(found.predict(p.query, t), q))
            worst = max(worst, relative(many_u[i], u), relative(many_q[i], q))
    print(f"{name}, {route}: worst relative error {worst:.1e}")
    assert worst <= 1e-10


@pytest.mark.parametrize("name", PROBLEMS)
def test_displacement_has_relative_accuracy_at_every_horizon(name):
    """At t = 1e-12 the outputs hardly move; the displacement itself must still be right to 1e-10."""
    p = PROBLEMS[name](4)
    oracle = Frozen(p)
    found = js.solve(js.supervised(p.model, p.x, p.y))
    for t in horizons(oracle):
        c = found.flow.coefficients(parse(t))[0]
        assert relative(found.basis.displacement(c), oracle.displacement(t)) <= 1e-10, t


@pytest.mark.parametrize("name", PROBLEMS)
def test_answers_agree_and_change_nothing(name):
    """parameters(t) reproduces outputs(t) through J; loss is the loss of outputs; the model stays as it was."""
    p = PROBLEMS[name](5)
    before, state = flat(p.model).clone(), torch.get_rng_state()
    found = js.solve(js.supervised(p.model, p.x, p.y))
    j = jacobian(p.model, p.x)
    times = torch.tensor([0.0, 0.3, 7.0, INF], dtype=torch.float64)
    tables, outputs, losses = found.parameters(times), found.outputs(times), found.loss(times)
    for i, t in enumerate(times.tolist()):
        delta = vector({k: v[i] for k, v in tables.items()}) - before
        assert relative(p.model(p.x).reshape(-1) + j @ delta, outputs[i].reshape(-1)) < 1e-10
        assert relative(vector(found.parameters(t)), before + delta) < 1e-13
        assert float(losses[i]) == pytest.approx(float(mse_loss(outputs[i], p.y)), rel=1e-10, abs=1e-25)
        assert found.loss(t) == pytest.approx(float(losses[i]), rel=1e-12, abs=1e-25)
    assert relative(outputs[0], p.model(p.x)) < 1e-15
    assert torch.equal(flat(p.model), before)
    assert torch.equal(torch.get_rng_state(), state)
    nonzero = Frozen(p)
    rates = found.spectrum[: nonzero.rank]
    assert relative(rates, nonzero.beta * nonzero.s[: nonzero.rank] ** 2) < 1e-10


@pytest.mark.parametrize("name", ["mlp", "cnn", "duplicated samples", "dead ReLU"])
@pytest.mark.parametrize("route", ["kernel", "svd", "gram"])
def test_dense_with_metric_against_expm(name, route):
    p = PROBLEMS[name](1)
    d = torch.rand(flat(p.model).numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.05
    oracle = Frozen(p, d)
    found = solved(js.supervised(p.model, p.x, p.y), route, Metric(d.sqrt()))
    for t in horizons(oracle):
        u, q = oracle.state(t)
        assert relative(found.outputs(t), u) <= 1e-10
        assert relative(found.predict(p.query, t), q) <= 1e-10


@pytest.mark.parametrize(("side", "tolerance"), [("parameters", 1e-8), ("outputs", 1e-6)])
@pytest.mark.parametrize("name", PROBLEMS)
def test_krylov_at_full_depth(name, side, tolerance):
    """On the outputs' side orthogonality is of K-inner products: √cond(K) more rounding, hence 1e-6."""
    worst = 0.0
    for seed in SEEDS:
        p = PROBLEMS[name](seed)
        oracle, objective = Frozen(p), js.supervised(p.model, p.x, p.y)
        lin = linearize(objective)
        built = bases.krylov(LinearizedProblem(lin, objective.loss, Metric()), lin.u.numel(), side=side)
        found = solution(objective, built, lin)
        for t in horizons(oracle):
            u, q = oracle.state(t)
            worst = max(worst, relative(found.outputs(t), u), relative(found.predict(p.query, t), q))
    print(f"{name}, {side}: worst relative error {worst:.1e}")
    assert worst <= tolerance


@pytest.mark.parametrize("seed", SEEDS)
def test_prediction_falls_short_of_true_flow_by_t_squared(seed):
    model, x, y = mlp(seed), randn(seed, 8, 4), randn(seed + 50, 8, 3)
    found = js.solve(js.supervised(model, x, y))
    times = np.geomspace(1e-4, 1e-2, 7) / float(found.spectrum[0])

    def flow(theta):
        gradient = torch.func.grad(lambda th: mse_loss(at(model, th, x), y))(torch.from_numpy(theta))
        return -gradient.numpy()

    thetas = integrate(flow, flat(model).numpy(), times, rtol=1e-13, atol=1e-16)
    errors = [
        float((found.outputs(t) - at(model, torch.from_numpy(th), x)).norm())
        for t, th in zip(times, thetas, strict=True)
    ]
    measured = slope(times, errors)
    print(f"seed {seed}: outputs against the true gradient flow err as t^{measured:.3f}")
    assert 1.9 <= measured <= 2.1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("second_order", "order"), [(False, 2), (True, 3)])
def test_landing_misses_by_epsilon_to_the(second_order, order, seed):
    model, x = mlp(seed), randn(seed, 6, 4)
    u, v = model(x).detach(), randn(seed + 7, 6, 3)
    epsilons, misses = np.geomspace(1e-3, 1e-1, 7) * 0.3, []
    for eps in epsilons:
        target = u + eps * v
        found = js.solve(js.supervised(model, x, target))
        theta = vector(found.parameters(INF, land=second_order))
        misses.append(float((at(model, theta, x) - target).norm()))
    measured = slope(epsilons, misses)
    print(f"seed {seed}, second_order={second_order}: real outputs miss by ε^{measured:.3f}")
    assert abs(measured - order) <= 0.15


def test_solution_explains_itself():
    p = PROBLEMS["mlp"](0)
    found = js.solve(js.supervised(p.model, p.x, p.y))
    assert "gradient evaluations" in found.explain()
    assert "modes" in repr(found)


def test_query_points_changed_in_place_are_seen():
    p = PROBLEMS["mlp"](0)
    found = js.solve(js.supervised(p.model, p.x, p.y))
    query = p.query.clone()
    found.predict(query, 1.0)
    query.mul_(-1)
    assert relative(found.predict(query, 1.0), found.predict(-p.query, 1.0)) < 1e-14


def test_a_trajectory_prefix_as_a_basis():
    """The span of an optimizer's updates: the solution moves inside it alone, and no vjp beyond the set-up is spent."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    x, y = torch.randn(10, 3).double(), torch.randn(10, 1).double()
    objective, updates = js.supervised(model, x, y), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        before = objective.theta()
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        updates.append(objective.theta() - before)
    span = torch.stack(updates)
    solution = js.solve(objective, basis=lambda problem: js.bases.span(problem, span))
    assert solution.lin.ledger.pushes == 4
    assert solution.lin.ledger.pulls == 0
    moved = objective.space.flatten(solution.parameters(5.0)) - objective.theta()
    inside = torch.linalg.lstsq(span.T, moved[:, None]).solution
    assert float((span.T @ inside - moved[:, None]).norm()) < 1e-10 * float(moved.norm())
    assert solution.loss(5.0) < solution.loss(0.0)
