"""Misuse: a named exception that quotes the input and says what to do, and nothing has changed."""

# ruff: noqa: E501  (a table: one case a line)
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import errors

from .problems import classes, fill, flat, mlp, randn

INF, NAN = math.inf, math.nan


def frozen():
    model = mlp(0)
    model.requires_grad_(False)
    return model


class Returns(nn.Module):
    """A model that wraps its answer in something else."""

    def __init__(self, wrap):
        super().__init__()
        self.linear = fill(nn.Linear(4, 3), 0)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.linear(x))


def broken(value):
    model = mlp(0)
    with torch.no_grad():
        model[2].weight[1, 1] = value
    return model


def dropout():
    return nn.Sequential(fill(nn.Linear(4, 50), 0), nn.Dropout(0.5), fill(nn.Linear(50, 3), 1))


def put(x, value):
    x = x.clone()
    x[2, 1] = value
    return x


NET = mlp(0)


def sup(model=None, x=None, y=None, loss="mse", **options):
    """Everything is made now, so that what happens later is jumpstart's doing alone."""
    model = mlp(0) if model is None else model
    x = randn(0, 6, 4) if x is None else x
    y = randn(1, 6, 3) if y is None else y
    return lambda: js.supervised(model, x, y, loss, **options)


def ask(question, **options):
    """A question to a solution of a fine problem."""
    fine = sup()
    return lambda: question(js.solve(fine(), **options))


def solve(objective=None, **options):
    objective = objective or sup()
    return lambda: js.solve(objective(), **options)


def jump(objective=None, **options):
    objective = objective or sup()
    return lambda: js.jump(objective(), **options)


def wiggly(u, y):
    return torch.sin(3 * (u - y)).sum()


def saddle(u, y):
    return (u[0] - y[0]) ** 2 - 0.1 * (u[1] - y[1]) ** 2


# what is wrong → (what is done, the exception, words that its message must hold)
CASES = {
    "NaN inputs": (sup(x=put(randn(0, 6, 4), NAN)), errors.NonFiniteError, ["inputs", "(2, 1)", "drop"]),
    "infinite inputs in a dict": (sup(x={"input": put(randn(0, 6, 4), INF)}), errors.NonFiniteError, ["(2, 1)"]),
    "NaN targets": (sup(y=put(randn(0, 6, 3), NAN)), errors.NonFiniteError, ["1 of 18 targets", "drop"]),
    "NaN weights": (sup(model=broken(NAN)), errors.NonFiniteError, ["'2.weight'", "restore"]),
    "infinite weights": (solve(sup(model=broken(-INF))), errors.NonFiniteError, ["'2.weight'"]),
    "overflowing outputs": (sup(x=randn(0, 6, 4) * 1e307, model=fill(nn.Linear(4, 3), 0, 1e3)), errors.NonFiniteError, ["outputs", "check"]),
    "NaN query points": (ask(lambda s: s.predict(put(randn(0, 6, 4), NAN), 1.0)), errors.NonFiniteError, ["query points"]),
    "wrong query width": (ask(lambda s: s.predict(randn(0, 6, 5), 1.0)), errors.ShapeError, ["query points"]),
    "wrong input width": (sup(x=randn(0, 6, 5)), errors.ShapeError, ["(6, 5)"]),
    "fewer targets": (sup(y=randn(0, 5, 3)), errors.ShapeError, ["6 inputs", "(5, 3)"]),
    "targets that would broadcast": (sup(model=fill(nn.Linear(4, 1), 0), y=randn(0, 6)), errors.ShapeError, ["(6, 1)", "reshape"]),
    "targets of another width": (sup(y=randn(0, 6, 2)), errors.ShapeError, ["(6, 3)", "(6, 2)"]),
    "classes of another shape": (sup(y=torch.zeros(6, 3).long(), loss="cross_entropy"), errors.ShapeError, ["(6, 3)"]),
    "frozen": (sup(model=frozen()), errors.NoParametersError, ["Sequential", "requires_grad"]),
    "no parameters at all": (sup(model=nn.Identity()), errors.NoParametersError, ["Identity"]),
    "no pattern": (sup(params=[]), errors.NoParametersError, ["params="]),
    "unknown pattern": (sup(params="head"), errors.InputError, ["'head'", "0.weight"]),
    "empty batch": (sup(x=randn(0, 0, 4), y=randn(0, 0, 3)), errors.EmptyBatchError, ["(0, 4)"]),
    "empty points": (lambda: js.residual(NET, js.Term(lambda net, x: net(x), randn(0, 0, 4))), errors.EmptyBatchError, ["(0, 4)"]),
    "class too large": (sup(y=torch.tensor([0, 1, 2, 3, 0, 0]), loss="cross_entropy"), errors.TargetError, ["0 to 3", "0 to 2"]),
    "negative class": (sup(y=torch.tensor([0, 1, 2, -1, 0, 0]), loss="cross_entropy"), errors.TargetError, ["-1"]),
    "every target ignored": (sup(y=torch.full((6,), -100), loss="cross_entropy"), errors.TargetError, ["ignore_index"]),
    "integers for mse": (sup(y=torch.zeros(6, 3).long()), errors.TargetError, ["int64", "float()"]),
    "signs for logistic": (sup(y=randn(0, 6, 3).sign(), loss="logistic"), errors.TargetError, ["-1 to 1", "(y + 1) / 2"]),
    "floats for cross-entropy": (sup(y=randn(0, 6, 3), loss="cross_entropy"), errors.TargetError, ["long()"]),
    "non-convex loss": (sup(loss=wiggly), errors.NonConvexError, ["negative curvature"]),
    "saddle-shaped loss": (sup(loss=saddle), errors.NonConvexError, ["negative curvature"]),
    "vector-valued loss": (sup(loss=lambda u, y: u - y), errors.ShapeError, ["scalar"]),
    "unknown loss": (sup(loss="focal"), errors.InputError, ["'focal'", "cross_entropy"]),
    "negative horizon": (ask(lambda s: s.outputs(-1.0)), errors.HorizonError, ["-1.0"]),
    "NaN horizon": (ask(lambda s: s.predict(randn(0, 2, 4), NAN)), errors.HorizonError, ["nan"]),
    "one NaN of many": (ask(lambda s: s.loss(torch.tensor([1.0, NAN]))), errors.HorizonError, ["nan"]),
    "horizon in words": (ask(lambda s: s.parameters("end")), errors.HorizonError, ["'end'", "math.inf"]),
    "negative horizon of a jump": (jump(horizon=-2.0), errors.HorizonError, ["-2.0"]),
    "NaN horizon of a jump": (jump(horizon=NAN), errors.HorizonError, ["nan"]),
    "zero horizon of a jump": (jump(horizon=0), errors.HorizonError, ["0"]),
    "horizon of a jump in words": (jump(horizon="far"), errors.HorizonError, ["'far'"]),
    "steps and second order": (ask(lambda s: s.parameters(js.steps(3, 0.1), land=True)), errors.HorizonError, ["steps"]),
    "bound for many": (ask(lambda s: s.error_bound(torch.ones(2))), errors.HorizonError, ["one horizon"]),
    "dict of outputs": (sup(model=Returns(lambda u: {"logits": u})), errors.OutputTypeError, ["dict", "logits", "js.Objective"]),
    "tuple of outputs": (sup(model=Returns(lambda u: (u, u))), errors.OutputTypeError, ["tuple", "js.Objective"]),
    "integer outputs": (sup(model=Returns(lambda u: u.argmax(-1))), errors.OutputTypeError, ["int64"]),
    "no sample dimension": (sup(model=Returns(lambda u: u.sum())), errors.ShapeError, ["(n, …)"]),
    "dropout in train mode": (solve(sup(model=dropout())), errors.NondeterministicError, ["1 in train mode", "training=False"]),
    "dropout, jump": (jump(sup(model=dropout())), errors.NondeterministicError, ["model.eval()"]),
    "memory limit": (solve(memory_limit=16), errors.MemoryLimitError, ["too small", "raise it"]),
    "memory limit, dense": (solve(memory_limit=4000, basis="dense"), errors.MemoryLimitError, ["dense", "bytes"]),
    "memory limit, jump": (jump(memory_limit=16), errors.MemoryLimitError, ["too small"]),
    "memory limit NaN": (solve(memory_limit=NAN), errors.InputError, ["nan"]),
    "memory limit in words": (solve(memory_limit="2GB"), errors.InputError, ["2GB"]),
    "unknown basis": (solve(basis="fourier"), errors.InputError, ["'fourier'", "krylov"]),
    "depth 0": (solve(basis="krylov", depth=0), errors.InputError, ["depth=0"]),
    "unknown gate": (solve(gate="ajar"), errors.InputError, ["'ajar'", "soft"]),
    "gate on one sample": (solve(sup(x=randn(0, 1, 4), y=randn(0, 1, 3)), gate="hard"), errors.InputError, ["two samples"]),
    "metric of the wrong size": (solve(metric=torch.ones(3)), errors.ShapeError, ["3 entries"]),
    "negative metric": (solve(metric=-torch.ones(255)), errors.InputError, ["positive", "-1"]),
    "NaN metric": (solve(metric=torch.full((255,), NAN)), errors.NonFiniteError, ["metric"]),
    "metric of an untouched optimizer": (solve(metric=torch.optim.Adam(mlp(0).parameters())), errors.InputError, ["optimizer", "params="]),
    "metric in words": (solve(metric="adam"), errors.InputError, ["str", "optimizer"]),
    "negative decay": (solve(weight_decay=-0.1), errors.InputError, ["-0.1"]),
    "unknown family": (jump(search="sideways"), errors.InputError, ["'sideways'"]),
    "chord steps in words": (jump(chord_steps="often"), errors.InputError, ["'often'"]),
    "recycled rubbish": (jump(basis="krylov", directions=torch.ones(2, 7)), errors.InputError, ["(2, 7)", "255"]),
    "no objective": (lambda: js.solve(NET), errors.InputError, ["Sequential", "js.supervised"]),
    "no objective to jump": (lambda: js.jump(NET), errors.InputError, ["Sequential"]),
    "no module": (sup(model=torch.sin), errors.InputError, ["torch.nn.Module"]),
    "inputs that are no tensor": (sup(x=[1.0, 2.0]), errors.InputError, ["tensor"]),
    "targets that are no tensor": (sup(y=[[0.0] * 3] * 6), errors.InputError, ["list"]),
    "chunk 0": (sup(chunk=0), errors.InputError, ["chunk=0"]),
    "weight of a term": (lambda: js.residual(NET, js.Term(lambda net, x: net(x), randn(0, 3, 4), -1.0)), errors.InputError, ["-1.0"]),
    "no term": (lambda: js.residual(NET), errors.InputError, ["js.Term"]),
    "term of the wrong kind": (lambda: js.residual(NET, 3), errors.InputError, ["int"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_named_error_with_remedy_and_no_trace(name):
    act, kind, words = CASES[name]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    with pytest.raises(kind) as caught:
        act()
    assert isinstance(caught.value, errors.JumpstartError)
    assert type(caught.value).__module__ == "jumpstart.errors"
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 600
    assert torch.equal(torch.get_rng_state(), state)


ON_ONE_MODEL = {
    "horizon": lambda o: js.jump(o, horizon=NAN),
    "memory": lambda o: js.jump(o, memory_limit=8),
    "gate": lambda o: js.jump(o, gate="ajar"),
    "recycle": lambda o: js.jump(o, basis="krylov", directions=torch.ones(2, 7)),
    "params": lambda o: js.jump(o, params="nothing"),
    "metric": lambda o: js.jump(o, metric=torch.zeros(255)),
    "query": lambda o: js.solve(o).predict(randn(0, 6, 5), 1.0),
}


@pytest.mark.parametrize("name", ON_ONE_MODEL)
def test_misuse_leaves_the_model_alone(name):
    model = nn.Sequential(mlp(0), nn.BatchNorm1d(3).double(), nn.Dropout(0.5))
    model.train()
    objective = js.supervised(model, randn(0, 6, 4), classes(0, 6, 3), "cross_entropy", training=False)
    before, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    with pytest.raises(errors.JumpstartError):
        ON_ONE_MODEL[name](objective)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert flat(model).grad_fn is None


def test_remedies_work():
    """What the messages advise does remove the error."""
    x, y = randn(0, 6, 4), randn(1, 6, 3)
    model = Returns(lambda u: {"logits": u})
    js.solve(js.Objective(model, lambda net: net(x)["logits"], js.losses.mse(y))).outputs(1.0)
    js.solve(js.supervised(dropout(), x, y, training=False)).outputs(1.0)
    js.solve(js.supervised(dropout().eval(), x, y)).outputs(1.0)


def test_chunks_and_batch_statistics():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    with pytest.raises(errors.InputError, match=r"'1' is BatchNorm in train mode"):
        js.supervised(model, x, y, chunk=2)
    js.supervised(model, x, y, chunk=2, training=False)
    js.supervised(model.eval(), x, y, chunk=2)


def test_an_empty_horizon_and_a_function_that_makes_no_basis():
    objective = js.supervised(nn.Linear(3, 1), torch.randn(6, 3), torch.randn(6, 1))
    with pytest.raises(errors.HorizonError, match="empty"):
        js.solve(objective).outputs(torch.empty(0))
    with pytest.raises(errors.InputError, match="returned str"):
        js.solve(objective, basis=lambda problem: "dense")


def test_losses_of_the_wrong_kind():
    model, x, y = nn.Linear(3, 1), torch.randn(6, 3), torch.randn(6, 1)
    with pytest.raises(errors.InputError, match=r"js\.Loss"):
        js.Objective(model, lambda net: net(x), "mse")
    with pytest.raises(errors.InputError, match="holds its targets"):
        js.supervised(model, x, y, loss=js.losses.mse(y))
    with pytest.raises(errors.NonFiniteError, match="targets"):
        js.supervised(model, x, y * math.nan, loss=lambda u, t: (u - t).square().sum())
    with pytest.raises(errors.InputError, match="list"):
        js.supervised(model, x, [1.0] * 6, loss=lambda u, t: (u - t).square().sum())


def test_a_horizon_and_a_search_over_scales():
    objective = js.supervised(nn.Linear(3, 1), torch.randn(6, 3), torch.randn(6, 1))
    with pytest.raises(errors.InputError, match="one of them"):
        js.jump(objective, horizon=1.0, search="scale")


def test_the_remedy_for_models_that_return_a_dict_goes_all_the_way():
    class Dict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 1)

        def forward(self, x):
            return {"logits": self.inner(x)}

    model, x, y = Dict().double(), torch.randn(6, 3).double(), torch.randn(6, 1).double()
    with pytest.raises(errors.OutputTypeError, match=r"js\.Objective"):
        js.supervised(model, x, y)
    objective = js.Objective(model, lambda net: net(x)["logits"], js.losses.mse(y))
    solution, q = js.solve(objective), torch.randn(4, 3).double()
    there = torch.func.functional_call(model, solution.parameters(2.0), (q,))["logits"]
    torch.testing.assert_close(solution.predict(lambda net: net(q)["logits"], 2.0), there)
