"""The implicit-Euler step by Cholesky factors, against dense solves in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import jumpstart as js
from jumpstart import errors
from jumpstart.flow.horizon import Times
from jumpstart.linalg import cholesky
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.surrogate.damped_cholesky import DampedCholesky

from ..problems import fill, flat, jacobian, mlp, problem_of, randn, relative


@pytest.mark.parametrize("layout", ["rows", "columns", "neither"])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (1, 5), (6, 1)])
def test_the_lower_gram_is_that_of_a_product(shape, layout):
    n, p = shape
    rows = randn(0, n, p)
    if layout == "columns":
        rows = rows.T.contiguous().T
    elif layout == "neither":
        rows = randn(0, 2 * n, 2 * p)[::2, ::2]
    kept = rows.clone()
    found = cholesky.lower_gram(rows)
    assert found.shape == (p, p)
    np.testing.assert_allclose(np.tril(found.numpy()), np.tril(kept.numpy().T @ kept.numpy()), rtol=1e-13, atol=1e-13)
    assert torch.equal(rows, kept)


def semidefinite(kind):
    a = randn(1, 5, 8)
    return {
        "regular": lambda: a @ a.T, "rank 1": lambda: a[:, :1] @ a[:, :1].T, "rank 4": lambda: a[:, :4] @ a[:, :4].T,
        "zero": lambda: torch.zeros(5, 5).double(),
    }[kind]()  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("kind", ["regular", "rank 1", "rank 4", "zero"])
def test_factors_solve_and_say_which_shift_they_took(kind, shift):
    m, least = semidefinite(kind), 1e-9
    garbage = torch.tril(m) + torch.triu(torch.full((5, 5), math.nan), 1)  # what stands above is not read
    kept, b = m.clone(), randn(2, 5)
    found = cholesky.factor(garbage, shift, least)
    assert found.shift == (shift if kind == "regular" else max(shift, least))
    expected = np.linalg.solve(kept.numpy() + found.shift * np.eye(5), b.numpy())
    assert relative(found.solve(b), expected) < (1e-5 if found.shift < 1e-6 else 1e-10)
    assert torch.equal(torch.tril(garbage), torch.tril(kept))
    assert torch.equal(b, randn(2, 5))


@pytest.mark.parametrize("size", [1, 7, 30, 61])
def test_factors_by_panels_are_factors(size, monkeypatch):
    a, b = randn(3, size + 4, size), randn(4, size)
    m = a.T @ a
    garbage = torch.tril(m) + torch.triu(torch.full((size, size), math.nan), 1)
    kept = garbage.clone()
    monkeypatch.setattr(cholesky, "PANELS", 1)
    monkeypatch.setattr(cholesky, "PANEL", 7)
    monkeypatch.setattr(cholesky, "LARGE", 5)
    found = cholesky.factor(garbage, 0.25, 1e-9)
    assert found.shift == 0.25
    expected = np.linalg.cholesky(m.numpy() + 0.25 * np.eye(size))
    np.testing.assert_allclose(np.tril(found.lower.numpy()), expected, rtol=1e-10, atol=1e-10)
    assert relative(found.solve(b), np.linalg.solve(m.numpy() + 0.25 * np.eye(size), b.numpy())) < 1e-10
    assert torch.equal(garbage.nan_to_num(), kept.nan_to_num())
    singular = cholesky.factor(a[:1].T @ a[:1], 0.0, 1e-9) if size > 1 else None  # one of the later panels fails
    assert singular is None or singular.shift >= 1e-9
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky.factor(torch.full((size, size), math.nan).double(), 0.0, 1e-9)


@pytest.mark.parametrize("place", [(2, 1), (2, 2)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_has_no_factor(value, place):
    m = torch.eye(4).double()
    m[place] = value
    with pytest.raises(torch.linalg.LinAlgError, match="finite"):
        cholesky.factor(m, 1.0, 1e-12)


# -- the resolvent -------------------------------------------------------------------------------------------------

P = 4 * 5 + 5 + 5 * 5 + 5 + 5 * 2 + 2
D = (0.3 * randn(31, P)).exp()
W = 0.1 * (0.5 * randn(32, P)).exp()
METRICS = {
    "plain": Metric(),
    "metric": Metric(D.sqrt()),
    "decay": Metric(None, 0.05),
    "metric and decay": Metric(D.sqrt(), 0.05),
    "decay each": Metric(D.sqrt(), W),
}


class Dense:
    """(βAᵀA + W + 1/t) z = −(Aᵀg + W z₀), written out."""

    def __init__(self, n, metric):
        self.model, x, y = mlp(1, 4, 5, 2), randn(1, n, 4), randn(2, n, 2)
        self.objective = js.supervised(self.model, x, y)
        self.lin = linearize(self.objective)
        self.root = np.ones(P) if metric.root is None else metric.root.numpy()
        self.w = np.broadcast_to(metric.decay.numpy() if isinstance(metric.decay, torch.Tensor) else metric.decay, P)
        self.a = jacobian(self.model, x).numpy() * self.root
        self.beta = 2 / y.numel()
        self.u = self.model(x).detach().numpy()
        self.g = self.beta * (self.u - y.numpy()).reshape(-1)
        self.y, self.z0 = y.numpy(), flat(self.model).numpy() / self.root
        self.matrix = self.beta * self.a.T @ self.a + np.diag(self.w)
        self.flow = DampedCholesky(problem_of(self.lin, metric, self.objective.loss))

    def step(self, t, force=None):
        force = self.a.T @ self.g + self.w * self.z0 if force is None else force
        return -np.linalg.solve(self.matrix + np.eye(P) / t, force)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("n", [6, 60], ids=["N < P", "N > P"])
def test_the_step_is_the_dense_one_at_every_horizon(n, name):
    d = Dense(n, METRICS[name])
    assert (2 * n < P) == (n == 6)
    for t in (1e-6, 1e-2, 1.0, 100.0, 1e6):
        z, c = d.step(t), d.flow.coefficients(Times.at(t))[0]
        tolerance = 1e-11 if t < 1e5 else 1e-8
        assert relative(d.flow.displacement(c), d.root * z) < tolerance
        assert relative(d.flow.coefficients(Times((t, 2 * t), False))[0], c) < 1e-12
        moved = d.u + (d.a @ z).reshape(d.u.shape)
        assert relative(d.flow.outputs(c), moved) < 1e-9
        assert float(d.flow.predicted_loss(c)) == pytest.approx(np.mean((moved - d.y) ** 2), rel=1e-7)
        assert float(d.flow.length(c)) == pytest.approx(np.linalg.norm(z), rel=1e-8)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("n", [6, 60], ids=["N < P", "N > P"])
def test_responses_to_other_gradients(n, name):
    """−(M + 1/t)⁻¹ Aᵀg, and with decay, where the run has moved, that of W z as well."""
    d, t = Dense(n, METRICS[name]), 3.0
    g = randn(7, n, 2)
    plain = d.step(t, d.a.T @ g.numpy().reshape(-1))
    assert relative(d.flow.displacement(d.flow.response(g, Times((t,), True))[0]), d.root * plain) < 1e-10
    c = d.flow.coefficients(Times.at(t))[0]
    met = d.step(t, d.a.T @ g.numpy().reshape(-1) + d.w * (d.z0 + d.step(t)))
    there = d.flow.displacement(d.flow.response(g, Times((t,), True), decayed=c)[0])
    assert relative(there, d.root * met) < 1e-10
    assert relative(d.flow.hvp(d.lin.u, g), d.beta * g) < 1e-14


@pytest.mark.parametrize("name", METRICS)
def test_short_horizons_follow_the_gradient(name):
    d = Dense(60, METRICS[name])
    force = d.a.T @ d.g + d.w * d.z0
    errors_ = [
        np.linalg.norm(d.flow.displacement(d.flow.coefficients(Times.at(t))[0]).numpy() / t + d.root * force)
        for t in (1e-4, 1e-5)
    ]
    assert errors_[0] / errors_[1] == pytest.approx(10, rel=0.01)  # first order in t
    assert errors_[1] < 1e-3 * np.linalg.norm(force)


@pytest.mark.parametrize("case", ["N < P", "N > P", "deficient on both sides"])
def test_long_horizons_end_at_gauss_and_newtons_step(case):
    """The limit is the least-squares step of least norm."""
    model = fill(torch.nn.Linear(4, 2), 0) if case == "N > P" else mlp(1, 4, 5, 2)
    x = randn(1, 30, 4) if case == "N > P" else randn(1, 6, 4)
    x = torch.cat([x, x[:3]]) if "deficient" in case else x
    y = randn(2, len(x), 2)
    objective = js.supervised(model, x, y)
    flow = DampedCholesky(problem_of(linearize(objective), loss=objective.loss))
    a, r = jacobian(model, x).numpy(), (model(x).detach() - y).reshape(-1).numpy()
    newton = -np.linalg.pinv(a, rcond=1e-10) @ r
    for t, tolerance in ((1e-4 * flow.max_horizon, 1e-3), (flow.max_horizon, 0.1), (math.inf, 0.1)):
        found = flow.displacement(flow.coefficients(Times.at(t))[0]).numpy()
        assert relative(found, newton) < tolerance
        assert relative(a @ found, a @ newton) < tolerance


@pytest.mark.parametrize("n", [6, 60], ids=["N < P", "N > P"])
def test_rates_and_horizons_to_start_and_end_with(n):
    d = Dense(n, METRICS["decay" if n == 60 else "metric"])
    rates = np.linalg.eigvalsh(d.matrix)
    assert d.flow.trace == pytest.approx(rates.sum(), rel=1e-10)
    assert 0.5 * rates[-1] <= d.flow.max_rate <= rates[-1] * (1 + 1e-12)
    assert d.flow.initial_horizon() == pytest.approx(1e3 / rates.sum(), rel=1e-10)
    assert 1 / d.flow.max_horizon < 1e-14 * rates[-1] * P
    assert d.flow.size == min(2 * n, P)


def test_derivatives_that_are_not_finite_are_named():
    model = fill(torch.nn.Linear(2, 1, bias=False), 0)
    with torch.no_grad():
        model.weight.zero_()
    objective = js.residual(
        model,
        js.Term(lambda net, x: (net(x) ** 2).sqrt() + 1, randn(0, 4, 2)),
        lambda net: net(randn(1, 3, 2)).squeeze(1),
    )
    with pytest.raises(errors.NonFiniteError, match="derivatives"):
        DampedCholesky(problem_of(linearize(objective), loss=objective.loss))
