"""Tensors follow the data's device: torch's default one is meta here, which holds no numbers, and nothing changes."""

from __future__ import annotations

import math

import pytest
import torch

import jumpstart as js

from .problems import classes, flat, mlp, randn


def pinn():
    model = mlp(0, d=1, out=1)
    points, ends = torch.rand(20, 1, generator=torch.Generator().manual_seed(0)).double(), randn(1, 2, 1)
    u2 = lambda net, x: torch.func.hessian(lambda z: net(z)[0])(x)[0, 0] + torch.sin(math.pi * x[0])  # noqa: E731
    return js.residual(model, js.Term(u2, points, weight=1 / 20), js.Term(lambda net, x: net(x), ends))


def batch(loss="mse"):
    y = classes(2, 15, 3) if loss == "cross_entropy" else randn(2, 15, 3)
    return js.supervised(mlp(0, out=3), randn(1, 15, 4), y, loss=loss)


def moved(make, act):
    return make, lambda objective: (act(objective), flat(objective.model).clone())[1]


def answered(make, act, **options):
    return make, lambda objective: act(js.solve(objective, **options))


QUERY, TIMES, ZERO = randn(5, 4, 4), torch.tensor([0.1, 1.0]), torch.zeros(1).double()
ANSWERS = {
    "outputs": lambda s: torch.stack([s.outputs(1.0), s.outputs(math.inf), s.outputs(js.steps(10, lr=0.1))]),
    "predictions": lambda s: s.predict(QUERY, 2.0),
    "order two": lambda s: s.outputs(0.1, order=2),
    "what if": lambda s: s.without([1, 3]).outputs(1.0),
    "risk": lambda s: s.risk(TIMES),
    "numbers": lambda s: ZERO + s.best_horizon() + s.error_bound(1.0) + s.check(1.0).trust_horizon,
}
CASES = {
    "march": moved(pinn, js.jump),
    "horizon": moved(pinn, lambda o: js.jump(o, search="horizon")),
    "scale": moved(pinn, lambda o: js.jump(o, search="scale")),
    "krylov jump": moved(pinn, lambda o: js.jump(o, basis="krylov")),
    "gathered": moved(pinn, lambda o: js.jump(o, basis="matrix-free")),
    "conjugate gradients": moved(pinn, lambda o: js.jump(o, basis="matrix-free", depth=5)),
    "fit with restarts": moved(pinn, lambda o: js.fit(o, jumps=25, patience=3)),
    "gated": moved(batch, lambda o: js.jump(o, gate="hard")),
    **{name: answered(batch, act) for name, act in ANSWERS.items()},
    "classes": answered(lambda: batch("cross_entropy"), ANSWERS["outputs"]),
    "krylov": answered(batch, lambda s: s.outputs(0.5) + s.error_bound(0.5), basis="krylov", depth=6),
    "tuned": answered(batch, lambda s: s.tuned().solution.outputs(1.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_default_device_does_not_matter(name):
    make, act = CASES[name]
    expected, objective = act(make()), make()
    with torch.device("meta"):
        found = act(objective)
    assert torch.equal(found, expected)
