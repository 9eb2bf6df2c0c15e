"""One measurement in a fresh process, so that its peak memory is its own.

python -m experiments.endpoint.child KIND JSON

The last line that it prints is the answer, in JSON.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import jumpstart as js

from .machine import one_core, peak_bytes, timed
from .problem import Size, make

INPUTS = 20


def endpoint(width: int, samples: int, outputs: int) -> dict[str, float]:
    """Kernel, its eigenvectors and the training outputs at one horizon."""
    problem = make(Size(width, samples, outputs, INPUTS), 0)
    js.solve(make(Size(8, 4, 1, INPUTS), 0).objective(), basis="dense").outputs(1.0)  # loads what is loaded lazily
    before = peak_bytes()

    def answer() -> torch.Tensor:
        return js.solve(problem.objective(), basis="dense", memory_limit=1e12).outputs(1.0)

    _, seconds, cpu = timed(answer)
    return {"before": before, "peak": peak_bytes(), "seconds": seconds, "cpu": cpu}


def cnn() -> nn.Module:
    """5,386 parameters on images of 28×28 and ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.Tanh(), nn.Conv2d(8, 16, 3, stride=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(400, 10),
    )  # fmt: skip


def images(path: str, depth: int, chunk: int, end: float = 1e3) -> dict[str, Any]:
    """A CNN on the images in a file solved in a Krylov space, with no matrix of the outputs' size squared; float32."""
    torch.manual_seed(0)
    arrays = np.load(path)
    x, y = torch.tensor(arrays["x"]), torch.tensor(arrays["y"])
    model = cnn()
    few = js.supervised(model, x[:20], y[:20], chunk=10)
    js.solve(few, basis="krylov", depth=2).outputs(1.0)  # loads what is loaded lazily
    before = peak_bytes()

    def answer() -> js.Solution:
        return js.solve(js.supervised(model, x, y, loss="mse", chunk=chunk), basis="krylov", depth=depth)

    solution, seconds, cpu = timed(answer)
    solved = peak_bytes()
    outputs, further, _ = timed(lambda: solution.outputs(end))
    assert outputs.shape == y.shape
    start, predicted = solution.loss(0.0), solution.loss(end)
    bound = solution.error_bound(end)
    return {
        "before": before, "solved": solved, "peak": peak_bytes(), "seconds": seconds, "cpu": cpu,
        "horizon_seconds": further, "modes": solution.basis.size, "parameters": solution.lin.theta.numel(),
        "loss": float(start), "predicted_loss": float(predicted),
        "bound": bound / math.sqrt(y.numel()), "gradient_evaluations": solution.lin.ledger.gradient_evaluations,
    }  # fmt: skip


KINDS: dict[str, Callable[..., dict[str, Any]]] = {"endpoint": endpoint, "images": images}


if __name__ == "__main__":
    one_core()
    print(json.dumps(KINDS[sys.argv[1]](**json.loads(sys.argv[2]))))
