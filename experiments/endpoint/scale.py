"""Point 5: how time and memory grow with the outputs, matrix-free: a CNN on MNIST, up to 20,000 images of ten outputs.

Every size is solved in a process of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common import Arguments, mnist
from .machine import GIB, in_fresh_process, slope
from .problem import Row, row

SAMPLES = (1250, 2500, 5000, 10000, 20000)
DEPTH, CHUNK = 100, 500


def run(settings: Arguments) -> list[Row]:
    samples, depth, chunk = ((20, 40), 5, 10) if settings.quick else (SAMPLES, DEPTH, CHUNK)
    x, y = data(samples[-1], settings.quick)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for n in samples:
            path = Path(folder) / "in.npz"
            np.savez(path, x=x[:n].numpy(), y=y[:n].numpy())
            runs.append(in_fresh_process("images", path=str(path), depth=depth, chunk=chunk))
            if settings.progress:
                spent = runs[-1]
                print(f"  {10 * n} outputs: {spent['seconds']:.1f} s, {spent['peak'] / GIB:.2f} GiB", flush=True)
    rows = []
    for n, spent in zip(samples, runs, strict=True):
        at = {"outputs": 10 * n, "depth": depth, "chunk": chunk, "modes": spent["modes"]}
        at |= {key: spent[key] for key in ("parameters", "gradient_evaluations", "loss", "predicted_loss", "bound")}
        largest = n == samples[-1] and not settings.quick
        more = {"before_gib": spent["before"] / GIB, "solved_gib": spent["solved"] / GIB, **at}
        rows.append(row(5, f"{10 * n} outputs: GiB at peak", spent["peak"] / GIB, 8.0 if largest else None, **more))
        more = {"cpu": spent["cpu"], "horizon_seconds": spent["horizon_seconds"], **at}
        rows.append(row(5, f"{10 * n} outputs: seconds", spent["seconds"], **more))
    sizes = [10.0 * n for n in samples]
    # Python and torch themselves take memory at every size; without them the slope is the steeper one.
    grown = [max(1.0, spent["peak"] - spent["before"]) for spent in runs]
    limit = None if settings.quick else 1.0
    rows.append(row(5, "slope of peak memory in the outputs", slope(sizes, [r["peak"] for r in runs]), limit))
    rows.append(row(5, "slope of memory above that before the solve", slope(sizes, grown), limit))
    rows.append(row(5, "slope of seconds in the outputs", slope(sizes, [r["seconds"] for r in runs])))
    return rows


def data(samples: int, synthetic: bool) -> tuple[Tensor, Tensor]:
    """Images of MNIST in random order (or noise) and their classes as ten numbers each."""
    generator = torch.Generator().manual_seed(0)
    if synthetic:
        x, classes = torch.rand(samples, 1, 28, 28, generator=generator), torch.arange(samples) % 10
    else:
        x, classes, _, _ = mnist()
        order = torch.randperm(len(x), generator=generator)[:samples]
        x, classes = x[order], classes[order]
    return x, torch.nn.functional.one_hot(classes, 10).float()
