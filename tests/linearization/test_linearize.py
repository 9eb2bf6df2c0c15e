"""J·v, Jᵀ·w, f''[v, v], f''[v, ·]ᵀ·w and J against autograd, over kinds of parts, inputs, modules; determinism."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp

import jumpstart as js
from jumpstart.errors import NondeterministicError
from jumpstart.linearization.linearize import at_query, linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.problem import LinearizedProblem
from jumpstart.objectives.parts import Batch

from ..problems import classes, cnn, fill, flat, mlp, randn, relative


class Two(nn.Module):
    """Two inputs, as positions or as keywords."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, left, right):
        return torch.tanh(self.a(left)) * self.b(right)


def laplace(net, x):
    """−Δu at a point, with nested forward and reverse mode inside, as in a PINN."""
    return -torch.trace(hessian(lambda z: net(z)[0])(x))


def slope_by_jvp(net, x):
    return jvp(lambda z: net(z)[0], (x,), (torch.ones_like(x),))[1] + grad(lambda z: net(z)[0])(x).sum() ** 2


def norm_net(train):
    model = fill(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)), 0)
    return model.train(train)


LEFT, RIGHT, POINTS = randn(0, 7, 3), randn(1, 7, 2), randn(2, 9, 2)
X, Y = randn(3, 7, 4), randn(4, 7, 3)
IMAGES = randn(3, 5, 1, 6, 6)


def built(model, make):
    return model, make(model)


# name → (model, objective)
CASES = {
    "mlp": lambda: built(mlp(0), lambda m: js.supervised(m, X, Y)),
    "mlp, chunked": lambda: built(mlp(0), lambda m: js.supervised(m, X, Y, chunk=3)),
    "cnn": lambda: built(cnn(0), lambda m: js.supervised(m, IMAGES, classes(0, 5, 2), "cross_entropy")),
    "tuple": lambda: built(fill(Two(), 0), lambda m: js.supervised(m, (LEFT, RIGHT), randn(5, 7, 4))),
    "dict": lambda: built(
        fill(Two(), 0), lambda m: js.supervised(m, {"right": RIGHT, "left": LEFT}, randn(5, 7, 4), chunk=4)
    ),
    "BatchNorm, train mode": lambda: built(norm_net(True), lambda m: js.supervised(m, X, randn(5, 7, 2))),
    "BatchNorm, eval by objective": lambda: built(
        norm_net(True), lambda m: js.supervised(m, X, randn(5, 7, 2), training=False)
    ),
    "points": lambda: built(
        mlp(0, 2, 8, 1), lambda m: js.residual(m, js.Term(laplace, POINTS), js.Term(slope_by_jvp, POINTS[:4], 3.0))
    ),
    "opaque": lambda: built(
        mlp(0), lambda m: js.Objective(m, lambda net: net(X[:3]) - net(X[3:6]), js.losses.Logistic(torch.ones(3, 3)))
    ),
    "coupled residual": lambda: built(mlp(0), lambda m: js.residual(m, lambda net: net(X).cumsum(0))),
}


def reference(model, objective):
    """The outputs as a function of the flat weights, by torch.func alone."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    modes = [m.training for m in model.modules()]

    def f(theta):
        pieces = theta.split([s.numel() for s in shapes])
        params = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        if objective.training is not None:
            model.train(objective.training)
        rows = [
            part.outputs(lambda *a, **k: functional_call(model, {**params, **buffers}, a, k))
            for part in objective.parts
        ]
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        return torch.cat(rows)

    return f


def contraction(f, theta, v, w):
    """Σ_i w_i ∇²u_i v, by a backward pass through a backward pass."""
    theta = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((f(theta) * w).sum(), theta, create_graph=True)
    return torch.autograd.grad(gradient @ v, theta)[0]


class Cube(torch.autograd.Function):
    """x³, which forward mode does not know how to differentiate."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 3 * x**2


class Cubed(nn.Sequential):
    def forward(self, x):
        return self[1](Cube.apply(self[0](x)))


@pytest.mark.parametrize("chunk", [None, 3])
def test_products_without_a_rule_for_forward_mode(chunk):
    model = fill(Cubed(nn.Linear(4, 5), nn.Linear(5, 3)), 0)
    objective = js.supervised(model, X, Y, chunk=chunk)
    f, theta, lin = reference(model, objective), flat(model), linearize(objective)
    j = jacrev(lambda th: f(th).reshape(-1))(theta).detach()
    v, w = randn(10, theta.numel()), randn(11, *lin.u.shape)
    for _ in range(2):  # the second time it is known beforehand
        assert relative(lin.second_pull(v, w), contraction(f, theta, v, w)) < 1e-12
        assert lin._reverse_only
    assert relative(lin.jvp(v).reshape(-1), j @ v) < 1e-12
    explicit = [contraction(f, theta, v, one.view_as(w)) @ v for one in torch.eye(w.numel()).double()]
    assert relative(lin.second(v).reshape(-1), torch.stack(explicit)) < 1e-10


@pytest.mark.parametrize("name", CASES)
def test_products_against_the_explicit_jacobian(name):
    model, objective = CASES[name]()
    f, theta = reference(model, objective), flat(model)
    lin = linearize(objective)
    j = jacrev(lambda th: f(th).reshape(-1))(theta).detach()
    assert relative(lin.u, f(theta)) < 1e-13
    v, w = randn(10, theta.numel()), randn(11, *lin.u.shape)
    assert relative(lin.jvp(v).reshape(-1), j @ v) < 1e-11
    assert relative(lin.vjp(w), j.T @ w.reshape(-1)) < 1e-11
    assert relative(lin.jacobian(), j) < 1e-11
    bend = jvp(lambda th: jvp(f, (th,), (v,))[1], (theta,), (v,))[1]
    assert relative(lin.second(v), bend) < 1e-10
    assert relative(lin.second_pull(v, w), contraction(f, theta, v, w)) < 1e-10
    assert relative(lin.outputs(theta + 0.1 * v), f(theta + 0.1 * v)) < 1e-13
    value, gradient = objective.gradient(theta)
    assert value == pytest.approx(objective.value(theta), rel=1e-13)
    assert relative(gradient, j.T @ objective.loss.grad(lin.u).reshape(-1)) < 1e-11


@pytest.mark.parametrize("name", ["points", "opaque", "coupled residual", "BatchNorm, train mode"])
@pytest.mark.parametrize("basis", ["dense", "krylov"])
def test_every_kind_of_part_can_be_solved(name, basis):
    model, objective = CASES[name]()
    lin = linearize(objective)
    j = lin.jacobian()
    found = js.solve(objective, basis=basis, depth=lin.u.numel() if basis == "krylov" else None)
    t = 0.7
    delta = torch.cat([v.reshape(-1) for v in found.parameters(t).values()]) - flat(model)
    assert relative(lin.u.reshape(-1) + j @ delta, found.outputs(t).reshape(-1)) < 1e-9
    assert float(objective.loss.value(found.outputs(t))) < float(objective.loss.value(lin.u))


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing(chunk, loss):
    y = Y if loss == "mse" else classes(0, 7, 3)
    whole, parts = js.supervised(mlp(0), X, y, loss), js.supervised(mlp(0), X, y, loss, chunk=chunk)
    assert len(parts.parts) == -(-7 // min(chunk, 7))
    q = randn(9, 4, 4)
    for options in ({"basis": "dense"}, {"basis": "krylov", "depth": 6}):
        one, other = js.solve(whole, **options), js.solve(parts, **options)
        for t in (0.1, 5.0):
            assert relative(other.outputs(t), one.outputs(t)) < 1e-10
            assert relative(other.predict(q, t), one.predict(q, t)) < 1e-10
    assert js.jump(parts).actual == pytest.approx(js.jump(whole).actual, rel=1e-6)


def test_products_are_counted():
    lin = linearize(js.supervised(mlp(0), X, Y))
    start = (lin.ledger.forwards, lin.ledger.pushes, lin.ledger.pulls)
    for _ in range(3):
        lin.jvp(lin.theta)
        lin.vjp(lin.u)
    lin.outputs(lin.theta)
    assert (lin.ledger.forwards, lin.ledger.pushes, lin.ledger.pulls) == (start[0] + 1, start[1] + 3, start[2] + 3)
    before = lin.ledger.gradient_evaluations
    lin.second_pull(lin.theta, lin.u)
    assert lin.ledger.second_pulls == 1
    assert lin.ledger.gradient_evaluations - before == pytest.approx(2)


@pytest.mark.parametrize("side", ["parameters", "outputs"])
def test_krylov_costs_depth_products(side):
    """One jvp and one vjp a vector, and one vjp for the gradient that it starts from."""
    objective = js.supervised(mlp(0), X, Y)
    lin = linearize(objective)
    js.bases.krylov(LinearizedProblem(lin, objective.loss, Metric()), 5, side=side)
    assert lin.ledger.pushes == 5
    assert lin.ledger.pulls <= 6


def test_query_points_share_the_weights():
    model = mlp(0)
    lin = linearize(js.supervised(model, X, Y))
    query = at_query(lin, Batch(randn(5, 3, 4)))
    assert relative(query.u, model(randn(5, 3, 4))) < 1e-14
    v = randn(6, lin.theta.numel())
    assert (
        relative(
            query.jvp(v),
            jvp(lambda th: reference(model, js.supervised(model, randn(5, 3, 4), Y[:3]))(th), (lin.theta,), (v,))[1],
        )
        < 1e-12
    )


class Drawn(nn.Module):
    """Noise from the global generator, in any mode."""

    def __init__(self):
        super().__init__()
        self.linear = fill(nn.Linear(4, 3), 0)

    def forward(self, x):
        return self.linear(x) + 1e-3 * torch.rand_like(x[:, :3])


@pytest.mark.parametrize("make", [Drawn, lambda: nn.Sequential(fill(nn.Linear(4, 3), 0), nn.Dropout(0.2))])
def test_noise_is_detected_and_the_generator_left_alone(make):
    objective = js.supervised(make(), X, Y)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with pytest.raises(NondeterministicError, match="twice"):
        linearize(objective)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_detected_after_the_mode_changes():
    model = nn.Sequential(fill(nn.Linear(4, 3), 0), nn.Dropout(0.2)).eval()
    objective = js.supervised(model, X, Y)
    linearize(objective)
    model.train()
    with pytest.raises(NondeterministicError, match="1 in train mode"):
        linearize(objective)


def test_explicit_jacobians_go_sample_by_sample_and_are_booked_as_that():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(300, 1).double(), torch.randn(300, 2).double()
    for chunk in (None, 70):
        lin = linearize(js.supervised(model, x, y, chunk=chunk))
        before = lin.ledger.pulls
        found = lin.jacobian()
        assert 2 <= lin.ledger.pulls - before <= 3.5
        v = torch.randn_like(lin.theta)
        assert float((found @ v - lin.jvp(v).reshape(-1)).norm()) < 1e-12 * float(lin.jvp(v).norm())


def test_explicit_jacobians_where_samples_interact_are_booked_as_backward_passes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(7, 3).double(), torch.randn(7, 1).double()
    lin = linearize(js.supervised(model, x, y))
    before = lin.ledger.pulls
    found, v = lin.jacobian(), torch.randn_like(lin.theta)
    assert lin.ledger.pulls - before == 7
    assert float((found @ v - lin.jvp(v).reshape(-1)).norm()) < 1e-10


def test_twenty_thousand_points_of_a_small_network_are_no_trouble():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    x = torch.linspace(-1, 1, 20_000).double()[:, None]
    objective = js.supervised(model, x, torch.sinc(10 * x))
    result = js.jump(objective, basis="dense")
    assert result.accepted
    assert result.gradient_evaluations < 12


def test_torchs_own_attention_has_a_forward_mode_here():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    x, y = torch.randn(3, 4, 8).double(), torch.randn(3, 4, 8).double()
    lin = linearize(js.supervised(model, x, y))
    v, w = torch.randn_like(lin.theta), torch.randn_like(lin.u)
    assert float((lin.jvp(v) * w).sum()) == pytest.approx(float(lin.vjp(w) @ v), rel=1e-10)
    assert not lin._reverse_only
