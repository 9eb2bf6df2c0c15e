"""Hugging Face's ``Trainer``: its optimizer wrapped when it is made, and its run ended when as many steps are done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InputError, MissingPackageError
from ..objectives.objective import Objective
from ..training.jump_optimizer import JumpOptimizer
from ..training.schedule import Schedule
from ..utils.brief import brief
from .told import begin, inside, is_stepped, over, tell

try:
    import transformers  # pyright: ignore[reportMissingImports]  # of an extra
except ImportError as error:
    raise MissingPackageError(
        "jumpstart.integrations.huggingface needs the package transformers: pip install transformers accelerate."
    ) from error


def add_jumps(
    trainer: Any, objective: Objective | Callable[[], Objective], at: Schedule = None, **options: Any
) -> None:
    """Let a trainer's optimizer jump: as if it were made by :class:`jumpstart.JumpOptimizer`.

    Call it after the trainer is made and before ``train()``. Skipped steps count towards the trainer's ``max_steps``:
    it ends when as many are taken and skipped; its ``global_step`` goes on counting those that are taken. The
    learning-rate schedule and ``max_grad_norm`` are followed. Checkpoints hold what jumps remember.

    Args:
        trainer: a ``transformers.Trainer``. objective, at, options: as for :class:`jumpstart.JumpOptimizer`.

    Raises:
        InputError: this is no trainer, or it jumps already. What is wrong with the rest is found when the optimizer
            is made, at the beginning of ``train()``.
    """
    if not isinstance(trainer, transformers.Trainer):
        raise InputError(f"add_jumps(trainer=…) needs a transformers.Trainer, got {type(trainer).__name__}.")
    if any(isinstance(callback, Jumps) for callback in trainer.callback_handler.callbacks):
        raise InputError("add_jumps: this trainer jumps already.")
    if not isinstance(objective, Objective) and not callable(objective):
        raise InputError(f"objective must be a js.Objective or a function returning one, got {brief(objective)}.")
    make = trainer.create_optimizer

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        if inside(made) is None:
            made = trainer.optimizer = JumpOptimizer(made, objective, at, **options)
        return made

    trainer.create_optimizer = create_optimizer
    trainer.add_callback(Jumps())


class Jumps(transformers.TrainerCallback):
    """Tells the optimizer what the trainer knows, and the trainer when enough steps are taken and skipped."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        jumps = inside(parts["optimizer"])
        assert jumps is not None
        schedule = parts["lr_scheduler"]
        schedule = getattr(schedule, "scheduler", schedule)  # accelerate's wrapper
        clip = args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else None
        tell(jumps, schedule if is_stepped(schedule) else None, clip)
        begin(jumps, state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        jumps = inside(parts["optimizer"])
        if jumps is not None and over(jumps) and not control.should_training_stop:
            control.should_training_stop = True
            control.should_save |= args.save_strategy == transformers.trainer_utils.SaveStrategy.STEPS
