"""Choosing damping, gate or weights by leave-one-out: the choice is the best of its candidates, judged as they are."""

from __future__ import annotations

import math

import pytest
import torch

import jumpstart as js
from jumpstart import errors

from ..problems import PROBLEMS, fill, randn


def noisy(seed: int, loss: str = "mse") -> js.Solution:
    """A linear truth in 6 inputs of 12, with noise: damping pays."""
    x = randn(seed, 30, 12)
    u = x[:, :2].sum(1, keepdim=True) + 1.5 * randn(seed + 1, 30, 1)
    y = (u > 0).double() if loss == "logistic" else u
    model = fill(torch.nn.Linear(12, 1), seed, gain=0.01)
    return js.solve(js.supervised(model, x, y, loss=loss), basis="dense")


@pytest.mark.parametrize("loss", ["mse", "logistic"])
def test_every_candidate_is_judged_by_its_own_leave_one_out(loss):
    solution = noisy(0, loss)
    found = solution.tuned(["damping", "gate", "weights"], limit=100.0)
    assert [c.risk for c in found.choices] == sorted(c.risk for c in found.choices)
    best = found.choices[0]
    assert (found.horizon, found.risk) == (best.horizon, best.risk)
    assert found.solution.risk(found.horizon) == pytest.approx(found.risk, rel=1e-4)
    names = {c.name.split()[0].rstrip(":") for c in found.choices}
    assert names == {"plain", "damping", "gate", "weights"}
    plain = next(c for c in found.choices if c.name == "plain")
    assert solution.risk(plain.horizon) == pytest.approx(plain.risk, rel=1e-6)
    assert best.name in str(found)


def test_damping_is_ridge_regression_chosen_by_leave_one_out():
    """Against a scan with the classical formula: ridge residuals over 1 − leverage, at the end of training."""
    solution = noisy(3)
    x = solution.objective.parts[0].inputs
    a = torch.cat([x, torch.ones(30, 1, dtype=x.dtype)], 1)
    r = solution.lin.u - solution.flow.loss.targets
    top = float(solution.spectrum[0])
    for share in (1e-3, 1e-2, 1e-1):
        h = a @ torch.linalg.solve(a.T @ a + 0.5 * 30 * share * top * torch.eye(13, dtype=x.dtype), a.T)
        left = (r - h @ r) / (1 - h.diagonal()[:, None])
        assert solution.damped(share * top).risk(math.inf) == pytest.approx(float(left.square().mean()), rel=1e-8)


def test_only_the_families_that_are_asked_for():
    found = noisy(1).tuned(["damping"], limit=10.0)
    assert {c.name.split()[0] for c in found.choices} == {"plain", "damping"}
    assert [c.name for c in noisy(1).tuned(["horizon"], limit=10.0).choices] == ["plain"]
    assert all(c.horizon <= 10.0 for c in found.choices)


def test_trimming_leaves_out_samples_whose_labels_were_flipped():
    x = randn(5, 40, 3)
    y = 3 * x[:, :1]
    y[:4] = -y[:4] + 10 * y[:4].sign()
    model = fill(torch.nn.Linear(3, 1), 5, gain=0.01)
    solution = js.solve(js.supervised(model, x, y), basis="dense")
    found = solution.tuned(["weights"], limit=math.inf)
    trimmed = {c.name: c.risk for c in found.choices}
    assert "weights: without 10%" in trimmed
    clean = js.solve(js.supervised(model, x[4:], y[4:]), basis="dense").predict(x, math.inf)
    ten = next(c for c in found.choices if c.name == "weights: without 10%")
    run = solution.without(solution.leave_out(ten.horizon).losses[0].argsort(descending=True)[:4])
    assert float((run.predict(x, math.inf) - clean).norm() / clean.norm()) < 0.05


def test_bad_families_and_bases():
    with pytest.raises(errors.InputError, match="'colour'"):
        noisy(0).tuned(["colour"], limit=1.0)
    p = PROBLEMS["cnn"](0)
    short = js.solve(js.supervised(p.model, p.x, p.y), "krylov", depth=4)
    with pytest.raises(errors.InputError, match="krylov basis"):
        short.tuned(limit=1.0)
