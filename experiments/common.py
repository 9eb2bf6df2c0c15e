"""What every experiment shares: its arguments, and where data comes from."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jumpstart.errors import JumpstartError


@dataclass(frozen=True)
class Arguments:
    """``quick`` runs at toy size; ``seeds`` is how many; results go to ``out``."""

    quick: bool
    seeds: int
    out: Path
    progress: bool


def arguments(name: str, description: str | None, seeds: int) -> Arguments:
    """Parse ``python -m experiments.NAME [--quick] [--seeds N] [--out DIR]``."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="toy size, seconds instead of minutes")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many seeds (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder (default: %(default)s)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    found = parser.parse_args()
    if found.seeds < 1:
        parser.error("--seeds must be at least 1")
    return Arguments(found.quick, found.seeds, found.out, not found.no_progress)


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST: images (60000, 1, 28, 28) in [0, 1] less 0.13, classes, and the 10,000 test images and classes.

    From ``$JUMPSTART_DATA/mnist.npz`` (arrays X, y, Xt, yt), else by scikit-learn's ``fetch_openml``.

    Raises:
        JumpstartError: neither is to be had, with what to set up.
    """
    folder = os.environ.get("JUMPSTART_DATA")
    path = Path(folder) / "mnist.npz" if folder else None
    if path is not None and path.is_file():
        arrays = np.load(path)
        x, y, xt, yt = (arrays[key] for key in ("X", "y", "Xt", "yt"))
    else:
        try:
            from sklearn.datasets import fetch_openml

            found: Any = fetch_openml("mnist_784", version=1, as_frame=False)
        except Exception as error:
            raise JumpstartError(
                "MNIST is not here: set JUMPSTART_DATA to a folder with mnist.npz (arrays X, y, Xt, yt), or install "
                f"scikit-learn and let it download (it said: {error})."
            ) from error
        x, y = found.data[:60000], found.target[:60000].astype(int)
        xt, yt = found.data[60000:], found.target[60000:].astype(int)

    def images(a: np.ndarray) -> Tensor:
        return torch.tensor(a, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255 - 0.13

    return images(x), torch.tensor(y).long(), images(xt), torch.tensor(yt).long()


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    ordered = sorted(values)
    return {"median": float(np.median(ordered)), "min": ordered[0], "max": ordered[-1]}
