"""What models, terms, functions and losses do that torch.func cannot follow: named, with the remedy of that kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import jumpstart as js
from jumpstart import bases, errors
from jumpstart.linearization.linearize import linearize
from jumpstart.objectives.diagnosis import translated, underivable

from ..problems import fill, mlp, randn

X, Y, C = randn(0, 6, 3), randn(1, 6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
POINTS = randn(2, 7, 2).abs() + 0.1
W = torch.tensor([1.0, 2.0]).double()


class Does(nn.Module):
    """A layer, and whatever is done with what it gives."""

    def __init__(self, act):
        super().__init__()
        self.layer, self.act = fill(nn.Linear(3, 2), 0), act

    def forward(self, x):
        return self.act(self.layer(x))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        return 2 * a

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def packed(h):
    padded = nn.utils.rnn.pack_padded_sequence(h[:, :, None], torch.tensor([2, 2, 2, 1, 1, 1]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(padded, batch_first=True)[0][:, :, 0]


def fails(h):
    raise ValueError("the budget of layer 7 is spent")


def wrong_key(h):
    return {}["logits"]


# what the model does → (error, words of the message)
MODELS = {
    "checkpointing": (lambda h: checkpoint(torch.tanh, h, use_reentrant=False), ["checkpointing", "switch"]),
    "reentrant checkpointing": (lambda h: checkpoint(torch.tanh, h, use_reentrant=True), ["reentrant", "switch"]),
    "a function with ctx": (Twice.apply, ["autograd.Function", "setup_context"]),
    "NumPy": (lambda h: torch.from_numpy(np.tanh(h.detach().numpy())), ["NumPy", "torch operations"]),
    "packed sequences": (packed, ["packed sequences", "padded"]),
    "autograd.grad": (lambda h: torch.autograd.grad(h.sum(), h)[0] + h, ["torch.autograd", "torch.func"]),
    "backward": (lambda h: h.sum().backward() or h, ["torch.autograd", "torch.func"]),
    "an error of its own": (fails, ["ValueError", "the budget of layer 7 is spent", "test_diagnosis.py"]),
    "a KeyError": (wrong_key, ["KeyError", "'logits'"]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ask", [js.jump, lambda o: js.solve(o).outputs(1.0)], ids=["jump", "solve"])
def test_models(name, ask):
    act, words = MODELS[name]
    model = Does(act)
    with pytest.raises(errors.EvaluationError) as caught:
        ask(js.supervised(model, X, Y))
    for word in ["the model Does", *words]:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.__cause__ is not None
    assert not isinstance(caught.value.__cause__, errors.JumpstartError)
    assert len(str(caught.value)) < 600


def by_autograd(net, x):
    x = x.requires_grad_()
    return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0] - 1


def batched(net):
    x = POINTS.clone().requires_grad_()
    return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0][:, 0] - 1


TERMS = {
    "autograd.grad": (by_autograd, ["ONE point", "torch.func"]),
    "a batch's columns": (lambda net, x: net(x)[:, 0:1] - x[:, 0:1], ["ONE point", "x[0]", "(2,)", "float64"]),
    "a branch": (lambda net, x: net(x) - (1.0 if x[0] > 0.5 else 0.0), ["Python", "torch.where"]),
    "a number": (lambda net, x: net(x) - x[0].item(), ["Python", "torch.where"]),
    "NumPy": (lambda net, x: net(x) - np.sin(x[0]), ["NumPy", "torch.sin"]),
    "a choice of entries": (lambda net, x: net(x[x > 0.5]), ["torch.where"]),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms_are_told_that_they_see_one_point(name):
    fn, words = TERMS[name]
    with pytest.raises(errors.JumpstartError) as caught:
        js.residual(mlp(0, 2, 4, 1), js.Term(fn, POINTS, name="flux"))
    for word in ["'flux'", *words]:
        assert word in str(caught.value), str(caught.value)


def test_functions_of_the_network_are_told_of_torch_func():
    with pytest.raises(errors.UntraceableError, match=r"the term 'batched'.*torch\.vmap\(torch\.func\.grad"):
        js.residual(mlp(0, 2, 4, 1), batched)
    # and that works
    js.residual(mlp(0, 2, 4, 1), lambda net: torch.vmap(torch.func.grad(lambda z: net(z)[0]))(POINTS)[:, 0] - 1)


LOSSES = {
    "weights by class": lambda u, y: W[y] * F.cross_entropy(u, y),
    "NumPy": lambda u, y: torch.as_tensor(np.float64(u.sum())),
    "multi_margin_loss": lambda u, y: F.multi_margin_loss(u, y),
    "an error of its own": lambda u, y: fails(u),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_tried_apart_from_the_model(name):
    with pytest.raises(errors.JumpstartError) as caught:
        js.supervised(mlp(0, 3, 4, 2), X, C, LOSSES[name])
    assert "loss" in str(caught.value), str(caught.value)
    assert "the model" not in str(caught.value), str(caught.value)


def test_query_points_are_named():
    solution = js.solve(js.supervised(mlp(0, 3, 4, 2), X, Y))
    with pytest.raises(errors.ShapeError, match=r"query points of shape \(5, 4\)"):
        solution.predict(randn(0, 5, 4), 1.0)


def test_lack_of_memory_and_interrupts_pass():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        with pytest.raises(type(error)) as caught, translated("the model"):
            raise error
        assert caught.value is error
    with pytest.raises(KeyboardInterrupt), translated("the model"):
        raise KeyboardInterrupt


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.EmbeddingBag(7, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.table(x)))


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres, self.out = nn.Parameter(torch.zeros(5, 3)), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(torch.exp(-torch.cdist(x, self.centres)))


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("kind", [Bag, Distances])
def test_where_a_derivative_has_none_j_itself_gives_j_v(kind, chunk):
    model = fill(kind(), 0)
    x = torch.arange(30).reshape(6, 5) % 7 if kind is Bag else X
    objective = js.supervised(model, x, Y, chunk=chunk)
    lin = linearize(objective)
    j = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(u, list(model.parameters()), retain_graph=True)])
        for u in model(x).reshape(-1)
    ])  # fmt: skip
    v = randn(3, lin.theta.numel())
    for _ in range(2):
        assert float((lin.jvp(v).reshape(-1) - j @ v).abs().max()) < 1e-13
    u = model(x).detach()
    want = Y + (torch.linalg.matrix_exp(-2 * 0.7 / u.numel() * j @ j.T) @ (u - Y).reshape(-1)).view_as(u)
    for basis in (lambda problem: bases.krylov(problem, 12), lambda problem: bases.dense(problem, route="svd")):
        solution = js.solve(objective, basis=basis)
        assert float((solution.outputs(0.7) - want).abs().max()) < 1e-10
        assert float((solution.predict(x[:2], 0.7) - want[:2]).abs().max()) < 1e-10
    with pytest.raises(errors.NoSecondDerivativeError, match="order=1"):
        js.solve(objective).outputs(0.1, order=2)
    assert js.jump(objective).accepted


def test_matrix_free_jumps_where_a_derivative_has_none():
    model = fill(Distances(), 0)
    assert js.jump(js.supervised(model, X, Y), basis="matrix-free").accepted


def test_only_that_a_derivative_is_missing_is_taken_for_it():
    assert underivable(NotImplementedError("the derivative for '_cdist_backward' is not implemented."))
    assert not underivable(RuntimeError("the size of tensor a must match"))
