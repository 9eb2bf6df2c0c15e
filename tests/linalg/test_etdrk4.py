"""The exponential integrator by itself: order, stiffness, rest, failure, many rows; and inside larger flows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.flow.horizon import filters, parse, phi
from jumpstart.linalg import etdrk4 as exponential
from jumpstart.linalg.etdrk4 import FlowPoint, Integrator, Modes

from ..problems import fill, integrate, randn, relative, slope

INF = math.inf


def rotation(seed, k):
    return torch.linalg.qr(randn(seed, k, k))[0]


class Quartic:
    """ċ = −A(c − a) − s(c − b)³ elementwise in another basis: a gradient flow, stiff as A."""

    def __init__(self, rates, strength=0.5, seed=0):
        k = len(rates)
        v, w = rotation(seed, k), rotation(seed + 1, k)
        self.a = v @ torch.diag(torch.as_tensor(rates, dtype=torch.float64)) @ v.T
        self.w, self.strength = w, strength
        self.start, self.b = randn(seed + 2, k), randn(seed + 3, k)

    def force(self, c):
        z = (c - self.b) @ self.w
        return -(c - self.start) @ self.a - self.strength * z**3 @ self.w.T

    def curve(self, c):
        z = (c - self.b) @ self.w
        return self.a + 3 * self.strength * self.w @ torch.diag(z**2) @ self.w.T

    def modes(self, c):
        rates, vectors = torch.linalg.eigh(self.curve(c))
        return Modes(rates.clamp_min(0), vectors)

    def exact(self, c0, times):
        def rate(c):
            return self.force(torch.from_numpy(c)).numpy()

        return torch.from_numpy(integrate(rate, c0.numpy(), times, 1e-13, 1e-15))


def integrator(problem, modes, tolerance=1e-8, settled=0.0):
    return Integrator(problem.force, modes, lambda c: c, tolerance, settled)


def none(c):
    """No linear part: the scheme is then a plain Runge–Kutta method."""
    return Modes(torch.zeros(len(c), dtype=torch.float64), None)


PARTS = {
    "none": lambda p: none,
    "exact": lambda p: p.modes,
    "of the start": lambda p: lambda c: p.modes(0 * c),
    "wrong": lambda p: lambda c: Modes(torch.linspace(0.1, 2.0, len(c), dtype=torch.float64), rotation(9, len(c))),
}


def by_fixed_steps(problem, part, c0, end, count):
    """The scheme without step control; returns the state and the largest error estimate."""
    run = integrator(problem, part)
    c, estimate = c0[None], 0.0
    for _ in range(count):
        run._renew(c[-1])
        c, force, error = run._step(c, problem.force(c), end / count)
        assert relative(force, problem.force(c)) < 1e-12
        estimate = max(estimate, float(error.max()))
    return c[0], estimate


@pytest.mark.parametrize("part", PARTS)
def test_order_four_and_an_estimate_of_local_order_four(part):
    problem = Quartic([0.3, 1.0, 2.0, 0.1])
    c0, end = torch.zeros(4, dtype=torch.float64), 1.0
    exact = problem.exact(c0, [0.0, end])[-1]
    counts = [8, 16, 32, 64, 128] if part != "exact" else [4, 8, 16, 32, 64]
    found = [by_fixed_steps(problem, PARTS[part](problem), c0, end, count) for count in counts]
    errors_seen = [float((c - exact).norm()) for c, _ in found]
    order, local = slope(counts, errors_seen), slope(counts, [e for _, e in found])
    print(f"linear part {part}: error as h^{-order:.2f}, estimate as h^{-local:.2f}")
    assert -order > 3.7
    assert -local > 3.6
    assert errors_seen[-1] < 1e-6


def test_linear_part_is_exact_in_one_step():
    """Without a nonlinear term one step of any length is the matrix exponential, however stiff."""
    problem = Quartic([1e5, 1e2, 1.0, 1e-3], strength=0.0)
    a, start = problem.a.numpy(), problem.start.numpy()
    rates, vectors = np.linalg.eigh(a)
    for h in (1e-7, 1e-3, 1.0, 1e4):
        run = integrator(problem, problem.modes)
        c0 = torch.zeros(1, 4, dtype=torch.float64)
        run._renew(c0[0])
        c, _, error = run._step(c0, problem.force(c0), h)
        exact = start - vectors @ (np.exp(-rates.clip(0) * h) * (vectors.T @ start))
        assert relative(c[0], exact) < 1e-6
        assert float(error) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_stiff_problem_in_few_steps(tolerance):
    """Rates from 10⁵ to 10⁻²: an explicit method would need 10⁷ steps."""
    problem = Quartic([1e5, 3e3, 50.0, 1.0, 1e-2], strength=0.2, seed=3)
    calls = []

    def force(c):
        calls.append(0)
        return problem.force(c)

    times = [1e-6, 1e-3, 1.0, 100.0]

    def rate(t, c):
        return problem.force(torch.from_numpy(c)).numpy()

    def jac(t, c):
        return -problem.curve(torch.from_numpy(c)).numpy()

    exact = solve_ivp(rate, (0, 100.0), np.zeros(5), "Radau", times, rtol=1e-9, atol=1e-11, jac=jac).y.T
    run = Integrator(force, problem.modes, lambda c: c, tolerance, 0.0)
    state = FlowPoint(0.0, torch.zeros(1, 5, dtype=torch.float64), 1e-6)
    for t, reference in zip(times, exact, strict=True):
        state = run.advance(state, t)
        assert state.time == t
        assert relative(state.rows[0], reference) < 300 * tolerance + 1e-6
    print(f"tolerance {tolerance}: {len(calls)} forces")
    assert len(calls) < {1e-4: 600, 1e-7: 3000}[tolerance]


def test_a_linear_part_that_is_too_large_is_stable():
    """As for masked copies: their own curvature is smaller than the one that is used."""
    problem = Quartic([100.0, 1.0, 0.1], strength=0.0, seed=1)
    larger = problem.modes(torch.zeros(3, dtype=torch.float64))
    larger = Modes(3 * larger.rates, larger.vectors)
    run = Integrator(problem.force, lambda c: larger, lambda c: c, 1e-5, 0.0)
    state = run.advance(FlowPoint(0.0, torch.zeros(1, 3, dtype=torch.float64), 1e-3), 60.0)
    assert relative(state.rows[0], problem.exact(torch.zeros(3, dtype=torch.float64), [0.0, 60.0])[-1]) < 1e-3


def test_rest():
    """At t = ∞ every row's force has fallen to what counts as settled, and time is ∞."""
    problem = Quartic([2.0, 1.0, 0.5], seed=2)
    run = integrator(problem, problem.modes, 1e-8, 1e-9)
    end = run.advance(FlowPoint(0.0, randn(8, 4, 3), 0.01), INF)
    assert end.time == INF
    assert float(problem.force(end.rows).norm(dim=1).max()) <= 1e-9
    assert relative(end.rows[1:], end.rows[:1].expand(3, 3)) < 1e-7  # one minimum
    again = run.advance(end, INF)
    assert again is end
    early = run.advance(FlowPoint(0.0, randn(8, 4, 3), 0.01), 1e6)
    assert early.time == 1e6


def test_states_are_left_alone_and_can_be_resumed():
    problem = Quartic([2.0, 1.0, 0.5], seed=4)
    run = integrator(problem, problem.modes, 1e-9)
    origin = FlowPoint(0.0, torch.zeros(1, 3, dtype=torch.float64), 0.1)
    middle = run.advance(origin, 0.7)
    kept = middle.rows.clone()
    later = run.advance(middle, 5.0)
    assert float(origin.rows.abs().max()) == 0
    assert torch.equal(middle.rows, kept)
    assert relative(run.advance(origin, 5.0).rows, later.rows) < 1e-7
    assert relative(run.advance(middle, 5.0).rows, later.rows) < 1e-7  # backwards and on again
    assert run.advance(later, 1.0) is later


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_rows_of_different_dynamics(tolerance):
    """Each row has a force of its own, from still to stiff; each must be right to its own tolerance."""
    problem = Quartic([30.0, 1.0, 0.1, 0.02], seed=5)
    share = torch.tensor([[1.0], [0.5], [1e-3], [0.0], [0.9]], dtype=torch.float64)
    last = torch.ones(1, 1, dtype=torch.float64)
    scale = torch.cat([share, last])
    run = Integrator(lambda c: scale * problem.force(c), problem.modes, lambda c: c, tolerance, 0.0)
    end = run.advance(FlowPoint(0.0, torch.zeros(6, 4, dtype=torch.float64), 1e-3), 6.0)
    for row, s in zip(end.rows, scale[:, 0].tolist(), strict=True):
        exact = problem.exact(torch.zeros(4, dtype=torch.float64), [0.0, 6.0 * s])[-1] if s else torch.zeros(4)
        assert float((row - exact).norm()) <= 100 * tolerance * float(exact.norm())


FAILURES = {
    "blows up": lambda c: 1 + c**2,
    "NaN": lambda c: c * math.nan + 1,
    "NaN later": lambda c: torch.where(c > 0.5, torch.full_like(c, math.nan), torch.ones_like(c)),
    "chatters": lambda c: torch.where(c > 0.3, -torch.ones_like(c) * 5, torch.ones_like(c)),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_integrated(name, monkeypatch):
    monkeypatch.setattr(exponential, "STEPS", 400)
    run = Integrator(FAILURES[name], none, lambda c: c, 1e-8, 0.0)
    with pytest.raises(errors.FlowError, match="flow time"):
        run.advance(FlowPoint(0.0, torch.zeros(1, 2, dtype=torch.float64), 0.1), 50.0)


def test_too_many_steps_are_an_error(monkeypatch):
    monkeypatch.setattr(exponential, "STEPS", 5)
    problem = Quartic([2.0, 1.0])
    run = integrator(problem, none, 1e-10)
    with pytest.raises(errors.FlowError, match="10"):
        run.advance(FlowPoint(0.0, torch.zeros(1, 2, dtype=torch.float64), 1e-3), 10.0)


def test_modes_turn_and_filter():
    v = rotation(0, 5)
    rates = torch.tensor([0.0, 0.0, 1e-3, 1.0, 7.0], dtype=torch.float64)
    modes = Modes(rates, v, 1e-4)
    c = randn(1, 3, 5)
    assert relative(modes.into(c), torch.stack([v.T @ row for row in c])) < 1e-14
    assert relative(modes.out(modes.into(c)), c) < 1e-14
    plain = Modes(rates, None)
    assert plain.into(c) is c
    for t in (0.0, 1.0, 1e9):
        assert torch.equal(filters(plain, parse(t)), phi(rates, parse(t)))
        bounded = filters(modes, parse(t))[0]
        assert float(bounded[:2].max()) <= 1e4 * (1 + 1e-12)
        assert torch.equal(bounded[2:], phi(rates, parse(t))[0, 2:])


# -- lagging linear parts inside solved runs of more than 64 modes -----------------------------------------------


@pytest.mark.parametrize("left_out", [False, True])
def test_many_modes_against_ode_integration(left_out):
    """80 outputs, logistic: the linear part is renewed now and then only."""
    model, x = fill(nn.Linear(100, 1), 0), randn(0, 80, 100)
    y = (randn(1, 80, 1) > 0).double()
    found = js.solve(js.supervised(model, x, y, "logistic"), "dense")
    design = torch.cat([x, torch.ones(80, 1).double()], 1)
    kernel, u0 = (design @ design.T).numpy(), model(x).detach().numpy()[:, 0]
    target = y.numpy()[:, 0]
    chosen = [0, 17, 79]
    keep = np.ones((3 if left_out else 1, 80))
    if left_out:
        keep[[0, 1, 2], chosen] = 0

    def rate(v):
        return -(keep * (1 / (1 + np.exp(-u0 - v)) - target) / 80) @ kernel

    times = np.array([1.0, 30.0]) / float(found.spectrum[0])
    exact = u0 + integrate(lambda v: rate(v.reshape(keep.shape)).reshape(-1), 0 * keep, times, 1e-9, 1e-11)
    if left_out:
        answer = found.leave_out(torch.from_numpy(times), samples=torch.tensor(chosen)).outputs[..., 0]
        assert relative(answer, exact[:, [0, 1, 2], chosen]) < 1e-4
    else:
        assert relative(found.outputs(torch.from_numpy(times))[..., 0], exact[:, 0]) < 1e-6
