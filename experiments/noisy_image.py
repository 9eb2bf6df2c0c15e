"""An image from noisy pixels: does a gate keep the noise out of a network of coordinates?

python -m experiments.noisy_image --tuning [--out DIR]                             chooses rates, for the other command
python -m experiments.noisy_image [--quick] [--seeds N] [--minutes M] [--out DIR]

scikit-learn's photograph of a temple, its middle square in grey at 64 × 64, each pixel once with Gaussian noise; a ReLU
network of 128 Fourier features, minibatches of pixels. Error: PSNR against the clean image. One thread; seconds of the
process, looks apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jumpstart.report.records import Row

from .noisy import main, summary
from .noisy.tasks import Samples, Task, noisy

SIDE, BATCH = 64, 256
FEATURES, SCALE, WIDTH = 64, 4.0, 64  # waves; cycles a side, standard deviation; hidden units


@cache
def image() -> Tensor:
    """(64, 64) in [0, 1]."""
    from sklearn.datasets import load_sample_image

    found: Any = load_sample_image("china.jpg")
    grey = torch.tensor(found, dtype=torch.float32).mean(2) / 255
    height, width = grey.shape
    side, left = min(height, width), (width - min(height, width)) // 2
    return F.adaptive_avg_pool2d(grey[None, :side, left : left + side], SIDE)[0]


@cache
def places() -> Tensor:
    at = (torch.arange(SIDE) + 0.5) / SIDE
    return torch.stack([a.reshape(-1) for a in torch.meshgrid(at, at, indexing="ij")], 1)


def samples(level: float, seed: int) -> Samples:
    return Samples(torch.arange(SIDE**2), noisy(image().reshape(-1), level, seed))


@cache
def encoded() -> Tensor:
    """Fourier features of all places (Tancik et al., arXiv:2006.10739): the same for all runs."""
    waves = SCALE * torch.randn(2, FEATURES, generator=torch.Generator().manual_seed(0))
    angles = 2 * math.pi * places() @ waves
    return torch.cat([torch.sin(angles), torch.cos(angles)], 1)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2 * FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
    )


def loss(model: nn.Module, part: Samples, generator: torch.Generator) -> Tensor:
    return (model(encoded()[part.x])[:, 0] - part.y).square().mean()


def look(model: nn.Module, parts: Sequence[Samples]) -> list[float]:
    """Root mean square, which a PSNR is the logarithm of."""
    out = model(encoded())[:, 0]
    found = [float((out - image().reshape(-1)).square().mean().sqrt())]
    return found + [float((out[part.x] - part.y).square().mean()) for part in parts]


def psnr(rmse: float) -> float:
    return -20 * math.log10(rmse)


TASK = Task(
    "noisy_image", (0.1, 0.2), 3e-2, 400, BATCH, samples, network, loss, look, 10 ** (0.1 / 20), "0.1 dB", "dB", psnr
)


def page(content: Row) -> str:
    """What docs/gates.md says of it."""
    return summary.page(TASK, content)


if __name__ == "__main__":
    main.main(TASK, __doc__)
