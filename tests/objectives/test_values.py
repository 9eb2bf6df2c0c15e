"""Tensors of other layouts, and exceptions that Python itself gives a meaning: refused by name everywhere."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import EvaluationError, InputError, NondeterministicError, NoParametersError

from ..problems import fill, randn

X, Y = randn(0, 6, 3), randn(1, 6, 2)


def plain():
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 0)


ODD = {
    "sparse": (lambda t: t.to_sparse(), r"to_dense\(\)"),
    "meta": (lambda t: t.to("meta"), "meta device"),
}
PLACES = {
    "inputs": lambda odd: js.supervised(plain(), odd(X), Y),
    "one of the inputs": lambda odd: js.supervised(plain(), {"input": odd(X)}, Y),
    "targets": lambda odd: js.supervised(plain(), X, odd(Y)),
    "classes": lambda odd: js.losses.CrossEntropy(odd(torch.zeros(6, dtype=torch.long))),
    "weights": lambda odd: js.supervised(plain(), X, Y, weights=odd(torch.ones(6))),
    "mask": lambda odd: js.supervised(plain(), X, Y, mask=odd(torch.ones(6, 2, dtype=torch.bool))),
    "outputs": lambda odd: js.Objective(plain(), lambda net: odd(net(X)), js.losses.mse(Y)),
    "points": lambda odd: js.residual(plain(), js.Term(lambda net, x: net(x), odd(X))),
    "a weight a point": lambda odd: js.residual(plain(), js.Term(lambda net, x: net(x), X, weight=odd(torch.ones(6)))),
    "queries": lambda odd: js.solve(js.supervised(plain(), X, Y)).predict(odd(X), 1.0),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_without_ordinary_numbers_is_refused(place, kind):
    odd, remedy = ODD[kind]
    with pytest.raises(InputError, match=remedy):
        PLACES[place](odd)


@pytest.mark.parametrize("params", [3, [3], 1.5, torch.ones(2)])
def test_params_of_no_names(params):
    with pytest.raises(InputError, match="names or patterns"):
        js.supervised(plain(), X, Y, params=params)


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.layer, self.error = nn.Linear(3, 2).double(), error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [StopIteration("last"), StopAsyncIteration("last"), GeneratorExit("last")])
def test_an_exception_that_ends_loops_is_named(error):
    """A StopIteration that came out raw would end a user's ``for`` without a word."""
    for ask in (
        lambda: js.supervised(Raises(error), X, Y),
        lambda: js.Objective(Raises(error), lambda net: net(X), js.losses.mse(Y)),
        lambda: js.residual(Raises(error), js.Term(lambda net, x: net(x), X)),
    ):
        with pytest.raises(EvaluationError, match=f"{type(error).__name__}: last") as caught:
            ask()
        assert caught.value.__cause__ is error


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_the_process_passes(interrupt):
    with pytest.raises(type(interrupt)):
        js.supervised(Raises(interrupt), X, Y)


# -- outputs and losses without a path to the weights ------------------------------------------------------------------


class Does(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.net, self.does = plain(), forward

    def forward(self, x):
        return self.does(self, x)


NO_PATH = {
    "detached": lambda m, x: m.net(x).detach(),
    "constant": lambda m, x: torch.ones(len(x), 2, dtype=x.dtype),
    "the input": lambda m, x: x[:, :2],
}


@pytest.mark.parametrize("what", NO_PATH)
@pytest.mark.parametrize("ask", [js.solve, js.jump])
def test_outputs_without_a_path_to_the_weights(what, ask):
    with pytest.raises(NoParametersError, match="none of the trainable parameters"):
        ask(js.supervised(Does(NO_PATH[what]), X, Y))


def stationary(kind):
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    if kind == "dead units":
        nn.init.constant_(model[2].weight, 1.0)
        nn.init.constant_(model[0].weight, -1.0)
    return model


@pytest.mark.parametrize("kind", ["zeros", "dead units"])
def test_a_stationary_start_is_answered(kind):
    """Plain torch gives zero gradients there, and nothing moves."""
    model, x = stationary(kind), X.abs()
    model(x).sum().backward()
    assert not any(bool((p.grad != 0).any()) for p in model.parameters())
    solution = js.solve(js.supervised(model, x, Y))
    assert solution.outputs(5.0).equal(model(x).detach())


def test_a_loss_that_is_detached():
    with pytest.raises(InputError, match="detach"):
        js.supervised(plain(), X, Y, lambda u, y: (u.detach() - y).square().sum())


def test_a_loss_that_is_flat_moves_nothing():
    solution = js.solve(js.supervised(plain(), X, Y, lambda u, y: (0 * u).sum()))
    assert solution.outputs(5.0).equal(plain()(X).detach())


def test_a_loss_that_draws_is_named_and_gives_its_numbers_back():
    """With another thread alive, draws go back only where they are known to be this thread's."""
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    model = plain()
    try:
        before = torch.get_rng_state()
        with pytest.raises(NondeterministicError, match="draws random numbers"):
            js.supervised(model, X, Y, lambda u, y: (u - y).square().sum() * torch.rand(()))
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        over.set()
        other.join()
