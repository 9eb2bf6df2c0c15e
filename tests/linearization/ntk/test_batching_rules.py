"""Batching rules that are wrong without an error: torch's own for PReLU, and one made wrong on purpose.

Every way into the kernel or the Jacobian is compared with plain autograd, one backward pass an output.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import KernelError
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.ntk import query_kernel, train_kernel
from jumpstart.linearization.ntk.dense import dense_kernel
from jumpstart.objectives.parts import Batch, Part

from ...problems import fill, randn, relative

SHAPES = [(4, 4), (6, 6), (5, 2), (1, 3), (7, 1), (3, 6), (1, 1)]  # samples, outputs


class Half(torch.autograd.Function):
    """x ↦ x²/2 whose batching rule halves what comes back when it is given several cotangents or samples."""

    @staticmethod
    def forward(x):
        return x.square() / 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return Pulled.apply(g, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx, t):
        return t * ctx.saved_tensors[0]

    @staticmethod
    def vmap(info, dims, x):
        return Half.apply(x), dims[0]


class Pulled(torch.autograd.Function):
    @staticmethod
    def forward(g, x):
        return g * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, h):
        g, x = ctx.saved_tensors
        return h * x, h * g

    @staticmethod
    def vmap(info, dims, g, x):
        g = g if dims[0] is None else g.movedim(dims[0], 0)
        x = x if dims[1] is None else x.movedim(dims[1], 0)
        return 0.5 * g * x, 0


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.gain = function, nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.function(x * self.gain)


MODELS = {
    "PReLU": lambda c: nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, c)),
    "PReLU, one slope": lambda c: nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, c)),
    "PReLU at the end": lambda c: nn.Sequential(nn.Linear(4, c), nn.PReLU(c)),
    "wrong rule": lambda c: nn.Sequential(nn.Linear(4, 6), Layer(Half.apply), nn.Linear(6, c)),
    "GRU": lambda c: nn.Sequential(nn.Unflatten(1, (2, 2)), Last(), nn.Linear(3, c)),
    "instance norm": lambda c: nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 1), nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(8, c)
    ),
}


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(2, 3, batch_first=True)

    def forward(self, x):
        return self.cells(x)[0][:, -1]


def explicit(model, x):
    """(N, P), one backward pass an output."""
    params = list(model.parameters())
    rows = [torch.autograd.grad(v, params, retain_graph=True, materialize_grads=True) for v in model(x).reshape(-1)]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


@pytest.mark.parametrize("name", MODELS)
def test_every_way_gives_what_backward_passes_give(name):
    for n, c in SHAPES:
        model = fill(MODELS[name](c), n + c)
        x, query = randn(n, n, 4), randn(n + 1, n, 4)
        j, jq = explicit(model, x), explicit(model, query)
        objective = js.supervised(model, x, torch.zeros(n, c))
        lin = linearize(objective)
        ways = {
            "kernel": (train_kernel(lin, Metric()), j @ j.T),
            "kernel, routes known": (train_kernel(lin, Metric()), j @ j.T),
            "query": (query_kernel(lin, Batch(query), Metric()), jq @ j.T),
            "Jacobian": (lin.jacobian(), j),
            "Jacobian by output": (Part.jacobian(lin.parts[0], lin.net, lin.theta)[0], j),
        }
        for way, (found, truth) in ways.items():
            assert relative(found, truth) < 1e-9, (way, n, c)


def test_a_wrong_rule_is_told_and_costs_no_pass_a_sample():
    n, c = 40, 3
    objective = js.supervised(fill(MODELS["PReLU"](c), 0), randn(0, n, 4), torch.zeros(n, c))
    lin = linearize(objective)
    train_kernel(lin, Metric())
    told = " ".join(objective.notes())
    assert "an output at a time: " in told
    assert "per-output" not in told


def test_the_check_costs_one_backward_pass_a_batch_of_cotangents(monkeypatch):
    """Counted: 3 outputs at once, the mixed cotangent, the random cotangent of the layers; known routes, 1."""
    counted, plain = [], torch.autograd.grad

    def counting(*args, **kwargs):
        counted.append(kwargs.get("is_grads_batched", False))
        return plain(*args, **kwargs)

    objective = js.supervised(
        fill(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), 0), randn(0, 9, 4), randn(1, 9, 3)
    )
    lin = linearize(objective)
    monkeypatch.setattr(torch.autograd, "grad", counting)
    train_kernel(lin, Metric())
    assert sorted(counted) == [False, False, True]
    counted.clear()
    train_kernel(lin, Metric())
    assert counted == [True]


def test_backward_passes_that_are_not_linear_are_refused():
    class Clipped(nn.Linear):
        def forward(self, x):
            h = super().forward(x)
            if h.requires_grad:
                h.register_hook(lambda g: g.clamp(-0.1, 0.1))
            return h

    call = fill(nn.Sequential(Clipped(4, 6), nn.Tanh(), nn.Linear(6, 3)), 0)
    params = dict(call.named_parameters())
    with pytest.raises(KernelError, match="not one linear map"):
        dense_kernel(lambda p, x: torch.func.functional_call(call, p, (x,)), params, randn(0, 9, 4))
