"""A loop that takes its steps, to hold a skip against: the same model, optimizer and scheduler, copied together."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import jumpstart as js

LOSSES = {
    "mse": nn.functional.mse_loss,
    "logistic": nn.functional.binary_cross_entropy_with_logits,
    "cross_entropy": nn.functional.cross_entropy,
}


@dataclass
class Loop:
    """Model, data, optimizer and what else a loop has; ``take`` takes steps as its owner would."""

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    held: torch.Tensor
    loss: str = "mse"
    optimizer: Any = None
    scheduler: Any = None
    clip: float | None = None
    options: dict = field(default_factory=dict)  # of supervised

    def objective(self):
        return js.supervised(self.model, self.x, self.y, self.loss, **self.options)

    def value(self):
        return LOSSES[self.loss](self.model(self.x), self.y)

    def take(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.value().backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        return self

    def skip(self, steps, **options):
        if self.clip is not None:
            options["clip"] = self.clip
        return js.skip(self.objective(), self.optimizer, steps, scheduler=self.scheduler, **options)

    def twin(self):
        """A copy of everything; data are shared."""
        model, optimizer, scheduler = copy.deepcopy((self.model, self.optimizer, self.scheduler))
        return Loop(model, self.x, self.y, self.held, self.loss, optimizer, scheduler, self.clip, self.options)

    def outputs(self):
        with torch.no_grad():
            return self.model(self.held)

    def everything(self):
        """All that a skip may change, by value."""
        rates = None if self.scheduler is None else plain(self.scheduler)
        grads = {n: None if p.grad is None else p.grad.clone() for n, p in self.model.named_parameters()}
        state = copy.deepcopy((dict(self.model.state_dict()), self.optimizer.state_dict(), rates, grads))
        return state, torch.get_rng_state(), [module.training for module in self.model.modules()]


def plain(scheduler):
    """A scheduler's state, those inside it opened."""
    return {
        key: [plain(inner) for inner in value] if key == "_schedulers" else copy.deepcopy(value)
        for key, value in vars(scheduler).items()
        if key not in ("optimizer", "lr_lambdas") and not callable(value)
    }


def same(a, b):
    """Whether two states are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def draw(seed, make, *, dtype=torch.float64, warm=20, **fields):
    """A random network, loss and data, ``warm`` steps on."""
    r = random.Random(seed)
    loss = fields.pop("loss", r.choice(list(LOSSES)))
    torch.manual_seed(seed)
    n, features, width = r.choice([16, 30, 60]), r.choice([3, 6]), r.choice([8, 16])
    outputs = {"mse": r.choice([1, 2]), "logistic": 1, "cross_entropy": 4}[loss]
    act = r.choice([nn.Tanh, nn.GELU, nn.SiLU])
    layers = [nn.Linear(features, width), act(), nn.Linear(width, width), act(), nn.Linear(width, outputs)]
    model = nn.Sequential(*layers).to(dtype)
    x, held = torch.randn(n, features, dtype=dtype), torch.randn(50, features, dtype=dtype)
    u = torch.tanh(x @ torch.randn(features, 6, dtype=dtype)) @ torch.randn(6, outputs, dtype=dtype)
    u = u + 0.2 * torch.randn(u.shape, dtype=dtype)
    y = {"mse": u, "logistic": (u > 0).to(dtype), "cross_entropy": u.argmax(1)}[loss]
    loop = Loop(model, x, y, held, loss, make(model.parameters()), **fields)
    return loop.take(warm)


def miss(start, skipped, taken):
    """Of held-out outputs, relative to how far the real steps moved them."""
    return float((skipped.outputs() - taken.outputs()).norm() / (taken.outputs() - start).norm())


class Counting(nn.Module):
    """Counts passes forwards and backwards, of all rows."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), *layers, nn.Tanh(), nn.Linear(16, 16), nn.Tanh(),
                                    nn.Linear(16, 1)).double()  # fmt: skip
        self.passes = []  # the library puts attributes back that a pass changes

    def forward(self, x):
        self.passes.append(len(x) / 30 / 3)  # forwards is a third of a gradient evaluation
        u = self.layers(x)
        if u.requires_grad:
            u.register_hook(lambda grad: self.passes.append(len(grad) / 30 * 2 / 3))
        return u

    @property
    def asked(self):
        """Since last time, in gradient evaluations."""
        found = sum(self.passes)
        self.passes.clear()
        return found
