"""scikit-learn's scanned digits: a small CNN, cross-entropy, full batch; jumps in Adam's metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..comparison import compare as diagnostics
from ..comparison.contenders import jumped, stepped
from ..comparison.report import Report
from ..errors import MissingPackageError
from ..objectives.objective import Objective, supervised

TITLE = "Scanned digits (scikit-learn), CNN with 38,282 parameters, 1,200 images, cross-entropy"
SECONDS = 9.0
TRAIN = 1200
# Learning rates chosen on seeds 100 to 102 (python -m experiments.tuning): fastest in training loss, best held-out.
FAST, SOUND = 3e-2, 1e-2
BASELINE = f"AdamW {FAST:g}"


def data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images (n, 1, 8, 8) in [0, 1] and classes, shuffled by the seed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackageError("the digits come with scikit-learn: pip install 'jumpstart[experiments]'.") from error
    bunch: Any = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    classes = torch.tensor(bunch.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed), device="cpu")
    images, classes = images[order], classes[order]
    return images[:TRAIN], classes[:TRAIN], images[TRAIN:], classes[TRAIN:]


def network(seed: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.GELU(),
        nn.Linear(64, 10),
    )


def compare(
    seed: int = 0, seconds: float = SECONDS, progress: bool | None = None, folder: str | Path | None = None
) -> Report:
    """AdamW at two rates against AdamW with jumps, from the same start."""
    inputs, classes, held_out, labels = data(seed)

    def objective(model: nn.Module) -> Objective:
        return supervised(model, inputs, classes, "cross_entropy")

    def evaluate(model: nn.Module) -> dict[str, float]:
        u = model(held_out)
        return {
            "held-out loss": float(F.cross_entropy(u, labels)),
            "held-out accuracy": float((u.argmax(1) == labels).float().mean()),
        }

    def adamw(lr: float):
        return lambda parameters: torch.optim.AdamW(parameters, lr=lr)

    contenders = {
        BASELINE: stepped(adamw(FAST)),
        f"AdamW {SOUND:g}": stepped(adamw(SOUND)),
        f"AdamW {SOUND:g} + jumps": jumped(
            adamw(SOUND), at=lambda step: step >= 20, search=True, basis="krylov", depth=8, geodesic=True, chord_steps=0
        ),
    }
    return diagnostics.compare(
        network(seed), objective, contenders, seconds=seconds, evaluate=evaluate, name="digits", seed=seed,
        progress=progress, folder=folder,
    )  # fmt: skip
