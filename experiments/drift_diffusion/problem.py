"""Noisy regression by a small network: its start, full-batch and minibatch runs, many of these at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

import jumpstart as js
from jumpstart.linalg.lanczos import lanczos
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.operators import Jacobian, Kernel


@dataclass(frozen=True)
class Size:
    """``samples``, ``width`` of two tanh layers, ``steps`` at the base rate, ``runs`` for each batch size."""

    samples: int = 48
    width: int = 24
    steps: int = 640
    runs: int = 128
    batches: tuple[int, ...] = (2, 4, 8, 16, 32)
    slower: tuple[int, ...] = (1, 2, 4)  # rates are divided by, and steps multiplied with


TOY = Size(8, 5, 16, 8, (2, 4), (1, 2))
DIMENSION, NOISE = 4, 0.5
SHARE = 0.025  # of the critical rate 2/λmax(BK) at the start: along seeds 100 and 101 rate·λmax stays below 0.4


class Problem:
    """y = a smooth function of x plus noise; the same start for all runs."""

    def __init__(self, seed: int, size: Size) -> None:
        torch.manual_seed(seed)
        n, w = size.samples, size.width
        self.x = torch.randn(n, DIMENSION, dtype=torch.float64)
        clean = torch.sin(1.5 * self.x[:, :1]) + self.x[:, 1:2] * self.x[:, 2:3]
        self.y = clean + NOISE * torch.randn(n, 1, dtype=torch.float64)
        layers = nn.Linear(DIMENSION, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh(), nn.Linear(w, 1)
        self.model = nn.Sequential(*layers).double()
        self.objective = js.supervised(self.model, self.x, self.y, "mse")
        self.start = self.objective.theta()
        lin = linearize(self.objective)
        found = lanczos(Kernel(Jacobian(lin)).apply, torch.randn(n, dtype=torch.float64), min(n, 12))
        self.curvature = 2 / n
        self.rate = SHARE * 2 / (self.curvature * float(torch.linalg.eigvalsh(found.matrix())[-1]))

    def rewind(self) -> None:
        self.objective.space.write(self.model, self.start)

    def descend(self, rate: float) -> Tensor:
        """One full-batch step; the gradient was that of before it."""
        theta = self.objective.theta()
        gradient = self.objective.gradient(theta)[1]
        self.objective.space.write(self.model, theta - rate * gradient)
        return gradient

    def minibatches(self, batch: int, rate: float, times: list[int], runs: int, seed: int) -> Tensor:
        """Outputs (times, runs, n) of independent runs, each step on a batch drawn with replacement."""
        generator = torch.Generator().manual_seed(seed)
        space, model = self.objective.space, self.model
        theta = {k: v.expand(runs, *v.shape).clone() for k, v in space.unflatten(self.start).items()}

        def outputs(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(model, weights, (x,))

        slope = vmap(grad(lambda weights, x, y: F.mse_loss(outputs(weights, x), y)))
        found = []
        for step in range(1, max(times) + 1):
            rows = torch.randint(len(self.x), (runs, batch), generator=generator)
            slopes = slope(theta, self.x[rows], self.y[rows])
            theta = {k: v - rate * slopes[k] for k, v in theta.items()}
            if step in times:
                found.append(vmap(outputs, (0, None))(theta, self.x).squeeze(-1))
        return torch.stack(found)

    def tangents(self, batch: int, times: list[int], runs: int, seed: int) -> Tensor:
        """Deviations (times, runs, n) of minibatch runs from the full-batch run, to first order in the weights.

        Unlike recorded operators these know that a deviation changes the kernel: δ ← δ − rate (∇²Φ δ + noise).
        """
        generator = torch.Generator().manual_seed(seed)
        space, found = self.objective.space, []

        def outputs(theta: Tensor, x: Tensor) -> Tensor:
            return functional_call(self.model, space.unflatten(theta), (x,))

        slope = grad(lambda theta, x, y: F.mse_loss(outputs(theta, x), y))
        theta, deviations = self.start, self.start.new_zeros(runs, space.size)
        for step in range(1, max(times) + 1):
            rows = torch.randint(len(self.x), (runs, batch), generator=generator)
            gradient = slope(theta, self.x, self.y)
            noise = vmap(slope, (None, 0, 0))(theta, self.x[rows], self.y[rows]) - gradient
            along = vmap(lambda v, at=theta: grad(lambda t: slope(t, self.x, self.y) @ v)(at))
            deviations = deviations - self.rate * (along(deviations) + noise)
            theta = theta - self.rate * gradient
            if step in times:
                push = vmap(lambda v, at=theta: jvp(lambda t: outputs(t, self.x), (at,), (v,))[1])
                found.append(push(deviations).squeeze(-1))
        return torch.stack(found)
