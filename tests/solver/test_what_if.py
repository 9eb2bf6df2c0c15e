"""Other targets, weights, damping and gates on one kernel: against fresh solves, ODE integration and SGD."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.flow.horizon import phi

from ..problems import PROBLEMS, classes, fill, flat, generator, integrate, jacobian, mlp, randn, relative, vector

INF, NAN = math.inf, math.nan


def softmax(u):
    e = np.exp(u - u.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# name → (targets (seed, n, c), NumPy's gradient of each sample's loss, not divided by n)
LOSSES = {
    "mse": (lambda s, n, c: randn(s, n, c), lambda u, y: 2 * (u - y) / y.shape[1]),
    "logistic": (lambda s, n, c: (randn(s, n, c) > 0).double(), lambda u, y: (1 / (1 + np.exp(-u)) - y) / y.shape[1]),
    "cross_entropy": (classes, lambda u, y: softmax(u) - np.eye(u.shape[-1])[y]),
}
TORCH = {"mse": F.mse_loss, "logistic": F.binary_cross_entropy_with_logits, "cross_entropy": F.cross_entropy}


def both(model, x, q, y, gradient, weights, times, pull=0.0, decay=0.0, d=None):
    """Outputs (T, n, c) and query outputs (T, m, c) of θ̇ = −D Jᵀ(w g/n) − pull(θ − θ₀) − decay·θ, by DOP853."""
    root = torch.ones(1, dtype=torch.float64) if d is None else d.sqrt()
    plain, cross = jacobian(model, x), jacobian(model, q)
    j, jq = (plain * root).numpy(), (cross * root).numpy()
    n, m = len(x), len(q)
    u0, q0 = model(x).detach().numpy(), model(q).detach().numpy()
    kernel = np.concatenate([j @ j.T, jq @ j.T])
    drift = decay * torch.cat([plain @ flat(model), cross @ flat(model)]).numpy()
    share = np.asarray(weights)[:, None] / n

    def rate(v):
        g = share * gradient(u0 + v[: u0.size].reshape(u0.shape), y.numpy())
        return -kernel @ g.reshape(-1) - (pull + decay) * v - drift

    found = integrate(rate, np.zeros(u0.size + q0.size), times, rtol=1e-10, atol=1e-13)
    return u0 + found[:, : u0.size].reshape(-1, n, u0.shape[1]), q0 + found[:, u0.size :].reshape(-1, m, u0.shape[1])


def task(loss, seed=0):
    model, x, q = mlp(seed, 3, 7), randn(seed, 7, 3), randn(seed + 9, 4, 3)
    return model, x, q, LOSSES[loss][0](seed + 50, 7, 3)


# -- other targets -----------------------------------------------------------------------------------------------

HORIZONS = [0.0, 0.7, torch.tensor([0.1, 8.0], dtype=torch.float64), js.steps(6, 0.2), js.steps(6, 0.2, 0.9)]


# The classes are separable: their runs have no end.
ENDS = [(loss, t) for loss in LOSSES for t in [*HORIZONS, INF][: None if loss == "mse" else -1]]


@pytest.mark.parametrize(("loss", "t"), ENDS, ids=lambda v: "many" if isinstance(v, torch.Tensor) else str(v))
@pytest.mark.parametrize("metric", [False, True])
def test_other_targets_equal_fresh_solves(loss, metric, t):
    model, x, q, y = task(loss)
    d = torch.rand(flat(model).numel(), dtype=torch.float64, generator=generator(1)) + 0.2 if metric else None
    others = torch.stack([LOSSES[loss][0](seed, 7, 3) for seed in (70, 71, 72)])
    options = {"basis": "dense", "metric": d, "weight_decay": 0.03 if metric else None}
    found = js.solve(js.supervised(model, x, y, loss), **options)
    spent = found.lin.ledger.gradient_evaluations
    sweep = found.with_targets(others)
    assert len(sweep) == 3
    assert found.lin.ledger.gradient_evaluations == spent
    outputs, queries, losses = sweep.outputs(t), sweep.predict(q, t), sweep.loss(t)
    lead = (2,) if isinstance(t, torch.Tensor) else ()
    assert outputs.shape == (*lead, 3, 7, 3)
    assert queries.shape == (*lead, 3, 4, 3)
    assert losses.shape == (*lead, 3)
    for i, other in enumerate(others):
        fresh = js.solve(js.supervised(model, x, other, loss), **options)
        for single in (found.with_targets(other), sweep[i]):
            assert relative(single.outputs(t), fresh.outputs(t)) < 1e-6
            assert relative(single.predict(q, t), fresh.predict(q, t)) < 1e-6
            assert relative(vector(single.parameters(t)), vector(fresh.parameters(t))) < 1e-6
            assert np.allclose(single.loss(t), fresh.loss(t), 1e-5, 1e-20)
        assert relative(outputs[..., i, :, :], fresh.outputs(t)) < 1e-6
        assert relative(queries[..., i, :, :], fresh.predict(q, t)) < 1e-6
        assert np.allclose(losses[..., i], fresh.loss(t), 1e-5, 1e-20)
    assert relative(found.outputs(0.7), js.solve(js.supervised(model, x, y, loss), **options).outputs(0.7)) < 1e-12


@pytest.mark.parametrize("name", ["outputs (n,)", "cnn", "P < N", "dead ReLU"])
def test_sweeps_of_other_shapes(name):
    p = PROBLEMS[name](0)
    others = torch.stack([randn(s, *p.y.shape) for s in range(4)])
    found = js.solve(js.supervised(p.model, p.x, p.y), "dense")
    for t in (2.0, INF, js.steps(5, 0.1, 0.5)):
        sweep = found.with_targets(others)
        for i in range(4):
            fresh = js.solve(js.supervised(p.model, p.x, others[i]), "dense")
            assert relative(sweep.outputs(t)[i], fresh.outputs(t)) < 1e-9
            assert relative(sweep.predict(p.query, t)[i], fresh.predict(p.query, t)) < 1e-9
            assert float(sweep.loss(t)[i]) == pytest.approx(fresh.loss(t), rel=1e-9, abs=1e-20)


def test_sweeps_of_weighted_damped_runs():
    model, x, q, y = task("mse")
    weights = torch.tensor([1, 0, 2, 0.5, 1, 1, 3.0], dtype=torch.float64)
    others = torch.stack([randn(s, 7, 3) for s in (1, 2)])
    found = js.solve(js.supervised(model, x, y), "dense").reweighted(weights).damped(0.1).with_targets(others)
    for i in range(2):
        u, v = both(model, x, q, others[i], LOSSES["mse"][1], weights, np.array([0.0, 5.0]), pull=0.1)
        assert relative(found.outputs(5.0)[i], u[-1]) < 1e-8
        assert relative(found.predict(q, 5.0)[i], v[-1]) < 1e-8
        expected = ((u[-1] - others[i].numpy()) ** 2).mean(1) @ weights.numpy() / 7
        assert float(found.loss(5.0)[i]) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("loss", ["mse", "logistic"])
def test_gates_are_not_taken_along_by_sweeps_either(loss):
    """A gate was set by what the samples said of other targets: one by one it is dropped, so in a sweep as well.

    Once wrong: for squared loss the sweep keeps the gates of the old targets.
    """
    model, x, _, y = task(loss)
    others = torch.stack([LOSSES[loss][0](s, 7, 3) for s in (1, 2)])
    found = js.solve(js.supervised(model, x, y, loss), "dense").gated("hard")
    for i in range(2):
        assert relative(found.with_targets(others).outputs(2.0)[i], found.with_targets(others[i]).outputs(2.0)) < 1e-9


@pytest.mark.parametrize("t", [0.01, 1.0, 30.0, 1e3, js.steps(5, 0.1), js.steps(100, 0.1)], ids=str)
@pytest.mark.parametrize("change", ["targets", "reweighted", "damped", "without", "targets, damped"])
def test_bounds_of_truncated_bases_still_bound(change, t):
    """A Krylov space that was built for other targets holds less of the new run; the bound must say so.

    Once wrong: with other targets the Lanczos bounds of the old ones are given, thousands of times too small.
    """
    for seed in range(2):
        p = PROBLEMS["mlp"](seed)
        y = randn(77, 8, 3)
        objective = js.supervised(p.model, p.x, p.y)
        changed = {
            "targets": lambda s, y=y: s.with_targets(y),
            "reweighted": lambda s: s.reweighted(torch.arange(8) / 2),
            "damped": lambda s: s.damped(0.1),
            "without": lambda s: s.without(0),
            "targets, damped": lambda s, y=y: s.with_targets(y).damped(0.1),
        }[change]
        short, whole = changed(js.solve(objective, "krylov", depth=6)), changed(js.solve(objective, "dense"))
        assert float((short.outputs(t) - whole.outputs(t)).norm()) <= short.error_bound(t)


# -- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_reweighted_runs_against_ode_integration(loss, metric):
    model, x, q, y = task(loss, 1)
    d = torch.rand(flat(model).numel(), dtype=torch.float64, generator=generator(1)) + 0.2 if metric else None
    decay = 0.04 if metric else 0.0
    weights = torch.tensor([1, 0, 2, 0.3, 1, 5, 1.0], dtype=torch.float64)
    found = js.solve(js.supervised(model, x, y, loss), "dense", d, weight_decay=decay).reweighted(weights)
    times = np.array([0.2, 2.0, 40.0])
    u, v = both(model, x, q, y, LOSSES[loss][1], weights, times, decay=decay, d=d)
    many = torch.from_numpy(times)
    assert relative(found.outputs(many), u) < 1e-6
    assert relative(found.predict(q, many), v) < 1e-6
    per_sample = torch.stack([TORCH[loss](found.outputs(2.0)[i : i + 1], y[i : i + 1]) for i in range(7)])
    assert found.loss(2.0) == pytest.approx(float((weights * per_sample).sum() / 7), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_whole_weights_are_repeated_samples(loss):
    """The mean over Σw repeated samples is n/Σw times as large: the same run at another clock."""
    model, x, q, y = task(loss, 2)
    weights = torch.tensor([1, 3, 2, 1, 1, 4, 2])
    rows = torch.arange(7).repeat_interleave(weights)
    found = js.solve(js.supervised(model, x, y, loss), "dense").reweighted(weights)
    repeated = js.solve(js.supervised(model, x[rows], y[rows], loss), "dense")
    for t in (0.1, 3.0):
        other = t * float(weights.sum()) / 7
        assert relative(found.predict(q, t), repeated.predict(q, other)) < 1e-6
        assert relative(found.outputs(t)[rows], repeated.outputs(other)) < 1e-6
        assert found.loss(t) * 7 / float(weights.sum()) == pytest.approx(repeated.loss(other), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("left", [2, [0, 5], torch.tensor([6, 1, 3])], ids=str)
def test_without_equals_a_smaller_training_set(loss, left):
    model, x, q, y = task(loss, 3)
    keep = sorted(set(range(7)) - set(torch.as_tensor(left).reshape(-1).tolist()))
    found = js.solve(js.supervised(model, x, y, loss), "dense").without(left)
    fewer = js.solve(js.supervised(model, x[keep], y[keep], loss), "dense")
    for t in (0.3, 6.0):
        assert relative(found.predict(q, t), fewer.predict(q, t * len(keep) / 7)) < 1e-6
        assert relative(found.predict(x, t), fewer.predict(x, t * len(keep) / 7)) < 1e-6
    if loss == "mse":
        assert relative(found.predict(q, INF), fewer.predict(q, INF)) < 1e-8


def test_weights_multiply():
    model, x, _, y = task("mse")
    a, b = torch.rand(2, 7, dtype=torch.float64, generator=generator(4))
    found = js.solve(js.supervised(model, x, y), "dense")
    assert relative(found.reweighted(a).reweighted(b).outputs(3.0), found.reweighted(a * b).outputs(3.0)) < 1e-12
    assert relative(found.without(1).without([2, 3]).outputs(3.0), found.without([1, 2, 3]).outputs(3.0)) < 1e-12
    assert relative(found.reweighted(torch.ones(7)).outputs(3.0), found.outputs(3.0)) < 1e-12
    assert relative(found.reweighted(2 * torch.ones(7)).outputs(3.0), found.outputs(6.0)) < 1e-10


# -- damping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("basis", ["dense", "krylov"])
@pytest.mark.parametrize("loss", LOSSES)
def test_damped_runs_against_ode_integration(loss, basis, metric):
    model, x, q, y = task(loss, 4)
    d = torch.rand(flat(model).numel(), dtype=torch.float64, generator=generator(1)) + 0.2 if metric else None
    decay = 0.02 if metric else None
    found = js.solve(
        js.supervised(model, x, y, loss), basis, d, weight_decay=decay, depth=None if basis == "dense" else 23
    ).damped(0.15)
    times = np.array([0.2, 3.0, 60.0])
    u, v = both(model, x, q, y, LOSSES[loss][1], np.ones(7), times, pull=0.15, decay=decay or 0.0, d=d)
    many = torch.from_numpy(times)
    assert relative(found.outputs(many), u) < 1e-6
    assert relative(found.predict(q, many), v) < 1e-6
    theta = vector(found.parameters(3.0))
    assert relative(model(x) + (jacobian(model, x) @ (theta - flat(model))).reshape(7, 3), u[1]) < 1e-6


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("name", ["mlp", "P < N", "cnn", "outputs (n,)", "duplicated samples"])
def test_damped_at_the_end_is_ridge_regression(name, metric):
    """min Φ(u₀ + Jδ) + ½ r δᵀD⁻¹δ, solved in weight space."""
    p = PROBLEMS[name](1)
    d = torch.rand(flat(p.model).numel(), dtype=torch.float64, generator=generator(1)) + 0.2
    d = d if metric else torch.ones_like(d)
    j, jq = jacobian(p.model, p.x), jacobian(p.model, p.query)
    beta, rate = 2 / p.y.numel(), 0.03
    residual = (p.y - p.model(p.x)).detach().reshape(-1)
    delta = torch.linalg.solve(beta * j.T @ j + rate * torch.diag(1 / d), beta * j.T @ residual)
    found = js.solve(js.supervised(p.model, p.x, p.y), "dense", d if metric else None).damped(rate)
    for t in (INF, 1e6):
        assert relative(vector(found.parameters(t)) - flat(p.model), delta) < 1e-9
        assert relative(found.outputs(t).reshape(-1), p.model(p.x).detach().reshape(-1) + j @ delta) < 1e-9
        assert (
            relative(found.predict(p.query, t).reshape(-1), p.model(p.query).detach().reshape(-1) + jq @ delta) < 1e-9
        )
    once = js.solve(js.supervised(p.model, p.x, p.y), "dense", d if metric else None).damped(0.13)
    assert relative(found.damped(0.1).outputs(2.0), once.outputs(2.0)) < 1e-10  # pulls add up


def test_damped_by_nothing_and_by_much():
    model, x, _, y = task("mse")
    found = js.solve(js.supervised(model, x, y), "dense")
    assert relative(found.damped(0).outputs(2.0), found.outputs(2.0)) < 1e-12
    assert relative(found.damped(1e9).outputs(INF), model(x)) < 1e-7


# -- gates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["hard", "soft", "snr"])
def test_gated_equals_a_solve_with_that_gate(rule):
    for loss in LOSSES:
        model, x, q, y = task(loss, 5)
        objective = js.supervised(model, x, y, loss)
        found, fresh = js.solve(objective, "dense").gated(rule), js.solve(objective, "dense", gate=rule)
        for t in (0.5, 9.0):
            assert relative(found.outputs(t), fresh.outputs(t)) < 1e-9
            assert relative(found.predict(q, t), fresh.predict(q, t)) < 1e-9
        plain = found.gated(None)
        assert relative(plain.outputs(9.0), js.solve(objective, "dense").outputs(9.0)) < 1e-9


def test_gates_of_samples_that_agree_and_that_do_not():
    """Equal samples leave every mode open; two that contradict each other shut it."""
    model, x = fill(nn.Linear(3, 1), 0), randn(0, 1, 3).expand(6, 3)
    agree = js.solve(js.supervised(model, x, torch.ones(6, 1).double()), "dense")
    assert relative(agree.gated("hard").outputs(INF), agree.outputs(INF)) < 1e-9
    u = model(x).detach()
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).repeat(3, 1)
    against = js.solve(js.supervised(model, x, u + signs + 0.01), "dense")
    assert relative(against.gated("hard").outputs(INF), u) < 1e-12
    assert relative(against.gated("hard", alpha=1e-6).outputs(INF), against.outputs(INF)) < 1e-9


# -- momentum ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("stretch", [0.3, 1.9, 3.0])  # of 1/λ: past 2 plain descent diverges, 2(1 + μ) with momentum
@pytest.mark.parametrize("loss", LOSSES)
def test_steps_with_momentum_equal_sgd(loss, stretch, momentum):
    model, x, y = fill(nn.Linear(4, 3), 6), randn(6, 6, 4), LOSSES[loss][0](7, 6, 3)
    found = js.solve(js.supervised(model, x, y, loss), "dense")
    lr, q = stretch / float(found.spectrum[0]), randn(8, 3, 4)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=lr, momentum=momentum)
    for count in range(41):
        if count in (0, 1, 2, 13, 40):
            horizon = js.steps(count, lr, momentum)
            scale = max(1.0, float(twin(x).detach().abs().max()))
            assert float((found.outputs(horizon) - twin(x)).abs().max()) < 1e-9 * scale
            assert float((found.predict(q, horizon) - twin(q)).abs().max()) < 1e-9 * scale
            assert relative(vector(found.parameters(horizon)), flat(twin)) < 1e-9
        optimizer.zero_grad()
        TORCH[loss](twin(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.9, 0.999])
@pytest.mark.parametrize("rate", [0.0, 1e-12, 1e-6, 1e-3, 0.1, 1.0, 3.0])
def test_filter_of_heavy_ball_steps_against_a_loop(rate, momentum):
    """p ← p + μ(p − p₋) + η(1 − λp), in long doubles."""
    lr = 0.7
    for count in (0, 1, 5, 3000):
        p = before = np.longdouble(0)
        for _ in range(count):
            p, before = p + momentum * (p - before) + lr * (1 - np.longdouble(rate) * p), p
        found = phi(torch.tensor([rate], dtype=torch.float64), js.steps(count, lr, momentum))
        assert float(found) == pytest.approx(float(p), rel=1e-12 / (1 - momentum) ** 2, abs=1e-300)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_billion_steps_are_the_end(momentum):
    p = PROBLEMS["P < N"](2)
    found = js.solve(js.supervised(p.model, p.x, p.y), "dense")
    lr = 0.5 / float(found.spectrum[0])
    assert relative(found.outputs(js.steps(10**9, lr, momentum)), found.outputs(INF)) < 1e-6
    diverging = found.outputs(js.steps(10**6, 100 * lr, momentum))
    assert not bool(torch.isfinite(diverging).all())


def test_time_of_steps_with_momentum():
    """Small rates: m heavy-ball steps are flow time ηm/(1 − μ), once they have come up to speed."""
    p = PROBLEMS["mlp"](2)
    found = js.solve(js.supervised(p.model, p.x, p.y), "dense")
    horizon = js.steps(200_000, 1e-5, 0.9)
    assert horizon.time == pytest.approx(20.0)
    assert relative(found.outputs(horizon), found.outputs(20.0)) < 1e-4


@pytest.mark.parametrize("momentum", [1, 1.0, -0.1, NAN, INF, "0.9", None, 2])
def test_no_momentum(momentum):
    with pytest.raises(errors.HorizonError, match="momentum"):
        js.steps(3, 0.1, momentum)


# -- misuse ------------------------------------------------------------------------------------------------------

Y = randn(0, 7, 3)
BAD = {
    "targets of another width": lambda s: s.with_targets(Y[:, :2]),
    "targets of another length": lambda s: s.with_targets(Y[:5]),
    "flat targets": lambda s: s.with_targets(Y[:, 0]),
    "a sweep of another width": lambda s: s.with_targets(torch.zeros(2, 7, 2)),
    "a sweep of sweeps": lambda s: s.with_targets(torch.zeros(2, 2, 7, 3)),
    "targets NaN": lambda s: s.with_targets(Y * NAN),
    "a sweep with NaN": lambda s: s.with_targets(torch.stack([Y, Y * NAN])),
    "targets infinite": lambda s: s.with_targets(Y / 0),
    "targets None": lambda s: s.with_targets(None),
    "targets of NumPy": lambda s: s.with_targets(Y.numpy()),
    "weights too few": lambda s: s.reweighted(torch.ones(6)),
    "weights for outputs": lambda s: s.reweighted(torch.ones(7, 3)),
    "weights in a column": lambda s: s.reweighted(torch.ones(7, 1)),
    "one weight": lambda s: s.reweighted(torch.tensor(1.0)),
    "negative weights": lambda s: s.reweighted(-torch.ones(7)),
    "one negative weight": lambda s: s.reweighted(torch.tensor([1, 1, 1, 1, 1, 1, -1e-9])),
    "weights NaN": lambda s: s.reweighted(torch.full((7,), NAN)),
    "weights infinite": lambda s: s.reweighted(torch.full((7,), INF)),
    "weights all 0": lambda s: s.reweighted(torch.zeros(7)),
    "weights in a list": lambda s: s.reweighted([1.0] * 7),
    "without a negative index": lambda s: s.without(-1),
    "without an index too large": lambda s: s.without(7),
    "without a fraction": lambda s: s.without(1.5),
    "without booleans": lambda s: s.without(torch.tensor([True] * 7)),
    "without nothing": lambda s: s.without([]),
    "without everything": lambda s: s.without(list(range(7))),
    "without one twice": lambda s: s.without([1, 1]),
    "damped by less than nothing": lambda s: s.damped(-1),
    "damped by NaN": lambda s: s.damped(NAN),
    "damped by infinity": lambda s: s.damped(INF),
    "damped by a word": lambda s: s.damped("much"),
    "unknown gate": lambda s: s.gated("hrd"),
    # Once errors of torch or Python, or answers:
    "whole numbers for squared loss": lambda s: s.with_targets(Y.long()),
    "an empty sweep": lambda s: s.with_targets(torch.zeros(0, 7, 3)).outputs(1.0),
    "an empty sweep's loss": lambda s: s.with_targets(torch.zeros(0, 7, 3)).loss(1.0),
    "without a word": lambda s: s.without("all"),
    "without None": lambda s: s.without(None),
    "damped by True": lambda s: s.damped(True),
    "an option of another gate": lambda s: s.gated("hard", lam=2.0),
    "a gate's option NaN": lambda s: s.gated("hard", alpha=NAN),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    model, x, _, y = task("mse")
    with pytest.raises(errors.InputError):
        BAD[case](js.solve(js.supervised(model, x, y), "dense"))


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        ("logistic", 2 * torch.ones(7, 3).double()),
        ("logistic", -torch.ones(7, 3).double()),
        ("cross_entropy", torch.full((7,), 3)),
        ("cross_entropy", torch.full((7,), -1)),
        ("cross_entropy", torch.zeros(7)),
        ("cross_entropy", torch.zeros(7, 3)),
        ("cross_entropy", torch.zeros(7).bool()),
        ("cross_entropy", torch.full((7,), -100)),
        # Once wrong: in a sweep the same is found out when it is asked for, not when it is made.
        ("logistic", 2 * torch.ones(2, 7, 3).double()),
        ("cross_entropy", torch.full((2, 7), 3)),
        ("cross_entropy", torch.zeros(2, 7)),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{tuple(v.shape)} {v.dtype}",
)
def test_bad_targets_of_other_losses(loss, targets):
    model, x, _, y = task(loss)
    found = js.solve(js.supervised(model, x, y, loss), "dense")
    with pytest.raises(errors.InputError):
        found.with_targets(targets)


def test_indices_without_a_range_for_sweeps():
    model, x, _, y = task("mse")
    sweep = js.solve(js.supervised(model, x, y), "dense").with_targets(torch.stack([y, y + 1]))
    assert relative(sweep[-1].outputs(1.0), sweep.outputs(1.0)[1]) < 1e-12
    with pytest.raises(IndexError):
        sweep[2]
