"""What people give: NumPy points, weights by point, mappings, tensors of inference mode; and parts by name."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import hessian

import jumpstart as js
from jumpstart import errors
from jumpstart.linearization.linearize import linearize

from ..problems import fill, mlp, randn

POINTS = randn(0, 9, 2)
WEIGHTS = randn(1, 9).abs() + 0.1


def laplace(net, x):
    return -torch.trace(hessian(lambda z: net(z)[0])(x))[None]


def through_a_list(net, x):
    """Goes the general way: the trace does not follow it."""
    return torch.stack([net(x)[0] * float(len([1, 2])), net(x).sin()[0]])


@pytest.mark.parametrize("fn", [laplace, through_a_list])
@pytest.mark.parametrize("shape", [(9,), (9, 1)])
def test_weights_by_point(fn, shape):
    """Rows, J and the kernel of √w_i times the row; against the unweighted objective, whose rows are scaled by hand."""
    model = mlp(0, 2, 6, 1)
    plain, lin = (linearize(js.residual(model, js.Term(fn, POINTS, w))) for w in (1.0, WEIGHTS.reshape(shape)))
    root = WEIGHTS.sqrt().repeat_interleave(plain.u.numel() // 9)
    v, w = randn(3, lin.theta.numel()), randn(4, *lin.u.shape)
    for mine, by_hand in (
        (lin.u, root * plain.u),
        (lin.jacobian(), root[:, None] * plain.jacobian()),
        (lin.jvp(v), root * plain.jvp(v)),
        (lin.vjp(w), plain.vjp(root * w)),
    ):
        assert float((mine - by_hand).abs().max()) <= 1e-12 * float(by_hand.abs().max())
    found = js.residual(model, js.Term(fn, POINTS, WEIGHTS.numpy())).terms()[0]
    assert found.rms == pytest.approx(float(plain.u.square().mean().sqrt()), rel=1e-10)
    assert js.jump(js.residual(model, js.Term(fn, POINTS, WEIGHTS))).accepted


def test_the_kernel_by_layers_with_weights_by_point():
    objective = js.residual(mlp(0, 2, 30, 1), js.Term(laplace, POINTS, WEIGHTS))
    lin, part = linearize(objective), objective.parts[0]
    j = lin.jacobian()
    found = torch.zeros_like(j)
    at = dict(zip(objective.space.names, lin.theta.split(objective.space.sizes), strict=True))
    columns = dict(zip(at, torch.arange(lin.theta.numel()).split(objective.space.sizes), strict=True))
    for outer in part.outer_products(objective.net, lin.theta):
        rows = torch.arange(9)[outer.rows]
        value = outer.left if outer.right is None else (outer.left[:, :, None] * outer.right[:, None]).flatten(1)
        found[rows[:, None], columns[outer.name]] += value
    assert float((found - j).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (WEIGHTS[:4], "(4,)"),
        (-WEIGHTS, "positive"),
        ("large", "'large'"),
        (POINTS.abs(), "(9, 2)"),
        (True, "True"),
    ],
)
def test_weights_that_cannot_be(weight, words):
    with pytest.raises(errors.InputError) as caught:
        js.residual(mlp(0, 2, 4, 1), js.Term(lambda net, x: net(x), POINTS, weight))
    assert words in str(caught.value)


def test_a_weight_of_one_number_in_a_tensor():
    a, b = (js.residual(mlp(0, 2, 4, 1), js.Term(laplace, POINTS, w)) for w in (3.0, torch.tensor([3.0])))
    assert torch.equal(a.outputs(a.theta()), b.outputs(b.theta()))


def test_other_points_have_no_weights():
    objective = js.residual(mlp(0, 2, 4, 1), js.Term(laplace, POINTS, WEIGHTS))
    with pytest.raises(errors.InputError, match="weights for the new points"):
        objective.resampled([randn(5, 9, 2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numpy_points_come_in_the_dtype_of_the_model(dtype):
    model = mlp(0, 2, 4, 1).to(dtype)
    a, b = (js.residual(model, js.Term(laplace, p)) for p in (POINTS.numpy(), POINTS.to(dtype)))
    assert torch.equal(a.outputs(a.theta()), b.outputs(b.theta()))
    assert a.resampled([randn(2, 9, 2).numpy()]).parts[0].points.dtype == dtype
    with pytest.raises(errors.ShapeError, match="tensor or an array"):
        js.residual(model, js.Term(laplace, np.array(["a", "b"])))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, a, scale=None):
        return self.layer(a) * (1.0 if scale is None else scale["by"])


@pytest.mark.parametrize("chunk", [None, 4])
def test_mappings(chunk):
    """A tokenizer's answer is no dict; nested ones and query points as well."""
    model, y = fill(Named(), 0), randn(2, 9, 1)
    given = UserDict(a=POINTS, scale=UserDict(by=WEIGHTS[:, None]))
    plain = {"a": POINTS, "scale": {"by": WEIGHTS[:, None]}}
    one, two = (js.solve(js.supervised(model, inputs, y, chunk=chunk)) for inputs in (given, plain))
    assert torch.equal(one.outputs(1.0), two.outputs(1.0))
    assert torch.allclose(one.predict(given, 1.0), one.outputs(1.0))


def test_tensors_of_inference_mode_are_copied_out_of_it():
    model = mlp(0, 2, 4, 1)
    with torch.inference_mode():
        x, y = POINTS.clone(), randn(2, 9, 1).clone()
    want = js.solve(js.supervised(model, POINTS, randn(2, 9, 1))).outputs(1.0)
    solution = js.solve(js.supervised(model, x, y))
    assert torch.equal(solution.outputs(1.0), want)
    assert torch.equal(solution.predict(x, 1.0), js.solve(js.supervised(model, POINTS, y.clone())).predict(POINTS, 1.0))
    assert torch.equal(js.solve(js.supervised(model, (x,), None, js.losses.mse(y))).outputs(1.0), want)
    assert js.jump(js.residual(model, js.Term(laplace, x))).accepted


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.u, self.k = mlp(0, 2, 5, 1), mlp(1, 2, 4, 1)
        self.both, self.size = nn.ModuleDict({"v": self.u}), 3.0
        self.rate = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x):
        return torch.cat([self.u(x), self.k(x)], -1)

    def product(self, x):
        return self.u(x) * self.k(x)


def by_name(net, x):
    return net.u(x) - net.k(x) * net.rate * net.size + net.product(x) + net.both["v"](x) * net["u.0.weight"].sum()


def by_hand(net, x):
    u, k = net(x).split(1, -1)
    return u - k * net.rate * 3.0 + u * k + u * net["u.0.weight"].sum()


def test_parts_of_the_network_by_name():
    model = Two()
    mine, plain = (linearize(js.residual(model, js.Term(fn, POINTS))) for fn in (by_name, by_hand))
    assert float((mine.u - plain.u).abs().max()) < 1e-13
    assert float((mine.jacobian() - plain.jacobian()).abs().max()) < 1e-12
    v = randn(3, mine.theta.numel())
    assert float((mine.second(v) - plain.second(v)).abs().max()) < 1e-10
    assert js.jump(js.residual(model, js.Term(by_name, POINTS))).accepted


def test_a_module_dict_as_model():
    nets = nn.ModuleDict({"u": mlp(0, 2, 5, 1), "k": mlp(1, 2, 4, 1)})
    objective = js.residual(nets, js.Term(lambda net, x: net["u"](x) - net.k(x), POINTS))
    theta = objective.theta()
    assert torch.allclose(objective.outputs(theta), (nets["u"](POINTS) - nets["k"](POINTS)).detach().reshape(-1))
    assert js.jump(objective).accepted


@pytest.mark.parametrize("name", ["viscosity", "parameters", "state_dict", "train"])
def test_names_that_answer_nothing(name):
    """nn.Module's own methods would answer for other weights."""
    with pytest.raises(errors.UnknownNameError, match=f"'{name}'"):
        js.residual(Two(), js.Term(lambda net, x: net(x) * getattr(net, name), POINTS))


def test_compiled_modules_are_entered_by_what_they_were_made_of():
    model = mlp(0, 2, 4, 1)
    want = js.solve(js.supervised(model, POINTS, randn(2, 9, 1))).outputs(1.0)
    compiled = torch.compile(model, backend=lambda graph, inputs: pytest.fail("compiled"))
    assert torch.equal(js.solve(js.supervised(compiled, POINTS, randn(2, 9, 1))).outputs(1.0), want)
