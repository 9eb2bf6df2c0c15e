"""Tasks with noise in their targets, and recorded runs on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jumpstart as js
from jumpstart.errors import JumpstartError
from jumpstart.linearization.linearize import linearize
from jumpstart.trajectory import Operators, Recorder

FAITHFUL = 0.05  # error of operators, by their identities, above which nothing is read off from them


@dataclass(frozen=True)
class Task:
    """Samples x (n, d), true targets (n, 1) and noise (n, 1) in them; queries (m, d) and their true answers (m, 1)."""

    x: Tensor
    true: Tensor
    noise: Tensor
    queries: Tensor
    answers: Tensor

    def targets(self, noisy: bool) -> Tensor:
        return self.true + self.noise if noisy else self.true


@dataclass(frozen=True)
class Training:
    """Full-batch SGD: ``share`` of the largest stable rate of plain gradient descent at the start, 2/λ of BK.

    ``decay`` of the weights is SGD's own; ``every``: see the recorder's. A run ends early at a loss of ``until``: what
    moves the weights below is rounding.
    """

    steps: int
    share: float = 0.15
    momentum: float = 0.95
    every: int = 1
    decay: float = 0.0
    until: float = 0.0

    def rate(self, model: nn.Module, task: Task) -> float:
        return self.share * 2 / fastest(model, task)


@dataclass(frozen=True)
class Look:
    """What there is after some steps: operators since the start, training loss, error at the queries."""

    step: int
    operators: Operators
    loss: float
    test: float


def smooth(count: int, queries: int, d: int, noise: float, seed: int) -> Task:
    """Gaussian inputs; a sine along one direction plus a slope along another; Gaussian noise of size ``noise``."""
    draw = torch.Generator().manual_seed(seed)
    x, q = (torch.randn(rows, d, generator=draw, dtype=torch.float64) for rows in (count, queries))
    along, across = nn.functional.normalize(torch.randn(2, d, generator=draw, dtype=torch.float64), dim=1)
    true = lambda z: (torch.sin(1.5 * (z @ along)) + 0.5 * (z @ across))[:, None]  # noqa: E731
    return Task(x, true(x), noise * torch.randn(count, 1, generator=draw, dtype=torch.float64), q, true(q))


def kernel(model: nn.Module, task: Task) -> Tensor:
    """K = J Jᵀ (n, n)."""
    objective = js.supervised(model, task.x, task.true)
    jacobian = linearize(objective, objective.theta()).jacobian()
    return jacobian @ jacobian.T


def fastest(model: nn.Module, task: Task) -> float:
    """The largest eigenvalue of BK."""
    return 2 / len(task.x) * float(torch.linalg.matrix_norm(kernel(model, task), 2))


def recorded(model: nn.Module, task: Task, noisy: bool, of: Training, at: Collection[int]) -> Iterator[Look]:
    """Train with a recorder beside, and look after the steps ``at``, and where the run ends early.

    Raises:
        JumpstartError: the run has diverged.
    """
    y = task.targets(noisy)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=of.rate(model, task), momentum=of.momentum, weight_decay=of.decay)
    recorder = Recorder(js.supervised(model, task.x, y), task.queries, optimizer=optimizer, every=of.every)
    for step in range(1, of.steps + 1):
        optimizer.zero_grad()
        loss = F.mse_loss(model(task.x), y)
        if not math.isfinite(loss.item()):
            raise JumpstartError(f"the run has diverged at step {step}: a smaller share= of the stable rate is needed.")
        loss.backward()
        optimizer.step()
        recorder.step()
        ends = loss.item() <= of.until
        if step in at or ends:
            with torch.no_grad():
                loss = float(F.mse_loss(model(task.x), y))
                test = float(F.mse_loss(model(task.queries), task.answers))
            yield Look(step, recorder.operators(), loss, test)
        if ends:
            return


def last(make: Callable[[], nn.Module], task: Task, noisy: bool, of: Training) -> Look:
    """The end of a run; recorded again at every step where the operators are not faithful to it."""
    (look,) = recorded(make(), task, noisy, of, {of.steps})
    if not look.operators.error <= FAITHFUL and of.every > 1:
        (look,) = recorded(make(), task, noisy, replace(of, every=1), {of.steps})
    return look
