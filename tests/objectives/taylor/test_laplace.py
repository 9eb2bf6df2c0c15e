"""One stream for a sum of second derivatives that a residual knows only together: against nested transforms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, vmap

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.objectives.taylor import jets
from jumpstart.objectives.taylor.jets import Laplace

from ...problems import fill, randn
from .test_taylor import derivatives, inner, other

AXES = Laplace((0, 1))
COMPOSED = {
    "elementwise": (lambda x: torch.tanh(inner(x)), lambda a, b, w: jets.elementwise(jets.TANH, a, w)),
    "product": (lambda x: inner(x) * other(x), jets.product),
    "difference": (lambda x: inner(x) - other(x), lambda a, b, w: jets.summed(a, b, -1.0)),
}


def laplacian(fn, points):
    return derivatives(fn, points, (0, 0)) + derivatives(fn, points, (1, 1))


@pytest.mark.parametrize("name", COMPOSED)
def test_a_sum_of_second_derivatives_composes_like_its_terms(name):
    whole, rule = COMPOSED[name]
    points, wanted = 0.5 * randn(0, 5, 2), jets.closed([AXES])
    assert wanted == [(), (0,), (1,), AXES]
    a, b = (
        {i: laplacian(f, points) if i == AXES else derivatives(f, points, i) for i in wanted} for f in (inner, other)
    )
    torch.testing.assert_close(rule(a, b, wanted)[AXES], laplacian(whole, points), rtol=1e-10, atol=1e-10)


def test_what_is_missing_is_zero():
    points = randn(1, 4, 2)
    linear = {(): points}  # no derivatives at all
    assert AXES not in jets.elementwise(jets.TANH, linear, jets.closed([AXES]))
    assert AXES not in jets.product(linear, linear, jets.closed([AXES]))


def net(inputs=3, outputs=1, seed=0):
    return fill(nn.Sequential(nn.Linear(inputs, 7), nn.Tanh(), nn.Linear(7, 6), nn.SiLU(), nn.Linear(6, outputs)), seed)


def second(net, z, k=0):
    return hessian(lambda z: net(z)[k])(z).diagonal()


def poisson(net, z):
    return second(net, z).sum() - z[0]


def heat(net, z):
    return grad(lambda z: net(z)[0])(z)[2] - 0.3 * second(net, z)[:2].sum() + net(z)[0] ** 2


def squared(net, z):
    return second(net, z)[:2].sum() ** 2 + second(net, z)[2]


def unlike(net, z):
    return second(net, z) @ torch.tensor([1.0, 1.0 + 1e-6, 2.0], dtype=torch.float64)


def by_place(net, z):
    """Alike at some points alone."""
    d = second(net, z)
    return d[0] + torch.where(z[0] > 0, 1.0, 2.0) * d[1]


def mixed(net, z):
    h = hessian(lambda z: net(z)[0])(z)
    return h.trace() + h[0, 1] * h[0, 0]


def flow(net, z):
    return torch.stack([second(net, z, k).sum() * net(z)[1 - k] for k in range(2)])


CASES = {
    "Poisson": (poisson, net(), (Laplace((0, 1, 2)),)), "heat": (heat, net(), ((), (2,), Laplace((0, 1)))),
    "of two axes": (squared, net(), ((2, 2), Laplace((0, 1)))),
    "unlike": (unlike, net(), ((0, 0), (1, 1), (2, 2))), "by place": (by_place, net(), ((0, 0), (1, 1))),
    "with a mixed derivative": (mixed, net(), ((0, 0), (0, 1), Laplace((1, 2)))),
    "two outputs": (flow, net(outputs=2), ((), Laplace((0, 1, 2)))),
    "behind waves": (
        poisson, nn.Sequential(js.features.Periodic(3, {0: 1.7}).double(), net(4)), (Laplace((0, 1, 2)),)
    ),
    "held to zero": (
        poisson, js.features.Constrained(net(), lambda x, u: x[..., :1] * (1 - x[..., 1:2]) * u),
        (Laplace((0, 1, 2)),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_residuals_and_jacobians_are_those_of_nested_transforms(name):
    fn, model, streams = CASES[name]
    points = randn(4, 20, 3)
    objective = js.residual(model, js.Term(fn, points))
    lin = linearize(objective)
    part = objective.parts[0]
    assert part.fallback is None
    assert part.local.places[0].wanted == streams

    def rows(theta):
        bound = objective.net.bind(theta)
        return vmap(lambda z: fn(bound, z))(points).reshape(-1)

    theta = objective.theta()
    exact = torch.func.jacrev(rows)(theta)
    torch.testing.assert_close(lin.u, rows(theta), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lin.jacobian(), exact, rtol=1e-9, atol=1e-9)
    w = randn(5, len(exact))
    torch.testing.assert_close(lin.vjp(w), exact.T @ w, rtol=1e-9, atol=1e-9)
