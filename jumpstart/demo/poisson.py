"""Poisson's equation −Δu = f on the unit square, u = sin πx sin πy: the field's test case, 129 parameters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..comparison import compare as diagnostics
from ..comparison.contenders import fitted, lbfgs, stepped
from ..comparison.report import Report
from ..objectives.objective import Objective
from ..objectives.residual import Term, residual

TITLE = "Poisson's equation as a PINN, one hidden layer of 32 (129 parameters), float64"
SECONDS = 12.0
BASELINE = "L-BFGS"
RATE = 1e-1  # AdamW's, chosen on seeds 100 to 102 (python -m experiments.tuning)


def exact(x: Tensor) -> Tensor:
    """The solution at points (…, 2)."""
    return torch.sin(math.pi * x[..., 0]) * torch.sin(math.pi * x[..., 1])


def grid(count: int) -> Tensor:
    """Cell-centred points (count², 2)."""
    g = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.stack(torch.meshgrid(g, g, indexing="ij"), -1).reshape(-1, 2)


def boundary(count: int) -> Tensor:
    """Points on the four sides (4·count, 2)."""
    g = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    zero, one = torch.zeros_like(g), torch.ones_like(g)
    return torch.cat([torch.stack(side, 1) for side in ((g, zero), (g, one), (zero, g), (one, g))])


def equation(net: Any, x: Tensor) -> Tensor:
    """Δu + f at one point x (2,)."""
    laplacian = torch.func.hessian(lambda z: net(z)[0])(x).diagonal().sum()
    return laplacian + 2 * math.pi**2 * exact(x)


def network(seed: int, widths: tuple[int, ...] = (32,), init: str = "torch") -> nn.Module:
    """A tanh network 2–widths–1 in float64; ``init`` is torch's default, or "small" for 0.1·randn."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inner, outer in zip((2, *widths), widths, strict=False):
        layers += [nn.Linear(inner, outer), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 1)).double()
    if init == "small":
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model


def objective(model: nn.Module, interior: int = 30, sides: int = 30) -> Objective:
    """½ (mean of squares inside + 4 · mean of squares on the boundary)."""
    inside, outside = grid(interior), boundary(sides)
    return residual(
        model,
        Term(equation, inside, weight=1 / len(inside)),
        Term(lambda net, x: net(x), outside, weight=4 / len(outside)),
    )


def error(model: nn.Module) -> float:
    """Relative L² error on a 200 × 200 grid."""
    points = grid(200)
    with torch.no_grad():
        found = model(points)[:, 0]
    return float((found - exact(points)).norm() / exact(points).norm())


def compare(
    seed: int = 0, seconds: float = SECONDS, progress: bool | None = None, folder: str | Path | None = None
) -> Report:
    """L-BFGS and AdamW against jumps, from the same start."""
    contenders = {
        BASELINE: lbfgs(),
        f"AdamW {RATE:g}": stepped(lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.0)),
        "jumps": fitted(budget=seconds),
    }
    return diagnostics.compare(
        network(seed), objective, contenders, seconds=seconds, name="poisson", seed=seed, progress=progress,
        evaluate=lambda model: {"relative error": error(model)}, folder=folder,
    )  # fmt: skip
