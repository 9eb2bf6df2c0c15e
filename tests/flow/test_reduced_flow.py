"""The reduced flow against torch.optim.SGD, scipy's ODE integrators and matrix exponentials."""

from __future__ import annotations

import copy
import decimal
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart import bases
from jumpstart.flow.horizon import parse
from jumpstart.flow.reduced_flow import ReducedFlow
from jumpstart.gating import Gate
from jumpstart.linalg.etdrk4 import phis
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.problem import LinearizedProblem

from ..problems import PROBLEMS, classes, fill, flat, integrate, jacobian, mlp, problem_of, randn, relative, vector


def huber(u, y):
    """Smooth Huber: quadratic near the target, linear far from it, strictly convex."""
    return (torch.sqrt(1 + (u - y).square()) - 1).sum()


# name → (torch's loss, targets (seed, n, c), what js takes)
LOSSES = {
    "mse": (F.mse_loss, lambda s, n, c: randn(s, n, c), "mse"),
    "cross_entropy": (F.cross_entropy, lambda s, n, c: classes(s, n, c), "cross_entropy"),
    "soft cross_entropy": (F.cross_entropy, lambda s, n, c: randn(s, n, c).softmax(-1), "cross_entropy"),
    "logistic": (
        F.binary_cross_entropy_with_logits,
        lambda s, n, c: (randn(s, n, c) > 0).double(),
        "logistic",
    ),
    "convex": (lambda u, y: huber(u, y) / len(u), lambda s, n, c: randn(s, n, c), huber),
}


@pytest.mark.parametrize("stretch", [0.3, 1.5, 2.6])  # of 1/λ_max: smooth, oscillating, diverging for mse
@pytest.mark.parametrize("weight_decay", [0.0, 0.07])
@pytest.mark.parametrize(("n", "d"), [(6, 9), (30, 3)])
@pytest.mark.parametrize("name", LOSSES)
def test_steps_equal_sgd_on_a_linear_model(name, n, d, weight_decay, stretch):
    loss, targets, kind = LOSSES[name]
    worst = 0.0
    for seed, count in ((0, 1), (1, 17), (2, 60)):
        model, x, y = fill(nn.Linear(d, 3), seed), randn(seed, n, d), targets(seed, n, 3)
        objective = js.supervised(model, x, y, kind)
        found = js.solve(objective, basis="dense", weight_decay=weight_decay)
        lr = stretch / float(js.solve(objective, basis="dense").spectrum[0])
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=lr, weight_decay=weight_decay)
        for _ in range(count):
            optimizer.zero_grad()
            loss(twin(x), y).backward()
            optimizer.step()
        horizon = js.steps(count, lr)
        q = randn(seed + 9, 4, d)
        worst = max(worst, relative(found.outputs(horizon), twin(x)), relative(found.predict(q, horizon), twin(q)))
        worst = max(worst, relative(vector(found.parameters(horizon)), flat(twin)))
    assert worst <= 1e-10


def softmax(u):
    e = np.exp(u - u.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Gradients for the ODE oracle in NumPy (autograd would take minutes); checked against autograd of torch's loss below.
GRADIENTS = {
    "cross_entropy": lambda u, y: (softmax(u) - np.eye(u.shape[-1])[y]) / len(u),
    "soft cross_entropy": lambda u, y: (softmax(u) - y) / len(u),
    "logistic": lambda u, y: (1 / (1 + np.exp(-u)) - y) / u.size,
    "convex": lambda u, y: (u - y) / np.sqrt(1 + (u - y) ** 2) / len(u),
}


@pytest.mark.parametrize("basis", ["dense", "krylov"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_flow_against_ode_integration(name, basis):
    """u̇ = −K∇Φ(u) with K frozen, by DOP853 at rtol 1e-11; the gradient by autograd of torch's loss."""
    loss, targets, kind = LOSSES[name]
    worst = 0.0
    for seed in range(1 if name == "convex" and basis == "krylov" else 2):
        model, x, query = mlp(seed), randn(seed, 8, 4), randn(seed + 9, 5, 4)
        y = targets(seed, 8, 3)
        objective = js.supervised(model, x, y, kind)
        lin = linearize(objective)
        found = js.solve(
            objective,
            basis=basis if basis == "dense" else bases.krylov(LinearizedProblem(lin, objective.loss, Metric()), 24),
        )
        j, jq = jacobian(model, x).numpy(), jacobian(model, query).numpy()
        times = np.geomspace(1e-3, 300, 9) / float(found.spectrum[0])
        u0, q0 = model(x).detach(), model(query).detach().numpy()
        gradient, targets_np, kernel, cross = GRADIENTS[name], y.numpy(), j @ j.T, jq @ j.T
        assert relative(gradient(u0.numpy(), targets_np), torch.func.grad(lambda v, y=y: loss(v, y))(u0)) < 1e-12

        both = np.concatenate([kernel, cross])

        def rate(s, g=gradient, y=targets_np, k=both):
            return -k @ g(s[:24].reshape(8, 3), y).reshape(-1)

        start = np.concatenate([u0.numpy().reshape(-1), q0.reshape(-1)])
        states = integrate(rate, start, times, rtol=1e-11, atol=1e-13)
        many, queried = found.outputs(torch.from_numpy(times)), found.predict(query, torch.from_numpy(times))
        for i, state in enumerate(states):
            worst = max(worst, relative(many[i], state[:24].reshape(8, 3)))
            worst = max(worst, relative(queried[i], state[24:].reshape(5, 3)))
        last = float(times[3])
        worst = max(worst, relative(found.outputs(last), many[3]), relative(found.predict(query, last), queried[3]))
    print(f"{name}, {basis}: worst relative error {worst:.1e}")
    assert worst <= 1e-6


@pytest.mark.parametrize("name", ["soft cross_entropy", "convex"])
def test_end_of_training_where_the_minimum_is_finite(name):
    _, targets, kind = LOSSES[name]
    model, x, y = mlp(3), randn(3, 6, 4), targets(3, 6, 3)
    u = js.solve(js.supervised(model, x, y, kind), basis="dense").outputs(math.inf)
    if name == "convex":
        assert relative(u, y) < 1e-6
    else:
        assert relative(u.softmax(-1), y) < 1e-6


@pytest.mark.parametrize("basis", ["dense", "krylov"])
@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_weight_decay_in_a_metric_against_ode_integration(name, uniform, metric, basis):
    """θ̇ = −D∇L − w∘θ on a linear model, whose frozen flow is its true flow."""
    loss, targets, kind = LOSSES[name]
    model, x, y = fill(nn.Linear(4, 3), 2), randn(2, 5, 4), targets(2, 5, 3)
    p = flat(model).numel()
    g = torch.Generator().manual_seed(5)
    d = torch.rand(p, generator=g, dtype=torch.float64) + 0.1 if metric else torch.ones(p, dtype=torch.float64)
    w = 0.05 if uniform else torch.rand(p, generator=g, dtype=torch.float64) * 0.1
    chosen = Metric(d.sqrt() if metric else None, w)
    objective = js.supervised(model, x, y, kind)
    lin = linearize(objective)
    # Rates that differ leave the span of the kernel's modes; the whole space holds them.
    built = (
        bases.dense(problem_of(lin, chosen))
        if basis == "dense"
        else bases.krylov(LinearizedProblem(lin, objective.loss, chosen), p)
    )
    if basis == "dense" and not uniform:
        built = bases.span(problem_of(lin, chosen), torch.eye(p, dtype=torch.float64))
    found = js.solve(objective, basis=built)
    times = [0.01, 0.5, 3.0, 20.0, 100.0]

    def rate(theta):
        theta = torch.from_numpy(theta)
        weight, bias = theta[:12].view(3, 4), theta[12:]
        u = x @ weight.T + bias
        gu = torch.func.grad(lambda v: loss(v, y))(u)
        gradient = torch.cat([(gu.T @ x).reshape(-1), gu.sum(0)])
        return -(d * gradient + w * theta).numpy()

    thetas = integrate(rate, flat(model).numpy(), times)
    for t, theta in zip(times, thetas, strict=True):
        assert relative(vector(found.parameters(t)), theta) <= (1e-8 if name == "mse" else 1e-6), t


def test_dense_basis_with_rates_that_differ_admits_its_error():
    """Inside the kernel's modes decay that differs is approximate: the bound must cover the miss."""
    model, x, y = fill(nn.Linear(6, 2), 0), randn(0, 4, 6), randn(1, 4, 2)
    w = torch.linspace(0, 2.0, 14, dtype=torch.float64)
    objective = js.supervised(model, x, y)
    lin = linearize(objective)
    partial = js.solve(objective, basis=bases.dense(problem_of(lin, Metric(None, w))))
    exact = js.solve(objective, basis=bases.span(problem_of(lin, Metric(None, w)), torch.eye(14, dtype=torch.float64)))
    for t in (0.1, 1.0, 5.0):
        miss = float((partial.outputs(t) - exact.outputs(t)).norm())
        assert miss <= partial.error_bound(t), (t, miss)


@pytest.mark.parametrize("rule", ["hard", "soft", "snr"])
def test_a_gate_stays_under_every_other_condition(rule):
    """Asked again of the other targets or weights: as in a run that began under both."""
    model, x, y, other = mlp(0), randn(0, 9, 4), randn(1, 9, 3), randn(2, 9, 3)
    plain = js.solve(js.supervised(model, x, y), basis="dense").flow
    gate, weights = Gate(rule), torch.linspace(0, 2, 9, dtype=torch.float64)
    for change in (
        lambda flow: flow.with_targets(other), lambda flow: flow.reweighted(weights), lambda flow: flow.damped(0.1),
        lambda flow: flow.without(torch.tensor([2, 5])),
    ):  # fmt: skip
        found, expected, bare = change(plain.gated(gate)), change(plain).gated(gate), change(plain)
        c = found.coefficients(parse(3.0))
        assert relative(c, expected.coefficients(parse(3.0))) < 1e-12
        assert relative(c, bare.coefficients(parse(3.0))) > 1e-3


@pytest.mark.parametrize("name", PROBLEMS)
def test_scores_sum_to_the_slope(name):
    p = PROBLEMS[name](0)
    for options in ({"basis": "dense"}, {"basis": "krylov", "depth": 4}):
        flow = js.solve(js.supervised(p.model, p.x, p.y), **options).flow
        assert flow.scores().shape == (flow.size, len(p.x))
        assert relative(flow.scores().sum(1), flow.start.into(flow.initial_gradient)) < 1e-10


def test_a_network_without_gradient_stays():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    nn.init.constant_(model[0].bias, -100.0)
    x = randn(0, 5, 2)
    for kind, y in (("mse", randn(1, 5, 2)), ("cross_entropy", classes(0, 5, 2))):
        found = js.solve(js.supervised(model, x, y, kind), basis="dense")
        for t in (0.0, 1.0, math.inf, js.steps(3, 0.1)):
            assert torch.equal(found.outputs(t), model(x))


def test_tolerance_is_kept_and_tightens():
    model, x, y = mlp(0), randn(0, 8, 4), classes(0, 8, 3)
    lin = linearize(objective := js.supervised(model, x, y, "cross_entropy"))
    built = bases.dense(problem_of(lin, Metric()))
    exact = ReducedFlow(built, objective.loss, 1e-12).coefficients(parse(20.0))
    errors = [
        relative(ReducedFlow(built, objective.loss, tol).coefficients(parse(20.0)), exact) for tol in (1e-3, 1e-6)
    ]
    assert errors[1] < errors[0] < 1e-2
    assert errors[1] < 1e-5


def phi_series(z: float, k: int) -> float:
    """φ_k(z) = Σ z^j/(j+k)!, by the recurrence from e^z in 500-digit decimals (Python's own, independent)."""
    with decimal.localcontext() as context:
        context.prec = 120
        zd, value = decimal.Decimal(z), decimal.Decimal(z).exp()
        for i in range(k):
            value = (value - 1 / decimal.Decimal(math.factorial(i))) / zd
        return float(value)


def test_exponential_functions_to_the_last_digits():
    z = -np.concatenate([np.geomspace(1e-12, 1e6, 73), [1.0, 1 - 1e-16, 1 + 2e-16, 0.999, 1.001]])
    found = phis(torch.from_numpy(z))
    for k, values in zip((1, 2, 3), found, strict=True):
        exact = np.array([phi_series(v, k) for v in z])
        assert np.max(np.abs(values.numpy() / exact - 1)) < 2e-14, k
    at_zero = phis(torch.zeros(1, dtype=torch.float64))
    assert [float(v) for v in at_zero] == pytest.approx([1, 1 / 2, 1 / 6], rel=1e-15)
