# ruff: noqa: E501 (a table is read by its columns)
"""Why a residual goes the general way: what a person reads, and that a fault of the library's own is not silent."""

from __future__ import annotations

import copy
import random
import re
import warnings

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

import jumpstart as js
from jumpstart.errors import ShapeError
from jumpstart.linearization.linearize import linearize
from jumpstart.objectives import collocation
from jumpstart.objectives.collocation import Points
from jumpstart.objectives.parameters import ParameterSpace
from jumpstart.objectives.pure import Net
from jumpstart.objectives.taylor import Local, handlers, trace

from ...problems import fill, randn
from .test_taylor import Custom, agrees, along, burgers, net_of, scalar

POINTS = randn(0, 6, 2)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x, scale=2.0):
        return self.layer(x) * scale


def custom(way):
    return lambda: fill(Custom(way), 3)


def hooked(child):
    """A hook that changes what the network, or a layer of it, returns."""

    def build():
        model = net_of()
        (model[1] if child else model).register_forward_hook(lambda module, inputs, out: 2 * out)
        return model

    return build


def weightless():
    """A weight that is computed, and so is no parameter."""
    model = net_of()
    weight = model[0].weight.detach().clone()
    del model[0]._parameters["weight"]
    model[0].weight = weight
    return model


def chain(*layers):
    return lambda: fill(nn.Sequential(nn.Linear(2, 4), *layers, nn.Linear(4, 1)), 1)


class Pair(nn.Module):
    """Two outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x), x


class Two(Pair):
    """Two inputs."""

    def forward(self, x, y):
        return self.layer(x + y)


MODELS = {
    "unknown layer": (chain(nn.Softmax(-1)), "layer '1' of type Softmax is not known to derivative streams"),
    "layer of one's own": (chain(type("Wave", (nn.Tanh,), {"__module__": "torch.nn"})()), "layer '1' of type Wave is not known"),
    "in place": (chain(nn.SiLU(inplace=True)), "layer '1' of type SiLU works in place"),
    "hook on a layer": (hooked(True), "layer '1' of type Tanh has forward hooks"),
    "hook on the network": (hooked(False), "derivative streams give other residuals, so the network or the residual does what a trace does not show (hooks"),
    "computed weight": (weightless, "layer '0' has a weight or bias that is no parameter or buffer"),
    "control flow": (custom(lambda m, x: m.last(m.first(x) if x.sum() > 0 else m.first(-x))), "torch.fx cannot trace the network's forward pass (TraceError: symbolically traced variables cannot be used"),
    "unknown function": (custom(lambda m, x: m.last(torch.softmax(m.first(x), -1))), "function softmax is not known"),
    "unknown method": (custom(lambda m, x: m.last(m.first(x).softmax(-1))), "method .softmax() is not known"),
    "further arguments": (custom(lambda m, x: m.last(nn.functional.gelu(m.first(x), approximate="tanh"))), "function gelu is called with arguments that derivative streams do not know"),
    "layer of a constant": (custom(lambda m, x: m.last(m.first(m.mean)) * x), "layer 'first' of type Linear is applied to something that does not depend on the input"),
    "computed from a parameter": (custom(lambda m, x: m.last(m.first(x) * torch.tanh(m.raw))), "the network uses its parameter 'raw' outside of linear layers"),
    "power": (custom(lambda m, x: m.last(m.first(x) ** x[..., :1])), "a power other than by a fixed number"),
    "cat, first dimension": (custom(lambda m, x: m.last(torch.cat([m.first(x), x])[:5])), "cat along dimension 0"),
    "cat with a constant": (custom(lambda m, x: m.last(torch.cat([m.first(x), m.mean], -1)[..., :5])), "cat of something that does not depend on the input"),
    "optional argument": (lambda: fill(Optional(), 1), "the network reads its optional argument 'scale'"),
    "two inputs": (lambda: fill(Two(), 1), "the network takes more than one input"),
    "two outputs": (lambda: fill(Pair(), 1), "the network returns something other than one tensor"),
    "raw parameter": (custom(lambda m, x: m.last(m.first(x) * m.raw)), "the network uses its parameter 'raw' outside of linear layers"),
}  # fmt: skip


def in_place(net, x):
    u = net(x)
    u += 1
    return u


def once_more():
    """Calls the network a second time once it is run again (a trace runs it twice to find the places)."""
    runs = iter(range(100))
    return lambda net, x: net(x) + (net(x + 1) if next(runs) > 1 else 0)


def stacked(net, x):
    return net(torch.stack([x, 2 * x])).sum() + net(x)[0]


def coinciding(net, x):
    """|x| is x at the points, which are positive, and nowhere else."""
    return net(x)[0] * net(x.abs())[0]


RESIDUALS = {
    "in place": (in_place, "the residual does not run on Taylor polynomials in the network's place (RuntimeError: a leaf Variable"),
    "torch's random numbers": (lambda net, x: net(x) + torch.randn_like(x)[0], "the residual does not run with a stand-in for the network (RuntimeError: vmap: called random operation"),
    "Python's random numbers": (lambda net, x: net(x) * random.random(), "derivative streams give other residuals, so the network or the residual does what a trace does not show (hooks, random"),
    "at many places": (stacked, "the residual calls the network on a tensor of 2 dimensions, not at one place (d,)"),
    "at many places, vmap": (lambda net, x: vmap(net)(torch.stack([x, 2 * x])).sum(), "the residual calls the network at more than one place at once"),
    "on a list": (lambda net, x: net([0.0, 1.0]), "the residual calls the network on list, not at one place"),
    "by keyword": (lambda net, x: net(input=x), "does not run with a stand-in for the network (TypeError: "),
    "a layer of it": (lambda net, x: net.model[0](x), "(AttributeError: the network has no parameter or buffer 'model', and a stand-in has nothing else)"),
    "a layer's weight": (lambda net, x: net(x)[0] * net["0.weight"].sum(), "the residual reads '0.weight', which a linear layer of the network uses as well"),
    "control flow": (lambda net, x: net(x) if x[0] > 0 else -net(x), "(RuntimeError: vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow"),
    "order": (lambda net, x: along(net, x, 0, 5), "the residual takes derivatives of order 5; streams are for at most 4"),
    "never": (lambda net, x: x[0], "the residual never calls the network"),
    "detached": (lambda net, x: net(x).detach(), "the residual does not depend on the network"),
    "not finite": (lambda net, x: net(x) / 0.0, "no residuals are finite near the present weights"),
    "once more": (once_more(), "the residual calls the network more often when it is run again"),
    "coinciding places": (coinciding, "two places that are one at these points alone"),
    "no tensor": (lambda net, x: (net(x), x), "(AttributeError: 'tuple' object has no attribute 'reshape')"),
}  # fmt: skip


def prepared(model, fn, points=POINTS):
    """A part that has looked for its fast way; a warning of the library's own is an error (pyproject)."""
    part, net = Points(fn, points, 1.0), Net(model, ParameterSpace(model))
    part.prepare(net, net.space.read(model))
    return part


@pytest.mark.parametrize("name", MODELS)
def test_a_network_that_is_not_followed_says_why(name):
    build, reason = MODELS[name]
    part = prepared(build(), burgers)
    assert part.local is None
    assert part.fallback.startswith(f"general way: {reason}"), part.fallback
    assert part.notes() == [part.fallback]


@pytest.mark.parametrize("name", RESIDUALS)
def test_a_residual_that_is_not_followed_says_why(name):
    fn, reason = RESIDUALS[name]
    part = prepared(net_of(), fn, POINTS.abs() + 0.1 if name == "coinciding places" else POINTS)
    assert part.local is None
    assert part.fallback.startswith("general way: ")
    assert reason in part.fallback, part.fallback


def test_too_many_derivatives_say_how_many():
    model, points = net_of(d=7), randn(0, 5, 7)
    part = prepared(model, lambda net, x: along(net, x, 0, 4), points)
    assert (
        part.fallback == "general way: the residual may need 330 derivatives of the network at a point, more than 300"
    )
    model, points = net_of(d=8), randn(0, 5, 8)
    every = prepared(model, lambda net, x: torch.func.hessian(lambda z: net(z)[0])(x).exp().sum(), points)
    assert every.local is not None  # 45
    model, points = net_of(d=11), randn(0, 5, 11)
    every = prepared(model, lambda net, x: torch.func.hessian(lambda z: net(z)[0])(x).exp().sum(), points)
    assert every.fallback == "general way: the residual needs 78 derivatives of the network at a point, more than 64"


def test_points_of_another_dtype_say_so():
    part = Points(lambda net, x: net(x.double())[0], POINTS.float(), 1.0)
    net = Net(model := net_of(), ParameterSpace(model))
    part.prepare(net, net.space.read(model))
    assert part.fallback == "general way: the points are torch.float32, parameters torch.float64"


def test_a_followed_residual_has_nothing_to_say():
    objective = js.residual(net_of(), js.Term(burgers, POINTS))
    assert objective.parts[0].local is not None
    assert objective.parts[0].fallback is None
    assert objective.notes() == []


def test_notes_of_an_objective_name_the_term_and_follow_the_model():
    model = chain(nn.Softmax(-1))()
    objective = js.residual(model, js.Term(burgers, POINTS), js.Term(lambda net, x: net(x), POINTS, name="edge"))
    why = "general way: layer '1' of type Softmax is not known to derivative streams"
    assert objective.notes() == [f"burgers: {why}", f"edge: {why}"]
    twin = copy.deepcopy(objective)
    assert twin.notes() == [], "nothing was tried yet"
    linearize(twin)
    assert twin.notes() == objective.notes()
    model[1] = nn.Tanh()
    linearize(objective)
    assert objective.notes() == []
    assert all(part.local is not None for part in objective.parts)


# -- faults of the library's own ------------------------------------------------------------------------------------


def fails(kind):
    def broken(*args, **kwargs):
        raise kind("broken on purpose")

    return broken


def wrong_tower(tower, jet, wanted):
    return {index: 1.1 * value for index, value in handlers_elementwise(tower, jet, wanted).items()}


handlers_elementwise = handlers.elementwise
BROKEN = {
    "handler of a layer": (lambda m: m.setitem(handlers.LAYERS, nn.Tanh, fails(NameError)), NameError),
    "step, values": (lambda m: m.setattr(handlers, "elementwise", fails(KeyError)), KeyError),
    "step, streams": (lambda m: m.setattr(handlers, "mapped", fails(TypeError)), TypeError),
    "torch's private parts": (lambda m: m.setattr(trace, "_unwrapped", fails(AttributeError)), AttributeError),
    "torch's tracer": (lambda m: m.setattr(trace, "make_fx", fails(RuntimeError)), RuntimeError),
    "simplification": (lambda m: m.setattr(trace, "simplify", fails(IndexError)), IndexError),
    "polynomials": (lambda m: m.setattr(trace._Polynomial, "_at", fails(ZeroDivisionError)), ZeroDivisionError),
    "rows": (lambda m: m.setattr(Local, "rows", fails(RuntimeError)), RuntimeError),
    "Jacobian": (lambda m: m.setattr(Local, "jacobian", fails(AssertionError)), AssertionError),
    "outer products": (lambda m: m.setattr(Local, "outer_products", fails(ValueError)), ValueError),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_of_the_library_is_warned_of_and_kept(name, monkeypatch):
    act, kind = BROKEN[name]
    model = fill(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), Scaled(), nn.Linear(6, 1)), 2)
    act(monkeypatch)
    with pytest.warns(RuntimeWarning, match=f"burgers: a fast way failed .unexpected {kind.__name__}: .*exact"):
        objective = js.residual(model, js.Term(burgers, POINTS))
    assert objective.parts[0].local is None
    (note,) = objective.notes()
    assert note.startswith(f"burgers: general way: unexpected {kind.__name__}: ")
    assert "broken on purpose" in note
    assert re.search(r" at (network|handlers|trace|factored|program|collocation)\.py:\d+$", note), note
    agrees(objective, model, [(burgers, POINTS, 1.0)])
    monkeypatch.undo()
    assert js.residual(model, js.Term(burgers, POINTS)).notes() == [], "the same is followed when nothing is broken"


class Scaled(nn.Module):
    """So that products with a constant are met, too; a module of one's own is looked into."""

    def forward(self, x):
        return 2.0 * x


def test_the_warning_comes_once(monkeypatch):
    monkeypatch.setitem(handlers.LAYERS, nn.Tanh, fails(NameError))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        vars(collocation).pop("__warningregistry__", None)
        for _ in range(3):
            js.residual(net_of(), js.Term(burgers, POINTS))
    assert len([w for w in found if "a fast way failed" in str(w.message)]) == 1


def test_an_error_of_the_general_way_comes_first():
    """Layers fail on what is too wide for them either way: torch's error is the cause, and no word of the fast way's."""
    with pytest.raises(ShapeError, match="mat1 and mat2") as info:
        js.residual(net_of(), js.Term(lambda net, x: net(torch.cat([x, x])), POINTS))
    assert type(info.value.__cause__) is RuntimeError
    assert info.value.__cause__.__context__ is None


def test_wrong_numbers_of_a_handler_are_found_and_kept(monkeypatch):
    monkeypatch.setattr(handlers, "elementwise", wrong_tower)
    objective = js.residual(net_of(), js.Term(burgers, POINTS))
    assert objective.parts[0].local is None
    assert "derivative streams give other residuals" in objective.notes()[0]
    agrees(objective, objective.model, [(burgers, POINTS, 1.0)])


def test_a_wrong_jacobian_alone_is_found_and_kept(monkeypatch):
    jacobian = Local.jacobian

    def half(self, tensors, columns, out, scale):
        found = jacobian(self, tensors, columns, out, scale)
        out *= 0.5
        return found

    monkeypatch.setattr(Local, "jacobian", half)
    objective = js.residual(net_of(), js.Term(lambda net, x: grad(scalar(net))(x)[0], POINTS, name="slope"))
    assert "slope: general way: derivative streams give the same residuals but another Jacobian" in objective.notes()[0]
