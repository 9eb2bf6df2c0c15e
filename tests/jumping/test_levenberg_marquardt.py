"""Marches against Levenberg and Marquardt's method with geodesic acceleration, written out with dense algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.jumping.candidates import GEODESIC, PROBE, AlongFlow
from jumpstart.jumping.levenberg_marquardt import PACE, LevenbergMarquardt, goes_on
from jumpstart.jumping.state import Memory
from jumpstart.linearization.problem import linearized
from jumpstart.surrogate.damped_cholesky import DampedCholesky

from ..problems import fill, flat, jacobian, mlp, randn, relative
from .test_jump import assert_same, noisy_net, snapshot


def naive_step(f, theta, a, t, second_order):
    """δ₁ + δ₂ for ½‖f‖², and δ₁, with damping 1/t. f: θ -> residuals; a: Jacobian at θ."""
    damped = a.T @ a + np.eye(a.shape[1]) / t
    r = f(theta)
    first = -np.linalg.solve(damped, a.T @ r)
    bend = (f(theta + PROBE * first) - r - PROBE * a @ first) / PROBE**2
    second = -np.linalg.solve(damped, a.T @ bend)
    small = np.linalg.norm(second) <= GEODESIC * np.linalg.norm(first)
    return first + second if second_order and small else first, first, small


class Curved:
    """A small network on data, as a residual objective, and its residuals in NumPy."""

    def __init__(self, seed, n=20, width=5):
        self.model, self.x, y = mlp(seed, 2, width, 1), randn(seed, n, 2), randn(seed + 1, n, 1)
        rows = torch.cat([self.x, y], 1)
        self.objective = js.residual(self.model, js.Term(lambda net, row: net(row[:2]) - row[2:], rows))
        self.y = y.numpy().reshape(-1)
        self.theta, self.a = flat(self.model).numpy().copy(), jacobian(self.model, self.x).numpy()

    def f(self, theta):
        at = 0
        h = self.x.numpy()
        layers = [m for m in self.model if isinstance(m, nn.Linear)]
        for i, layer in enumerate(layers):
            o, k = layer.weight.shape
            w, b = theta[at : at + o * k].reshape(o, k), theta[at + o * k : at + o * k + o]
            at += o * k + o
            h = h @ w.T + b
            h = np.tanh(h) if i + 1 < len(layers) else h
        return h.reshape(-1) - self.y

    def loss(self, theta):
        return 0.5 * float(np.sum(self.f(theta) ** 2))


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("t", [0.01, 1.0])
@pytest.mark.parametrize("n", [20, 80], ids=["N < P", "N > P"])
def test_one_step_is_levenberg_and_marquardts_with_acceleration(n, t, second_order):
    c = Curved(1, n)
    expected, first, small = naive_step(c.f, c.theta, c.a, t, second_order)
    result = js.jump(c.objective, horizon=t, search="levenberg-marquardt", geodesic=second_order)
    assert result.candidates == 1
    assert result.accepted, result
    assert result.corrected == (second_order and small)
    assert relative(result.directions[0], expected) < 1e-9
    assert relative(flat(c.model) - torch.from_numpy(c.theta), expected) < 1e-9
    assert result.predicted == pytest.approx(0.5 * np.sum((c.f(c.theta) + c.a @ first) ** 2), rel=1e-9)
    assert result.actual == pytest.approx(c.loss(c.theta + expected), rel=1e-9)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("n", [20, 80], ids=["N < P", "N > P"])
def test_one_step_that_raises_the_loss_is_refused(n, second_order):
    c = Curved(1, n)
    expected, first, _ = naive_step(c.f, c.theta, c.a, 30.0, second_order)
    result = js.jump(c.objective, horizon=30.0, search="levenberg-marquardt", geodesic=second_order)
    assert result.outcome is js.Outcome.NO_DECREASE
    assert result.actual == pytest.approx(c.loss(c.theta + expected), rel=1e-9)
    assert result.predicted == pytest.approx(0.5 * np.sum((c.f(c.theta) + c.a @ first) ** 2), rel=1e-9)
    assert result.actual > result.before == pytest.approx(c.loss(c.theta), rel=1e-12)
    assert torch.equal(flat(c.model), torch.from_numpy(c.theta))


def test_some_of_these_steps_are_corrected_and_some_are_not():
    found = {naive_step(c.f, c.theta, c.a, t, True)[2] for c in (Curved(1, 20), Curved(1, 80)) for t in (0.01, 1.0)}
    assert found == {True, False}


def naive_march(c, jumps, bold):
    """Losses, horizons and outcomes of a whole march."""
    theta, t, best, heading, rows = c.theta.copy(), None, math.inf, None, []
    for _ in range(jumps):
        a, before = _jacobian_at(c, theta), c.loss(theta)
        t = 1e3 / np.sum(a**2) if t is None else t
        best = min(best, before)
        for k in range(js.Trust().limit):  # noqa: B007
            step, first, _ = naive_step(c.f, theta, a, t, True)
            after, promised = c.loss(theta + step), before - 0.5 * np.sum((c.f(theta) + a @ first) ** 2)
            falls = promised > 0 and before - after > 0 and before - after >= 1e-4 * promised
            climbs = False
            if bold and heading is not None:
                cosine = first @ heading / np.linalg.norm(first) / np.linalg.norm(heading)
                climbs = (1 - cosine) ** 2 * after <= best
            if falls or climbs:
                break
            t /= PACE
        theta, heading, best = theta + step, first, min(best, after)
        rows.append((after, t, "ACCEPTED" if falls else "CLIMBED", k + 1))
        t = t * PACE if k == 0 else t
    return rows


def _jacobian_at(c, theta):
    kept = flat(c.model).clone()
    nn.utils.vector_to_parameters(torch.from_numpy(theta), c.model.parameters())
    found = jacobian(c.model, c.x).numpy()
    nn.utils.vector_to_parameters(kept, c.model.parameters())
    return found


@pytest.mark.parametrize("bold", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_whole_march_follows_its_naive_twin(seed, bold):
    twin = naive_march(Curved(seed, 40, 3), 10, bold)
    c = Curved(seed, 40, 3)
    jumper = js.Jumper(c.objective, nonmonotone=bold)
    for after, t, outcome, tries in twin:
        result = jumper.jump()
        assert result.outcome.name == outcome
        assert result.candidates == tries
        assert result.horizon == pytest.approx(t, rel=1e-6)
        assert result.actual == pytest.approx(after, rel=1e-5)
        assert jumper.memory.horizon == pytest.approx(t * PACE if tries == 1 else t, rel=1e-6)
        assert (jumper.memory.heading is not None) == bold
    losses = [row[0] for row in twin]
    if not bold:
        assert losses == sorted(losses, reverse=True)


def test_bold_marches_do_climb():
    """Else the comparison above would not have met the rule."""
    assert "CLIMBED" in {row[2] for seed in (1, 2, 3) for row in naive_march(Curved(seed, 40, 3), 10, True)}


COURSES = {
    "along": (1.0, 1.0, True), "along, higher": (1.0, 1e9, True), "across, lower": (0.0, 1.0, True),
    "across, higher": (0.0, 1.1, False), "back, a quarter": (-1.0, 0.25, True), "back": (-1.0, 0.26, False),
    "NaN loss": (0.5, math.nan, False), "infinite loss": (0.5, math.inf, False), "no step": (None, 0.5, False),
}  # fmt: skip


@pytest.mark.parametrize("name", COURSES)
def test_what_a_course_allows(name):
    cosine, loss, allowed = COURSES[name]
    heading = torch.tensor([2.0, 0.0], dtype=torch.float64)
    step = torch.zeros(2).double() if cosine is None else torch.tensor([cosine, (1 - cosine**2) ** 0.5]).double() * 3
    assert goes_on(Memory(best=1.0, heading=heading), loss, step) == allowed
    assert not goes_on(Memory(), loss, step)


def test_a_loss_below_zero_never_rises():
    """The rule compares losses by their ratio, which says nothing of one whose minimum is not known."""
    heading = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for step in (heading, -heading):
        assert not goes_on(Memory(best=-5.0, heading=heading), -4.9, step)


def test_an_infinite_loss_is_refused_even_straight_ahead():
    heading = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert not goes_on(Memory(best=1.0, heading=heading), math.inf, heading)
    assert not goes_on(Memory(best=1.0, heading=heading), math.nan, heading)


@pytest.mark.parametrize("nonmonotone", [True, False])
@pytest.mark.parametrize("kind", ["floor", "NaN", "NaN, many tries"])
def test_a_rejected_march_changes_nothing_to_the_bit(kind, nonmonotone):
    model, x, _, optimizer = noisy_net()
    y = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    objective = js.supervised(model, x, y, training=False)
    options = {"floor": {"trust": js.Trust(floor=1e9)}, "NaN": {"trust": js.Trust(limit=1)}}.get(kind, {})
    if kind != "floor":
        start = objective.theta()
        objective = js.residual(model, lambda net: _nan_off(net, start, model)(x), training=False)
    before = snapshot(model, optimizer)
    jumper = js.Jumper(
        objective, search="levenberg-marquardt", basis="dense", nonmonotone=nonmonotone, geodesic=False, **options
    )
    result = jumper.jump()
    assert not result.accepted, result
    # Many tries end where the step is lost in rounding, and the loss is that of the start again.
    assert result.outcome is (js.Outcome.NOT_FINITE if kind == "NaN" else js.Outcome.NO_DECREASE)
    assert result.directions is None
    assert_same(before, snapshot(model, optimizer))
    if kind == "NaN, many tries":
        assert result.candidates == js.Trust().limit
        assert jumper.memory.horizon < 1e3 * PACE ** (1 - js.Trust().limit)


def _nan_off(net, start, model):
    """The network, NaN wherever its first weights differ from the start."""
    first = next(name for name, _ in model.named_parameters())

    def outputs(x):
        moved = (net[first].reshape(-1) - start[: net[first].numel()]).abs().sum()
        return net(x).reshape(-1) * torch.where(moved > 0, torch.full_like(moved, math.nan), torch.ones_like(moved))

    return outputs


def test_a_stationary_point_is_named():
    model = fill(nn.Linear(2, 1), 0)
    x = randn(0, 6, 2)
    objective = js.supervised(model, x, model(x).detach())
    result = js.jump(objective, search="levenberg-marquardt")
    assert result.outcome is js.Outcome.STATIONARY
    assert not result.accepted


def test_weight_decay_marches_down_the_penalized_loss():
    c, w = Curved(2, 40, 3), 0.05
    damped = c.a.T @ c.a + (w + 1 / 2.0) * np.eye(c.a.shape[1])
    step = -np.linalg.solve(damped, c.a.T @ c.f(c.theta) + w * c.theta)
    result = js.jump(c.objective, horizon=2.0, search="levenberg-marquardt", geodesic=False, weight_decay=w)
    assert result.accepted
    assert relative(result.directions[0], step) < 1e-9
    there = c.theta + step
    assert result.actual == pytest.approx(c.loss(there) + 0.5 * w * there @ there, rel=1e-10)
    assert result.before == pytest.approx(c.loss(c.theta) + 0.5 * w * c.theta @ c.theta, rel=1e-10)


@pytest.mark.parametrize("reuse", [1, 3])
def test_chord_corrections_only_help(reuse):
    c, d = Curved(1, 20), Curved(1, 20)
    plain = js.jump(c.objective, horizon=0.05, geodesic=False)
    more = js.jump(d.objective, horizon=0.05, geodesic=False, chord_steps=reuse)
    assert plain.chord_steps == 0
    theta, solve = c.theta, np.linalg.inv(c.a.T @ c.a + np.eye(c.a.shape[1]) / 0.05)
    for _ in range(1 + more.chord_steps):
        theta = theta - solve @ c.a.T @ c.f(theta)
    assert relative(more.directions[0], theta - c.theta) < 1e-9
    assert 0 < more.chord_steps <= reuse
    assert more.actual < plain.actual
    assert d.loss(flat(d.model).numpy()) == pytest.approx(more.actual, rel=1e-9)


def test_horizons_end_where_digits_do():
    """On a linear model every horizon is accepted: the longest is tried. The next may have more digits."""
    model = fill(nn.Linear(3, 1), 0)
    flow = DampedCholesky(linearized(js.supervised(model, randn(0, 9, 3), randn(1, 9, 1))))
    found = LevenbergMarquardt(nonmonotone=True)(AlongFlow(flow, False), js.Trust(horizon=1e300), Memory())
    assert found.outcome is js.Outcome.ACCEPTED
    assert found.best is not None
    assert (found.tried, found.best.horizon, found.memory.horizon) == (1, flow.max_horizon, PACE * flow.max_horizon)
    again = LevenbergMarquardt(nonmonotone=True)(AlongFlow(flow, False), js.Trust(), found.memory)
    assert again.best is not None and again.best.horizon == flow.max_horizon


def classifier():
    return js.supervised(mlp(0), randn(0, 6, 4), torch.tensor([0, 1, 2, 0, 1, 2]), "cross_entropy")


MISUSE = {
    "unknown search": (lambda o: js.jump(o, search="stroll"), ["'stroll'", "levenberg-marquardt"]),
    "climbing in a search": (lambda o: js.Jumper(o, search="horizon", nonmonotone=True), ["nonmonotone", "implicit"]),
    "climbing over scales": (lambda o: js.Jumper(o, search="scale", nonmonotone=True), ["nonmonotone", "implicit"]),
    "climbing at one horizon": (lambda o: js.Jumper(o, horizon=1.0, nonmonotone=True), ["nonmonotone", "horizon"]),
    "climbing with Krylov": (lambda o: js.Jumper(o, basis="krylov", nonmonotone=True), ["nonmonotone", "Krylov"]),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_named(name):
    act, words = MISUSE[name]
    with pytest.raises(errors.InputError) as caught:
        act(Curved(1).objective)
    assert all(word in str(caught.value) for word in words), str(caught.value)


ELSEWHERE = {
    "a classifier": lambda: js.Jumper(classifier(), search="levenberg-marquardt"),
    "a Krylov basis": lambda: js.Jumper(Curved(1).objective, search="levenberg-marquardt", basis="krylov"),
    "a gate": lambda: js.Jumper(Curved(1).objective, search="levenberg-marquardt", gate="soft"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_marches_where_there_is_no_damped_step_take_the_linearized_run(name):
    jumper = ELSEWHERE[name]()
    result = jumper.jump()
    assert result.accepted
    assert result.actual < result.before
    assert jumper.memory.horizon == pytest.approx(result.horizon * (PACE if result.candidates == 1 else 1))
