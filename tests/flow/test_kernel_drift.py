"""Second order of the true gradient flow: against the nonlinear run, and against the expansion's own equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, hessian

import jumpstart as js
from jumpstart import bases
from jumpstart import gating as gate
from jumpstart.errors import HorizonError, InputError
from jumpstart.flow.horizon import Times
from jumpstart.flow.kernel_drift import Drift
from jumpstart.linearization.linearize import at_query
from jumpstart.linearization.metric import Metric
from jumpstart.objectives.parts import Batch
from jumpstart.solver.solve import solve

from ..problems import PROBLEMS, at, classes, fill, flat, integrate, jacobian, mlp, randn, relative, slope

# name → (torch's loss, targets (seed, n, c))
LOSSES = {
    "mse": (F.mse_loss, randn),
    "cross_entropy": (F.cross_entropy, classes),
    "logistic": (F.binary_cross_entropy_with_logits, lambda s, n, c: (randn(s, n, c) > 0).double()),
}


def by_hand(name, u, y, v):
    """∇Φ(u) and B(u) v in NumPy."""
    if name == "mse":
        return 2 / u.size * (u - y), 2 / u.size * v
    if name == "logistic":
        p = 1 / (1 + np.exp(-u))
        return (p - y) / u.size, p * (1 - p) * v / u.size
    p = np.exp(u - u.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (p - np.eye(u.shape[1])[y]) / len(u), p * (v - (p * v).sum(1, keepdims=True)) / len(u)


DEPTH = 60  # more than any of these problems has modes


def krylov(side, depth=DEPTH):
    return lambda problem: bases.krylov(problem, depth, side=side)


# name → (basis, with a metric, weight decay, chunk)
SETTINGS = {
    "dense": ("dense", False, 0.0, None),
    "dense, metric": ("dense", True, 0.0, None),
    "dense, decay": ("dense", False, 0.3, None),
    "dense vectors, chunks": (lambda problem: bases.dense(problem, route="svd"), False, 0.0, 4),
    "krylov vectors, metric, decay": (krylov("parameters"), True, 0.2, None),
    "krylov cotangents, chunks": (krylov("outputs"), False, 0.0, 4),
    "krylov, 5 deep": (krylov("parameters", 5), False, 0.0, None),
}


class Case:
    """A small network, its solution and times in units of the fastest relaxation."""

    def __init__(self, name, seed=0, setting="dense", n=6, width=5, times=(1.0,), model=None):
        basis, scaled, self.decay, chunk = SETTINGS[setting]
        torch_loss, targets = LOSSES[name]
        plain = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
        self.model = fill(plain, seed) if model is None else model
        self.x, self.query = randn(seed, n, 3), randn(seed + 99, 4, 3)
        y = targets(seed + 50, n, 2) if model is None else randn(seed + 50, n)
        self.name, self.y, self.loss = name, y.numpy(), lambda u: torch_loss(u, y)
        self.d = torch.exp(0.5 * randn(seed + 7, flat(self.model).numel())) if scaled else None
        objective = js.supervised(self.model, self.x, y, name, chunk=chunk)
        self.found = solve(objective, basis, self.d, weight_decay=self.decay or None)
        self.lin, self.flow = self.found.lin, self.found.flow
        self.top = float(self.found.spectrum[0])
        self.times = [t / self.top for t in times]
        self.theta = flat(self.model)

    @property
    def horizon(self):
        return torch.tensor(self.times, dtype=torch.float64)

    def drift(self, **options):
        return Drift(self.flow, **options)

    def scaled(self, v):
        return v if self.d is None else self.d * v

    def truth(self):
        """Training outputs, query outputs and displacements of the true run, by a tight integration."""
        gradient = grad(lambda theta: self.loss(at(self.model, theta, self.x)))

        def force(y):
            theta = torch.from_numpy(y)
            return (-self.scaled(gradient(theta)) - self.decay * theta).numpy()

        run = torch.from_numpy(integrate(force, self.theta.numpy(), self.times, rtol=1e-11))
        with torch.no_grad():
            outputs = [torch.stack([at(self.model, theta, x) for theta in run]) for x in (self.x, self.query)]
        return *outputs, run - self.theta

    def first(self):
        t = self.horizon
        deltas = [self.flow.basis.displacement(c) for c in self.flow.coefficients(Times(tuple(self.times), False))]
        return self.found.outputs(t), self.found.predict(self.query, t), torch.stack(deltas)

    def second(self, drift):
        t = self.horizon
        return drift.outputs(t), drift.predict(at_query(self.lin, Batch(self.query)), t), drift.displacements(t)

    def expansion(self):
        """δ₁, δ₂ and the outputs to second order by scipy, from explicit first and second derivatives."""
        theta, p, d = self.theta.numpy(), self.theta.numel(), np.ones(1) if self.d is None else self.d.numpy()
        j = jacobian(self.model, self.x).numpy()
        h = hessian(lambda theta: at(self.model, theta, self.x).reshape(-1))(self.theta).detach().numpy()
        u0 = self.lin.u.detach().numpy()

        def force(y):
            first, second = y[:p], y[p:]
            bend = h @ first
            u, miss = ((j @ v).reshape(u0.shape) for v in (first, second))
            miss += 0.5 * (bend @ first).reshape(u0.shape)
            g, curved = (v.reshape(-1) for v in by_hand(self.name, u0 + u, self.y, miss))
            decay = self.decay * np.concatenate([theta + first, second])
            return -np.concatenate([d * (j.T @ g), d * (j.T @ curved + g @ bend)]) - decay

        run = integrate(force, np.zeros(2 * p), self.times, rtol=1e-9, atol=1e-12)
        first, second = run[:, :p], run[:, p:]
        bends = 0.5 * np.einsum("npq,tp,tq->tn", h, first, first)
        return first, second, u0 + ((first + second) @ j.T + bends).reshape(-1, *u0.shape)


def lengths(v):
    return v.flatten(1).norm(dim=1).tolist()


SMALL = (0.01, 0.02, 0.04, 0.08)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", LOSSES)
def test_one_order_more_than_the_linearization(name, setting):
    """Errors for small t fall as t² to first order and as t³ to second: outputs, query points, weights."""
    case = Case(name, 1, setting, times=SMALL)
    for true, one, two in zip(case.truth(), case.first(), case.second(case.drift()), strict=True):
        assert 1.85 < slope(SMALL, lengths(one - true)) < 2.15
        assert 2.85 < slope(SMALL, lengths(two - true)) < 3.15
        assert lengths(two - true)[-1] < 0.1 * lengths(one - true)[-1]


def test_one_order_more_for_outputs_without_a_second_dimension():
    model = fill(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)), 2)
    case = Case("mse", 2, times=SMALL, model=model)
    for true, one, two in zip(case.truth(), case.first(), case.second(case.drift()), strict=True):
        assert true.shape == two.shape
        assert 1.85 < slope(SMALL, lengths(one - true)) < 2.15
        assert 2.85 < slope(SMALL, lengths(two - true)) < 3.15


@pytest.mark.parametrize("name", LOSSES)
def test_second_order_is_closer_to_the_truth_at_moderate_horizons(name):
    """What is left of the linearization's error, in the median of networks: a tenth to a fifth at t = 0.3/λ_max, less
    than half at 1/λ_max; for weights a tenth even there. (Beyond 10/λ_max outputs gain little from it.)"""
    left = []
    for seed in range(4):
        case = Case(name, seed, n=8, width=8, times=(0.3, 1.0))
        answers = zip(case.truth(), case.first(), case.second(case.drift()), strict=True)
        left.append([np.divide(lengths(two - true), lengths(one - true)) for true, one, two in answers])
    outputs, query, weights = np.median(left, 0)
    assert outputs[0] < 0.25 and query[0] < 0.25 and weights[0] < 0.06
    assert outputs[1] < 0.5 and query[1] < 0.5 and weights[1] < 0.15


@pytest.mark.parametrize(
    ("name", "setting", "n", "longest"),
    [
        ("mse", "dense, metric", 6, 1000.0),
        ("cross_entropy", "dense", 6, 1000.0),
        ("logistic", "krylov vectors, metric, decay", 6, 1000.0),
        ("logistic", "dense", 36, 30.0),  # so many modes that the integrator lets its linear part lag
    ],
)
def test_long_runs_against_the_expansion_itself(name, setting, n, longest):
    """The quadrature in time, up to 1,000 relaxations of the fastest mode; horizons together and one alone."""
    case = Case(name, 3, setting, n, width=5 if n == 6 else 12, times=(10.0, longest))
    first, second, u = case.expansion()
    together, linear, t = case.drift(), case.found.outputs(case.horizon).numpy(), case.horizon
    for i in range(2):
        assert relative(together.displacements(t)[i].numpy() - first[i], second[i]) < 1e-3
        assert relative(together.outputs(t)[i].numpy() - linear[i], u[i] - linear[i]) < 1e-3
    missed = {}
    for nodes in (4, 12):
        drift = case.drift(nodes=nodes)
        missed[nodes] = max(
            relative(drift.displacements(case.times[-1])[0].numpy() - first[-1], second[-1]),
            relative(drift.outputs(case.times[-1])[0].numpy() - linear[-1], u[-1] - linear[-1]),
        )
    assert missed[12] < 1e-3
    assert missed[12] < max(0.3 * missed[4], 1e-6)


def test_horizons_share_the_nodes():
    case = Case("mse", 4, times=(0.0, 5.0, 0.5, 5.0))
    drift, ledger, query = case.drift(), case.lin.ledger, at_query(case.lin, Batch(case.query))
    u = drift.outputs(case.horizon)
    assert 2 <= ledger.seconds <= 8
    assert ledger.second_pulls <= ledger.seconds
    before = ledger.gradient_evaluations
    assert torch.equal(drift.outputs(case.horizon), u)
    assert ledger.gradient_evaluations == before
    moved, predicted = drift.displacements(case.horizon), drift.predict(query, case.horizon)
    assert ledger.gradient_evaluations - before <= 4 * (2 / 3 + 2 * 2 / 3 + 1 + 2) + 1e-9  # vjps, a jvp, f''
    # At t = 0 nothing has happened, to the last bit; equal horizons have equal answers.
    assert torch.equal(u[0], case.lin.u) and torch.equal(predicted[0], query.u) and not bool(moved[0].any())
    assert relative(u[3], u[1]) < 1e-14 and relative(moved[3], moved[1]) < 1e-14
    alone = case.drift()
    assert relative(alone.displacements(case.times[2]), moved[2:3]) < 1e-4
    assert relative(alone.outputs(case.times[2]), u[2:3]) < 1e-4


def test_one_short_horizon_is_cheap_and_right():
    case = Case("cross_entropy", 5, times=(0.1,))
    before = case.lin.ledger.gradient_evaluations
    found = case.second(case.drift())
    assert case.lin.ledger.second_pulls <= 3
    assert case.lin.ledger.gradient_evaluations - before < 25
    for true, one, two in zip(case.truth(), case.first(), found, strict=True):
        assert lengths(two - true)[0] < 0.2 * lengths(one - true)[0]


def test_the_end_of_training():
    """t = ∞ is the limit of finite times, and training outputs still land on their targets."""
    case = Case("mse", 6)
    drift, slow = case.drift(), 1 / float(case.found.spectrum[-1])
    target = case.found.outputs(math.inf)
    assert relative(drift.outputs(math.inf)[0], target) < 1e-8
    ends = [relative(drift.displacements(k * slow), drift.displacements(math.inf)) for k in (2, 5, 25)]
    assert ends[0] > ends[1] > ends[2] and ends[2] < 1e-4
    decayed = Case("mse", 6, "dense, decay")
    late = decayed.drift().displacements(60 / decayed.decay)
    assert relative(decayed.drift().displacements(math.inf), late) < 1e-4
    p = PROBLEMS["P < N"](0)  # a residual is left, but no direction outside the span for it to bend
    whole = solve(js.supervised(p.model, p.x, p.y), "dense")
    drift, late = Drift(whole.flow), 60 / float(whole.spectrum[-1])
    assert relative(drift.displacements(late), drift.displacements(math.inf)) < 1e-4


def test_a_linear_model_has_no_second_order():
    model, x = fill(nn.Linear(3, 2), 0), randn(0, 5, 3)
    found = solve(js.supervised(model, x, randn(1, 5, 2)), "dense")
    t = torch.tensor([0.3, 20.0], dtype=torch.float64)
    assert relative(Drift(found.flow).outputs(t), found.outputs(t)) < 1e-12


@pytest.mark.parametrize("basis", ["dense", "krylov"])
def test_nothing_moves_where_the_gradient_vanishes(basis):
    model, x = mlp(0), randn(0, 5, 4)
    found = solve(js.supervised(model, x, model(x).detach()), basis)
    drift = Drift(found.flow)
    assert torch.equal(drift.outputs(3.0)[0], found.lin.u)
    assert not bool(drift.displacements(torch.tensor([1.0, math.inf])).any())


def test_single_precision():
    x, y = randn(0, 10, 4), randn(1, 10, 3)
    exact = solve(js.supervised(mlp(0), x, y), "dense")
    rough = solve(js.supervised(mlp(0).float(), x.float(), y.float()), "dense")
    t = torch.tensor([1.0, 100.0], dtype=torch.float64) / exact.spectrum[0]
    one, two = Drift(rough.flow), Drift(exact.flow)
    bent = (two.outputs(t) - exact.outputs(t)).norm()
    assert one.displacements(t).dtype == torch.float32
    assert float((one.outputs(t) - two.outputs(t)).norm()) < 1e-3 * float(bent)


def test_bad_input():
    case = Case("cross_entropy", 0)
    with pytest.raises(HorizonError, match=r"js.steps.*first order"):
        case.drift().outputs(js.steps(10, 0.1))
    for wrong in (math.nan, -1.0, Times((1.0, math.nan), False), Times((-1.0,), True)):
        with pytest.raises(HorizonError, match="0 or more"):
            case.drift().outputs(wrong)
    with pytest.raises(HorizonError, match="finite time"):
        case.drift().displacements(math.inf)
    for nodes in (1, 2.5, True):
        with pytest.raises(InputError, match=f"nodes={nodes}"):
            case.drift(nodes=nodes)
    case.flow = case.flow.gated(gate.Gate("snr"))
    with pytest.raises(InputError, match="gate=None"):
        case.drift()
    truncated = Case("mse", 0, "krylov, 5 deep")
    with pytest.raises(HorizonError, match=r"gradient outlives.*finite time"):
        truncated.drift().outputs(math.inf)
    rates = torch.linspace(0.1, 0.2, truncated.theta.numel(), dtype=torch.float64)
    objective = js.supervised(truncated.model, truncated.x, randn(50, 6, 2))
    uneven = solve(objective, "dense", Metric(decay=rates))
    with pytest.raises(InputError, match="one rate of weight decay"):
        Drift(uneven.flow)
