"""Bases: orthonormal directions, true images, and the choice between kinds under a memory limit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import jumpstart as js
from jumpstart import bases
from jumpstart.errors import InputError
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.problem import LinearizedProblem
from jumpstart.surrogate.select import weigh

from ..problems import PROBLEMS, classes, flat, jacobian, mlp, problem_of, randn, relative

D = 0.1 + torch.rand(255, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
METRICS = {"plain": Metric(), "metric": Metric(D.sqrt()), "decay": Metric(None, 0.1), "both": Metric(D.sqrt(), 0.1)}


def start(lin, loss):
    return torch.stack([lin.vjp(loss.grad(lin.u)), randn(8, 255), randn(9, 255)])


# name → basis from linearization, loss and metric
KINDS = {
    "kernel": lambda lin, loss, m: bases.dense(problem_of(lin, m), route="kernel"),
    "svd": lambda lin, loss, m: bases.dense(problem_of(lin, m), route="svd"),
    "gram": lambda lin, loss, m: bases.dense(problem_of(lin, m), route="gram"),
    "leading": lambda lin, loss, m: bases.dense(problem_of(lin, m), rank=5),
    "krylov": lambda lin, loss, m: bases.krylov(LinearizedProblem(lin, loss, m), 6, side="parameters"),
    "krylov, outputs": lambda lin, loss, m: bases.krylov(
        LinearizedProblem(lin, loss, m), 6, side="auto" if m.decays else "outputs"
    ),
    "prefix": lambda lin, loss, m: bases.span(problem_of(lin, m), start(lin, loss)),
    "recycled": lambda lin, loss, m: bases.recycled(LinearizedProblem(lin, loss, m), start(lin, loss)[1:], 5),
}


def setting(seed=0, loss="mse"):
    model = mlp(seed)
    y = randn(1, 7, 3) if loss == "mse" else classes(1, 7, 3)
    objective = js.supervised(model, randn(0, 7, 4), y, loss)
    return model, objective, linearize(objective)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_orthonormal_and_images_are_true(kind, metric):
    model, objective, lin = setting()
    m = METRICS[metric]
    basis = KINDS[kind](lin, objective.loss, m)
    rows, j = basis.rows(), jacobian(model, randn(0, 7, 4))
    root = torch.ones(255).double() if m.root is None else m.root
    assert relative(rows @ rows.T, torch.eye(basis.size).double()) < 1e-9
    assert relative(basis.images.flatten(1), rows * root @ j.T) < 1e-10
    c = randn(3, basis.size)
    assert relative(basis.displacement(c), root * (c @ rows)) < 1e-10
    if basis.squares is not None:
        assert relative(basis.images.flatten(1) @ basis.images.flatten(1).T, torch.diag(basis.squares)) < 1e-10
    if m.decays:
        z0 = flat(model) / root
        assert relative(basis.decay_force, 0.1 * rows @ z0) < 1e-9
        assert relative(basis.decay, 0.1 * torch.eye(basis.size).double()) < 1e-9


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("kind", KINDS)
def test_reduced_flow_is_gradient_flow_inside_the_span(kind, loss):
    """ċ = −Eᵀ∇Φ(u₀ + E c): at a random c the slope is the projected gradient of the linearized loss."""
    _model, objective, lin = setting(loss=loss)
    found = js.solve(objective, basis=KINDS[kind](lin, objective.loss, Metric()))
    c = randn(4, found.basis.size).requires_grad_()
    u = lin.u + (c @ found.basis.images.flatten(1)).view_as(lin.u)
    torch_loss = torch.nn.functional.mse_loss if loss == "mse" else torch.nn.functional.cross_entropy
    (expected,) = torch.autograd.grad(torch_loss(u, objective.loss.targets), c)
    assert relative(found.flow.gradient(c.detach()), expected) < 1e-12


@pytest.mark.parametrize("kind", ["krylov", "recycled"])
def test_more_depth_is_never_worse_at_the_end(kind):
    _, objective, lin = setting()
    ends = []
    for depth in (1, 3, 6, 12):
        if kind == "krylov":
            basis = bases.krylov(LinearizedProblem(lin, objective.loss, Metric()), depth)
        else:
            basis = bases.recycled(LinearizedProblem(lin, objective.loss, Metric()), randn(8, 2, 255), depth)
        ends.append(js.solve(objective, basis=basis).loss(math.inf))
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(ends))


def test_rank_keeps_the_leading_modes():
    _, _, lin = setting()
    full, five = bases.dense(problem_of(lin, Metric())), bases.dense(problem_of(lin, Metric()), rank=5)
    assert five.size == 5
    assert not five.complete
    assert relative(five.squares, full.squares[:5]) < 1e-12


@pytest.mark.parametrize("route", ["kernel", "svd", "gram"])
def test_size_is_the_rank(route):
    for name, expected in (("duplicated samples", 24), ("dead ReLU", 12), ("P < N", 13), ("one neuron", 2)):
        p = PROBLEMS[name](0)
        lin = linearize(js.supervised(p.model, p.x, p.y))
        assert bases.dense(problem_of(lin, Metric()), route=route).size == expected, name


def test_prefix_drops_dependent_and_zero_directions():
    _, _, lin = setting()
    v = randn(0, 2, 255)
    rows = torch.cat([v, v[:1] * 1e-9, torch.zeros(1, 255).double(), v.sum(0, keepdim=True)])
    assert bases.span(problem_of(lin, Metric()), rows).size == 2
    with pytest.raises(js.errors.InputError, match="zero"):
        bases.span(problem_of(lin, Metric()), torch.zeros(2, 255).double())


MISUSE = {
    "route": lambda lin, loss: bases.dense(problem_of(lin, Metric()), route="fast"),
    "side": lambda lin, loss: bases.krylov(LinearizedProblem(lin, loss, Metric()), 3, side="left"),
    "decay on the outputs' side": lambda lin, loss: bases.krylov(
        LinearizedProblem(lin, loss, Metric(None, 0.1)), 3, side="outputs"
    ),
    "directions": lambda lin, loss: bases.span(problem_of(lin, Metric()), torch.ones(2, 3)),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    _, objective, lin = setting()
    with pytest.raises(js.errors.InputError):
        MISUSE[name](lin, objective.loss)


def test_plan_respects_the_memory_limit_and_explains_itself():
    _, objective, lin = setting()
    problem = problem_of(lin, loss=objective.loss)
    free = weigh(problem)
    assert "MiB" in free.explain()
    assert free.costs[free.kind].bytes <= free.limit
    least = min(cost.bytes for cost in free.costs.values())
    tight = weigh(problem, memory_limit=1.01 * least)
    assert tight.costs[tight.kind].bytes <= 1.01 * least
    with pytest.raises(js.errors.MemoryLimitError, match="raise it"):
        weigh(problem, memory_limit=64)
    assert weigh(problem, "krylov", 3).depth == 3


@pytest.mark.parametrize("kind", ["krylov", "dense"])
def test_decay_at_full_depth_is_exact(kind):
    """With decay the run leaves the span of Jᵀ along θ₀ itself: depth is not capped by the number of outputs."""
    _, objective, _ = setting()
    exact = js.solve(objective, basis="dense", weight_decay=0.1)
    found = js.solve(objective, basis=kind, depth=40 if kind == "krylov" else None, weight_decay=0.1)
    for t in (1.0, 30.0, math.inf):
        assert relative(found.outputs(t), exact.outputs(t)) < 1e-8
        a, b = found.parameters(t), exact.parameters(t)
        assert max(relative(a[k], b[k]) for k in a) < 1e-7


def test_float32_keeps_every_mode_however_many_parameters():
    """The cut-off goes with the matrix that is decomposed, not with P: with n·c = 4 there are four modes to find."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 1500), torch.nn.Tanh(), torch.nn.Linear(1500, 1500), torch.nn.Tanh())
    model.append(torch.nn.Linear(1500, 1))
    x, y = torch.randn(4, 3), torch.randn(4, 1)
    single = js.solve(js.supervised(model, x, y), basis="dense")
    double = js.solve(js.supervised(model.double(), x.double(), y.double()), basis="dense")
    assert single.basis.size == 4
    torch.testing.assert_close(single.spectrum, double.spectrum, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(single.outputs(3.0).double(), double.outputs(3.0), rtol=1e-4, atol=1e-5)


def test_a_finished_basis_goes_with_its_weights_and_its_metric_only():
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(3, 1), torch.randn(6, 3), torch.randn(6, 1)
    objective = js.supervised(model, x, y)
    basis = bases.dense(problem_of(linearize(objective)))
    js.solve(objective, basis=basis)
    with pytest.raises(InputError, match="leave metric"):
        js.solve(objective, basis=basis, weight_decay=0.1)
    js.jump(objective)
    with pytest.raises(InputError, match="weights have moved"):
        js.solve(objective, basis=basis)
    with pytest.raises(InputError, match="directions"):
        js.jump(objective, basis="dense", directions=torch.randn(1, 4))


# -- a kernel that is given ------------------------------------------------------------------------------------------


def given(change):
    p = PROBLEMS["mlp"](3)
    lin = linearize(js.supervised(p.model, p.x, p.y))
    j = jacobian(p.model, p.x)
    return lin, change(j @ j.T)


def test_a_given_kernel_stands_for_the_network_s_own():
    lin, k = given(lambda k: k)
    found, own = bases.dense(problem_of(lin, Metric()), kernel=k), bases.dense(problem_of(lin, Metric()))
    assert relative(found.squares, own.squares) < 1e-10
    c = randn(4, found.size)
    assert relative(lin.jvp(found.displacement(c)).reshape(-1), c @ found.images.flatten(1)) < 1e-8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: k[:-1, :-1], r"must be \(24, 24\)"),
        (lambda k: k + torch.triu(k, 1), "not symmetric"),
        (lambda k: k - 0.1 * torch.linalg.eigvalsh(k)[-1] * torch.eye(len(k), dtype=k.dtype), "negative eigenvalue"),
    ],
    ids=["of another size", "not symmetric", "not semidefinite"],
)
def test_kernels_that_are_none(change, message):
    lin, k = given(change)
    with pytest.raises(js.errors.KernelError, match=message):
        bases.dense(problem_of(lin, Metric()), kernel=k)
