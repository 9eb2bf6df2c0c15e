"""Variants of skips that are no options of the library: parts of it replaced for the while of a run, and put back."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from jumpstart.skipping import forecast, windows
from jumpstart.skipping import skip as skipping
from jumpstart.training import acceptance
from jumpstart.training import skipping as wrapper
from jumpstart.training.proposals import judgement
from jumpstart.training.samples import Samples

FROZEN, RESET = "frozen over a skip", "reset after a skip"


@contextlib.contextmanager
def replaced(*parts: tuple[ModuleType | type, str, Any]) -> Iterator[None]:
    """Attributes of modules or classes, while it lasts.

    Raises:
        AttributeError: the library has no such part any more.
    """
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]
    try:
        for owner, name, value in parts:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


class PredictOnly(windows.Walk):
    """Windows as they were predicted: the real gradient at the end is for the next one, and for its length, alone."""

    def _corrected(self, back: Callable[[], None], count: int, predicted: dict[int, torch.Tensor]) -> tuple[int, float]:
        _, gradient = self.forecast.points[-1]
        # Off by as much at the end, a gradient whose error grew from nothing has misled the weights by about half.
        known = forecast.Forecast(self.forecast.points[:-1])
        gap = float(torch.linalg.vector_norm(gradient - known(predicted[count])) / torch.linalg.vector_norm(gradient))
        errors = {mark: 0.5 * gap * mark / count for mark in predicted}
        kept = max((mark for mark, error in errors.items() if error <= self.tolerance), default=0)
        if kept < count:
            back()
            self.replay.roll(known, kept)
        return kept, errors.get(kept, math.inf)


def anyhow(before: torch.Tensor, after: torch.Tensor, confidence: float = 0.5) -> Any:
    """Any fall of the mean, whatever its noise."""
    return acceptance.improves(before, after, 0.5)


PLAIN = ((wrapper, "improves", anyhow), (judgement, "improves", anyhow), (wrapper, "SHARE", 0.0))
CHANGES: dict[str, tuple[tuple[ModuleType | type, str, Any], ...]] = {
    "predicted, not corrected": ((skipping, "Walk", PredictOnly),),
    "1 secant": ((forecast, "SECANTS", 1),),
    **{f"{count} secants": ((forecast, "SECANTS", count),) for count in (2, 5, 8)},
    "others: any fall of the mean": PLAIN,
    "the same samples: any fall": ((Samples, "whole", True),),
}


class Moments:
    """Around the skips of a wrapped optimizer: its moments afterwards are those before, or none."""

    def __init__(self, policy: str) -> None:
        self.policy, self.before = policy, {}
        self.optimizer: torch.optim.Optimizer | None = None

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep what there is after each step."""
        self.optimizer = optimizer
        optimizer.register_step_post_hook(lambda inner, *_: self._keep(inner))

    def _keep(self, inner: torch.optim.Optimizer) -> None:
        if self.policy == FROZEN:
            self.before = {p: {k: copy.deepcopy(v) for k, v in s.items()} for p, s in inner.state.items()}

    def __call__(self, result: Any, **_: Any) -> None:
        """What the wrapper calls after each try."""
        if not getattr(result, "steps", 0) or self.optimizer is None:
            return
        if self.policy == RESET:
            self.optimizer.state.clear()
            return
        for p, state in self.before.items():
            # The number of steps goes on: a correction for young moments belongs to how many they have taken in.
            kept = {key: value for key, value in state.items() if key != "step"}
            self.optimizer.state[p].update(kept)
