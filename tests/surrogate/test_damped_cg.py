"""Jumps without a Jacobian: kernels gathered from outer products, and conjugate gradients, against dense algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, hessian

import jumpstart as js
from jumpstart import errors
from jumpstart.flow.horizon import Times
from jumpstart.linalg.nystrom import Nystrom
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.ntk import collocation
from jumpstart.linearization.ntk.collocation import gathered_kernel
from jumpstart.surrogate import damped_cg as iterative
from jumpstart.surrogate import select as choose
from jumpstart.surrogate.damped_cg import DampedCG
from jumpstart.surrogate.damped_cholesky import GatheredCholesky

from ..objectives.taylor.test_taylor import burgers, net_of, periodic, scalar
from ..problems import flat, mlp, problem_of, randn, relative


def laplacian(net, x):
    return hessian(scalar(net))(x).diagonal().sum() + torch.sin(3 * x[0])


def two_rows(net, x):
    du = grad(scalar(net))(x)
    return torch.stack([du[0] - net(x)[0] ** 2, du[1] * x[0]])


def value(net, x):
    return net(x)[0] - x[1]


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.nu = net_of(), nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x):
        return self.inner(x)


def with_unknown(net, x):
    return grad(scalar(net))(x)[1] - net.nu * hessian(scalar(net))(x)[0, 0]


TERMS = {
    "one": [laplacian], "several": [laplacian, value, burgers], "two rows": [two_rows, value],
    "two places": [periodic, value], "unknown": [with_unknown, value],
}  # fmt: skip


def problem(name, frozen=False):
    model = Unknown() if name == "unknown" else net_of()
    if frozen:
        next(iter(model.parameters())).requires_grad_(False)
    terms = [js.Term(fn, randn(i, 7 + i, 2), 0.5 + i) for i, fn in enumerate(TERMS[name])]
    return model, js.residual(model, *terms)


@pytest.mark.parametrize("way", ["by pairs", "columns", "columns, a few at a time"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", TERMS)
def test_a_gathered_kernel_is_that_of_the_jacobian(name, frozen, way, monkeypatch):
    """Whichever way a layer's share is taken; counted work decides."""
    monkeypatch.setattr(collocation, "_explicit_pays", lambda *_: way != "by pairs")
    monkeypatch.setattr(collocation, "CHUNK", 60 if "few" in way else 2**24)
    _, objective = problem(name, frozen)
    lin = linearize(objective)
    j = lin.jacobian()
    kernel = gathered_kernel(lin)
    assert kernel is not None
    assert relative(kernel, j @ j.T) < 1e-12
    assert relative(kernel, kernel.T) < 1e-15


def test_streams_and_width_decide_over_the_way_of_a_layer():
    """One stream of a wide layer by pairs; twelve of a narrow one by its columns."""

    def placed(streams, width):
        outer = [randn(i, 500, width) for i in range(2 * streams)]
        return [collocation._Placed(slice(0, 500), a, b) for a, b in zip(outer[::2], outer[1::2], strict=True)]

    assert not collocation._explicit_pays(placed(1, 128), 500)
    assert collocation._explicit_pays(placed(12, 32), 500)


def test_no_kernel_is_gathered_where_there_are_no_outer_products():
    model = net_of()
    points = randn(0, 5, 2)
    whole = js.residual(model, js.Term(value, points), lambda net: net(points).squeeze(1))
    assert gathered_kernel(linearize(whole)) is None
    assert gathered_kernel(linearize(js.supervised(model, points, randn(1, 5, 1)))) is None


def dense(objective, metric, t):
    """(βAᵀA + 1/t) z = −Aᵀg by NumPy, and the outputs there."""
    lin = linearize(objective)
    root = np.ones(lin.theta.numel()) if metric.root is None else metric.root.numpy()
    a, u = lin.jacobian().numpy() * root, lin.u.numpy().reshape(-1)
    beta, g = objective.loss.curvature, objective.loss.grad(lin.u).numpy().reshape(-1)
    z = -np.linalg.solve(beta * a.T @ a + np.eye(a.shape[1]) / t, a.T @ g)
    return root * z, u + a @ z, np.linalg.norm(z)


ROOT = (0.3 * randn(5, flat(net_of()).numel())).exp()


@pytest.mark.parametrize("metric", [Metric(), Metric(ROOT)], ids=["plain", "metric"])
@pytest.mark.parametrize("depth", [None, 200], ids=["default", "conjugate gradients"])
def test_steps_are_the_dense_ones(monkeypatch, depth, metric):
    monkeypatch.setattr(iterative, "STEP", 1e-13)
    monkeypatch.setattr(iterative, "CORRECTION", 1e-13)
    _, objective = problem("several")
    flow = choose.matrix_free(problem_of(linearize(objective), metric, objective.loss), depth)
    assert isinstance(flow, GatheredCholesky if depth is None and metric.root is None else DampedCG)
    g = randn(9, *objective.shape)
    for t in (1e-3, 1.0, 1e3):
        delta, u, length = dense(objective, metric, t)
        c = flow.coefficients(Times.at(t))[0]
        assert relative(flow.displacement(c), delta) < 1e-8
        assert relative(flow.outputs(c).reshape(-1), u) < 1e-8
        assert float(flow.length(c)) == pytest.approx(length, rel=1e-7)
        assert float(flow.predicted_loss(c)) == pytest.approx(0.5 * float((u**2).sum()), rel=1e-7)
        answer = flow.response(g, Times((t,), True))[0]
        kernel = flow.a @ (flow.a.T @ answer) * objective.loss.curvature
        assert relative(kernel + answer / t, -g.reshape(-1)) < 1e-8


def test_products_are_those_of_the_jacobian():
    _, objective = problem("two rows")
    lin = linearize(objective)
    j = lin.jacobian()
    flow = DampedCG(problem_of(lin, loss=objective.loss), 5)
    s, z = randn(1, len(j)), randn(2, j.shape[1])
    assert relative(flow.a.T @ s, j.T @ s) < 1e-12
    assert relative(flow.a @ z, j @ z) < 1e-12


def test_a_sketch_is_nystroms_and_never_above_the_kernel():
    a = randn(0, 12, 12)
    kernel = a @ torch.diag(10.0 ** -torch.arange(12.0).double()) @ a.T
    tests = randn(1, 5, 12)
    found = Nystrom.of(tests, tests @ kernel)
    y = kernel @ tests.T
    expected = y @ torch.linalg.pinv(tests @ y) @ y.T
    built = found.vectors @ torch.diag(found.values) @ found.vectors.T
    assert relative(built, expected) < 1e-6
    assert float(torch.linalg.eigvalsh(kernel - built).min()) > -1e-9 * float(kernel.trace())
    assert Nystrom.of(torch.zeros(3, 12).double(), torch.zeros(3, 12).double()) is None
    b, shift = randn(2, 12), 0.1
    inside = found.vectors @ (found.vectors.T @ b)
    floor = found.values.min() + shift
    exact = torch.linalg.solve(built + shift * torch.eye(12).double(), inside) * floor + (b - inside)
    assert relative(found.solve(b, shift), exact) < 1e-10


def test_a_sketch_saves_products():
    _, objective = problem("several")
    lin = linearize(objective)

    def products(sketch):
        flow = DampedCG(problem_of(lin, loss=objective.loss), 60, sketch)
        flow.coefficients(Times.at(1e3))[0]
        return len(flow._tests), flow.sketch()

    first, sketch = products(None)
    second, _ = products(sketch)
    assert second < 0.6 * first


@pytest.mark.parametrize("depth", [None, 10])
def test_matrix_free_jumps_lower_the_loss_and_recycle(depth):
    _, objective = problem("several")
    before, jumper = objective.value(objective.theta()), js.Jumper(objective, basis="matrix-free", depth=depth)
    for _ in range(6):
        result = jumper.jump()
        assert result.accepted
        assert result.actual < result.before
    assert (jumper.memory.sketch is not None) == (depth is not None)
    assert result.actual < 0.1 * before
    assert objective.value(objective.theta()) == pytest.approx(result.actual)


def test_large_networks_are_gathered_by_themselves(monkeypatch):
    monkeypatch.setattr(choose, "LARGE", 100.0)
    _, objective = problem("one")
    one = js.jump(objective)
    assert one.basis == "gathered"
    monkeypatch.setattr(choose, "LARGE", math.inf)
    _, same = problem("one")
    other = js.jump(same)
    assert other.basis == "dense"
    assert one.actual == pytest.approx(other.actual, rel=0.5)
    assert js.fit(problem("one")[1], jumps=5).accepted == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [({"search": "horizon"}, "search"), ({"gate": "hard"}, "gate"), ({"weight_decay": 0.1}, "decay")],
)
def test_misuse_is_named(options, words):
    _, objective = problem("one")
    before = flat(objective.model).clone()
    with pytest.raises(errors.InputError, match=words):
        js.jump(objective, basis="matrix-free", **options)
    other = js.supervised(mlp(0), randn(0, 5, 4), torch.tensor([0, 1, 2, 0, 1]), "cross_entropy")
    with pytest.raises(errors.InputError, match="squared"):
        js.jump(other, basis="matrix-free")
    with pytest.raises(errors.InputError, match="matrix-free"):
        js.solve(objective, basis="matrix-free")
    assert torch.equal(flat(objective.model), before)


def test_building_an_objective_of_a_large_network_forms_no_jacobian(monkeypatch):
    from jumpstart.objectives import collocation as points
    from jumpstart.objectives.taylor import Local

    def refuse(*_, **__):
        raise AssertionError("the Jacobian was formed")

    monkeypatch.setattr(points, "FORMED", 10)
    monkeypatch.setattr(choose, "LARGE", 100.0)
    monkeypatch.setattr(Local, "jacobian", refuse)
    _, objective = problem("several")
    assert all(part.local is not None for part in objective.parts)
    assert js.jump(objective).accepted


def test_a_trial_that_is_not_finite_is_no_end(monkeypatch):
    """A step too long meets NaN; the sketch is made of what was finite."""
    model = net_of()
    start = flat(model).clone()

    def fragile(net, x):
        far = (net["0.weight"].reshape(-1) - start[: net["0.weight"].numel()]).abs().amax()
        return laplacian(net, x) * torch.where(far > 1e-3, math.nan, 1.0)

    objective = js.residual(model, js.Term(fragile, randn(0, 9, 2)))
    jumper = js.Jumper(objective, basis="matrix-free", depth=4)
    tried = []
    for _ in range(3):
        result = jumper.jump()
        tried.append(result.candidates)
        assert result.outcome is js.Outcome.ACCEPTED
        assert bool(torch.isfinite(flat(model)).all())
        assert jumper.memory.sketch is not None
        assert bool(torch.isfinite(jumper.memory.sketch.vectors).all())
    assert min(tried) > 1  # each met a step too long
