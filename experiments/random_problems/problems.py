"""A random training problem by its number: network, loss, optimizer, sizes, noise, minibatch or full, dtype."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import networks

# Numbers of problems that choices may be made on, and of those that results are told of: no problem is both.
TUNING, REPORTING = range(100_000), range(1_000_000, 10_000_000)
HELD_OUT = 300  # samples
TEACHER = 12  # features behind the targets
FULL = 0.5  # share of problems trained on all samples in every step

Make = Callable[[Iterable[Tensor], float, float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Kind:
    """An optimizer from parameters, learning rate and weight decay; and what these are drawn from."""

    make: Make
    rates: tuple[float, ...]
    decays: tuple[float, ...] = (0.0, 0.0, 1e-3)


def _of(optimizer: Any, **options: Any) -> Make:
    return lambda parameters, rate, decay: optimizer(parameters, lr=rate, weight_decay=decay, **options)


OPTIMIZERS = {
    "SGD": Kind(_of(torch.optim.SGD), (0.03, 0.1, 0.3)),
    "momentum": Kind(_of(torch.optim.SGD, momentum=0.9), (0.01, 0.03, 0.1)),
    "Nesterov": Kind(_of(torch.optim.SGD, momentum=0.9, nesterov=True), (0.01, 0.03, 0.1)),
    "Adam": Kind(_of(torch.optim.Adam), (1e-3, 3e-3, 1e-2)),
    "AdamW": Kind(_of(torch.optim.AdamW), (1e-3, 3e-3, 1e-2), (1e-2, 1e-2, 1e-1)),
    "RMSprop": Kind(_of(torch.optim.RMSprop), (1e-3, 3e-3)),
    "Adagrad": Kind(_of(torch.optim.Adagrad), (1e-2, 3e-2)),
    "NAdam": Kind(_of(torch.optim.NAdam), (1e-3, 3e-3, 1e-2)),
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "logistic": F.binary_cross_entropy_with_logits,
    "cross_entropy": F.cross_entropy,
}
# Weights of a perceptron, a convolutional network and two transformers.
NETWORKS = {"mlp": 5.0, "cnn": 3.0, "transformer": 1.8, "encoder layer": 1.2}


@dataclass(frozen=True)
class Problem:
    """What is trained, on what and how; ``batch`` is ``samples`` where every step sees all. All follows from the
    number.
    """

    number: int
    network: str
    loss: str
    optimizer: str
    rate: float
    decay: float
    samples: int
    batch: int
    noise: float
    dtype: str
    activation: str
    width: int
    depth: int
    outputs: int

    @property
    def full(self) -> bool:
        return self.batch == self.samples

    @property
    def told(self) -> dict[str, Any]:
        """What rows say of it: by what results are grouped."""
        named = ("number", "network", "loss", "optimizer", "samples", "batch", "dtype")
        return {key: getattr(self, key) for key in named}

    def seed(self, purpose: str, replica: int = 0) -> int:
        """A seed for a purpose; replicas are other draws for it."""
        return random.Random(f"{self.number}, {purpose}, {replica}").getrandbits(48)


@dataclass(frozen=True)
class Data:
    """Training samples, and those held out."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


def problem(number: int) -> Problem:
    """The problem of that number.

    Raises:
        ValueError: the number is neither for choices nor for results.
    """
    if number not in TUNING and number not in REPORTING:
        raise ValueError(f"problem {number}: choices are made on {TUNING}, results are told of {REPORTING}.")
    draw = random.Random(f"problem {number}")
    samples = round(math.exp(draw.uniform(math.log(8), math.log(200))))
    network = draw.choices(list(NETWORKS), list(NETWORKS.values()))[0]
    loss, optimizer = draw.choice(list(LOSSES)), draw.choice(list(OPTIMIZERS))
    full, parts = draw.random() < FULL, draw.choice((2, 4, 8))
    return Problem(
        number=number, network=network, loss=loss, optimizer=optimizer,
        rate=draw.choice(OPTIMIZERS[optimizer].rates), decay=draw.choice(OPTIMIZERS[optimizer].decays),
        samples=samples, batch=samples if full else max(4, samples // parts),
        noise=draw.choice((0.0, 0.2, 0.4)), dtype=draw.choice(("float32", "float64")),
        activation=draw.choice(("ReLU", "Tanh", "GELU")), width=draw.choice((8, 16, 32)), depth=draw.choice((1, 2, 3)),
        outputs={"mse": draw.choice((1, 1, 3)), "logistic": 1, "cross_entropy": draw.choice((3, 5, 10))}[loss],
    )  # fmt: skip


def data(of: Problem) -> Data:
    """Samples of a random teacher with two layers; noise is added to values, and flips that share of labels."""
    g = torch.Generator().manual_seed(of.seed("data"))
    count = of.samples + HELD_OUT
    x = torch.randn(count, *networks.SHAPES[of.network], generator=g, dtype=torch.float64)
    if of.network == "cnn":
        x = 3 * F.avg_pool2d(x, 3, 1, padding=1)  # neighbours alike, as in images
    flat = x.reshape(count, -1)
    a = torch.randn(flat.shape[1], TEACHER, generator=g, dtype=torch.float64) / flat.shape[1] ** 0.5
    b = torch.randn(TEACHER, of.outputs, generator=g, dtype=torch.float64) / TEACHER**0.5
    t = torch.tanh(2 * flat @ a) @ b
    t = (t - t.mean(0)) / t.std(0)
    noisy = torch.rand(count, generator=g, dtype=torch.float64) < of.noise
    if of.loss == "mse":
        y = t + 1.5 * of.noise * torch.randn(t.shape, generator=g, dtype=torch.float64)
    elif of.loss == "logistic":
        y = (t > 0).double()
        y[noisy] = 1 - y[noisy]
    else:
        y = torch.where(noisy, torch.randint(of.outputs, (count,), generator=g), t.argmax(1))
    dtype = getattr(torch, of.dtype)
    x, y = x.to(dtype), y.to(dtype) if y.is_floating_point() else y
    return Data(x[: of.samples], y[: of.samples], x[of.samples :], y[of.samples :])
