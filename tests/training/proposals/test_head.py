"""The last linear layer: closed forms, SciPy's minimum, and as many refits as there are samples."""

import copy

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.nn import functional as F

import jumpstart as js
from jumpstart.errors import InputError, MemoryLimitError, UnknownNameError
from jumpstart.losses import CrossEntropy, Huber, Logistic, mse
from jumpstart.training.proposals import Head, convex_head
from jumpstart.training.proposals.convex_head import HeadProblem
from jumpstart.training.proposals.fit_head import fit_head

from ...problems import randn
from .here import here


def ridge(x, y, damping, bias=True):
    """Of (1/N)‖Xw + b − y‖² + ½λ‖w‖² for N entries of y: NumPy's normal equations."""
    design = np.hstack([x, np.ones((len(x), 1))]) if bias else x
    pull = np.diag([damping] * x.shape[1] + [0.0] * bias)
    beta = 2 / y.size
    return np.linalg.solve(beta * design.T @ design + pull, beta * design.T @ y)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "d"), [(30, 5), (12, 40)])
@pytest.mark.parametrize("damping", [1e-3, 0.5])
def test_ridge_is_the_closed_form(n, d, bias, damping):
    x, y = randn(0, n, d) + 2, randn(1, n, 3)
    fit = HeadProblem(x, y, mse(y), bias).fit(damping)
    truth = ridge(x.numpy(), y.numpy(), damping, bias)
    assert np.allclose(fit.weight.T.numpy(), truth[:d], rtol=1e-7, atol=1e-9)
    if bias:
        assert np.allclose(fit.bias.numpy(), truth[d], rtol=1e-7)
    assert fit.training == pytest.approx(float(F.mse_loss(x @ fit.weight.T + (fit.bias if bias else 0), y)))


@pytest.mark.parametrize("bias", [True, False])
def test_leaving_out_is_as_many_refits_where_the_loss_is_squared(bias):
    n, d, damping = 20, 6, 0.05
    x, y = randn(0, n, d), randn(1, n, 2)
    total = 0.0
    for i in range(n):
        rest = np.delete(np.arange(n), i)
        beta = 2 / y.numel()  # a sample that is missing changes nobody else's share
        design = np.hstack([x.numpy()[rest], np.ones((n - 1, 1))]) if bias else x.numpy()[rest]
        pull = np.diag([damping] * d + [0.0] * bias)
        w = np.linalg.solve(beta * design.T @ design + pull, beta * design.T @ y.numpy()[rest])
        row = np.append(x.numpy()[i], 1.0) if bias else x.numpy()[i]
        total += 0.5 * beta * ((row @ w - y.numpy()[i]) ** 2).sum()
    fit = HeadProblem(x, y, mse(y), bias).fit(damping)
    assert fit.leave_one_out == pytest.approx(total, rel=1e-9)
    general = mse(y).as_general()  # Newton's way to the same
    other = HeadProblem(x, y, general, bias).fit(damping)
    assert other.leave_one_out == pytest.approx(total, rel=1e-7)
    assert torch.allclose(other.weight, fit.weight, rtol=1e-7)


def minimum(x, loss, shape, damping):
    """SciPy's, of the damped loss; the bias is free."""

    def total(flat):
        w = torch.from_numpy(flat).reshape(shape[1] if len(shape) > 1 else 1, x.shape[1] + 1).requires_grad_()
        u = (x @ w[:, :-1].T + w[:, -1]).reshape(shape)
        value = loss(u) + 0.5 * damping * w[:, :-1].square().sum()
        (slope,) = torch.autograd.grad(value, w)
        return float(value.detach()), slope.reshape(-1).numpy()

    size = (shape[1] if len(shape) > 1 else 1) * (x.shape[1] + 1)
    found = scipy.optimize.minimize(total, np.zeros(size), jac=True, method="BFGS", options={"gtol": 1e-10})
    w = torch.from_numpy(found.x).reshape(-1, x.shape[1] + 1)
    return w[:, :-1], w[:, -1], found.fun


KINDS = {
    "cross_entropy": (lambda n: torch.arange(n) % 3, CrossEntropy, F.cross_entropy, 3),
    "logistic": (lambda n: (torch.arange(n) % 2).double(), Logistic, F.binary_cross_entropy_with_logits, 0),
    "huber": (lambda n: 2 * randn(5, n, 2), Huber, F.huber_loss, 2),
}


def kind(name, n=30, d=4):
    make, loss, truth, outputs = KINDS[name]
    y = make(n)
    x = randn(0, n, d)
    if name != "huber":
        x[:, 0] += y.double()
    return x, y, loss, truth, (n, outputs) if outputs else (n,)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("damping", [3e-3, 0.1])
def test_other_losses_are_fitted_to_scipys_minimum(name, damping):
    x, y, loss, truth, shape = kind(name)
    fit = HeadProblem(x, torch.zeros(shape).double(), loss(y), True).fit(damping)
    weight, _, lowest = minimum(x, lambda u: truth(u, y), shape, damping)
    assert fit.training + 0.5 * damping * float(fit.weight.square().sum()) == pytest.approx(lowest, rel=1e-9)
    assert torch.allclose(fit.weight, weight, atol=1e-4)


@pytest.mark.parametrize("name", ["cross_entropy", "logistic"])
@pytest.mark.parametrize(("damping", "within"), [(3e-3, 0.13), (3e-2, 0.03), (0.3, 0.01)])
def test_leaving_out_is_within_a_few_percent_of_as_many_refits(name, damping, within):
    """Off by more only where it is far from the best: at 0.003 a sample that is left out fares worse than by chance."""
    x, y, loss, truth, shape = kind(name)
    n, total = len(x), 0.0
    for i in range(n):
        rest = [k for k in range(n) if k != i]
        short = (n - 1, *shape[1:])
        weight, bias, _ = minimum(x[rest], lambda u, rest=rest: truth(u, y[rest]) * (n - 1) / n, short, damping)
        u = (x[i : i + 1] @ weight.T + bias).reshape(1, *shape[1:])
        total += float(truth(u, y[i : i + 1])) / n
    fit = HeadProblem(x, torch.zeros(shape).double(), loss(y), True).fit(damping)
    assert fit.leave_one_out > fit.training
    assert fit.leave_one_out == pytest.approx(total, rel=within)


def test_the_damping_is_the_one_that_leaves_out_best():
    x, y, loss, _, shape = kind("cross_entropy")
    told = []
    best = HeadProblem(x, torch.zeros(shape).double(), loss(y), True).fit(None, told.append)
    assert best.leave_one_out == min(fit.leave_one_out for fit in told)
    assert len({fit.damping for fit in told}) == len(told) >= 5
    assert best.leave_one_out < np.log(3)  # features that tell something: better than none


def test_classes_that_are_surely_told_apart_leave_no_direction_without_curvature():
    """Once wrong: where all are sure, biases that move alike had a curvature of rounding; Cholesky's factor failed."""
    y = torch.arange(60) % 3
    x = randn(0, 60, 30) + 40 * torch.nn.functional.one_hot(y, 30).double()
    problem = HeadProblem(x, torch.zeros(60, 3).double(), CrossEntropy(y), True)
    for damping in (1e-9, 1e-12):
        fit = problem.fit(damping)
        assert fit.training < 1e-3 and fit.leave_one_out < 1.0
    assert problem.fit(None).leave_one_out < 1e-3
    with pytest.raises(InputError, match="damping 1e-15"):
        problem.fit(1e-15)


def test_more_weights_than_a_hessian_is_kept_for_are_fitted_without_one(monkeypatch):
    monkeypatch.setattr(convex_head, "LARGEST", 10)
    x, y, loss, _, shape = kind("cross_entropy")
    problem = HeadProblem(x, torch.zeros(shape).double(), loss(y), True)
    assert problem.by_folds and problem.fit(0.1).training < np.log(3)
    with pytest.raises(MemoryLimitError, match="15 weights"):  # before memory is
        problem.factor(problem.rows, problem.bends(torch.zeros(shape).double()), problem.rows[0])


# ---- in a network ----------------------------------------------------------------------------------------------------


def network(seed=0, outputs=3, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, outputs)).to(dtype)


@pytest.mark.parametrize("chunk", [None, 7])
def test_it_is_the_convex_problem_on_the_networks_features(chunk):
    model = network().eval()
    x, y = randn(0, 30, 4), torch.arange(30) % 3
    result = fit_head(js.supervised(model, x, y, "cross_entropy", chunk=chunk), damping=0.01)
    with torch.no_grad():
        features = model[:3](x)
    weight, _, lowest = minimum(features, lambda u: F.cross_entropy(u, y), (30, 3), 0.01)
    assert torch.allclose(result.weight, weight, atol=1e-4)
    assert result.before == pytest.approx(float(F.cross_entropy(model(x), y)))
    result.apply()
    assert float(F.cross_entropy(model(x), y)) == pytest.approx(result.training, rel=1e-9)
    assert result.training + 0.005 * float(result.weight.square().sum()) == pytest.approx(lowest, rel=1e-8)


def test_the_model_is_left_alone():
    model = network().train()
    x, y = randn(0, 30, 4), randn(1, 30, 3)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    tables = [{key: dict(value) for key, value in vars(m).items() if key.endswith("hooks")} for m in model.modules()]
    str(fit_head(js.supervised(model, x, y)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())
    assert tables == [
        {key: dict(value) for key, value in vars(m).items() if key.endswith("hooks")} for m in model.modules()
    ]
    assert model.training


class Tail(nn.Module):
    """A head with something around it."""

    def __init__(self, after=lambda u: u, tied=False, twice=False):
        super().__init__()
        self.body, self.head, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.after, self.twice = after, twice
        if tied:
            self.body.weight = self.head.weight

    def forward(self, x):
        x = torch.tanh(self.body(x))
        x = torch.tanh(self.head(x)) if self.twice else x
        return self.after(self.head(x))


REFUSED = {
    "something follows": (Tail(torch.tanh), None, InputError, "is no convex problem"),
    "no such layer": (Tail(), "tail", UnknownNameError, "head='tail'"),
    "not the last": (Tail(), "body", InputError, "outputs of 'body'"),
    "not used": (Tail(), "other", InputError, "outputs of 'other'"),
    "tied": (Tail(tied=True), None, InputError, "tied|more than once"),
    "twice": (Tail(twice=True), None, InputError, "more than once"),
    "no linear layer": (nn.Sequential(nn.Conv1d(4, 4, 1), nn.Flatten()), None, InputError, "linear layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_heads_that_are_no_convex_problem_are_refused(name):
    model, head, error, words = REFUSED[name]
    x = randn(0, 6, 4, 1) if name == "no linear layer" else randn(0, 6, 4)
    with pytest.raises(error, match=words):
        fit_head(js.supervised(model.double(), x, randn(1, 6, 4)), head)


def test_rows_for_every_position_are_refused():
    model = nn.Linear(4, 2).double()
    with pytest.raises(InputError, match="rows of features"):
        fit_head(js.supervised(model, randn(0, 6, 3, 4), randn(1, 6, 3, 2)))


@pytest.mark.parametrize("damping", [0.0, -1, True, "auto", float("inf")])
def test_dampings_that_are_none_are_refused(damping):
    with pytest.raises(InputError, match="damping="):
        fit_head(js.supervised(nn.Linear(4, 2).double(), randn(0, 6, 4), randn(1, 6, 2)), damping=damping)


def test_a_head_is_proposed_where_leaving_out_says_so_and_not_otherwise():
    model = network(outputs=1).eval()
    x = randn(0, 60, 4)
    told = js.supervised(model, x, torch.tanh(x @ randn(1, 4, 1)))
    (candidate,) = Head().propose(here(told))
    theta = told.theta() + candidate.displacement
    assert candidate.loss == pytest.approx(told.value(theta)) and candidate.loss < told.value(told.theta())
    assert int((candidate.displacement != 0).sum()) == 9  # the head alone
    nn.init.zeros_(model[3].weight)
    nn.init.zeros_(model[3].bias)
    noise = js.supervised(model, x[:9], randn(7, 9, 1).sign())  # all fitted, nothing learned
    assert fit_head(noise, damping=1e-6).training < 0.1 * noise.value(noise.theta())
    assert Head().propose(here(noise)) == []


def test_a_frozen_head_is_no_proposal():
    model = network()
    objective = js.supervised(model.eval(), randn(0, 30, 4), randn(1, 30, 3).tanh(), params=["0"])
    with pytest.raises(InputError, match="frozen"):
        Head().propose(here(objective))
