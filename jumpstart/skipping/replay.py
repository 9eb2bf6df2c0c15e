"""The user's optimizer, many steps on: a copy of it, and of the scheduler that it follows, stepped on a forecast."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..distributed.optimizers import original
from ..errors import InputError
from ..objectives.objective import Objective
from ..utils.brief import brief
from .replica import Replica

Scheduler = torch.optim.lr_scheduler.LRScheduler


class Replay:
    """Virtual steps from where the optimizer is now.

    Args:
        optimizer: the real one, which is copied. objective: whose parameters it moves.
        scheduler: stepped after each step, on a copy; None for rates that stay as they are.
        behind: the loop steps its scheduler for the last step after the skip, and not before.
        clip: largest norm of a gradient, as ``clip_grad_norm_`` takes it; None for none.
        noise: called with the copy before each step (``noise``); None for nothing.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        scheduler: Scheduler | None = None,
        clip: float | None = None,
        noise: Callable[[Replica], None] | None = None,
        behind: bool = False,
    ) -> None:
        self.replica = Replica(optimizer, objective.space, objective.model)
        self.scheduler, self.clip, self.noise, self.behind = None, clip, noise, behind
        if scheduler is not None:
            memo = {id(scheduler.optimizer): self.replica.copy, id(optimizer): self.replica.copy}
            self.scheduler = copy.deepcopy(scheduler, memo)

    @property
    def theta(self) -> Tensor:
        return self.replica.theta

    def step(self, gradient: Tensor) -> Tensor:
        """One step; the weights θ (P,) after it."""
        if self.noise is not None:
            self.noise(self.replica)
        gradient = clipped(gradient, self.clip)
        if self.behind:
            self._schedule()
        theta = self.replica.step(gradient)
        if not self.behind:
            self._schedule()
        return theta

    def _schedule(self) -> None:
        if self.scheduler is not None:
            with warnings.catch_warnings():  # torch warns of orders of calls that are the user's loop's
                warnings.simplefilter("ignore")
                self.scheduler.step()

    def roll(self, forecast: Callable[[Tensor], Tensor], count: int, marks: Iterable[int] = ()) -> dict[int, Tensor]:
        """Take ``count`` steps; the weights after those steps that are marked."""
        marked, found = set(marks), {}
        for i in range(1, count + 1):
            theta = self.step(forecast(self.theta))
            if i in marked:
                found[i] = theta.clone()
        return found

    def save(self) -> Callable[[], None]:
        """What puts everything back to where it is now."""
        back = self.replica.save()
        memo = {id(self.replica.copy): self.replica.copy}
        state = None if self.scheduler is None else copy.deepcopy(_state(self.scheduler), dict(memo))

        def restore() -> None:
            back()
            if self.scheduler is not None and state is not None:
                self.scheduler.__dict__.update(copy.deepcopy(state, dict(memo)))

        return restore


def clipped(gradient: Tensor, clip: float | None) -> Tensor:
    """A gradient (P,) as ``clip_grad_norm_`` leaves it; None for no clipping."""
    if clip is None:
        return gradient
    return gradient * (clip / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)


def _state(scheduler: Scheduler) -> dict[str, Any]:
    return {key: value for key, value in scheduler.__dict__.items() if key != "optimizer" and not callable(value)}


def inside(scheduler: Scheduler) -> list[tuple[Any, dict[str, Any]]]:
    """A scheduler, those that it goes through and functions with a state of their own, each with its attributes."""
    found = [(scheduler, dict(vars(scheduler)))]
    for inner in getattr(scheduler, "_schedulers", []):
        found += inside(inner)
    return found + [(fn, dict(vars(fn))) for fn in getattr(scheduler, "lr_lambdas", []) if hasattr(fn, "__dict__")]


def require_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Raise for what cannot be stepped along with an optimizer."""
    if scheduler is None:
        return
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise InputError("scheduler=ReduceLROnPlateau waits for a metric at every step: leave it out.")
    if not isinstance(scheduler, Scheduler):
        raise InputError(f"scheduler={brief(scheduler)}: give a torch learning-rate scheduler that is stepped with the "
                         "optimizer, or None.")  # fmt: skip
    # Wrappers of it (ours, accelerate's) share them.
    if scheduler.optimizer.param_groups is not original(optimizer).param_groups:
        raise InputError(
            f"scheduler={type(scheduler).__name__} moves the rates of another optimizer, a "
            f"{type(scheduler.optimizer).__name__}: give the one of this {type(optimizer).__name__}."
        )
