"""Shared problems and independent oracles: everything here is plain torch, NumPy and SciPy in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from jumpstart.linearization.metric import Metric
from jumpstart.linearization.problem import LinearizedProblem
from jumpstart.losses import mse


@dataclass
class Problem:
    """A model with training inputs, real targets of the outputs' shape, and query points."""

    model: nn.Module
    x: Tensor
    y: Tensor
    query: Tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + seed)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def fill(model: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Fresh weights, scaled by fan-in, from a generator of their own: the global one is left alone."""
    g = generator(seed)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel() if p.dim() > 1 else 4
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * gain / math.sqrt(fan))
    return model


def mlp(seed: int, d: int = 4, width: int = 12, out: int = 3, act: type[nn.Module] = nn.Tanh) -> nn.Module:
    return fill(nn.Sequential(nn.Linear(d, width), act(), nn.Linear(width, width), act(), nn.Linear(width, out)), seed)


def cnn(seed: int, out: int = 2) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 3, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(12, out),
    )  # fmt: skip
    return fill(net, seed)


def _mlp(seed: int) -> Problem:
    return Problem(mlp(seed), randn(seed, 8, 4), randn(seed + 50, 8, 3), randn(seed + 99, 5, 4))


def _cnn(seed: int) -> Problem:
    return Problem(cnn(seed), randn(seed, 7, 1, 6, 6), randn(seed + 50, 7, 2), randn(seed + 99, 4, 1, 6, 6))


def _vector(seed: int) -> Problem:
    model = nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, 1), nn.Flatten(0))
    return Problem(fill(model, seed), randn(seed, 9, 3), randn(seed + 50, 9), randn(seed + 99, 4, 3))


def _duplicates(seed: int) -> Problem:
    p = _mlp(seed)
    return Problem(p.model, torch.cat([p.x, p.x[:3], p.x[:1]]), randn(seed + 51, 12, 3), p.query)


def _overdetermined(seed: int) -> Problem:
    model = fill(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), seed)  # P = 13 < N = 30
    return Problem(model, randn(seed, 30, 2), randn(seed + 50, 30, 1), randn(seed + 99, 6, 2))


def _zero_columns(seed: int) -> Problem:
    p = _mlp(seed)
    x = p.x.clone()
    x[:, 1:3] = 0  # two inputs that are never on: their weights' columns of J are exactly zero
    return Problem(p.model, x, p.y, x.flip(0)[:4] + 0.1 * p.query[:4] * (x.flip(0)[:4] != 0))


def _dead_relu(seed: int) -> Problem:
    model = fill(nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2, bias=False)), seed)
    with torch.no_grad():
        model[0].bias.fill_(-0.2)
    x = randn(seed, 8, 4)
    x[[0, 5]] = 0  # no unit fires there: u = 0 and the kernel's rows are exactly zero
    return Problem(model, x, randn(seed + 50, 8, 2), torch.cat([randn(seed + 99, 3, 4), x[:1]]))


def _one_neuron(seed: int) -> Problem:
    return Problem(fill(nn.Linear(1, 1), seed), randn(seed, 5, 1), randn(seed + 50, 5, 1), randn(seed + 99, 3, 1))


def _one_sample(seed: int) -> Problem:
    p = _mlp(seed)
    return Problem(p.model, p.x[:1], p.y[:1], p.query)


PROBLEMS = {
    "mlp": _mlp,
    "cnn": _cnn,
    "outputs (n,)": _vector,
    "duplicated samples": _duplicates,
    "P < N": _overdetermined,
    "zero columns": _zero_columns,
    "dead ReLU": _dead_relu,
    "one neuron": _one_neuron,
    "one sample": _one_sample,
}


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def vector(table: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.reshape(-1) for v in table.values()])


def at(model: nn.Module, theta: Tensor, x: Tensor) -> Tensor:
    """Outputs of the model at flat weights θ."""
    sizes = [p.numel() for p in model.parameters()]
    pieces = zip(model.named_parameters(), theta.split(sizes), strict=True)
    return functional_call(model, {name: piece.view(p.shape) for (name, p), piece in pieces}, (x,))


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(N, P) by reverse-mode autograd."""
    return jacrev(lambda theta: at(model, theta, x).reshape(-1))(flat(model)).detach()


class Frozen:
    """The linearized least-squares run, u̇ = −βK(u − y), by scipy's expm and NumPy's SVD of the Jacobian."""

    def __init__(self, p: Problem, d: Tensor | None = None) -> None:
        root = torch.ones(1, dtype=torch.float64) if d is None else d.sqrt()
        self.j = (jacobian(p.model, p.x) * root).numpy()
        self.jq = (jacobian(p.model, p.query) * root).numpy()
        with torch.no_grad():
            self.u, self.uq = p.model(p.x).numpy(), p.model(p.query).numpy()
        self.r = self.u.reshape(-1) - p.y.numpy().reshape(-1)
        self.y, self.beta, self.root = p.y.numpy(), 2 / self.r.size, root.numpy()
        self.left, self.s, self.right = np.linalg.svd(self.j, full_matrices=False)
        self.rank = int((self.s > 1e-7 * self.s.max(initial=0)).sum())
        if self.rank < self.s.size:  # an exact deficiency, not a steep spectrum
            assert self.s[self.rank] < 1e-13 * self.s[0]
        self.top = self.beta * float(self.s[0]) ** 2

    def state(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Train outputs and query outputs at t."""
        n, m = self.r.size, self.uq.size
        if t * self.top <= 1e4:
            a = np.zeros((n + m, n + m))
            a[:n, :n] = -self.beta * self.j @ self.j.T
            a[n:, :n] = -self.beta * self.jq @ self.j.T
            end = scipy.linalg.expm(a * t) @ np.concatenate([self.r, np.zeros(m)])
            return self.y + end[:n].reshape(self.u.shape), self.uq + end[n:].reshape(self.uq.shape)
        delta = self.displacement(t)
        return self.u + (self.j @ delta).reshape(self.u.shape), self.uq + (self.jq @ delta).reshape(self.uq.shape)

    def displacement(self, t: float) -> np.ndarray:
        """The weights' displacement in scaled coordinates, −V φ(σ, t) σ Uᵀ r; the pseudo-inverse at t = ∞."""
        k = self.rank
        s = self.s[:k]
        fraction = np.ones(k) if math.isinf(t) else -np.expm1(-self.beta * s**2 * t)
        return -self.right[:k].T @ (fraction / s * (self.left[:, :k].T @ self.r))


def problem_of(lin, metric: Metric | None = None, loss=None) -> LinearizedProblem:
    """A linearization with a metric; a loss of zero targets where none matters."""
    return LinearizedProblem(lin, mse(torch.zeros_like(lin.u)) if loss is None else loss, metric or Metric())


def relative(a, b) -> float:
    """‖a − b‖ / ‖b‖."""
    a, b = (v.detach().numpy() if isinstance(v, Tensor) else np.asarray(v) for v in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))


def integrate(f, y0, times, rtol: float = 1e-12, atol: float = 1e-14, method: str = "DOP853") -> np.ndarray:
    """(T, …) states of ẏ = f(y) at sorted times, by scipy with tight tolerance."""
    y0 = np.asarray(y0, dtype=float)
    run = solve_ivp(lambda _, y: f(y), (0, times[-1]), y0.reshape(-1), method, t_eval=times, rtol=rtol, atol=atol)
    assert run.success, run.message
    return run.y.T.reshape(len(times), *y0.shape)


def slope(x, y) -> float:
    """The exponent of a power law, by least squares in logarithms."""
    return float(np.polyfit(np.log(np.asarray(x)), np.log(np.asarray(y)), 1)[0])


def classes(seed: int, n: int, c: int) -> Tensor:
    return torch.randint(0, c, (n,), generator=generator(seed))
