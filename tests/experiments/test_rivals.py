"""Rivals of the races on equations: each goes the way that its paper's formulas say, written anew here in NumPy."""

from __future__ import annotations

import dataclasses
import functools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from experiments.pinn import rivals
from experiments.pinn.equations import EQUATIONS
from experiments.pinn.on_domains import network
from experiments.pinn.problems import PROBLEMS
from experiments.pinn.rivals.natural import GRID
from experiments.pinn.rivals.quasi_newton import update
from experiments.pinn.rivals.sampled import Renewal, at_points
from jumpstart.errors import JumpstartError

EQUATION = dataclasses.replace(EQUATIONS["poisson"], network=network((5,)))
SHARE = 0.06


@functools.cache
def made():
    model, drawn = EQUATION.network(0), EQUATION.drawn(0, SHARE)
    return model, at_points(EQUATION.objective(model, SHARE), drawn.points)


def begun():
    """The same network at its start, points and objective: building that takes longest here."""
    model, objective = made()
    model.load_state_dict(EQUATION.network(0).state_dict())
    return model, EQUATION.drawn(0, SHARE), objective


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def by_autograd(model, drawn):
    """r, J and θ ↦ r, by torch.autograd alone."""
    shapes = [(name, p.shape) for name, p in model.named_parameters()]

    def rows(theta):
        parts = theta.split([shape.numel() for _, shape in shapes])
        table = {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
        return drawn.residuals(lambda x: functional_call(model, table, (x,)))

    theta = flat(model)
    jacobian = torch.autograd.functional.jacobian(rows, theta)
    assert isinstance(jacobian, torch.Tensor)
    return rows(theta).detach().numpy(), jacobian.numpy(), lambda t: rows(torch.tensor(t)).detach().numpy()


def ridge(jacobian, rows, damping):
    """argmin ‖J d − r‖² + λ‖d‖² as one least-squares problem."""
    count = jacobian.shape[1]
    return np.linalg.lstsq(
        np.vstack([jacobian, math.sqrt(damping) * np.eye(count)]), np.append(rows, np.zeros(count)), rcond=None
    )[0]


def accelerated(jacobian, rows, of, theta, damping):
    step = ridge(jacobian, rows, damping)
    h = 1e-4
    bend = 0.5 * ridge(jacobian, (of(theta + h * step) - 2 * rows + of(theta - h * step)) / h**2, damping)
    taken = 2 * np.linalg.norm(bend) <= 0.75 * np.linalg.norm(step)
    return step + bend if taken else step


CASES = {
    "ENG": (lambda d: rivals.natural_gradient(d, 1e-6), lambda j, r, *_: np.linalg.pinv(j, rcond=1e-3) @ r),
    "ANaGRAM": (lambda d: rivals.anagram(d, 1e-2), lambda j, r, *_: np.linalg.pinv(j, rcond=1e-2) @ r),
    "ENGD-W": (lambda d: rivals.spring(d, 1e-3, 0.0), lambda j, r, *_: ridge(j, r, 1e-3)),
    "SPRING": (lambda d: rivals.spring(d, 1e-3, 0.6), lambda j, r, *_: ridge(j, r, 1e-3) / 0.8),
    "D-NGD": (lambda d: rivals.dual(d, 1.0), lambda j, r, of, theta: accelerated(j, r, of, theta, 1.0)),
    "D-NGD, bent too far": (lambda d: rivals.dual(d, 0.1), lambda j, r, *_: ridge(j, r, 0.1)),
    "Nyström": (lambda d: rivals.nystrom(d), lambda j, r, *_: ridge(j, r, 1e-4 * (0.5 * r @ r) ** 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_goes_along_the_formulas_direction(name):
    rival, formula = CASES[name]
    model, drawn, objective = begun()
    rows, jacobian, of = by_autograd(model, drawn)
    theta = flat(model).numpy()
    direction = formula(jacobian, rows, of, theta)
    next(rival(drawn)(model, objective))
    moved = theta - flat(model).numpy()
    length = moved @ direction / (direction @ direction)
    assert length == pytest.approx(min(GRID, key=lambda g: abs(g - length)), rel=1e-4)
    np.testing.assert_allclose(moved, length * direction, rtol=0, atol=1e-4 * float(np.linalg.norm(moved)))
    losses = [0.5 * float(np.square(of(theta - g * direction)).sum()) for g in GRID]
    if name != "Nyström":  # the best of the grid; Armijo's rule takes the first that will do
        assert length == pytest.approx(GRID[int(np.argmin(losses))], rel=1e-4)


def test_the_acceleration_that_is_tested_is_one():
    model, drawn, _ = begun()
    rows, jacobian, of = by_autograd(model, drawn)
    theta = flat(model).numpy()
    share = [
        np.linalg.norm(accelerated(jacobian, rows, of, theta, damping) / ridge(jacobian, rows, damping) - 1)
        for damping in (1.0, 0.1)
    ]
    assert share[0] > 0.1
    assert share[1] == 0


def test_spring_stays_near_its_last_direction():
    """φ = argmin ‖J φ − r‖² + λ‖φ − μ φ₋‖² (Goldshlager, Abrahamsen & Lin 2024), here at the second step."""
    damping, momentum = 1e-2, 0.7
    model, drawn, objective = begun()
    run = rivals.spring(drawn, damping, momentum)(model, objective)
    rows, jacobian, _ = by_autograd(model, drawn)
    last = ridge(jacobian, rows, damping)
    next(run)
    rows, jacobian, _ = by_autograd(model, drawn)
    phi = momentum * last + ridge(jacobian, rows - momentum * jacobian @ last, damping)
    before = flat(model).numpy()
    next(run)
    moved = before - flat(model).numpy()
    np.testing.assert_allclose(moved / np.linalg.norm(moved), phi / np.linalg.norm(phi), atol=1e-6)


def test_two_runs_of_one_contender_do_not_share_their_memory():
    model, drawn, objective = begun()
    contender = rivals.spring(drawn, 1e-3, 0.9)
    run = contender(model, objective)
    for _ in range(3):
        next(run)
    ends = []
    for rival in (contender, rivals.spring(drawn, 1e-3, 0.9)):
        model, _, objective = begun()
        next(rival(model, objective))
        ends.append(flat(model))
    assert torch.equal(*ends)


def formula(inverse, s, y, g, length, method):
    """H after a step, densely: Urbán, Stefanou & Pons 2025, equations 11 and 13 to 23."""
    hy, ys = inverse @ y, y @ s
    b, h = -length * (s @ g) / ys, (y @ hy) / ys
    tau, phi = min(1, 1 / b), 1.0
    if method == "ssbroyden":
        a = h * b - 1
        c = math.sqrt(a / (1 + a))
        lowest = min(1, h * (1 - c))
        theta = max((lowest - 1) / a, min(1 / lowest, (1 - b) / b))
        sigma = 1 + theta * a
        power = sigma ** (-1 / (len(s) - 1))
        tau = tau * min(power, 1 / theta) if theta > 0 else min(tau * power, sigma)
        phi = (1 - theta) / (1 + a * theta)
    v = math.sqrt(y @ hy) * (s / ys - hy / (y @ hy))
    return (inverse - np.outer(hy, hy) / (y @ hy) + phi * np.outer(v, v)) / tau + np.outer(s, s) / ys


@pytest.mark.parametrize("method", ["ssbfgs", "ssbroyden"])
@pytest.mark.parametrize("length", [0.3, 1.0, 2.5])
def test_the_self_scaled_update_is_the_papers(method, length):
    random = np.random.default_rng(0)
    for _ in range(5):
        root, bend = (random.normal(size=(9, 9)) for _ in range(2))
        inverse, hessian = root @ root.T + np.eye(9), bend @ bend.T + np.eye(9)
        g = random.normal(size=9)
        s = -length * inverse @ g
        y = hessian @ s
        found = torch.tensor(inverse)
        moved, change, gradient = (torch.tensor(a) for a in (s, y, g))
        assert update(found, moved, change, gradient, length, method)
        np.testing.assert_allclose(found.numpy(), formula(inverse, s, y, g, length, method), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.numpy() @ y, s, rtol=1e-8, atol=1e-8)  # the secant condition
        assert np.linalg.eigvalsh(found.numpy()).min() > 0


def test_no_update_where_the_curvature_is_negative():
    before = torch.eye(3, dtype=torch.float64)
    found, s = before.clone(), torch.ones(3, dtype=torch.float64)
    assert not update(found, s, -s, -s, 1.0, "ssbroyden")
    assert torch.equal(found, before)


def test_an_unknown_method_is_refused():
    s = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="'bfgs'"):
        update(torch.eye(3, dtype=torch.float64), s, s, -s, 1.0, "bfgs")


class Linear:
    """Least squares with a known end."""

    def __init__(self):
        random = torch.Generator().manual_seed(0)
        self.x = torch.randn(30, 8, generator=random, dtype=torch.float64)
        self.x[:, 1:] *= torch.logspace(0, -2, 7, dtype=torch.float64)
        self.y = torch.randn(30, generator=random, dtype=torch.float64)

    def residuals(self, net):
        return net(self.x)[:, 0] - self.y


@pytest.mark.parametrize("method", ["ssbfgs", "ssbroyden"])
def test_self_scaled_methods_fall_at_every_step_to_the_least_squares(method, monkeypatch):
    monkeypatch.setattr("experiments.pinn.rivals.quasi_newton.STEPS", 20)
    problem, model = Linear(), nn.Linear(8, 1, bias=False).double()
    run = rivals.self_scaled(problem, method)(model, None)  # type: ignore[arg-type]
    losses = []
    for _, _ in zip(range(20 + 60), run, strict=False):
        rows = problem.residuals(model).detach()
        losses.append(float(rows @ rows))
    assert len(losses) > 30
    assert all(b <= a for a, b in pairwise(losses[20:]))
    exact = np.linalg.lstsq(problem.x.numpy(), problem.y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(flat(model).numpy(), exact, rtol=1e-6, atol=1e-6)


def test_ours_takes_scimbas_steps(monkeypatch):
    pytest.importorskip("scimba_torch.optimizers.ssbroyden")
    monkeypatch.setattr("experiments.pinn.rivals.quasi_newton.STEPS", 10)
    for method in ("ssbfgs", "ssbroyden"):
        ends = []
        for rival in (rivals.self_scaled, rivals.scimba):
            model, drawn, objective = begun()
            run = rival(drawn, method)(model, objective)
            for _ in range(10 + 12):
                next(run)
            ends.append(flat(model))
        torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-9)


RENEWED = {
    "Adam": lambda d, r: rivals.adam(d, 1e-3, renewal=r),
    "SPRING": lambda d, r: rivals.spring(d, renewal=r),
    "SSBroyden": lambda d, r: rivals.self_scaled(d, adam=0.0, renewal=r),
}


@pytest.mark.parametrize("name", RENEWED)
def test_points_are_drawn_anew_as_often_as_asked(name):
    by_residual = name == "SSBroyden"
    model, drawn, objective = begun()
    seen, asked = [], []
    renew = drawn.renew
    drawn.renew = lambda net=None, seed=0: (asked.append((net is not None, seed)), renew(net, seed))  # type: ignore
    run = RENEWED[name](drawn, Renewal(2, by_residual))(model, objective)
    for _ in range(6):
        next(run)
        seen.append(drawn.points[0])
    assert all(net is by_residual for net, _ in asked)
    changes = [i for i in range(1, 6) if seen[i] is not seen[i - 1]]
    assert changes == ([3, 5] if name == "SSBroyden" else [2, 4])  # Adam's phase is a step that is counted apart


def test_the_objective_follows_the_points():
    model, drawn, objective = begun()
    drawn.renew(None, 5)
    moved = at_points(objective, drawn.points)
    rows = drawn.residuals(model).detach()
    assert moved.value(moved.theta()) == pytest.approx(0.5 * float(rows @ rows), rel=1e-10)
    assert objective.value(objective.theta()) != pytest.approx(moved.value(moved.theta()), rel=1e-6)


def test_fixed_points_are_not_renewed():
    problem = PROBLEMS["poisson"]
    model = problem.network(0, "torch")
    run = rivals.adam(problem, 1e-3, renewal=Renewal(1))(model, None)  # type: ignore[arg-type]
    next(run)
    with pytest.raises(JumpstartError, match="Problem has fixed points"):
        next(run)
