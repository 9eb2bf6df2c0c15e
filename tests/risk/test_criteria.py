"""Risk from the training samples alone: against smoother matrices, Monte Carlo, held-out data and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import errors

from ..problems import PROBLEMS, fill, flat, generator, jacobian, mlp, randn, relative

INF, NAN = math.inf, math.nan


def solved(name="mlp", seed=0, loss="mse", **options):
    p = PROBLEMS[name](seed)
    y = p.y if loss == "mse" else (p.y > 0).double()
    return p, js.solve(js.supervised(p.model, p.x, y, loss), "dense", **options)


# -- generalized cross-validation --------------------------------------------------------------------------------


def smoother(p, fraction, d=None):
    """S(t) with u(t) = u₀ + S(y − u₀), from the explicit Jacobian's singular vectors."""
    root = 1.0 if d is None else d.sqrt().numpy()
    left, s, _ = np.linalg.svd(jacobian(p.model, p.x).numpy() * root, full_matrices=False)
    keep = s > 1e-7 * s[0]
    return (left[:, keep] * fraction(2 / p.y.numel() * s[keep] ** 2)) @ left[:, keep].T


def gcv(p, s):
    u = p.model(p.x).detach().numpy().reshape(-1)
    residual = (np.eye(len(u)) - s) @ (p.y.numpy().reshape(-1) - u)
    return np.mean(residual**2) / (1 - np.trace(s) / len(u)) ** 2


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn", "outputs (n,)", "P < N", "duplicated samples", "dead ReLU"])
def test_gcv_from_the_smoother_matrix(name, metric):
    p = PROBLEMS[name](1)
    d = torch.rand(flat(p.model).numel(), dtype=torch.float64, generator=generator(3)) + 0.1 if metric else None
    found = js.solve(js.supervised(p.model, p.x, p.y), "dense", d)
    top = float(found.spectrum[0])
    times = torch.tensor([0.0, 0.01, 1.0, 20.0], dtype=torch.float64) / top
    risks = found.risk(times, "gcv")
    for t, risk in zip(times.tolist(), risks.tolist(), strict=True):
        exact = gcv(p, smoother(p, lambda rates, t=t: -np.expm1(-rates * t), d))
        assert risk == pytest.approx(exact, rel=1e-9)
        assert found.risk(t, "gcv") == pytest.approx(exact, rel=1e-9)
    lr = 1.3 / top
    exact = gcv(p, smoother(p, lambda rates: 1 - (1 - lr * rates) ** 9, d))
    assert found.risk(js.steps(9, lr), "gcv") == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("rate", [0.01, 1.0])
@pytest.mark.parametrize("name", ["mlp", "P < N"])
def test_gcv_of_ridge_regression(name, rate):
    """Golub, Heath & Wahba's own case: hat matrix λ/(λ + r)."""
    p, found = solved(name, 2)
    exact = gcv(p, smoother(p, lambda rates: rates / (rates + rate)))
    assert found.damped(rate).risk(INF, "gcv") == pytest.approx(exact, rel=1e-9)
    t = 3.0
    exact = gcv(p, smoother(p, lambda rates: rates / (rates + rate) * -np.expm1(-(rates + rate) * t)))
    assert found.damped(rate).risk(t, "gcv") == pytest.approx(exact, rel=1e-9)


def test_gcv_at_the_end():
    """P < N keeps degrees of freedom over; where everything is fitted there is nothing to tell risk by."""
    p, found = solved("P < N", 2)
    assert found.risk(INF, "gcv") == pytest.approx(gcv(p, smoother(p, lambda rates: np.ones_like(rates))), rel=1e-8)
    assert solved("mlp")[1].risk(INF, "gcv") == INF


# -- leave-one-out -----------------------------------------------------------------------------------------------


def test_risk_is_the_mean_of_the_left_out_losses():
    for loss in ("mse", "logistic"):
        _, found = solved("mlp", 1, loss)
        times = torch.tensor([0.0, 2.0], dtype=torch.float64)
        left = found.leave_out(times)
        assert relative(found.risk(times), left.losses.mean(1)) < 1e-12
        assert relative(left.standard_error, left.losses.numpy().std(1, ddof=1) / math.sqrt(8)) < 1e-12
        assert isinstance(found.risk(2.0), float)
        assert found.risk(0.0) == pytest.approx(found.loss(0.0), rel=1e-12)
        groups = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
        assert found.risk(2.0, groups=groups) == pytest.approx(
            float(found.leave_out(2.0, groups=groups).risk), rel=1e-12
        )
        assert found.risk(2.0, samples=3) == pytest.approx(float(found.leave_out(2.0, samples=3).risk), rel=1e-12)


@pytest.mark.parametrize("t", [0.3, 3.0, 20.0])
def test_leave_one_out_is_unbiased(t):
    """Its mean over draws is the mean loss on new data of the run on n − 1 samples (divided by n, as it does).

    Linear model, standard normal inputs: the loss on new data is known, |w − w*|² + σ², and the run is NumPy's.
    """
    d, n, draws, sigma = 4, 12, 100, 1.0
    truth, model = randn(0, d, 1), fill(nn.Linear(d, 1, bias=False), 1)
    start = model.weight.detach().T
    told, fitted, real = [], [], []
    for seed in range(draws):
        x = randn(1000 + seed, n, d)
        y = x @ truth + sigma * randn(3000 + seed, n, 1)
        found = js.solve(js.supervised(model, x, y), "dense")
        told.append(found.risk(t))
        fitted.append(found.loss(t))
        x = x[1:]
        rates, vectors = np.linalg.eigh(2 / n * (x.T @ x).numpy())
        slope = vectors.T @ (2 / n * x.T @ (y[1:] - x @ start)).numpy()
        w = start.numpy() + vectors @ ((-np.expm1(-rates * t) / rates)[:, None] * slope)
        real.append(np.sum((w - truth.numpy()) ** 2) + sigma**2)
    told, fitted, real = np.array(told), np.array(fitted), np.array(real)
    error = np.std(told - real, ddof=1) / math.sqrt(draws)
    print(f"t = {t}: told {told.mean():.3f}, real {real.mean():.3f}, fitted {fitted.mean():.3f}, error {error:.3f}")
    assert abs(np.mean(told - real)) < 4 * error
    assert np.mean(real - fitted) > 4 * error  # which the training loss would not pass


# -- population decrease -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 12])
def test_population_decrease_is_unbiased(n):
    """For small t the sum over modes is t(‖∇R‖²), and R's gradient is known: x standard normal, R = |w − w*|² + σ²."""
    d, draws, t = 3, 250, 1e-7
    truth, start = randn(0, d), randn(1, d)
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(start)
    expected = 4 * float((start - truth).square().sum())
    g = generator(5)
    found = []
    for _ in range(draws):
        x = torch.randn(n, d, generator=g, dtype=torch.float64)
        y = x @ truth + torch.randn(n, generator=g, dtype=torch.float64)
        solution = js.solve(js.supervised(model, x, y[:, None]), "dense")
        found.append((solution.loss(0.0) - solution.risk(t, "population")) / t)
    found = np.array(found)
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - expected) < 4 * error, (found.mean(), expected, error)
    assert error < 0.3 * expected


def test_population_decrease_of_fixed_modes_is_unbiased_at_any_horizon():
    """Inputs fixed up to sign and order: modes and rates are the same in every draw, the samples are exchangeable.

    x = s·a_j e_j has E[xxᵀ] diagonal; with equal counts of each j the kernel's modes are the coordinates.
    """
    n_each, scales = 40, torch.tensor([2.0, 0.7], dtype=torch.float64)
    truth, start = randn(2, 2), randn(3, 2)
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(start)
    rates = scales.square()  # 2/n Σ x_j² = 2/(2m) · m a_j²
    gradient = rates * (start - truth)
    t, g, found = 1.7, generator(8), []
    expected = float((gradient.square() * -torch.expm1(-rates * t) / rates).sum())
    for _ in range(200):
        x = torch.zeros(2 * n_each, 2, dtype=torch.float64)
        x[:n_each, 0], x[n_each:, 1] = scales[0], scales[1]
        y = x @ truth + torch.randn(2 * n_each, generator=g, dtype=torch.float64)
        solution = js.solve(js.supervised(model, x, y[:, None]), "dense")
        found.append(solution.loss(0.0) - solution.risk(t, "population"))
    found = np.array(found)
    error = found.std(ddof=1) / math.sqrt(len(found))
    # Equal counts are stratified draws, whose mean gradient has less noise than independent ones: the estimate is
    # low by the spread between strata, at most Σ φ g²/(n − 1).
    low = float((gradient.square() * -torch.expm1(-rates * t) / rates).sum()) / (2 * n_each - 1)
    assert -4 * error - low <= found.mean() - expected <= 4 * error, (found.mean(), expected, low, error)


def test_population_decrease_from_its_definition():
    """Σ_k (μ_k² − σ_k²/(n − 1)) φ(λ_k, t) from each sample's own gradient in weight space."""
    p, found = solved("P < N", 3)
    n = len(p.x)
    j = jacobian(p.model, p.x).numpy()
    u = p.model(p.x).detach().numpy()[:, 0]
    _, s, vectors = np.linalg.svd(j, full_matrices=False)
    own = 2 * (u - p.y.numpy()[:, 0])[:, None] * (j @ vectors.T)  # (n, k)
    rates = 2 / n * s**2
    for t in (0.1, 4.0):
        terms = own.mean(0) ** 2 - own.var(0) / (n - 1)
        exact = np.mean((u - p.y.numpy()[:, 0]) ** 2) - np.sum(terms * -np.expm1(-rates * t) / rates)
        assert found.risk(t, "population") == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("criterion", ["loo", "gcv", "population"])
def test_truncated_bases_do_not_pass_for_whole_ones(criterion):
    """Runs without a sample leave the Krylov space of the run with it, and traces miss the modes that are not there.

    Once wrong: right outputs (to 1e-8, as the bound says), and a risk that is little more than the training
    loss, without a warning: 0.94 for 1.60 and worse.
    """
    p = PROBLEMS["cnn"](0)
    objective = js.supervised(p.model, p.x, p.y)
    whole, short = js.solve(objective, "dense"), js.solve(objective, "krylov", depth=8)
    t = 10 / float(whole.spectrum[0])
    assert relative(short.outputs(t), whole.outputs(t)) < 1e-6
    with pytest.raises(errors.InputError, match="dense"):
        short.risk(t, criterion)


# -- the best horizon --------------------------------------------------------------------------------------------


def learnable(seed, noise=0.5):
    """A tanh network with P = 13 on 30 samples of a smooth function and noise."""
    p = PROBLEMS["P < N"](seed)
    y = 2 * torch.sin(p.x[:, :1]) + p.x[:, 1:] + noise * randn(seed + 7, 30, 1)
    return js.solve(js.supervised(p.model, p.x, y), "dense")


@pytest.mark.parametrize("criterion", ["loo", "gcv", "population"])
@pytest.mark.parametrize("seed", range(3))
def test_best_horizon_is_the_minimum(criterion, seed):
    """A scan a hundred times as fine finds nothing that is better by more than a thousandth of the spread."""
    found = learnable(seed)
    best = found.best_horizon(criterion, limit=INF)
    top = float(found.spectrum[0])
    scan = torch.logspace(-1, 6, 3000, dtype=torch.float64) / top
    risks = found.risk(scan, criterion)
    assert found.risk(best, criterion) <= float(risks.min()) + 1e-3 * float(risks.max() - risks.min())
    assert found.risk(best, criterion) < found.risk(0.0, criterion)


@pytest.mark.parametrize("limit", [1e-3, 0.2, 5.0])
def test_best_horizon_within_a_limit(limit):
    found = learnable(0)
    best = found.best_horizon(limit=limit)
    assert 0 < best <= limit
    scan = torch.logspace(-8, 0, 1000, dtype=torch.float64) * limit
    risks = found.risk(scan)
    assert found.risk(best) <= float(risks.min()) + 1e-3 * float(risks.max() - risks.min())


def test_best_horizon_among_given_ones():
    found = learnable(0)
    times = torch.tensor([40.0, 0.01, 3.0, 0.5, 900.0, 2.0], dtype=torch.float64)
    risks = found.risk(times)
    assert found.best_horizon(horizons=times, limit=INF) == float(times[risks.argmin()])
    small = times <= 1.0
    assert found.best_horizon(horizons=times, limit=1.0) == float(times[small][risks[small].argmin()])
    with pytest.raises(errors.InputError):
        found.best_horizon(horizons=times, limit=1e-4)


def test_best_horizon_options_reach_the_criterion():
    found = learnable(1)
    groups = torch.arange(30) % 5
    times = torch.logspace(-2, 3, 40, dtype=torch.float64)
    for options in ({"groups": groups}, {"samples": 6}):
        expected = times[found.risk(times, **options).argmin()]
        assert found.best_horizon(horizons=times, limit=INF, **options) == float(expected)


def test_best_horizon_where_training_only_hurts():
    """Targets without signal around the outputs: the risk rises from the start, and the answer is not to train."""
    _, found = solved("P < N", 0)
    slope = found.risk(1e-6) - found.risk(0.0)
    assert slope > 0
    best = found.best_horizon(limit=INF)
    assert found.risk(best) <= found.risk(0.0) + 1e-6


def test_best_horizon_of_trust_stays_within_it():
    _, found = solved("mlp", 0)
    best = found.best_horizon()
    assert found.trust_horizon is not None
    assert 0 < best <= found.trust_horizon
    error = found.check(found.trust_horizon).train.error
    assert error <= 0.1


def test_tolerance_of_trust_is_the_one_asked_for():
    """Whatever an earlier check was asked, of another tolerance and not so far."""
    _, fresh = solved("mlp", 0)
    fresh.best_horizon(trust=0.5)
    _, used = solved("mlp", 0)
    used.check(1e-3, tolerance=1e-3)
    used.best_horizon(trust=0.5)
    assert used.trust_horizon == pytest.approx(fresh.trust_horizon, rel=0.2)


def test_noise_without_signal_stops_early_and_signal_without_noise_late():
    x = randn(0, 40, 3)
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    slope = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    noise = js.solve(js.supervised(model, x, randn(1, 40, 1) * 5), "dense")
    signal = js.solve(js.supervised(model, x, x @ slope), "dense")
    for criterion in ("loo", "gcv"):
        early, late = noise.best_horizon(criterion, limit=INF), signal.best_horizon(criterion, limit=INF)
        assert early < 1 < late


# -- misuse ------------------------------------------------------------------------------------------------------

BAD = {
    "typo in the criterion": lambda s: s.risk(1.0, "lo"),
    "criterion None": lambda s: s.risk(1.0, None),
    "options of another criterion": lambda s: s.risk(1.0, "gcv", samples=3),
    "groups for population": lambda s: s.risk(1.0, "population", groups=[[0]]),
    "gcv with weights": lambda s: s.without(0).risk(1.0, "gcv"),
    "negative time": lambda s: s.risk(-1.0),
    "best of an unknown criterion": lambda s: s.best_horizon("aic", limit=1.0),
    "no horizon within the limit": lambda s: s.best_horizon(horizons=torch.tensor([2.0]), limit=1.0),
    "limit misspelt": lambda s: s.best_horizon(limit="trsut"),
    "trust of 0": lambda s: s.best_horizon(trust=0.0),
    "unknown option": lambda s: s.risk(1.0, sample=3),
    "limit 0": lambda s: s.best_horizon(limit=0.0),
    "negative limit": lambda s: s.best_horizon(limit=-1.0),
    "limit NaN": lambda s: s.best_horizon(limit=NAN),
    "limit None": lambda s: s.best_horizon(limit=None),
    "horizons a list": lambda s: s.best_horizon(horizons=[1.0, 2.0]),
    "no horizons": lambda s: s.best_horizon(horizons=torch.tensor([])),
    "negative horizons": lambda s: s.best_horizon(horizons=torch.tensor([-1.0, 1.0]), limit=INF),
    "NaN horizons": lambda s: s.best_horizon(horizons=torch.tensor([NAN, 1.0]), limit=INF),
    "horizons of two dimensions": lambda s: s.best_horizon(horizons=torch.ones(2, 2), limit=INF),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    with pytest.raises(errors.InputError):
        BAD[case](solved()[1])


def test_gcv_is_for_squared_loss():
    with pytest.raises(errors.InputError, match="Logistic"):
        solved(loss="logistic")[1].risk(1.0, "gcv")


def test_one_sample_has_no_population():
    p = PROBLEMS["one sample"](0)
    found = js.solve(js.supervised(p.model, p.x, p.y))
    with pytest.raises(errors.InputError, match="two samples"):
        found.risk(1.0, "population")
    assert found.risk(1.0) == pytest.approx(found.loss(0.0), rel=1e-12)  # left out, nothing is learnt


def test_a_model_without_gradient_has_the_risk_of_its_start():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    nn.init.constant_(model[0].bias, -100.0)
    found = js.solve(js.supervised(model, randn(0, 5, 2), randn(1, 5, 1)), "dense")
    for criterion in ("gcv", "population", "loo"):
        assert found.risk(3.0, criterion) == pytest.approx(found.loss(0.0)), criterion


def test_an_answer_warns_beyond_trust():
    model, x, y = mlp(0), randn(0, 6, 4), 5 * randn(1, 6, 3)
    found = js.solve(js.supervised(model, x, y))
    end = found.check(INF).trust_horizon
    with pytest.warns(errors.TrustWarning):
        found.risk(2 * end)
    with pytest.warns(errors.TrustWarning):
        found.leave_out(2 * end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_models_keep_their_risk(dtype):
    """Images rounded to bfloat16 once made it eight times too large."""
    model, x, y = torch.nn.Linear(3, 2).double(), randn(1, 12, 3), randn(2, 12, 2)
    exact = js.solve(js.supervised(model, x, y), "dense").risk(torch.tensor([1.0, 10.0]))
    coarse = js.solve(js.supervised(model.to(dtype), x.to(dtype), y.to(dtype)), "dense").risk(torch.tensor([1.0, 10.0]))
    limit = 1e-4 if dtype is torch.float32 else 1e-2 if dtype is torch.float16 else 0.08
    assert relative(coarse, exact) < limit
