"""Runs that go on from a head fitted on the same samples: heads really refitted, runs from there in SciPy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.risk import closed_form as laplace
from jumpstart.training.proposals import refits

from ..problems import classes, fill, mlp, randn, relative
from .test_leave_out import LOSSES, Run

TRUTH = {
    "mse": lambda u, y, n: F.mse_loss(u, y, reduction="sum") / (n * y[0].numel()),
    "cross_entropy": lambda u, y, n: F.cross_entropy(u, y, reduction="sum") / n,
}
KINDS = tuple(TRUTH)


def setting(kind, n=10, seed=0):
    x = randn(seed, n, 4)
    y = randn(seed + 50, n, 3) if kind == "mse" else classes(seed, n, 3)
    return mlp(seed), x, y


def refitted(features, y, kind, damping, left):
    """Outputs of all samples under SciPy's head of all but one; the others count as before."""
    n, d = features.shape
    rest = [i for i in range(n) if i != left]

    def total(point):
        w = torch.from_numpy(point).reshape(3, d + 1).requires_grad_()
        u = features[rest] @ w[:, :d].T + w[:, d]
        value = TRUTH[kind](u, y[rest], n) + 0.5 * damping * w[:, :d].square().sum()
        (slope,) = torch.autograd.grad(value, w)
        return float(value.detach()), slope.reshape(-1).numpy()

    found = scipy.optimize.minimize(total, np.zeros(3 * (d + 1)), jac=True, method="BFGS", options={"gtol": 1e-11})
    w = torch.from_numpy(found.x).reshape(3, d + 1)
    return features @ w[:, :d].T + w[:, d]


def both(kind, damping=0.02, n=10, seed=0):
    """A network after its head, the head's starts, and SciPy's."""
    model, x, y = setting(kind, n, seed)
    with torch.no_grad():
        features = model[:-1](x)
    objective = js.supervised(model, x, y, kind)
    head = js.fit_head(objective, damping=damping)
    head.apply()
    exact = torch.stack([refitted(features, y, kind, damping, i) for i in range(n)])
    return model, x, y, objective, head.without_each(), exact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_heads_without_each_sample_are_refits(kind, damping):
    model, x, _, _, starts, exact = both(kind, damping)
    assert relative(starts.without, exact) < 1e-5  # SciPy's own accuracy
    assert relative(starts.outputs, model(x)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_heads_in_blocks_are_the_same(kind, monkeypatch):
    _, _, _, objective, starts, _ = both(kind)
    monkeypatch.setattr(refits, "ENTRIES", 3 * 50)
    again = js.fit_head(objective, damping=0.02).without_each()
    assert relative(again.without, starts.without) < 1e-6


def test_a_bias_less_head():
    model, x, y = setting("mse")
    model[-1] = fill(nn.Linear(12, 3, bias=False), 1)
    head = js.fit_head(js.supervised(model, x, y), damping=0.05)
    with torch.no_grad():
        features = model[:-1](x).numpy()
    for i in (0, 7):
        rest = np.delete(np.arange(10), i)
        beta, z = 2 / 30, features[rest]
        w = np.linalg.solve(beta * z.T @ z + 0.05 * np.eye(12), beta * z.T @ y.numpy()[rest])
        assert relative(head.without_each().without[i], features @ w) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_runs_from_heads_without_each_sample(kind):
    """Every horizon against SciPy: kernel at the head, each run from its own refitted head, without its own sample."""
    model, x, y, objective, starts, exact = both(kind)
    starts = dataclasses.replace(starts, without=exact)
    found = js.solve(objective, "dense")
    run = Run(model, x, y, LOSSES[kind][2])
    times = [0.0, 0.3 / float(found.spectrum[0]), 10 / float(found.spectrum[0]), 3e2 / float(found.spectrum[0])]
    answer = found.leave_out(torch.tensor(times, dtype=torch.float64), start=starts, tolerance=1e-9)
    for i in range(len(x)):
        run.u = exact[i].numpy()
        truth = run.flow(times, [[i]], rtol=1e-9)[:, 0, i]
        assert relative(answer.outputs[:, i], truth) < 1e-5
    assert relative(answer.outputs[0], exact[range(10), range(10)]) < 1e-12
    losses = LOSSES[kind][3](answer.outputs[2], y)
    assert float(answer.risk[2]) == pytest.approx(float(losses.sum()), rel=1e-12)


@pytest.mark.parametrize("way", ["unit", "general", "gated", "steps", "folds"])
def test_squared_losses_by_every_way(way, monkeypatch):
    model, x, y, objective, starts, exact = both("mse")
    found = js.solve(objective, "dense")
    run = Run(model, x, y, LOSSES["mse"][2])
    groups, t = [[i] for i in range(10)], 20 / float(found.spectrum[0])
    if way == "general":  # equation 18, where equation 19 would be asked
        monkeypatch.setattr(laplace.Unit, "of", staticmethod(lambda flow: None))
    if way == "folds":  # each run of several samples from a start of its own, groups of two sizes
        groups = [[0, 5, 7], [2, 3], [1, 8, 9]]
        starts = dataclasses.replace(starts, without=exact[:3])
    horizon = js.steps(40, t / 40) if way == "steps" else t
    options = {"groups": groups} if way == "folds" else {}
    if way == "gated":  # gates that are all open go the other way
        found.flow.gates = found.flow.gates * (1 - 1e-12)
    answer = found.leave_out(horizon, start=starts, **options).outputs[0]
    at = 0
    for g, group in enumerate(groups):
        run.u = starts.without[g].numpy()
        if way == "steps":
            keep, v = run.masks([group]), np.zeros((1, y.numel()))
            for _ in range(40):
                v = v + t / 40 * run.force(v, keep)
            truth = (run.u + v.reshape(y.shape))[group]
        else:
            truth = run.squares([t], [group])[0, 0][group]
        assert relative(answer[at : at + len(group)], truth) < 1e-6
        at += len(group)


def teacher(seed, n):
    """Few samples of a direction that random features do not have."""
    x = randn(seed, n, 6)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def test_what_the_head_has_seen_is_not_promised_again():
    """A weakly damped head has all but learnt its samples: runs from it that have seen them promise too much."""
    naive, carried, real = [], [], []
    for seed in range(4):
        torch.manual_seed(seed)
        model = fill(nn.Sequential(nn.Linear(6, 60), nn.Tanh(), nn.Linear(60, 2)), seed)
        (x, y), (query, truth) = teacher(seed, 30), teacher(seed + 20, 400)
        objective = js.supervised(model, x, y, "cross_entropy")
        head = js.fit_head(objective, damping=1e-3)
        head.apply()
        found = js.solve(objective, "dense")
        t = 3 / float(found.spectrum[0])
        naive.append(found.risk(t))
        carried.append(found.risk(t, start=head.without_each()))
        real.append(float(F.cross_entropy(found.predict(query, t), truth)))
    naive, carried, real = (float(np.mean(v)) for v in (naive, carried, real))
    assert naive < 0.5 * real
    assert carried == pytest.approx(real, rel=0.35) and abs(carried - real) < 0.5 * abs(naive - real)


def test_a_second_stage_is_taken_only_where_it_beats_the_head():
    model = fill(nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 2)), 0)
    x = randn(0, 24, 6)
    noise = js.supervised(model, x, classes(3, 24, 2), "cross_entropy")
    head = js.fit_head(noise, damping=1e-2)
    head.apply()
    found = js.solve(noise, "dense")
    assert found.best_horizon(limit=20 / float(found.spectrum[0]), start=head.without_each()) == 0.0  # nothing to learn
    teacher_x, y = teacher(0, 50)
    model = fill(nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 2)), 0)
    told = js.supervised(model, teacher_x, y, "cross_entropy")
    head = js.fit_head(told, damping=10.0)  # a head that knows next to nothing
    head.apply()
    found, start = js.solve(told, "dense"), head.without_each()
    t = found.best_horizon(limit=20 / float(found.spectrum[0]), start=start)
    assert t > 0 and found.risk(t, start=start) < found.risk(0.0, start=start)


def test_heads_that_do_not_come_to_rest_go_on_with_their_own_hessian(monkeypatch):
    _, _, _, objective, starts, exact = both("cross_entropy", 1e-3)
    monkeypatch.setattr(refits, "STEPS", 0)
    again = js.fit_head(objective, damping=1e-3).without_each()
    assert relative(again.without, exact) < 1e-5 and relative(again.without, starts.without) < 1e-5


def test_misuse_is_told():
    model, _, _, objective, starts, _ = both("mse")
    found = js.solve(objective, "dense")
    with pytest.raises(InputError, match="start=5"):
        found.leave_out(1.0, start=5)
    with pytest.raises(InputError, match="for 3 groups"):
        found.leave_out(1.0, samples=3, start=starts)
    with pytest.raises(InputError, match="not finite"):
        found.leave_out(1.0, start=dataclasses.replace(starts, without=starts.without * math.nan))
    with pytest.raises(InputError, match="not 'start'"):
        found.risk(1.0, "gcv", start=starts)
    with pytest.raises(InputError, match="weight decay"):
        js.solve(objective, "dense", weight_decay=0.1).leave_out(1.0, start=starts)
    damped = found.damped(0.1).leave_out(0.0, start=starts)  # each is pulled back to its own start
    assert relative(damped.outputs[0], starts.without[range(10), range(10)]) < 1e-12
    with torch.no_grad():
        model[-1].bias.add_(1.0)
    with pytest.raises(InputError, match="apply it"):
        js.solve(objective, "dense").leave_out(1.0, start=starts)
