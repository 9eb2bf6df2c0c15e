"""Three small problems, and plain training of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 32
KINDS = {"full batch": (None, 0.0), "batches of 32": (BATCH, 0.0), "momentum 0.9": (None, 0.9)}  # batch, momentum
CHANGES = {"inputs times 3": {"scale": 3.0}, "twice as wide": {"wider": 2}}
PROBLEMS = ("diabetes", "digits", "digit images")
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}
EMPTY = 1e9  # stands for the loss of what diverged, so that medians and ratios exist
Rate = float | list[float]  # of all parameters, or of each layer


@dataclass
class Problem:
    """A network at its start, samples to train on and others."""

    model: nn.Module
    loss: str
    x: Tensor
    y: Tensor
    held: tuple[Tensor, Tensor]

    def value(self) -> float:
        with torch.no_grad():
            found = float(LOSSES[self.loss](self.model(self.held[0]), self.held[1]))
        return found if math.isfinite(found) else EMPTY


def problem(name: str, seed: int, quick: bool = False, scale: float = 1.0, wider: int = 1) -> Problem:
    from sklearn.datasets import load_diabetes, load_digits

    torch.manual_seed(seed)
    found: Any = load_diabetes() if name == "diabetes" else load_digits()
    x, y = torch.tensor(found.data), torch.tensor(found.target)
    order, count = torch.randperm(len(x)), 60 if quick else 300
    w = (8 if quick else 48) * wider
    if name == "diabetes":
        x, y = (x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std())[:, None].double()
        model, loss = nn.Sequential(nn.Linear(10, w), nn.SiLU(), nn.Linear(w, w), nn.SiLU(), nn.Linear(w, 1)), "mse"
    elif name == "digits":
        x, y, loss = x / 16 - 0.3, y.long(), "cross_entropy"
        model = nn.Sequential(nn.Linear(64, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh(), nn.Linear(w, 10))
    else:  # squared loss on indicators of the classes
        x, y, loss = (x / 16 - 0.3).reshape(-1, 1, 8, 8), F.one_hot(y.long(), 10).double(), "mse"
        c = w // 8
        model = nn.Sequential(
            nn.Conv2d(1, c, 3, 2, 1), nn.ReLU(), nn.Conv2d(c, 2 * c, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * c, 10),
        )  # fmt: skip
    train, held = order[:count], order[count : count + (60 if quick else 600)]
    return Problem(model.double(), loss, scale * x[train], y[train], (scale * x[held], y[held]))


def trained(p: Problem, rate: Rate, kind: str, seed: int, steps: int) -> tuple[float, float]:
    """Train the model: training loss of all samples at the start and after ``steps``; stops where nothing is left."""
    batch, momentum = KINDS[kind]
    layers = [list(m.parameters()) for m in p.model if list(m.parameters())]  # type: ignore[union-attr]
    rates = rate if isinstance(rate, list) else [rate] * len(layers)
    groups = [{"params": own, "lr": lr} for own, lr in zip(layers, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=momentum)
    generator, loss = torch.Generator().manual_seed(seed), LOSSES[p.loss]
    with torch.no_grad():
        start = float(loss(p.model(p.x), p.y))
    for _ in range(steps):
        rows = slice(None) if batch is None else torch.randint(len(p.x), (batch,), generator=generator)
        optimizer.zero_grad()
        value = loss(p.model(p.x[rows]), p.y[rows])
        if not bool(torch.isfinite(value)) or float(value.detach()) > 1e6 * start:
            return start, EMPTY
        value.backward()
        optimizer.step()
    with torch.no_grad():
        end = float(loss(p.model(p.x), p.y))
    return start, end if math.isfinite(end) else EMPTY
