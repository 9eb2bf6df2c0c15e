# ruff: noqa: E501 (a table is read by its columns)
"""Residual objectives: terms, resampling, what changes behind their back, and named errors; oracles in plain torch."""

from __future__ import annotations

import copy
import math
import pickle
import random
import types
from dataclasses import make_dataclass

import pytest
import torch
from torch import nn
from torch.func import grad, hessian

import jumpstart as js
from jumpstart import errors
from jumpstart.linearization.linearize import linearize

from ..objectives.taylor.test_taylor import agrees, burgers, kdv, net_of, oracle, periodic, scalar
from ..problems import flat, randn


def value(net, x):
    return net(x)[0] - x[0]


def pair(net, x):
    return torch.stack([net(x)[0], 3 * net(x)[0] - x[1]])


def whole(net):
    return net(POINTS).squeeze(1).cumsum(0)


POINTS = randn(11, 5, 2)


def test_terms_by_hand():
    model, a, b = net_of(), randn(0, 6, 2), randn(1, 4, 2)
    objective = js.residual(model, js.Term(value, a, 4.0), js.Term(pair, b, 0.25, name="both"), whole)
    with torch.no_grad():
        ra, rb = model(a)[:, 0] - a[:, 0], torch.stack([model(b)[:, 0], 3 * model(b)[:, 0] - b[:, 1]], 1)
        rw = model(POINTS)[:, 0].cumsum(0)
    losses = [2.0 * ra.square().sum(), 0.125 * rb.square().sum(), 0.5 * rw.square().sum()]
    found = objective.terms()
    assert [t.name for t in found] == ["value", "both", "whole"]
    assert [t.rows for t in found] == [6, 8, 5]
    for t, loss, r in zip(found, losses, (ra, rb, rw), strict=True):
        assert t.loss == pytest.approx(float(loss), rel=1e-12)
        assert t.share == pytest.approx(float(loss / sum(losses)), rel=1e-12)
        assert t.rms == pytest.approx(float(r.square().mean().sqrt()), rel=1e-12)
        assert t.largest == pytest.approx(float(r.abs().max()), rel=1e-12)
    assert torch.equal(found[0].where, a[ra.abs().argmax()])
    assert torch.equal(found[1].where, b[rb.abs().amax(1).argmax()])
    assert found[2].where is None
    assert objective.value(objective.theta()) == pytest.approx(float(sum(losses)), rel=1e-12)


def test_names_survive_resampling():
    found = three(net_of()).resampled({"both": NEW_B.flip(0)}).resampled({"kdv": NEW_A.flip(0)})
    assert [t.name for t in found.terms()] == ["kdv", "both", "whole"]
    found.resampled({"both": NEW_B})
    assert len({t.name for t in js.residual(net_of(), *[js.Term(value, POINTS)] * 3).terms()}) == 3


NEW_A, NEW_B = randn(21, 6, 2), randn(22, 9, 2)
WAYS = {
    "by name": lambda o: o.resampled({"both": NEW_B, "kdv": NEW_A}),
    "in order": lambda o: o.resampled([NEW_A, NEW_B, None]),
    "one after the other": lambda o: o.resampled([NEW_A, None, None]).resampled([None, NEW_B, None]),
    "there and back and there": lambda o: o.resampled([NEW_B, NEW_A, None]).resampled([NEW_A, NEW_B, None]),
}


@pytest.mark.parametrize("way", WAYS)
def test_resampled_is_a_fresh_objective_with_the_same_mean_squares(way):
    model, a, b = net_of(), randn(0, 6, 2), randn(1, 4, 2)
    objective = js.residual(model, js.Term(kdv, a, 4.0), js.Term(pair, b, 0.25, name="both"), whole)
    found = WAYS[way](objective)
    u, j = oracle(model, [(kdv, NEW_A, 4.0), (pair, NEW_B, 0.25 * 4 / 9)])
    lin = linearize(found)
    torch.testing.assert_close(lin.u[:24], u, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(lin.jacobian()[:24], j, rtol=1e-9, atol=1e-11)
    rms = float(u[6:].square().mean().sqrt()) / (0.25 * 4 / 9) ** 0.5
    assert found.terms()[1].rms == pytest.approx(rms, rel=1e-10)


def folded(net, x):
    return net(x.abs())[0] + grad(scalar(net))(torch.remainder(x, 1.0))[0]


def layered(net, x):
    """A coefficient that is zero at all of the first points."""
    return grad(scalar(net))(x)[1] - torch.relu(x[0] - 1) * hessian(scalar(net))(x)[0, 0]


@pytest.mark.parametrize("fn", [folded, layered, periodic, burgers])
def test_points_of_another_kind_than_those_traced_at(fn):
    """Places that were the points themselves by chance, derivatives that did not matter there."""
    model, inside = net_of(), 0.1 + 0.8 * torch.sigmoid(randn(0, 7, 2))
    objective = js.residual(model, js.Term(fn, inside))
    for k in range(4):
        agrees(objective, model, [(fn, inside, 1.0)])
        points = inside + 1.5 * randn(k, 7, 2)
        moved = objective.resampled([points])
        agrees(moved, model, [(fn, points, 1.0)])


NUMBER = 0.5
MODULE = types.ModuleType("settings")
MODULE.nu = 0.5


Settings = type("Settings", (), {"nu": 0.5})
Slots = make_dataclass("Slots", [("nu", float, 0.5)], slots=True)


def cell(nu=0.5):
    def put(v):
        nonlocal nu
        nu = v

    return (lambda net, x: equation(net, x, nu)), put


def equation(net, x, nu):
    return grad(scalar(net))(x)[1] - nu * net(x)[0]


def held(box, read, put):
    return lambda: ((lambda net, x: equation(net, x, read(box))), lambda v: put(box, v))


class Equation:
    nu = 0.5

    def __call__(self, net, x):
        return equation(net, x, self.nu)

    residual = __call__


TENSOR = torch.tensor(0.5, dtype=torch.float64)
HIDDEN = {
    "closure": cell,
    "global": lambda: (lambda net, x: equation(net, x, NUMBER), lambda v: globals().update(NUMBER=v)),
    "object": held(Equation(), lambda b: b.nu, lambda b, v: setattr(b, "nu", v)),
    "method": lambda: ((e := Equation()).residual, lambda v: setattr(e, "nu", v)),
    "callable object": lambda: (e := Equation(), lambda v: setattr(e, "nu", v)),
    "dict": held({"nu": 0.5}, lambda b: b["nu"], lambda b, v: b.update(nu=v)),
    "list": held([0.5], lambda b: b[0], lambda b, v: b.__setitem__(0, v)),
    "tensor in place": held(TENSOR, lambda b: b, lambda b, v: b.fill_(v)),
    "tensor as number": held(TENSOR.clone(), lambda b: b.item(), lambda b, v: b.fill_(v)),
    "class attribute": lambda: (lambda net, x: equation(net, x, Settings.nu), lambda v: setattr(Settings, "nu", v)),
    "module attribute": lambda: (lambda net, x: equation(net, x, MODULE.nu), lambda v: setattr(MODULE, "nu", v)),
    "slots": held(Slots(), lambda b: b.nu, lambda b, v: setattr(b, "nu", v)),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_numbers_that_change_are_noticed(name):
    model, points = net_of(), randn(0, 7, 2)
    fn, put = HIDDEN[name]()
    objective = js.residual(model, js.Term(fn, points))
    assert objective.parts[0].local is not None
    try:
        for k in range(3):  # a check comes by itself at the 2nd
            put(0.5 + k)
            agrees(objective, model, [(lambda net, x, k=k: equation(net, x, 0.5 + k), points, 1.0)])
    finally:
        put(0.5)


def test_the_loss_after_a_number_has_changed():
    """``objective.value`` and ``terms`` are asked without a linearization before them (``fit`` does first)."""
    model, points = net_of(), randn(0, 7, 2)
    fn, put = cell()
    objective = js.residual(model, js.Term(fn, points))
    put(3.0)
    fresh = 0.5 * float(oracle(model, [(fn, points, 1.0)])[0].square().sum())
    assert objective.value(objective.theta()) == pytest.approx(fresh, rel=1e-10)
    assert objective.terms()[0].loss == pytest.approx(fresh, rel=1e-10)


class Unknown(nn.Module):
    """A network with an unknown of the equation, other tensors and a plain number beside it."""

    raw, omega = False, 1.0

    def __init__(self, viscosity=0.3):
        super().__init__()
        self.viscosity, self.inner = nn.Parameter(torch.tensor(viscosity)), net_of()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("nu", torch.tensor(0.0))

    def forward(self, x):
        u = self.inner(self.omega * x)
        return u * self.a if self.raw else u


@pytest.mark.parametrize("change", ["number", "activation"])
def test_a_model_that_changes_is_noticed(change):
    model, points = Unknown().double(), randn(0, 7, 2)
    model.requires_grad_(False).inner.requires_grad_(True)
    objective = js.residual(model, js.Term(burgers, points))
    assert objective.parts[0].local is not None
    for k in range(3):
        if change == "number":
            model.omega = 1.0 + k
        else:
            model.inner[1] = nn.Sigmoid() if k % 2 else nn.GELU()
        agrees(objective, model, [(burgers, points, 1.0)])


def diffusion(net, x):
    return grad(scalar(net))(x)[1] - net.viscosity * hessian(scalar(net))(x)[0, 0]


@pytest.mark.parametrize("start", [0.3, 0.0])
@pytest.mark.parametrize(("frozen", "params"), [(False, None), (True, None), (False, ["viscosity", "inner.4"])])
def test_an_unknown_of_the_equation(frozen, params, start):
    model, points = Unknown(start).double(), randn(0, 9, 2)
    model.viscosity.requires_grad_(not frozen)
    model.a.requires_grad_(False)
    objective = js.residual(model, js.Term(diffusion, points, 3.0), params=params)
    assert objective.parts[0].local is not None
    agrees(objective, model, [(diffusion, points, 3.0)], params=params and list(objective.space.names))


def test_a_coefficient_of_the_model_that_was_zero_when_traced():
    def fn(net, x):
        return grad(scalar(net))(x)[1] - net.nu * hessian(scalar(net))(x)[0, 0]

    model, points = Unknown().double(), randn(0, 9, 2)
    objective = js.residual(model, js.Term(fn, points))
    for k in (0, 2, 4):
        with torch.no_grad():
            model.nu.fill_(0.1 * k)
        agrees(objective, model, [(fn, points, 1.0)])


def test_freeing_a_parameter_that_is_no_layers():
    """``params=`` of a jump frees parameters that were fixed when the residual was traced."""
    model, points = Unknown().double(), randn(0, 9, 2)
    model.raw = True
    objective = js.residual(model, js.Term(burgers, points), params="inner")
    agrees(objective, model, [(burgers, points, 1.0)], params=list(objective.space.names))
    freed = objective.subset(["inner", "a"])
    assert "a" in freed.space.names
    agrees(freed, model, [(burgers, points, 1.0)], params=list(freed.space.names))


NOISE = {
    "torch, per point": lambda net, x: net(x) + torch.randn_like(x)[0],
    "torch, shared": lambda net, x: net(x) + torch.randn((), dtype=x.dtype),
    "python": lambda net, x: net(x) * random.random(),
}


@pytest.mark.parametrize("name", NOISE)
def test_random_numbers_in_a_residual_are_refused(name):
    model = net_of()
    before = torch.get_rng_state()
    with pytest.raises(errors.NondeterministicError):
        linearize(js.residual(model, js.Term(NOISE[name], randn(0, 6, 2))))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("terms", [[kdv], [whole]], ids=["points", "function"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_of_an_objective_are_independent_and_exact(copied, terms):
    model, points = net_of(), randn(0, 6, 2)
    objective = js.residual(model, *[js.Term(kdv, points, 2.0) if fn is kdv else fn for fn in terms])
    before, twin = objective.outputs(objective.theta()), copied(objective)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    assert not torch.allclose(objective.outputs(objective.theta()), before)
    torch.testing.assert_close(twin.outputs(twin.theta()), before)
    if terms == [kdv]:
        agrees(twin, net_of(), [(kdv, points, 2.0)])


def changing():
    sizes = iter([5, 5, 5, 3, 3, 3, 3, 3])
    return lambda net: net(POINTS[: next(sizes)]).squeeze(1)


def three(model):
    return js.residual(model, js.Term(kdv, NEW_A), js.Term(pair, NEW_B, name="both"), whole)


OUTSIDE = net_of()
BAD = {
    "not finite": (lambda m: js.residual(m, js.Term(value, POINTS), js.Term(lambda net, x: net(x) / x[0], torch.eye(2).double(), name="flux")), errors.NonFiniteError, ["flux", "[0.0, 1.0]", "1 of 2"]),
    "constant": (lambda m: js.residual(m, js.Term(value, POINTS), js.Term(lambda net, x: x[0], POINTS, name="data")), errors.NoParametersError, ["'data'", "net"]),
    "detached": (lambda m: js.residual(m, js.Term(lambda net, x: net(x).detach(), POINTS, name="late")), errors.NoParametersError, ["'late'", "detach"]),
    "model from outside": (lambda m: js.residual(m, js.Term(lambda net, x: OUTSIDE(x), POINTS, name="mine")), errors.NoParametersError, ["'mine'", "first argument"]),
    "unknown parameter": (lambda m: js.residual(m, js.Term(lambda net, x: net(x) * net.viscosity, POINTS)), AttributeError, ["'viscosity'", "0.weight"]),
    "not a tensor": (lambda m: js.residual(m, js.Term(lambda net, x: (net(x), x), POINTS)), errors.OutputTypeError, ["tuple", "residual function"]),
    "points in a list": (lambda m: js.residual(m, js.Term(value, [[0.0, 1.0]])), errors.ShapeError, ["tensor"]),
    "weight 0": (lambda m: js.residual(m, js.Term(value, POINTS, 0.0)), errors.InputError, ["0.0"]),
    "weight NaN": (lambda m: js.residual(m, js.Term(value, POINTS, math.nan)), errors.InputError, ["nan"]),
    "resampled, name": (lambda m: three(m).resampled({"kvd": NEW_A}), errors.InputError, ["'kvd'", "kdv"]),
    "resampled, number": (lambda m: three(m).resampled([NEW_A]), errors.InputError, ["1 entries", "3 terms"]),
    "resampled, no points": (lambda m: three(m).resampled({"whole": NEW_A}), errors.InputError, ["whole"]),
    "resampled, dimension": (lambda m: three(m).resampled([randn(0, 6, 3), None, None]), errors.ShapeError, ["(6, 3)", "(6, 2)"]),
    "resampled, dtype": (lambda m: three(m).resampled([NEW_A.float(), None, None]), errors.ShapeError, ["float32"]),
    "resampled, empty": (lambda m: three(m).resampled([NEW_A[:0], None, None]), errors.EmptyBatchError, ["(0, 2)"]),
    "resampled, NaN": (lambda m: three(m).resampled([NEW_A * math.nan, None, None]), errors.NonFiniteError, ["collocation"]),
    "resampled, list": (lambda m: three(m).resampled([[[0.0, 1.0]], None, None]), errors.ShapeError, ["tensor"]),
    "points of another dtype": (lambda m: js.residual(m, js.Term(value, POINTS.float())), errors.JumpstartError, ["float32"]),
    "length that changes": (lambda m: [js.jump(js.residual(m, changing())) for _ in range(4)], errors.ShapeError, ["(3,)", "(5,)"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_named_errors(name):
    act, kind, words = BAD[name]
    model = net_of()
    before, weights = torch.get_rng_state(), flat(model).clone()
    with pytest.raises(kind) as caught:
        act(model)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(flat(model), weights)
