"""A recorded training run on digits, and what its weights are ranked by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.trajectory import Recorder


@dataclass(frozen=True)
class Size:
    samples: int = 200
    width: int = 32
    steps: int = 120
    modes: int = 40
    every: int = 4  # steps between two linearizations
    again: int = 40  # steps of retraining


TOY = Size(20, 4, 4, 5, 2, 2)
RATE, MOMENTUM = 0.1, 0.9
TOLERANCES = (1e-6, 1e-1)  # of the channel
SCOPES = ("all together", "per layer")
UNITS = ("", "root mean square", "at the start")  # what scores of a layer are divided by, beside SCOPES


class Trained:
    """A network that has been trained, beside its start and the record of the run."""

    def __init__(self, seed: int, size: Size) -> None:
        from sklearn.datasets import load_digits

        found: Any = load_digits()
        torch.manual_seed(seed)
        x, y = torch.tensor(found.data) / 16 - 0.3, torch.tensor(found.target).long()
        order = torch.randperm(len(x))
        self.size, train, test = size, order[: size.samples], order[size.samples :]
        self.x, self.y, self.held = x[train], y[train], (x[test], y[test])
        self.model = nn.Sequential(nn.Linear(64, size.width), nn.Tanh(), nn.Linear(size.width, 10)).double()
        self.objective = js.supervised(self.model, self.x, self.y, "cross_entropy")
        self.space, self.start = self.objective.space, self.objective.theta()
        optimizer = self.optimizer()
        self.recorder = Recorder(self.objective, optimizer=optimizer, modes=size.modes, every=size.every)
        for _ in range(size.steps):
            self.step(optimizer)
            self.recorder.step()
        self.operators, self.end = self.recorder.operators(), self.objective.theta()
        prunable = {name: torch.full(shape, float(len(shape) > 1)) for name, shape in self.shapes.items()}
        self.weights = self.space.flatten(prunable).bool()  # no biases
        layer = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(self.shapes.items())}
        self.layer = self.space.flatten(layer).long()

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return dict(zip(self.space.names, self.space.shapes, strict=True))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=MOMENTUM)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()
        optimizer.step()

    @cached_property
    def saliency(self) -> Tensor:
        """θ² times the diagonal of the Gauss-Newton matrix at the end (P,): optimal brain damage."""
        self.space.write(self.model, self.end)
        lin, loss = linearize(self.objective), self.objective.loss
        columns = lin.jacobian().T
        bent = torch.stack([loss.hvp(lin.u, row.reshape(lin.u.shape)).reshape(-1) for row in columns])
        return self.end.square() * (columns * bent).sum(1)

    def accuracy(self, theta: Tensor) -> float:
        self.space.write(self.model, theta)
        with torch.no_grad():
            return float((self.model(self.held[0]).argmax(1) == self.held[1]).double().mean())

    def retrained(self, theta: Tensor, kept: Tensor) -> Tensor:
        """The weights after more steps in which those that are not kept stay as they are."""
        self.space.write(self.model, theta)
        optimizer = self.optimizer()
        for _ in range(self.size.again):
            self.step(optimizer)
            self.space.write(self.model, torch.where(kept, self.objective.theta(), theta))
        return self.objective.theta()


def energy(trained: Trained, tolerance: float) -> Tensor:
    """What each weight moved for a unit of each direction of the channel, squares summed (P,): the diagonal of
    moved · movedᵀ restricted to the channel.
    """
    basis = trained.operators.basis
    assert basis is not None
    channel = basis @ trained.operators.channel(tolerance)  # (k, r), in the record's coordinates
    return (channel.T @ trained.recorder.columns.moved[: len(basis)]).square().sum(0)


SCORES = ("random", "magnitude", "movement", "saliency", "channel", "channel, times θ²")


def options(score: str) -> list[tuple[str, str, float]]:
    """Four ways for each score to be used, to choose from: scope, unit, tolerance of the channel."""
    if score.startswith("channel"):
        return [(scope, "", tolerance) for scope in SCOPES for tolerance in TOLERANCES]
    return [(SCOPES[1], "", 0.0), *((SCOPES[0], unit, 0.0) for unit in UNITS)]


def score(trained: Trained, name: str, tolerance: float, seed: int) -> Tensor:
    """What weights are ranked by (P,), in units of a weight: the least are pruned first."""
    if name == "random":
        return torch.rand(trained.space.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if name == "magnitude":
        return trained.end.abs()
    if name == "movement":
        return (trained.end - trained.start).abs()
    if name == "saliency":
        return trained.saliency.sqrt()
    found = energy(trained, tolerance).sqrt()
    return found * trained.end.abs() if name == "channel, times θ²" else found


def kept(trained: Trained, values: Tensor, sparsity: float, scope: str, unit: str) -> Tensor:
    """A mask (P,) of what is left: ``sparsity`` of all weights go; biases stay."""
    values, mask = values.clone(), torch.ones_like(values, dtype=torch.bool)
    layers = [(trained.layer == i) & trained.weights for i in trained.layer[trained.weights].unique()]
    for own in layers if unit else []:
        by = trained.start if unit == "at the start" else values
        values[own] = values[own] / by[own].square().mean().sqrt()
    for own in layers if scope == "per layer" else [trained.weights]:
        places = own.nonzero().squeeze(1)
        mask[places[values[own].argsort()[: round(sparsity * len(places))]]] = False
    return mask
