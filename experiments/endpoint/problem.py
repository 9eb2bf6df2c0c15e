"""The networks and data that both sides are given, and how they cross to the other process (.npz)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import jumpstart as js

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A network of two hidden tanh layers and the data it is asked about."""

    width: int
    samples: int
    outputs: int
    inputs: int = 20
    queries: int = 64

    def __str__(self) -> str:
        return f"width {self.width}, N {self.samples}, c {self.outputs}"


@dataclass(frozen=True)
class Problem:
    """A model with training inputs, targets and query points, all float64."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    q: Tensor

    def objective(self) -> js.Objective:
        return js.supervised(self.model, self.x, self.y)

    def export(self, path: Path) -> None:
        """Weights as (in, out), as JAX programs keep them; and the same numbers otherwise."""
        layers = [m for m in self.model if isinstance(m, nn.Linear)]
        arrays: dict[str, Any] = {f"w{i}": layer.weight.detach().numpy().T.copy() for i, layer in enumerate(layers)}
        arrays |= {f"b{i}": layer.bias.detach().numpy() for i, layer in enumerate(layers)}
        np.savez(path, x=self.x.numpy(), y=self.y.numpy(), q=self.q.numpy(), **arrays)


def make(size: Size, seed: int, orthogonal: bool = False) -> Problem:
    """Normal inputs (or, with ``orthogonal``, orthogonal ones of the same length) and normal targets."""
    torch.manual_seed(seed)
    double: Any = {"dtype": torch.float64}
    d, h = size.inputs, size.width
    model = nn.Sequential(
        nn.Linear(d, h), nn.Tanh(), nn.Linear(h, h), nn.Tanh(), nn.Linear(h, size.outputs)
    ).double()  # fmt: skip
    x, q = torch.randn(size.samples, d, **double), torch.randn(size.queries, d, **double)
    if orthogonal:
        x = torch.linalg.qr(x.T)[0].T * d**0.5
    return Problem(model, x, torch.randn(size.samples, size.outputs, **double), q)


def relative(a: Any, b: Any) -> float:
    """‖a − b‖/‖b‖."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def row(point: int, check: str, value: float, limit: Any = None, above: bool = False, **more: Any) -> Row:
    """A flat record; ``limit`` is an upper bound, a lower one with ``above``; a pair is a range."""
    if limit is None:
        holds = None
    elif isinstance(limit, tuple):
        holds = limit[0] <= value <= limit[1]
    else:
        holds = value >= limit if above else value <= limit
    return {"point": point, "check": check, "value": value, "limit": limit, "above": above, "holds": holds, **more}
