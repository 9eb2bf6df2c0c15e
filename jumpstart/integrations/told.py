"""What a trainer knows and a wrapper that skips should: the length of the run, its schedule, its clipping."""

from __future__ import annotations

from typing import Any

import torch

from ..skipping.skip import require_options
from ..training.jump_optimizer import JumpOptimizer
from ..training.skipping import Skipping


def inside(optimizer: Any) -> JumpOptimizer | None:
    """The JumpOptimizer in a trainer's own wrappers of optimizers, if there is one."""
    seen: set[int] = set()
    while optimizer is not None and id(optimizer) not in seen:
        if isinstance(optimizer, JumpOptimizer) and "inner" in vars(optimizer):
            return optimizer
        seen.add(id(optimizer))
        optimizer = vars(optimizer).get("optimizer", vars(optimizer).get("_optimizer"))
    return None


def tell(jumps: JumpOptimizer, scheduler: Any, clip: float | None) -> None:
    """The schedule and the clipping that steps follow, where the user has not said them.

    Raises:
        InputError: a schedule that cannot be followed over skipped steps.
    """
    if not isinstance(jumps.action, Skipping):
        return
    options = jumps.action.options
    for name, value in (("scheduler", scheduler), ("clip", clip)):
        if options[name] is None and value is not None:
            options[name] = value
    require_options(**options, optimizer=jumps.inner)


def begin(jumps: JumpOptimizer, counted: int, total: int) -> None:
    """Where the run ends, in effective steps: ``counted`` steps of ``total`` are what the trainer has taken."""
    before = counted + jumps.skipped if counted else 0  # resumed, or one more run of the same optimizer
    jumps.total = jumps.effective_steps - before + total


def over(jumps: JumpOptimizer) -> bool:
    """Whether as many steps are taken and skipped as the run is to have."""
    return jumps.total is not None and jumps.effective_steps >= jumps.total


def is_stepped(scheduler: Any) -> bool:
    """Whether this is a schedule over steps, which can be followed without a metric."""
    kind = torch.optim.lr_scheduler
    return isinstance(scheduler, kind.LRScheduler) and not isinstance(scheduler, kind.ReduceLROnPlateau)
