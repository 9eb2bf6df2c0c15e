"""Heads with many weights: the fit is scikit-learn's, and what is left out is what really refitting without it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import jumpstart as js
from jumpstart.errors import BudgetError, MemoryLimitError
from jumpstart.losses.cross_entropy import CrossEntropy
from jumpstart.losses.logistic import Logistic
from jumpstart.training.proposals import convex_head, folds
from jumpstart.training.proposals.convex_head import HeadProblem
from jumpstart.utils.cost import Ledger


def data(classes, seed=0, n=90, d=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    noise = torch.randn(n, classes, dtype=torch.float64, generator=generator)
    return x, (x[:, :classes] + noise).argmax(1)


def problem(x, y, classes, bias=True):
    return HeadProblem(x, torch.zeros(len(x), classes, dtype=torch.float64), CrossEntropy(y), bias)


@pytest.fixture
def many(monkeypatch):
    """Every head is one of many weights."""
    monkeypatch.setattr(convex_head, "DENSE", 0.0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_fit_is_scikit_learns(many, bias):
    x, y = data(4)
    fit = problem(x, y, 4, bias).fit(0.01)
    # Its C counts the sum of the losses, ours is the mean.
    theirs = LogisticRegression(C=1 / (0.01 * len(x)), fit_intercept=bias, tol=1e-10, max_iter=10_000).fit(x, y)
    assert np.allclose(fit.weight, theirs.coef_, atol=1e-4)
    if bias:
        ours = fit.bias - fit.bias.mean()
        assert np.allclose(ours, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-4)


def test_it_is_newtons_fit(many, monkeypatch):
    x, y = data(3)
    by_products = problem(x, y, 3).fit(0.003)
    monkeypatch.setattr(convex_head, "DENSE", math.inf)
    by_hessians = problem(x, y, 3).fit(0.003)
    assert torch.allclose(by_products.weight, by_hessians.weight, atol=2e-4)
    assert by_products.training == pytest.approx(by_hessians.training, rel=1e-4)
    assert by_products.leave_one_out > by_products.training


def test_what_is_left_out_is_refitted_without_it(many, monkeypatch):
    monkeypatch.setattr(folds, "COMPARED", 1e-7)
    x, y = data(3, n=60)
    fit = problem(x, y, 3).fit(0.01)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for k in range(folds.FOLDS):
        out = order[k :: folds.FOLDS]
        rest = torch.ones(60, dtype=torch.bool)
        rest[out] = False
        head = LogisticRegression(C=1 / (0.01 * 60), tol=1e-10, max_iter=10_000).fit(x[rest], y[rest])
        p = head.predict_proba(x[out])
        total -= float(np.log(p[np.arange(len(out)), y[out]]).sum()) / 60
    assert fit.leave_one_out == pytest.approx(total, rel=1e-3)


def test_the_damping_is_the_one_that_leaves_out_best(many):
    x, y = data(3)
    told = []
    best = problem(x, y, 3).fit(None, told.append)
    assert best.leave_one_out == min(fit.leave_one_out for fit in told) < np.log(3)
    assert len(told) >= 5
    chosen = min(told, key=lambda fit: fit.leave_one_out)
    assert best.damping == chosen.damping
    assert problem(x, y, 3).fit().leave_one_out == best.leave_one_out  # folds are the same each time


def test_outputs_of_one_number(many):
    x, y = data(2)
    signs = y.double()
    fit = HeadProblem(x, torch.zeros(len(x), dtype=torch.float64), Logistic(signs), True).fit(0.02)
    theirs = LogisticRegression(C=1 / (0.02 * len(x)), tol=1e-10, max_iter=10_000).fit(x, y)
    assert np.allclose(fit.weight, theirs.coef_, atol=1e-4)


def test_77_classes_are_fitted_in_a_network():
    torch.manual_seed(0)
    centers = torch.randn(77, 120)
    y = torch.arange(77).repeat(5)
    x = centers[y] + 2.0 * torch.randn(len(y), 120)
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(120, 77))
    result = js.fit_head(js.supervised(model, x, y, loss="cross_entropy"))
    assert result.problem.size == 77 * 121 > convex_head.LARGEST  # was refused
    assert result.training < result.leave_one_out < 2.0 < result.before
    with pytest.raises(MemoryLimitError, match="9317 weights"):
        result.without_each()


def test_the_work_is_booked_and_too_much_of_it_refused(many):
    x, y = data(3)
    ledger = Ledger(step_seconds=1e-3)
    HeadProblem(x, torch.zeros(90, 3, dtype=torch.float64), CrossEntropy(y), True, ledger).fit()
    assert ledger.dense > 0
    poor = Ledger(allowance=1e-9, step_seconds=1e-3)
    with pytest.raises(BudgetError):
        HeadProblem(x, torch.zeros(90, 3, dtype=torch.float64), CrossEntropy(y), True, poor).require()
