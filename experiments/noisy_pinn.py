"""A transported wave from noisy initial data: does a gate keep the noise out of a physics-informed network?

python -m experiments.noisy_pinn --tuning [--out DIR]                              chooses rates, for the other command
python -m experiments.noisy_pinn [--quick] [--seeds N] [--minutes M] [--out DIR]

u_t + 5 u_x = 0, periodic in x, 0 ≤ t ≤ 0.2; u(x, 0) = sin x + sin(2x)/2 is known at 64 places with Gaussian noise. A
tanh network of sin kx, cos kx (k ≤ 2) and t; minibatches of noisy samples, each with a residual at a place drawn anew.
Error: relative, in L², against the exact u(x − 5t, 0). One thread; seconds of the process, looks apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from jumpstart.report.records import Row

from .noisy import main, summary
from .noisy.tasks import Samples, Task, noisy

SPEED, HARMONICS, LENGTH = 5.0, 2, 0.2
SAMPLES, WIDTH, DEPTH = 64, 32, 3
RESIDUAL = 0.03  # weight of the mean squared residual
GRID = 48  # of the error: so many times and places


def initial(x: Tensor) -> Tensor:
    return torch.sin(x) + 0.5 * torch.sin(2 * x)


def features(x: Tensor, t: Tensor) -> Tensor:
    """(b, 2·2 + 2): periodic in x; the constant stands for a bias."""
    k = torch.arange(1, HARMONICS + 1, dtype=x.dtype) * x[:, None]
    return torch.cat([torch.sin(k), torch.cos(k), t[:, None] / LENGTH, torch.ones_like(t)[:, None]], 1)


def at_start(x: Tensor) -> Tensor:
    return features(x, torch.zeros_like(x))


def along(x: Tensor, t: Tensor) -> Tensor:
    """Their derivative along (u_t + 5 u_x)."""
    numbers = torch.arange(1, HARMONICS + 1, dtype=x.dtype)
    k = numbers * x[:, None]
    return torch.cat(
        [
            SPEED * numbers * torch.cos(k),
            -SPEED * numbers * torch.sin(k),
            torch.full_like(t, 1 / LENGTH)[:, None],
            torch.zeros_like(t)[:, None],
        ],
        1,
    )


class Network(nn.Module):
    """A tanh network whose last position is a derivative: it goes through the layers beside the one before it.

    A sample is a row: all its positions. Without biases a layer is the same for values and for derivatives.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [2 * HARMONICS + 2, *[WIDTH] * DEPTH, 1]
        layers = [nn.Linear(i, o, bias=False) for i, o in pairwise(widths)]
        for layer in layers:
            nn.init.xavier_normal_(layer.weight)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, derivative: bool = False) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x)
            if derivative:
                h = torch.tanh(x[:, :-1])
                x = torch.cat([h, (1 - h[:, -1:].square()) * x[:, -1:]], 1)
            else:
                x = torch.tanh(x)
        return self.layers[-1](x)[..., 0]


def samples(level: float, seed: int) -> Samples:
    x = 2 * math.pi * torch.rand(SAMPLES, generator=torch.Generator().manual_seed(seed))
    return Samples(x, noisy(initial(x), level, seed))


def network(seed: int) -> Network:
    torch.manual_seed(seed)
    return Network()


def loss(model: nn.Module, part: Samples, generator: torch.Generator) -> Tensor:
    """Misfit at the samples and residual at as many places drawn anew."""
    place = torch.rand(2, len(part), generator=generator)
    x, t = 2 * math.pi * place[0], LENGTH * place[1]
    rows = torch.stack([at_start(part.x), features(x, t), along(x, t)], 1)
    out = model(rows, True)
    return (out[:, 0] - part.y).square().mean() + RESIDUAL * out[:, 2].square().mean()


@cache
def truth() -> tuple[Tensor, Tensor]:
    places = 2 * math.pi * (torch.arange(GRID) + 0.5) / GRID
    x, t = (a.reshape(-1) for a in torch.meshgrid(places, torch.linspace(0, LENGTH, GRID), indexing="ij"))
    return features(x, t), initial(x - SPEED * t)


def look(model: nn.Module, parts: Sequence[Samples]) -> list[float]:
    inputs, u = truth()
    found = [float((model(inputs) - u).norm() / u.norm())]
    return found + [float((model(at_start(part.x)) - part.y).square().mean()) for part in parts]


TASK = Task(
    "noisy_pinn", (0.2, 0.5), 3e-2, 500, 32, samples, network, loss, look, 1.01, "1%", "relative error"
)  # fmt: skip


def page(content: Row) -> str:
    """What docs/gates.md says of it."""
    return summary.page(TASK, content)


if __name__ == "__main__":
    main.main(TASK, __doc__)
