"""What plain torch does, without jumpstart: gradients by ``backward``, responses by differences, runs by SGD.

With G the Jacobian as ``backward`` gives it (hooks, padding rows and custom functions included) and F the outputs' real
response to moved weights, training moves the weights by −Gᵀg and the outputs by −F Gᵀ g. Mostly F = G. Where stepping
the real module with ``torch.optim.SGD`` at a small rate does not follow even that, there is no linear answer to give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch._functorch.config
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor, nn

from .case import Case, Data, floats

SMALL = 1e-4  # relative movement of the weights in a step of SGD that must be followed to first order


def widen(nest: Any) -> Any:
    """The same nest in float64."""
    if isinstance(nest, Tensor):
        return nest.detach().clone().double() if nest.is_floating_point() else nest.detach().clone()
    if isinstance(nest, Mapping):
        return {key: widen(value) for key, value in nest.items()}
    if isinstance(nest, (tuple, list)):
        return type(nest)(*map(widen, nest)) if hasattr(nest, "_fields") else type(nest)(map(widen, nest))
    return nest


def reals(tensor: Tensor) -> Tensor:
    """Flattened, a complex number as two."""
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.detach().reshape(-1).double()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    named = model.named_parameters() if isinstance(model, nn.Module) else ()
    return {name: p for name, p in named if p.requires_grad}


@torch.no_grad()
def put(model: nn.Module, theta: Tensor) -> nn.Module:
    """The weights (P,), as many reals as there are, into a module."""
    at = 0
    for p in trainable(model).values():
        size = p.numel() * (2 if p.is_complex() else 1)
        piece = theta[at : at + size]
        piece = torch.view_as_complex(piece.reshape(*p.shape, 2)) if p.is_complex() else piece.reshape(p.shape)
        p.data = piece.to(p.dtype).clone()  # also where it was expanded or shared
        at += size
    return model


@dataclass
class Ran:
    """A run of the outputs: u, the queries' outputs, the weights, and the loss."""

    outputs: Tensor
    queries: Tensor | None
    theta: Tensor
    loss: float


class Oracle:
    """Plain torch on a case. ``trouble`` says why no answer is right, None where there is one."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.trouble: str | None = None
        self.differ = False
        try:
            self._look()
        except Exception as error:
            self.trouble = f"plain torch: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def data(self) -> Data:
        data = self.case.data()
        data = data.plain or data
        if not self.case.wide:
            return data
        return Data(widen(data.inputs), widen(data.targets), widen(data.queries))

    def model(self, theta: Tensor | None = None) -> nn.Module:
        """A fresh module with everything it remembers as at the start, at other weights."""
        model = self.case.model()
        model = model.double() if self.case.wide else model
        if isinstance(model, nn.Module):
            model.zero_grad()  # somebody may have left theirs
        return model if theta is None else put(model, theta)

    @cached_property
    def targets(self) -> Any:
        return widen(self.data().targets)

    def u(self, theta: Tensor | None = None, queries: bool = False) -> Tensor:
        data = self.data()
        with torch.no_grad():
            u = self.case.apply(self.model(theta), data.queries if queries else data.inputs)
        return u.detach()

    def _look(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.u0 = self.u()
            torch.manual_seed(2)
            again = self.u()
        model = self.model()
        self.theta = torch.cat([reals(p) for p in trainable(model).values()])
        if not self.u0.is_floating_point() or self.u0.dim() == 0:
            raise TypeError(f"outputs {self.u0.dtype} of {self.u0.dim()} dimensions")
        self.coarse = self.case.coarse or self.u0.dtype
        if not bool(torch.isfinite(self.u0).all()) or self.u0.numel() == 0:
            raise ValueError("outputs are empty or not finite")
        if float((self.u0 - again).norm()) > 1e3 * torch.finfo(self.coarse).eps * float(self.u0.norm()):
            raise ValueError("random")
        self.value0 = float(self.case.value(self.u0.double(), self.targets))
        if not np.isfinite(self.value0):
            raise ValueError("the loss is not finite")
        self.size = self.u0.numel()
        self.back = self._backward(queries=False)
        self.forward = self.back
        if self.case.coarse is None and not self._same_forward():
            self.forward = self._differences(queries=False)
        self.differ = self.forward is not self.back
        if not bool(torch.isfinite(self.kernel).all()):  # LAPACK crashes on some such matrices
            raise ValueError("derivatives are not finite")
        if self.case.coarse is None:
            self._require_sgd()

    def _backward(self, queries: bool) -> Tensor:
        """G (N, P), a ``backward`` a row, as hooks of parameters see it."""
        data = self.data()
        # compiled backward passes are asked once a row
        with torch.enable_grad(), torch._functorch.config.patch(donated_buffer=False):
            model = self.model()
            u = self.case.apply(model, data.queries if queries else data.inputs).reshape(-1)
            rows = []
            for i in range(len(u)):
                for p in model.parameters():
                    p.grad = None
                if u.requires_grad:
                    u[i].backward(retain_graph=True)
                ps = trainable(model).values()
                rows.append(torch.cat([reals(torch.zeros_like(p) if p.grad is None else p.grad) for p in ps]))
        return torch.stack(rows)

    def _along(self, direction: Tensor, h: float, queries: bool = False) -> Tensor:
        ends = [self.u(self.theta + s * h * direction, queries).double().reshape(-1) for s in (1, -1)]
        return (ends[0] - ends[1]) / (2 * h)

    def _same_forward(self) -> bool:
        for seed in (11, 12):
            v = floats(len(self.theta), seed=seed)
            miss = self._along(v, 1e-6) - self.back @ v
            if not float(miss.norm()) <= 1e-5 * float((self.back @ v).norm()) + 1e-9 * float(self.u0.norm()):
                return False
        return True

    def _differences(self, queries: bool) -> Tensor:
        """F (N, P) by central differences, a weight at a time."""
        return torch.stack([self._along(e, 1e-5, queries) for e in torch.eye(len(self.theta), dtype=torch.float64)], 1)

    def grad(self, u: Tensor) -> Tensor:
        """g(u), flattened."""
        with torch.enable_grad():
            u = u.detach().reshape(self.u0.shape).double().requires_grad_()
            return torch.autograd.grad(self.case.value(u, self.targets), u)[0].reshape(-1)

    def sgd(self, rate: float, count: int = 2) -> tuple[Tensor, Tensor]:
        """Outputs and weights after steps of torch.optim.SGD, whatever the module remembers as at the start."""
        theta, data = self.theta, self.data()
        for _ in range(count):
            model = self.model(theta)
            optimizer = torch.optim.SGD(list(trainable(model).values()), lr=rate)
            with torch.enable_grad():
                self.case.value(self.case.apply(model, data.inputs), data.targets).backward()
            optimizer.step()
            theta = torch.cat([reals(p) for p in trainable(model).values()])
        return self.u(theta).double().reshape(-1), theta

    @cached_property
    def rates(self) -> tuple[float, float]:
        pull, at, rate = self.back.T @ self.grad(self.u0), 0, 0.01 / self.top
        for p in trainable(self.model()).values():
            size = p.numel() * (2 if p.is_complex() else 1)
            far = float(pull[at : at + size].norm())
            rate = min(rate, SMALL * (0.1 + float(self.theta[at : at + size].norm())) / max(far, 1e-12))
            at += size
        return rate, rate / 8

    def _require_sgd(self) -> None:
        """Raise unless small steps of SGD are followed, the better the smaller."""
        misses = []
        for rate in self.rates:
            real, at = self.sgd(rate)
            run = self.steps(2, rate)
            moved = max(float((real - self.u0.double().reshape(-1)).norm()), 1e-10 * float(self.u0.norm()), 1e-14)
            misses.append(float((run.outputs.reshape(-1) - real).norm()) / moved)
            way = max(float((at - self.theta).norm()), 1e-10 * float(self.theta.norm()))
            misses[-1] = max(misses[-1], float((run.theta - at).norm()) / way)
        if not (misses[1] <= 3e-5 or (misses[1] <= 0.05 and misses[1] <= 0.4 * misses[0])):
            raise ValueError(f"steps of SGD are followed by no linear map ({misses[0]:.1e}, {misses[1]:.1e})")

    # -- the linearized run ------------------------------------------------------------------------------------

    @cached_property
    def kernel(self) -> Tensor:
        found = self.forward @ self.back.T
        if not bool(torch.isfinite(found).all()):  # LAPACK ends the process on these
            raise ValueError("derivatives are not finite")
        return found

    @cached_property
    def top(self) -> float:
        """The fastest rate 1/t of the run."""
        if self.beta is not None:
            return max(abs(self.beta) * float(torch.linalg.eigvals(self.kernel).abs().max()), 1e-6)
        h = 1e-4
        rows = [
            (self.grad(self.u0.double().reshape(-1) + h * e) - self.grad(self.u0)) / h for e in torch.eye(self.size)
        ]
        return max(float(torch.linalg.eigvals(self.kernel @ torch.stack(rows)).abs().max()), 1e-6)

    def _ran(self, z: Tensor) -> Ran:
        """Where ∫g = z leads."""
        u = self.u0.double().reshape(-1) - self.kernel @ z
        queries = None
        if self.data().queries is not None and self._queries is not None:
            base, forward = self._queries
            queries = (base.double().reshape(-1) - forward @ (self.back.T @ z)).reshape(base.shape)
        loss = float(self.case.value(u.reshape(self.u0.shape), self.targets))
        return Ran(u.reshape(self.u0.shape), queries, self.theta - self.back.T @ z, loss)

    @cached_property
    def _queries(self) -> tuple[Tensor, Tensor] | None:
        try:
            base = self.u(queries=True)
            return base, (self._differences(True) if self.differ else self._backward(True))
        except Exception:  # the module cannot be asked there
            return None

    def steps(self, count: int, rate: float) -> Ran:
        z = torch.zeros(self.size, dtype=torch.float64)
        for _ in range(count):
            z = z + rate * self.grad(self.u0.double().reshape(-1) - self.kernel @ z)
        return self._ran(z)

    def at(self, t: float) -> Ran:
        """The flow's integral: an exponential where g is β(u − y), else by scipy."""
        k, u0 = self.kernel, self.u0.double().reshape(-1)
        if self.beta is not None:
            m = torch.zeros(self.size + 1, self.size + 1, dtype=torch.float64)
            m[:-1, :-1], m[:-1, -1] = -self.beta * k, self.grad(u0)
            return self._ran(torch.from_numpy(expm(t * m.numpy())[:-1, -1]))

        def slope(_: float, z: np.ndarray) -> np.ndarray:
            return self.grad(u0 - k @ torch.from_numpy(z)).numpy()

        method = "DOP853" if self.top * t < 50 else "LSODA"
        run = solve_ivp(slope, (0, t), np.zeros(self.size), method, rtol=1e-10, atol=1e-13)
        return self._ran(torch.from_numpy(run.y[:, -1]))

    @cached_property
    def beta(self) -> float | None:
        """β where the gradient is β(u − y), found by asking; else None."""
        u0, found = self.u0.double().reshape(-1), []
        for seed in (21, 22):
            d = floats(self.size, seed=seed)
            change = self.grad(u0 + d) - self.grad(u0)
            found.append(float(change @ d / (d @ d)))
            if not float((change - found[0] * d).norm()) <= 1e-12 * float(self.grad(u0).norm() + change.norm()):
                return None
        return found[0]

    def flow(self, t: float, count: int = 6) -> Tensor:
        """Outputs of the real network after its own gradient flow to t, by Runge–Kutta steps."""

        def slope(theta: Tensor) -> Tensor:
            model, data = self.model(theta), self.data()
            with torch.enable_grad():
                self.case.value(self.case.apply(model, data.inputs), data.targets).backward()
            ps = trainable(model).values()
            return -torch.cat([reals(torch.zeros_like(p) if p.grad is None else p.grad) for p in ps])

        theta, h = self.theta, t / count
        for _ in range(count):
            a = slope(theta)
            b = slope(theta + h / 2 * a)
            c = slope(theta + h / 2 * b)
            theta = theta + h / 6 * (a + 2 * b + 2 * c + slope(theta + h * c))
        return self.u(theta).double()


def close(got: Tensor, want: Tensor, base: Tensor, rtol: float, atol: float, bound: float = 0.0) -> float | None:
    """None where they agree relative to the movement from base, else by what share of it they do not."""
    got, want, base = got.detach().double(), want.double(), base.double()
    if got.shape != want.shape:
        return float("inf")
    miss, moved = float((got - want).norm()), float((want - base).norm())
    if miss <= rtol * moved + atol * max(float(base.norm()), 1e-3) + bound:
        return None
    return miss / max(moved, 1e-30)
