"""Reference solutions of equations without a closed form, from ``$JUMPSTART_DATA/pde`` (DeepXDE's examples)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jumpstart.errors import JumpstartError

from ..common import folder


@functools.cache
def burgers() -> tuple[Tensor, Tensor, Tensor]:
    """Burgers' equation at viscosity 0.01/π: x (256,) in [−1, 1], t (100,) in [0, 0.99], u (256, 100)."""
    with np.load(_path("burgers.npz")) as arrays:
        x, t, u = (torch.tensor(arrays[key], dtype=torch.float64) for key in ("x", "t", "usol"))
    return x.flatten(), t.flatten(), u


@functools.cache
def lshape() -> tuple[Tensor, Tensor, Tensor]:
    """−Δu = 1 on the L-shape: x (161,), y (161,) in [−1, 1], u (161, 161), NaN where x > 0 and y > 0."""
    with np.load(_path("poisson_lshape.npz")) as arrays:
        points, u = (torch.tensor(arrays[key], dtype=torch.float64) for key in ("X_test", "y_ref"))
    x, y = points[:, 0].unique(), points[:, 1].unique()
    return x, y, u.reshape(len(x), len(y))  # the points run through y first


def _path(name: str) -> Path:
    path = folder() / "pde" / name
    if not path.is_file():
        raise JumpstartError(
            f"the reference solution {name} is not here: set JUMPSTART_DATA to a folder with pde/{name} "
            "(arrays as in DeepXDE's examples, github.com/lululxvi/deepxde)."
        )
    return path
