"""Implicit steps within the modes that are reached, against singular values of the whole Jacobian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.flow.horizon import Times
from jumpstart.jumping.state import Memory
from jumpstart.linalg.sketch import row_space
from jumpstart.linearization.operators import Explicit
from jumpstart.linearization.problem import linearized
from jumpstart.surrogate import damped_cholesky, select
from jumpstart.surrogate.damped_cholesky import DampedCholesky
from jumpstart.surrogate.damped_sketch import DampedSketch, width_for

from ..problems import fill, flat, randn, relative

N, INPUTS = 300, 40


class Linear(nn.Module):
    """u = x · w, whose Jacobian is x itself."""

    def __init__(self, x):
        super().__init__()
        self.w = nn.Parameter(randn(5, x.shape[1]))

    def forward(self, x):
        return (x @ self.w)[:, None]


def falling(seed, n=N, p=INPUTS, decades=18.0):
    """Rows (n, p) with singular values that fall from 100 over so many decades."""
    u, v = torch.linalg.qr(randn(seed, n, p))[0], torch.linalg.qr(randn(seed + 1, p, p))[0]
    return u * 10 ** (2 - torch.linspace(0, decades, p).double()) @ v.T


def problem(x, y=None):
    return linearized(js.supervised(Linear(x), x, randn(9, len(x), 1) if y is None else y))


def step(p, t):
    """The damped step by singular values, and what it gains to first order."""
    a, g = p.lin.jacobian(), p.loss.grad(p.lin.u).reshape(-1)
    beta = float(p.loss.curvature)
    u, s, v = torch.linalg.svd(a, full_matrices=False)
    c = -v.T @ (s / (beta * s * s + 1 / t) * (u.T @ g))
    return c, float(p.loss.value(p.lin.u)) - float(p.loss.value(p.lin.u + (a @ c).reshape(p.lin.u.shape)))


def run(p, width):
    return DampedSketch(p, Explicit(p.lin, p.metric), width)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (60, 60)])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_sums_span_the_rows_that_matter(shape, seed):
    rank, width = 8, 14
    rows = randn(seed, shape[0], rank) @ randn(seed + 10, rank, shape[1])
    kept = rows.clone()
    v = row_space(rows, width, seed)
    assert v.shape == (shape[1], width)
    assert relative(v.T @ v, torch.eye(width)) < 1e-13
    assert relative(rows @ v @ v.T, rows) < 1e-12
    assert torch.equal(v, row_space(rows, width, seed)) and torch.equal(rows, kept)
    assert not torch.equal(v, row_space(rows, width, seed + 1))
    whole = min(shape)
    full = row_space(randn(seed, *shape), whole, seed)
    assert (
        full.shape == (shape[1], whole) and relative(randn(seed, *shape) @ full @ full.T, randn(seed, *shape)) < 1e-12
    )


@pytest.mark.parametrize("t", [1e-3, 10.0, 1e7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wide_enough_sketch_gains_what_all_modes_would(seed, t):
    p = problem(falling(seed))
    expected, gain = step(p, t)
    a, beta = p.lin.jacobian(), float(p.loss.curvature)
    rates = beta * torch.linalg.svdvals(a) ** 2
    modes = float((rates / (rates + 1 / t)).sum())
    flow = run(p, min(math.ceil(1.6 * modes) + 6, INPUTS))
    c = flow.coefficients(Times.at(t))[0]
    gained = p.before - float(flow.predicted_loss(c))
    assert flow.reaches(t)
    assert gained == pytest.approx(gain, rel=0.02)
    assert relative(flow.displacement(c), expected) < 0.2
    assert flow.learned(t)["modes"] == pytest.approx(max(modes, 1.0), rel=0.02)
    assert 0.99 * float(rates.sum()) < flow.trace <= float(rates.sum()) * (1 + 1e-12)
    assert 0.99 * float(rates.max()) < flow.max_rate <= float(rates.max()) * (1 + 1e-12)


def test_one_that_is_too_narrow_says_so():
    p = problem(falling(0, decades=4.0))
    flow = run(p, 6)
    assert not flow.reaches(1e3)
    _, gain = step(p, 1e3)
    gained = p.before - float(flow.predicted_loss(flow.coefficients(Times.at(1e3))[0]))
    assert gained < 0.9 * gain


@pytest.mark.parametrize(("width", "t"), [(6, 1.0), (6, 100.0), (6, 1e6)])
def test_one_that_hides_modes_from_the_first_gradient_says_so(width, t):
    """Aᵀg lies in the span, and still the step misses what directions outside of it would do."""
    x = falling(0, decades=4.0)
    v = row_space(x, width, seed=width)
    pulled = x @ torch.linalg.solve(x.T @ x, v @ randn(7, width, 1))
    p = problem(x, x @ randn(5, INPUTS)[:, None] - pulled * len(x))
    flow = run(p, width)
    _, gain = step(p, t)
    gained = p.before - float(flow.predicted_loss(flow.coefficients(Times.at(t))[0]))
    assert gained < 0.9 * gain and not flow.reaches(t)


def test_horizons_are_finite_for_tiny_jacobians():
    p = problem(1e-150 * falling(0, decades=2.0))
    flow = run(p, 30)
    assert 0 < flow.max_horizon < math.inf
    assert bool(torch.isfinite(flow.coefficients(Times.at(flow.max_horizon))).all())


def test_there_are_digits_where_a_matrix_of_squares_has_none():
    """Singular values over twelve decades, a target in their range: one step solves what a Cholesky factor cannot."""
    x = falling(3, decades=12.0)
    p = problem(x, x @ randn(8, INPUTS, 1))
    t = 1e22 / float(x.square().sum())
    exact, squares = run(p, INPUTS), DampedCholesky(p)
    left = [float(r.predicted_loss(r.coefficients(Times.at(min(t, r.max_horizon)))[0])) for r in (exact, squares)]
    assert exact.max_horizon > t > squares.max_horizon
    assert left[0] < 1e-3 * left[1]
    expected, _ = step(p, t)
    assert relative(exact.displacement(exact.coefficients(Times.at(t))[0]), expected) < 1e-4


def test_cholesky_factors_estimate_how_many_modes_they_reach(monkeypatch):
    p = problem(falling(1, decades=6.0))
    t = 1e2
    rates = float(p.loss.curvature) * torch.linalg.svdvals(p.lin.jacobian()) ** 2
    flow = DampedCholesky(p)
    assert flow.learned(t) == {"modes": float(INPUTS)}  # small ones are taken whole
    monkeypatch.setattr(damped_cholesky, "SKETCHED", 1)
    flow.coefficients(Times.at(t))
    modes = float((rates / (rates + 1 / t)).sum())
    assert abs(flow.learned(t)["modes"] - modes) < 3 * modes**0.5


def sine():
    model = fill(nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)), 0)
    x = torch.linspace(-1, 1, 500).double()[:, None]
    return js.residual(model, js.Term(lambda net, x: net(x) - (4 * x).sin(), x))


@pytest.fixture
def eager(monkeypatch):
    """Sketches wherever they may be, however small the problem."""
    monkeypatch.setattr(damped_cholesky, "SKETCHED", 1)
    monkeypatch.setattr(select, "SAVING", math.inf)


def bases(jumper, count=8):
    return [jumper.jump().basis for _ in range(count)]


def test_jumps_are_sketched_where_nothing_else_was_asked_for(eager):
    objective = sine()
    jumper = js.Jumper(objective)
    results = [jumper.jump() for _ in range(8)]
    assert results[0].basis == "dense" and {r.basis for r in results[1:]} >= {"sketched"}
    found = next(r for r in results if r.basis == "sketched")
    assert found.plan is not None and found.plan.kind == "sketched" and found.modes < 481
    assert "sketched" in found.plan.explain() and "sketched" in str(found)
    assert results[-1].actual < 0.1 * results[0].before


def test_a_sketch_that_does_not_do_is_wider_the_next_time(eager, monkeypatch):
    monkeypatch.setattr(DampedSketch, "reaches", lambda self, t: False)
    built = []
    made = DampedSketch.__init__
    monkeypatch.setattr(DampedSketch, "__init__", lambda self, *args: (built.append(args[2]), made(self, *args))[1])
    jumper = js.Jumper(sine())
    assert {jumper.jump().basis for _ in range(6)} == {"dense"}
    assert len(built) == 5 and built == sorted(set(built))


@pytest.mark.parametrize(
    "options", [{"basis": "dense"}, {"weight_decay": 1e-3}, {"horizon": 1.0}, {"search": "horizon"}]
)
def test_jumps_are_not_sketched_where_something_else_was(eager, options):
    objective = sine()
    assert "sketched" not in bases(js.Jumper(objective, **options))


def test_a_single_jump_has_nothing_to_go_by(eager):
    objective = sine()
    assert js.jump(objective).basis == "dense"


def test_sketches_and_factors_lead_down_alike(eager, monkeypatch):
    """Not the same weights, but losses of the same order after as many jumps."""
    ends = {}
    for basis in ("auto", "dense"):
        objective = sine()
        ends[basis] = js.fit(objective, jumps=60, basis=basis, progress=False).loss
    assert ends["auto"] < 30 * ends["dense"] and ends["auto"] < 1e-8


def test_a_fit_goes_on_to_the_bit_after_an_interruption(eager, tmp_path):
    left = iter([False] * 10)
    ends, jumps = [], 30
    for stop in (None, 11):
        path = tmp_path / str(stop)
        if stop:
            js.fit(sine(), jumps=jumps, path=path, progress=False, callback=lambda _: next(left, True))
        objective = sine()
        result = js.fit(objective, jumps=jumps, path=path, progress=False)
        assert result.jumps == jumps and any(row["basis"] == "sketched" for row in result.history)
        ends.append(flat(objective.model))
    assert torch.equal(*ends)


def test_memory_keeps_the_modes_and_refuses_what_are_none():
    memory = Memory(horizon=2.0, modes=31.5)
    assert Memory.from_state(memory.state_dict()) == memory
    for wrong in (-1.0, 0.0, math.nan, math.inf, "many"):
        with pytest.raises(InputError, match="modes"):
            Memory.from_state({**memory.state_dict(), "modes": wrong})


def test_widths_grow_with_the_modes():
    assert width_for(0.5) >= 2
    assert [width_for(m) for m in (10, 100)] == sorted(width_for(m) for m in (10, 100))
