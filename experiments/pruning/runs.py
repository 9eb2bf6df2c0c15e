"""Accuracy against sparsity: to zero, to zero and trained on, and back to the start."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jumpstart.report.records import Row

from .scores import SCORES, Size, Trained, kept, options, score

FIRST, TUNERS = 100, 2  # seeds of the tuning
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
ZERO, AGAIN, BACK = "to zero", "to zero, then trained", "back to the start"
WAYS = (ZERO, AGAIN, BACK)
Option = tuple[str, str, float]


def curve(trained: Trained, name: str, option: Option, way: str, seed: int) -> list[float]:
    """Held-out accuracy at each sparsity."""
    scope, unit, tolerance = option
    values, found = score(trained, name, tolerance, seed), []
    for sparsity in SPARSITIES:
        mask = kept(trained, values, sparsity, scope, unit)
        theta = torch.where(mask, trained.end, trained.start if way == BACK else torch.zeros_like(trained.end))
        found.append(trained.accuracy(trained.retrained(theta, mask) if way == AGAIN else theta))
    return found


def chosen(trained: Sequence[tuple[int, Trained]]) -> dict[tuple[str, str], Option]:
    """For each score and way the option with the highest accuracy, averaged over sparsities and tuning seeds."""
    return {
        (name, way): max(
            options(name), key=lambda o, n=name, w=way: sum(sum(curve(t, n, o, w, seed)) for seed, t in trained)
        )
        for name in SCORES for way in WAYS
    }  # fmt: skip


def reported(seed: int, size: Size, picked: dict[tuple[str, str], Option]) -> list[Row]:
    trained = Trained(seed, size)
    whole, operators = trained.accuracy(trained.end), trained.operators
    return [
        {
            "seed": seed, "score": name, "way": way, "option": list(picked[name, way]), "unpruned": whole,
            "start": trained.accuracy(trained.start), "accuracy": curve(trained, name, picked[name, way], way, seed),
            "error": operators.error, "effective rank": operators.effective_rank,
        }
        for name in SCORES for way in WAYS
    ]  # fmt: skip
