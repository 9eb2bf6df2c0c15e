"""Derivatives that are not those of the function or of training are refused by name; what is odd but right is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import jumpstart as js
from jumpstart.errors import InconsistentError, InputError, JumpstartError, NondeterministicError, NonFiniteError
from jumpstart.linearization.linearize import linearize

from ..problems import fill, mlp, randn

X, Y = randn(0, 6, 3), randn(1, 6, 2)
WORDS = torch.arange(24).reshape(6, 4) ** 2 % 7


class Table(nn.Module):
    def __init__(self, tied=False, **options):
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4, **options), nn.Linear(4, 2)
        self.tied = tied

    def forward(self, x):
        h = torch.tanh(self.table(x).mean(1))
        return (h @ self.table.weight.T)[:, :2] if self.tied else self.out(h)


class Reverse(torch.autograd.Function):
    """The identity, with −1 times its gradient."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return -g


class Does(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(3, 5), nn.Linear(5, 2), act

    def forward(self, x):
        return self.b(self.act(self, self.a(x)))


class Elsewhere(nn.Module):
    """Reads a weight past its own attributes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)
        weight = self.a.weight
        self.use = lambda x: x @ weight.T

    def forward(self, x):
        return self.b(torch.tanh(self.use(x) + self.a.bias))


def hooked(change):
    model = Does(lambda self, h: torch.tanh(h))
    model.a.weight.register_hook(change)
    return model


def straight_through(self, h):
    return h + (h.sign() - h).detach()


def detached_norm(self, h):
    return h / h.norm(dim=1, keepdim=True).detach()


# name → (model, inputs, parameters and words that the message names)
REFUSED = {
    "scale_grad_by_freq": (
        lambda: Table(scale_grad_by_freq=True),
        WORDS,
        ["'table.weight'", "scale_grad_by_freq=False"],
    ),
    "a padding row used twice": (lambda: Table(tied=True, padding_idx=0), WORDS, ["'table.weight'", "padding_idx"]),
    "gradient reversal": (lambda: Does(lambda self, h: Reverse.apply(h)), X, ["'a.weight'", "'a.bias'"]),
    "straight through": (
        lambda: Does(straight_through),
        X,
        ["'a.weight'", "straight-through"],
    ),
    "a detached norm": (lambda: Does(detached_norm), X, ["'a.", "detach"]),
    "a closure": (Elsewhere, X, ["'a.weight'", "self.name"]),
    "a hook that halves": (lambda: hooked(lambda g: 0.5 * g), X, ["'a.weight'", "handle.remove()"]),
    "a hook that clips": (lambda: hooked(lambda g: g.clamp(-1e-3, 1e-3)), X, ["'a.weight'", "hook"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    make, x, words = REFUSED[name]
    model = fill(make(), 0)
    with pytest.raises(InconsistentError) as caught:
        js.solve(js.supervised(model, x, Y))
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "'b.bias'" not in str(caught.value)
    assert all(p.grad is None for p in model.parameters())


def cached(self, h):
    if not hasattr(self, "_twice"):
        self._twice = 2 * self.b.weight
    return torch.tanh(h) + (self._twice.sum(0) * h)


def counted(self, h):
    self.calls = getattr(self, "calls", 0) + 1
    return torch.tanh(h) * self.calls


def flow(model, x, y, t):
    """Outputs at flow time t of the mean squared error's linearized run, from plain torch alone."""
    u = model(x)
    params = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for one in u.reshape(-1):
        grads = torch.autograd.grad(one, params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(params, grads, strict=True)]
            )
        )
    j, u = torch.stack(rows), u.detach()
    return y + (torch.linalg.matrix_exp(-2 * t / u.numel() * j @ j.T) @ (u - y).reshape(-1)).reshape(u.shape)


class Behind(nn.Module):
    """A trunk that requires gradients and gets none."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        with torch.no_grad():
            h = torch.tanh(self.trunk(x))
        return self.head(h)


RIGHT = {
    "a layer behind no_grad": Behind,
    "a hook that looks": lambda: hooked(lambda g: None),
    "ReLU": lambda: Does(lambda self, h: F.relu(h)),
    "stores what it saw": lambda: Does(lambda self, h: setattr(self, "seen", h) or torch.tanh(h)),
    "cached at first use": lambda: Does(cached),
    "counts its calls": lambda: Does(counted),
    "an unused layer": lambda: Does(lambda self, h: torch.tanh(h)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_odd_but_right_is_answered(name):
    model = fill(RIGHT[name](), 0)
    if name == "an unused layer":
        model.unused = nn.Linear(3, 3).double()
    objective, before = js.supervised(model, X, Y), dict(model.__dict__)
    found = js.solve(objective).outputs(0.6)
    assert model.__dict__.keys() == before.keys()
    assert all(model.__dict__[name] is value for name, value in before.items())
    assert float((found - flow(model, X, Y, 0.6)).abs().max()) < 1e-9


def test_parametrizations_are_not_taken_from_their_cache():
    model = nn.Sequential(weight_norm(nn.Linear(3, 5)), nn.Tanh(), nn.Linear(5, 2)).double()
    want = flow(model, X, Y, 0.6)
    with parametrize.cached():
        model(X)
        assert float((js.solve(js.supervised(model, X, Y)).outputs(0.6) - want).abs().max()) < 1e-9
        assert parametrize._cache_enabled == 1


@pytest.mark.parametrize("shared", [False, True])
def test_one_module_at_two_places(shared):
    layer = nn.Linear(3, 3)
    model = fill(nn.Sequential(layer, nn.Tanh(), layer if shared else nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), 0)
    if not shared:
        model[2].weight = model[0].weight
    kept = list(model.parameters())
    found = js.solve(js.supervised(model, X, Y)).outputs(0.6)
    assert float((found - flow(model, X, Y, 0.6)).abs().max()) < 1e-9
    assert all(a is b for a, b in zip(model.parameters(), kept, strict=True))


class LinearTable(Table):
    """Linear in the table, so that torch's own steps are an exact oracle."""

    def forward(self, x):
        return self.out(self.table(x).mean(1))


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("basis", ["dense", "krylov"])
def test_a_padding_row_gets_no_gradient_but_decays(decay, basis):
    """Against torch.optim.SGD: outputs are those of the weights, to which the padding row belongs."""
    model = fill(LinearTable(padding_idx=0), 0)
    with torch.no_grad():
        model.table.weight[0] = 3.0
    objective = js.supervised(model, WORDS, Y, params="table")
    assert bool((WORDS == 0).any())
    if decay and basis == "krylov":
        with pytest.raises(InputError, match=r"padding row.*basis='dense'"):
            js.solve(objective, basis=basis, weight_decay=decay)
        return
    solution = js.solve(objective, basis=basis, weight_decay=decay, **({"depth": 12} if basis == "krylov" else {}))
    at = js.steps(30, lr=0.1)
    got, weights = solution.outputs(at), solution.parameters(at)["table.weight"]
    query = solution.predict(WORDS[:3].flip(0), at)
    optimizer = torch.optim.SGD([model.table.weight], lr=0.1, weight_decay=decay)
    for _ in range(30):
        optimizer.zero_grad()
        F.mse_loss(model(WORDS), Y).backward()
        optimizer.step()
    assert float((weights - model.table.weight).abs().max()) < 1e-9
    assert float((got - model(WORDS)).abs().max()) < 1e-9
    assert float((query - model(WORDS[:3].flip(0))).abs().max()) < 1e-9


def test_decay_at_several_rates_with_a_padding_row_is_refused():
    model = fill(LinearTable(padding_idx=0), 0)
    objective = js.supervised(model, WORDS, Y)
    groups = [{"params": [model.table.weight], "weight_decay": 0.1}, {"params": list(model.out.parameters())}]
    with pytest.raises(InputError, match="one rate"):
        js.solve(objective, basis="dense", metric=torch.optim.SGD(groups, lr=0.1))


def test_the_check_is_counted_and_made_once():
    objective = js.supervised(mlp(0, 3, 8, 2), X, Y)
    first, second = linearize(objective).ledger, linearize(objective).ledger
    assert second.gradient_evaluations == pytest.approx(1 / 3)
    assert 2 < first.gradient_evaluations - second.gradient_evaluations < 4
    assert (first.pulls, first.pushes, second.gradients) == (0, 0, 0)


class Noisy(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.a, self.drop, self.noise = nn.Linear(3, 2), nn.Dropout(0.5), noise

    def forward(self, x):
        return self.a(self.drop(x)) + self.noise(x)


GENERATOR = np.random.default_rng(0)
BLAMED = {
    "torch": (lambda x: 1e-2 * torch.randn(2), ["aten.randn", "Draw them before"]),
    "Python": (lambda x: __import__("random").random(), ["(it draws", "random"]),
    "NumPy": (lambda x: GENERATOR.standard_normal(), ["NumPy", "no random numbers of torch"]),
}


@pytest.mark.parametrize("name", BLAMED)
def test_noise_is_blamed_on_what_makes_it(name):
    """Dropout is off by training=False, while the loop's model is in train mode."""
    noise, words = BLAMED[name]
    model = fill(Noisy(noise), 0).train()
    with pytest.raises(NondeterministicError) as caught:
        js.solve(js.supervised(model, X, Y, training=False))
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "drop" not in str(caught.value)
    assert "training=False" not in str(caught.value)


def test_dropout_that_is_switched_on_by_the_objective_is_blamed():
    model = fill(Noisy(lambda x: 0.0), 0).eval()
    with pytest.raises(NondeterministicError, match="drop in train mode"):
        js.solve(js.supervised(model, X, Y, training=True))


class Rounded(nn.Module):
    """bfloat16 inside, float32 outside, and another summation order at every call."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.calls = nn.Linear(3, 64), nn.Linear(64, 2), [0]

    def forward(self, x):
        self.calls[0] += 1
        with torch.autocast("cpu", torch.bfloat16):
            h = torch.tanh(self.a(x))
            order = torch.arange(64).roll(self.calls[0])
            return (self.b.weight[:, order].bfloat16() @ h[:, order].bfloat16().T).T.float()


def test_the_tolerance_goes_by_the_arithmetic_inside():
    model = Rounded()
    lin = linearize(js.supervised(model, X.float(), Y.float()))
    assert lin.u.dtype == torch.float32
    assert lin.arithmetic == torch.bfloat16


def test_a_kink_is_no_fault():
    """ReLU of exactly 0, for a sample of zeros and biases of zero: any slope between the two sides is right."""
    model = fill(nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2)), 0)
    nn.init.zeros_(model[0].bias)
    x = X.clone()
    x[:4] = 0
    assert float((js.solve(js.supervised(model, x, Y)).outputs(0.6) - flow(model, x, Y, 0.6)).abs().max()) < 1e-9


def test_derivatives_that_are_not_finite_are_said_to_be_that():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), 0)
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    with pytest.raises(NonFiniteError, match="derivatives"):
        js.solve(js.Objective(model, lambda net: net(X).square().sqrt(), js.losses.mse(Y)))


def test_other_points_are_not_asked_about_again():
    model = mlp(0, 2, 6, 1)
    objective = js.residual(model, js.Term(lambda net, z: net(z).sin(), randn(3, 7, 2)))
    linearize(objective)
    assert linearize(objective.resampled([randn(4, 7, 2)])).ledger.gradients == 0


def test_an_objective_of_another_kind_is_checked_too():
    """Residuals and functions of the network go the same way."""
    model = fill(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)), 0)
    points = randn(3, 7, 2)
    for terms in (
        lambda net: net(points) + net(points).detach(),
        js.Term(lambda net, z: net(z) * (1 + net(z).detach()), points),
    ):
        with pytest.raises(InconsistentError, match="detach"):
            js.solve(js.residual(model, terms))
    with pytest.raises(JumpstartError):
        js.jump(js.Objective(model, lambda net: net(points) + net(points).detach(), js.losses.mse(randn(4, 7, 1))))
