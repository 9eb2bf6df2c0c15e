"""Solutions in closed form, at points (…, 2), and the grids on which errors from them are taken."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, cartesian_prod

WAVE = 4 * math.pi  # Helmholtz' k
DIFFUSION = 0.1  # heat's α: the solution falls to 0.37 of its start
SPEED = 30.0  # convection's: where ordinary training fails (Krishnapriyan et al. 2021, arXiv 2109.01050)
REYNOLDS = 40.0
DECAY = REYNOLDS / 2 - math.sqrt(REYNOLDS**2 / 4 + 4 * math.pi**2)  # Kovasznay's λ

Function = Callable[[Tensor], Tensor]  # of points (…, 2), to (…)
Grid = Callable[[], tuple[Tensor, Tensor, Tensor]]  # x (a,), y (b,), u (a, b), NaN outside the domain


def helmholtz(z: Tensor) -> Tensor:
    """sin kx sin ky."""
    return torch.sin(WAVE * z[..., 0]) * torch.sin(WAVE * z[..., 1])


def heat(z: Tensor) -> Tensor:
    """exp(−απ² t) sin πx."""
    return torch.exp(-DIFFUSION * math.pi**2 * z[..., 1]) * torch.sin(math.pi * z[..., 0])


def convection(z: Tensor) -> Tensor:
    """sin(x − 30 t)."""
    return torch.sin(z[..., 0] - SPEED * z[..., 1])


def kovasznay(z: Tensor) -> Tensor:
    """u, v and p (…, 3) of a steady flow behind a row of cylinders at Re = 40 (Kovasznay 1948)."""
    grown, angle = torch.exp(DECAY * z[..., 0]), 2 * math.pi * z[..., 1]
    u, v = 1 - grown * torch.cos(angle), DECAY / (2 * math.pi) * grown * torch.sin(angle)
    return torch.stack([u, v, 0.5 * (1 - grown.square())], -1)


def cells(count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Centres (count,) of equal cells."""
    return low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count


def known(exact: Function, width: float = 1.0) -> Grid:
    """A solution on 200 × 200 cells of [0, width] × [0, 1], the anchor's grid for errors."""

    @functools.cache
    def reference() -> tuple[Tensor, Tensor, Tensor]:
        x, y = cells(200, 0.0, width), cells(200)
        return x, y, exact(cartesian_prod(x, y)).reshape(200, 200)

    return reference
