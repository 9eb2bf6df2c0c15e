"""Lightning: a callback that wraps the optimizer of a fit, and ends the fit when as many steps are done."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..errors import InputError, MissingPackageError
from ..objectives.objective import Objective
from ..training.jump_optimizer import JumpOptimizer
from ..training.schedule import Schedule
from ..utils.brief import brief
from .told import begin, inside, is_stepped, over, tell

try:
    from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]  # of an extra
except ImportError as error:
    raise MissingPackageError(
        "jumpstart.integrations.lightning needs the package lightning: pip install lightning."
    ) from error


class JumpCallback(Callback):
    """Lets the optimizer of a fit jump: as if ``configure_optimizers`` had made a :class:`jumpstart.JumpOptimizer`.

    Skipped steps count towards the trainer's ``max_steps`` or ``max_epochs``: the fit ends when as many are taken and
    skipped; its ``global_step`` goes on counting those that are taken. A schedule that is stepped with the optimizer
    and ``gradient_clip_val`` are followed. Checkpoints hold what jumps remember.

    Args:
        objective, at, options: as for :class:`jumpstart.JumpOptimizer`. In a fit over several processes a function is
            called once, at its beginning, when their group is there: ``lambda: js.supervised(…, group=
            torch.distributed.group.WORLD)``.

    Raises:
        InputError: at the beginning of a fit, where there is not exactly one optimizer, or it cannot be wrapped.
    """

    def __init__(self, objective: Objective | Callable[[], Objective], at: Schedule = None, **options: Any) -> None:
        if not isinstance(objective, Objective) and not callable(objective):
            raise InputError(f"objective must be a js.Objective or a function returning one, got {brief(objective)}.")
        self.objective, self.at, self.options = objective, at, options

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Wraps the optimizer; Lightning calls it, with its trainer and module (``pl_module``)."""
        # Optimizers are there, and their saved states are loaded after this.
        if len(trainer.optimizers) != 1:
            raise InputError(f"JumpCallback: this module has {len(trainer.optimizers)} optimizers: it takes one.")
        (made,) = trainer.optimizers
        if inside(made) is None:
            # Over several processes an objective is fixed, and there is no group before this.
            given = self.objective
            objective = given if isinstance(given, Objective) or trainer.world_size == 1 else given()
            trainer.strategy.optimizers = [JumpOptimizer(made, objective, self.at, **self.options)]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Tells the wrapper of schedule, clipping and number of steps; Lightning calls it, with its ``pl_module``."""
        jumps = inside(trainer.optimizers[0])
        assert jumps is not None
        tell(jumps, _schedule(trainer), _clip(trainer))
        total = trainer.estimated_stepping_batches
        if math.isfinite(total) and total >= 0:
            begin(jumps, trainer.global_step, int(total))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Ends the run when all its steps are taken or skipped; Lightning calls it."""
        jumps = inside(trainer.optimizers[0])
        if jumps is not None and over(jumps):
            trainer.should_stop = True


def _schedule(trainer: Any) -> Any:
    """The schedule that is stepped after every optimizer step, if there is one and no other."""
    found = [config for config in trainer.lr_scheduler_configs if is_stepped(config.scheduler)]
    if len(found) == len(trainer.lr_scheduler_configs) == 1 and (found[0].interval, found[0].frequency) == ("step", 1):
        return found[0].scheduler
    return None


def _clip(trainer: Any) -> float | None:
    by = str(getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm or "norm"))
    return float(trainer.gradient_clip_val) if trainer.gradient_clip_val and by == "norm" else None
