"""Complex weights are two real numbers each, as torch's optimizers take them: flow, metric, decay, and the jump."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import metric_of

from ..problems import randn

X, Y = randn(0, 3, 8, 1), randn(1, 3, 8, 1)


class Spectral(nn.Module):
    """A layer of a Fourier neural operator between two linear ones."""

    def __init__(self, bent=True):
        super().__init__()
        torch.manual_seed(0)
        self.lift, self.drop = nn.Linear(1, 3).double(), nn.Linear(3, 1).double()
        self.spectrum, self.bent = nn.Parameter(0.3 * torch.randn(3, 3, 2, dtype=torch.cdouble)), bent

    def forward(self, x):
        h = self.lift(x).transpose(1, 2)
        modes = torch.fft.rfft(h)
        mixed = torch.einsum("bik,iok->bok", modes[..., :2], self.spectrum)
        mixed = torch.cat([mixed, torch.zeros_like(modes[..., 2:])], -1)
        h = torch.fft.irfft(mixed, n=8) + h
        return self.drop((torch.tanh(h) if self.bent else h).transpose(1, 2))


def reals(p):
    return (torch.view_as_real(p) if p.is_complex() else p).reshape(-1)


def jacobian(model):
    params = list(model.parameters())
    rows = [torch.autograd.grad(u, params, retain_graph=True) for u in model(X).reshape(-1)]
    return torch.stack([torch.cat([reals(g) for g in row]) for row in rows])


@pytest.mark.parametrize("basis", ["dense", "krylov"])
def test_every_real_number_moves(basis):
    model = Spectral()
    objective = js.supervised(model, X, Y)
    u, j = model(X).detach(), jacobian(model)
    assert objective.space.size == j.shape[1] == 6 + 4 + 36
    lin = linearize(objective)
    v, w = randn(3, j.shape[1]), randn(4, *u.shape)
    assert float((lin.jvp(v).reshape(-1) - j @ v).abs().max()) < 1e-13
    assert float((lin.vjp(w) - j.T @ w.reshape(-1)).abs().max()) < 1e-13
    assert float((lin.jacobian() - j).abs().max()) < 1e-13
    want = Y + (torch.linalg.matrix_exp(-2 * 5.0 / u.numel() * j @ j.T) @ (u - Y).reshape(-1)).reshape(u.shape)
    solution = js.solve(objective, basis=basis, **({"depth": 24} if basis == "krylov" else {}))
    assert float((solution.outputs(5.0) - want).abs().max()) < 1e-9
    assert float((solution.predict(X[:2], 5.0) - want[:2]).abs().max()) < 1e-9
    weights = solution.parameters(0.1)
    assert weights["spectrum"].dtype == torch.cdouble
    assert weights["spectrum"].shape == model.spectrum.shape


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_against_steps_of_sgd(decay):
    """The layer alone moves, and the outputs are linear in it: torch's own steps are an exact oracle."""
    model = Spectral(bent=False)
    solution = js.solve(js.supervised(model, X, Y, params="spectrum"), basis="dense", weight_decay=decay)
    got, weights = solution.outputs(js.steps(20, lr=0.1)), solution.parameters(js.steps(20, lr=0.1))["spectrum"]
    optimizer = torch.optim.SGD([model.spectrum], lr=0.1, weight_decay=decay)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
    assert float((weights - model.spectrum.detach()).abs().max()) < 1e-10
    assert float((got - model(X).detach()).abs().max()) < 1e-10


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_metric_of_an_optimizer(kind):
    """D is such that the last step without momentum was −rate·D∘gradient, real number by real number."""
    model = Spectral()
    optimizer = kind(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
    objective = js.supervised(model, X, Y)
    root = metric_of(optimizer, objective).root
    d = objective.space.pieces(root.square())["spectrum"]
    key = "square_avg" if kind is torch.optim.RMSprop else "exp_avg_sq"
    second = torch.view_as_real(optimizer.state[model.spectrum][key])
    correction = 1.0 if kind is torch.optim.RMSprop else 1 - 0.999**3
    want = 1 / ((second / correction).sqrt() + 1e-8)
    full = torch.cat([1 / ((reals(optimizer.state[p][key]) / correction).sqrt() + 1e-8) for p in model.parameters()])
    assert torch.allclose(d, want.clamp(max=1e3 * float(full.median())), rtol=1e-10)
    assert js.jump(objective, metric=optimizer, weight_decay=0.01).accepted


def test_jumps_and_the_wrapped_loop():
    model = Spectral()
    objective = js.supervised(model, X, Y)
    before = objective.value(objective.theta())
    result = js.jump(objective)
    assert result.accepted
    assert float(F.mse_loss(model(X), Y)) == pytest.approx(result.actual, rel=1e-10)
    assert result.actual < before
    optimizer = js.JumpOptimizer(torch.optim.Adam(model.parameters(), lr=1e-3), objective, at=4, search=True)
    for _ in range(6):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
    assert all(bool(torch.isfinite(reals(p.detach())).all()) for p in model.parameters())
