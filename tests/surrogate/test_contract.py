"""One contract, every implementation: the linearized run's answers against dense algebra and against each other."""

from __future__ import annotations

import math

import pytest
import torch

import jumpstart as js
from jumpstart import bases
from jumpstart.errors import InputError
from jumpstart.flow.horizon import Times
from jumpstart.flow.reduced_flow import ReducedFlow
from jumpstart.flow.run import LinearizedRun
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.operators import Explicit
from jumpstart.linearization.problem import LinearizedProblem, linearized
from jumpstart.surrogate import select
from jumpstart.surrogate.damped_cg import DampedCG
from jumpstart.surrogate.damped_cholesky import DampedCholesky, GatheredCholesky
from jumpstart.surrogate.damped_sketch import DampedSketch

from ..objectives.taylor.test_taylor import net_of
from ..problems import mlp, randn, relative

POINTS = randn(3, 9, 2)


def problem(metric: Metric | None = None) -> LinearizedProblem:
    """Residuals at points of a network that derivative streams go through; N = 9 < P."""
    objective = js.residual(net_of(), js.Term(lambda net, x: net(x) - x.sum(), POINTS))
    plain = linearized(objective)
    return LinearizedProblem(plain.lin, plain.loss, metric or Metric())


RUNS = {
    "modes": lambda p: ReducedFlow(bases.dense(p), p.loss),
    "modes of Krylov, whole": lambda p: ReducedFlow(bases.krylov(p, 9, side="parameters"), p.loss),
    "damped Cholesky": DampedCholesky,
    "sketched, whole": lambda p: DampedSketch(p, Explicit(p.lin, p.metric), 9),
    "gathered": GatheredCholesky,
    "damped conjugate gradients": lambda p: DampedCG(p, 400),
}


def filtered(name: str, rates: torch.Tensor, t: float) -> torch.Tensor:
    """φ(λ, t) of the flow, or 1/(λ + 1/t) of an implicit step."""
    return -torch.expm1(-rates * t) / rates if name.startswith("modes") else 1 / (rates + 1 / t)


@pytest.fixture(autouse=True)
def exactly(monkeypatch):
    monkeypatch.setattr("jumpstart.surrogate.damped_cg.STEP", 1e-13)
    monkeypatch.setattr("jumpstart.surrogate.damped_cg.CORRECTION", 1e-13)


@pytest.mark.parametrize("t", [1e-3, 0.3, 20.0])
@pytest.mark.parametrize("name", RUNS)
def test_answers_are_those_of_dense_algebra(name, t):
    p = problem()
    run = RUNS[name](p)
    assert isinstance(run, LinearizedRun)
    j, u = p.lin.jacobian(), p.lin.u
    rates, v = torch.linalg.eigh(j.T @ j)
    keep = rates > 1e-12 * rates.max()
    rates, v = rates[keep], v[:, keep]

    def step(g):
        return -v @ (filtered(name, rates, t) * (v.T @ (j.T @ g)))

    c = run.coefficients(Times.at(t))[0]
    assert c.shape == (run.size,)
    delta = step(u)
    assert relative(run.displacement(c), delta) < 1e-6
    moved = u + (j @ delta).reshape(u.shape)
    assert relative(run.outputs(c), moved) < 1e-6
    assert float(run.predicted_loss(c)) == pytest.approx(0.5 * float(moved.square().sum()), rel=1e-6)
    assert float(run.length(c)) == pytest.approx(float(delta.norm()), rel=1e-6)
    g = randn(11, *u.shape)
    assert relative(run.displacement(run.response(g, Times.at(t))[0]), step(g.reshape(-1))) < 1e-5
    assert relative(run.hvp(u, g), g) < 1e-14  # B = 1 for residuals


@pytest.mark.parametrize("name", RUNS)
def test_horizons_rates_and_what_is_told_of_a_run(name):
    p = problem()
    run = RUNS[name](p)
    top = float(torch.linalg.eigvalsh(p.lin.jacobian() @ p.lin.jacobian().T).max())
    assert 0.1 * top < run.max_rate < 3 * top
    assert 0 < run.initial_horizon() < run.max_horizon < math.inf
    assert run.max_horizon * top > 1e10
    assert float(run.length(run.initial_gradient)) > 0
    assert run.gradient_evaluations > 0
    assert run.problem.lin is p.lin
    assert run.supports_leave_out == name.startswith("modes")
    assert run.is_krylov == ("Krylov" in name)
    assert run.kind and run.route


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("modes")])
def test_implicit_steps_are_asked_for_flow_times(name):
    with pytest.raises(InputError, match="flow time"):
        RUNS[name](problem()).coefficients(js.steps(3, 0.1))


def test_the_same_question_has_the_same_answer_whatever_the_clock_says(monkeypatch):
    """The choice is made from counted work: a machine that crawls, or a thread more, changes nothing."""
    sizes = [(n, width) for n in (4, 40, 200) for width in (4, 64)]

    def choices():
        found = []
        for n, width in sizes:
            objective = js.supervised(mlp(0, 4, width, 3), randn(0, n, 4), randn(1, n, 3))
            found.append(select.weigh(linearized(objective)))
        return [(plan.kind, plan.costs) for plan in found]

    first = choices()
    clock, threads = iter(range(10**9)), torch.get_num_threads()
    for name in ("perf_counter", "process_time", "monotonic"):
        monkeypatch.setattr(f"time.{name}", lambda: float(next(clock)))
    torch.set_num_threads(2)
    try:
        assert choices() == first
    finally:
        torch.set_num_threads(threads)
    assert all(cost.seconds > 0 for _, costs in first for cost in costs.values())


def test_both_ways_are_chosen_by_size():
    def kind(n, c):
        y = torch.zeros(n, dtype=torch.long)
        objective = js.supervised(mlp(0, 4, 16, c), randn(0, n, 4), y, "cross_entropy")
        return select.weigh(linearized(objective)).kind

    assert (kind(6, 3), kind(600, 10)) == ("dense", "krylov")


def test_losses_that_are_integrated_count_their_renewed_factorizations():
    """Modes of a loss that is not quadratic are factored again and again on the way."""
    x, y = randn(0, 60, 4), (randn(1, 60, 3) > 0).double()
    squared, logistic = (linearized(js.supervised(mlp(0), x, y, loss)) for loss in ("mse", "logistic"))
    a, b = select.modes_cost(squared), select.modes_cost(logistic)
    eigen = select.EIGH_FLOPS * 180**3 / select.EIGEN["cpu"] + 180**2 / select.MOVED["cpu"]
    assert a.flow == 0
    assert b.total - b.seconds == b.flow > select.RENEWALS * eigen
    assert b.flow < 2 * select.RENEWALS * eigen
    assert b.seconds == pytest.approx(a.seconds, rel=0.1)
    assert select.RENEWALS >= 10
