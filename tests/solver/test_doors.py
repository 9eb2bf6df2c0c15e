"""What a Solution is asked and cannot answer: a named error that quotes it, or the right answer; never torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import EvaluationError, HorizonError, InputError, ShapeError

from ..problems import classes, fill, mlp, randn, relative

X, Y, Q = randn(0, 9, 3), randn(1, 9, 1), randn(2, 4, 3)
REFUSED = {
    "a number that no float holds": (lambda s: s.outputs(10**400), HorizonError, "float64"),
    "a complex time": (lambda s: s.outputs(torch.tensor(1 + 1j)), HorizonError, "complex64"),
    "a boolean time": (lambda s: s.outputs(torch.tensor([True])), HorizonError, "bool"),
    "order True": (lambda s: s.outputs(1.0, order=True), InputError, "order=True"),
    "tolerance True": (lambda s: s.check(1.0, tolerance=True), InputError, "tolerance=True"),
    "limit True": (lambda s: s.best_horizon(limit=True), InputError, "limit=True"),
    "horizons in words": (lambda s: s.best_horizon(horizons="abc"), HorizonError, "type str"),
    "a gate's option in words": (lambda s: s.gated("hard", alpha="a"), InputError, "alpha='a'"),
    "one input too many": (lambda s: s.predict((Q, Q), 1.0), EvaluationError, "TypeError.* on query points"),
    "a keyword that there is not": (lambda s: s.predict({"nope": Q}, 1.0), EvaluationError, "nope"),
    "no query at all": (lambda s: s.predict(Q[:0], 1.0), ShapeError, r"\(0, 3\)"),
    "another dtype": (lambda s: s.predict(Q.float(), 1.0), InputError, "dtype"),
}


def solved(basis="dense"):
    return js.solve(js.supervised(mlp(0, 3, 8, 1), X, Y), basis)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_by_name(name):
    ask, kind, told = REFUSED[name]
    for basis in ("dense", "krylov"):
        with pytest.raises(kind, match=told):
            ask(solved(basis))


def test_errors_of_the_users_own_function_are_quoted_and_kept():
    with pytest.raises(EvaluationError, match="ZeroDivisionError: division by zero") as told:
        solved().predict(lambda net: 1 / 0, 1.0)
    assert isinstance(told.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("loss", "n", "c"), [("mse", 1, 1), ("mse", 1, 3), ("mse", 5, 1), ("mse", 2, 2), ("cross_entropy", 1, 3)]
)
def test_one_sample_and_one_output(loss, n, c):
    x = randn(3, n, 3)
    y = classes(0, n, c) if loss == "cross_entropy" else randn(4, n, c)
    for basis in ("dense", "krylov"):
        found = js.solve(js.supervised(mlp(0, 3, 8, c), x, y, loss), basis)
        assert relative(found.predict(x, 2.0), found.outputs(2.0)) < 1e-10
        assert found.check(0.1).trust_horizon > 0
    if loss == "mse":
        assert relative(js.solve(js.supervised(mlp(0, 3, 8, c), x, y), "dense").outputs(math.inf), y) < 1e-9


def test_a_bias_alone_ends_at_the_mean():
    model = mlp(0, 3, 8, 1)
    with torch.no_grad():
        want = model(X) + (Y - model(X)).mean()
    assert relative(js.solve(js.supervised(model, X, Y, params="4.bias")).outputs(math.inf), want) < 1e-12


def test_tied_weights_move_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 1)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))

    model = fill(Tied(), 0)
    rows = [torch.autograd.grad(v, list(model.parameters()), retain_graph=True) for v in model(X)[:, 0]]
    j = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    with torch.no_grad():
        decay = torch.linalg.matrix_exp(-2 / len(X) * j @ j.T)
        want = Y + decay @ (model(X) - Y)
    for basis in ("dense", "krylov"):
        assert relative(js.solve(js.supervised(model, X, Y), basis).outputs(1.0), want) < 1e-9
