"""``JumpOptimizer``: any torch optimizer, with jumps between its steps; the loop stays the user's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ..distributed.optimizers import current, original
from ..distributed.wrapped import warn_alone, whole
from ..errors import InputError
from ..objectives.objective import Objective
from ..optim import adapters
from ..report import jumps
from ..report.page import render
from ..utils.brief import brief
from ..utils.warn import warn
from . import pages
from .actions import Recent
from .modes import ALONE, chosen, way
from .schedule import Schedule
from .writers import Hook, hooks, tell

OWN = "jumpstart"  # the entry of state_dict() that is not the wrapped optimizer's
ENTRIES = {"mode", "taken", "action"}  # of it
UNMOVED, STUCK = 1_000, 10_000  # iterations of steps() without a step: said, and refused

log = logging.getLogger("jumpstart")


class JumpOptimizer(torch.optim.Optimizer):
    """Wraps an optimizer: ``step()`` takes its step, and now and then jumps over steps to come as well.

    It *skips* by default: the weights, and all of the optimizer's state, are moved to where so many of its own steps
    would have taken them, on the objective given; see :class:`jumpstart.training.skipping.Skipping`. With ``search=``
    it takes, at scheduled steps, the horizon that lowers the training loss most instead, for problems where that loss
    is the goal (residuals of a differential equation); see :class:`jumpstart.training.searching.Searching`.

    A jump never raises into the loop: trouble of any kind is a RuntimeWarning with its cause and a result that says so,
    and the run goes on as without it. ``results`` keeps the last thousand, ``jumps`` counts all. Each is a line of the
    log "jumpstart".

    Args:
        optimizer: any torch optimizer; learning-rate schedulers may hold either of the two.
        objective: what the loop trains, or a function that returns it for the next jump (of fresh samples, say).
        at: when to jump, in completed steps: a period, step numbers (none for never), or a function of the number
            of steps taken; None where it pays, for a search every 50th step.
        skip: how many steps to skip at once, or "auto".
        actions: what may follow a step, by name or ready-made (:mod:`jumpstart.training.proposals`): "skip", "line",
            "trajectory", "average", "head".
        search: True or the name of a search of :func:`jumpstart.jump`, to search and not to skip.
        on_jump: called with the result after each jump that was tried, or several such; writers of
            :mod:`jumpstart.training.writers`. What it raises is a warning. As torch's hooks it is left behind where
            the optimizer is copied or pickled.
        options: those of the one way or the other.

    Attributes:
        inner: the wrapped optimizer. action: what follows its steps. taken: steps of it. skipped: steps that were
            skipped. effective_steps: both together. total: how many of these the run is to have, beyond which no jump
            goes; None where nobody knows. :meth:`steps` sets it while it is iterated over.
        history: rows about the last thousand jumps, as reports have them (``report.jumps``): action, step (effective),
            taken, seconds since the first step here, losses, verdict, cost.

    Raises:
        InputError and its kinds, NondeterministicError: an objective that does not fit the optimizer or cannot be
            jumped along, options that are unknown or of the other way. Where the objective is a function, what is
            wrong with it is found at the first jump.

    Example:
        >>> from jumpstart import supervised
        >>> model = torch.nn.Linear(3, 1)
        >>> objective = supervised(model, torch.randn(8, 3), torch.randn(8, 1))
        >>> optimizer = JumpOptimizer(torch.optim.AdamW(model.parameters()), objective)
        >>> for step in optimizer.steps(100):
        ...     optimizer.zero_grad()
        ...     _ = objective.loss.value(model(objective.parts[0].inputs)).backward()
        ...     _ = optimizer.step()
        >>> optimizer.effective_steps
        100
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        objective: Objective | Callable[[], Objective],
        at: Schedule = None,
        *,
        skip: int | str = "auto",
        search: bool | str = False,
        actions: Sequence[Any] = ALONE,
        on_jump: Hook | Sequence[Hook] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(f"JumpOptimizer wraps a torch optimizer, got {type(optimizer).__name__}.")
        if isinstance(optimizer, JumpOptimizer):
            raise InputError("JumpOptimizer: this optimizer jumps already; wrap the one inside it (optimizer.inner).")
        if not isinstance(objective, Objective) and not callable(objective):
            raise InputError(f"objective must be a js.Objective or a function returning one, got {brief(objective)}.")
        warn_alone("the objective of this JumpOptimizer", getattr(objective, "world", None))
        self.inner, self.taken = optimizer, 0
        self.action = chosen(whole(optimizer), objective, at, skip, search, actions, options)
        self.total: int | None = None
        self.history: list[dict[str, Any]] = Recent()
        self._begun: float | None = None  # when the first step was taken here
        self._jump_hooks = hooks(on_jump)  # named so that pickles leave them behind
        super().__setstate__({})  # the hook tables that torch expects, without a second set of parameter groups

    # The wrapped optimizer's own tables, so that schedulers, clipping and logging see one optimizer.
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's own."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's own."""
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's own."""
        return self.inner.defaults

    def __getattr__(self, name: str) -> Any:
        if name in ("train", "eval") and "inner" in self.__dict__:  # schedule-free optimizers have modes
            return getattr(self.inner, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The wrapped optimizer's own; gradients become None, or zero without ``set_to_none``."""
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Give ``param_group`` to the wrapped optimizer; the next jump knows of the new parameters."""
        self.inner.add_param_group(param_group)
        self.action.parameters_added()

    @property
    def results(self) -> list[Any]:
        """What the last thousand jumps did, without their displacements."""
        return self.action.results

    @property
    def jumps(self) -> int:
        """How many jumps were tried."""
        return self.action.count

    @property
    def skipped(self) -> int:
        """How many steps were skipped."""
        return self.action.skipped

    @property
    def effective_steps(self) -> int:
        """Steps taken and skipped together."""
        return self.taken + self.action.skipped

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """The wrapped optimizer's step, with its ``closure``, and a jump where one is due; what that step returns."""
        return self._hooked(closure) if self._has_hooks() else self._stepped(closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch's own wrapper would take a tenth of a small step, twice

    def _has_hooks(self) -> bool:
        own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        return bool(own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks)

    def _stepped(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None and self._idle():
            return self.inner.step()
        if self._begun is None:
            self._begun = time.perf_counter()
        due = self.action.due(self.taken + 1)
        if due:
            self._tell(self.action.prepare())
        answer = self.inner.step() if closure is None else self.inner.step(closure)
        self.taken += 1
        if due:
            left = None if self.total is None else max(0, self.total - self.effective_steps)
            self._tell(self.action.follow(self.taken, left))
        else:
            self.action.passed(self.taken)
        return answer

    _hooked = torch.optim.Optimizer.profile_hook_step(_stepped)

    def _idle(self) -> bool:
        """Whether a step would change no weight: torch.distributed.checkpoint makes an optimizer's state by such."""
        if any(adapters.moves(group) for group in self.param_groups):
            return False
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return not any(bool((grad != 0).any()) for grad in grads)

    def jump(self) -> Any:
        """Search for a jump now, whatever it costs; the result is kept in ``results``, without the displacement.

        Returns:
            The result; a skipped one, with a warning, where the present point is not finite or nothing has a learning
            rate.

        Raises:
            InputError and its kinds: for an objective that cannot be jumped along, and for a wrapper that skips.
        """
        with current(self.action.optimizer):
            result = self.action.now(self.taken)
        self._tell(self.results[-1])  # who collects results collects no displacements
        return result

    def _tell(self, result: Any) -> None:
        """The log and the hooks, of jumps that were tried."""
        for name, found in self.action.told(result):
            log.info("%s after step %d (%d effective): %s", name, self.taken, self.effective_steps, found)
            since = 0.0 if self._begun is None else time.perf_counter() - self._begun
            where = {
                "step": self.effective_steps,
                "taken": self.taken,
                "skipped so far": self.skipped,
                "seconds": since,
            }
            self.history.append(jumps.row("run", name, found, **where))
            tell(self._jump_hooks, found, name, self.taken, self.skipped)

    def html(self, path: str | Path) -> Path:
        """Write one HTML file to look at, which needs no network: every jump, what it cost and came to; returns its
        path, which gets ".html" if it ends in nothing.

        Raises:
            InputError: it cannot be written. MissingPackageError: plotly is not installed.
        """
        told = {"taken": self.taken, "skipped": self.skipped, "jumps": self.jumps, "action": self.action.name}
        return render.write(pages.of_run(self.history, told), path)

    def steps(self, total: int) -> Iterator[int]:
        """Effective steps, from the present one until there are ``total``: a loop over them is told of skipped ones.

        Where gradients are accumulated, several iterations have the same number. While the loop runs, no jump goes
        beyond its end.

        Raises:
            InputError: ``total`` is no count; the loop's body never calls ``step()``.
        """
        if isinstance(total, bool) or not isinstance(total, int) or total < 0:
            raise InputError(f"steps(total={brief(total)}): give how many steps the run has, taken and skipped.")
        return self._run(total)

    def _run(self, total: int) -> Iterator[int]:
        before, self.total, idle = self.total, total, 0
        try:
            while self.effective_steps < total:
                known = self.taken
                yield self.effective_steps
                idle = idle + 1 if self.taken == known else 0
                if idle == UNMOVED:
                    warn(
                        f"optimizer.steps({total}): {idle} iterations, and optimizer.step() took no step; the loop "
                        "goes on until there are as many as it was given.",
                        RuntimeWarning,
                    )
                if idle == STUCK:
                    raise InputError(
                        f"optimizer.steps({total}): {idle} iterations, and optimizer.step() took no step: call it on "
                        "the JumpOptimizer (not on the one inside), or iterate over a range of your own."
                    )
        finally:
            self.total = before

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's ``state`` and ``param_groups``, and under "jumpstart" what jumps remember."""
        own = {"mode": self.action.name, "taken": self.taken, "action": self.action.state_dict()}
        return {**self.inner.state_dict(), OWN: own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        A state without the entry "jumpstart" (a bare optimizer's, or one that went through
        torch.distributed.checkpoint) is loaded with a warning: the count of steps and what jumps remember start
        afresh.

        Raises:
            InputError: this is no optimizer's state, or of a wrapper that goes the other way, or its memory is of
                jumps along other parameters; nothing has changed.
        """
        if missing := {"state", "param_groups"} - set(state_dict):
            raise InputError(f"this is no optimizer's state: {sorted(missing)} missing, it has {sorted(state_dict)}.")
        own = state_dict.get(OWN)
        if own is not None:
            self._check(own)
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != OWN})
        if own is None:
            warn(
                f"this state has no entry {OWN!r}: the count of steps and what jumps remember start afresh.",
                UserWarning,
            )
        self.action.load_state_dict(None if own is None else own["action"])
        self.taken = 0 if own is None else own["taken"]

    def _check(self, own: Any) -> None:
        """Raise for an entry that is no wrapper's of this mode."""
        if not isinstance(own, dict) or set(own) != ENTRIES:
            raise InputError(f"the entry {OWN!r} of this state is no JumpOptimizer's: it holds {brief(own)}.")
        if own["mode"] != self.action.name:
            raise InputError(
                f"this state is of a JumpOptimizer that {way(own['mode'])}, this one {way(self.action.name)}: wrap "
                f"the optimizer as it was, or leave the entry {OWN!r} out to start jumps afresh."
            )
        taken = own["taken"]
        if isinstance(taken, bool) or not isinstance(taken, int) or taken < 0:
            raise InputError(f"the entry {OWN!r} of this state counts {brief(taken)} steps.")
        self.action.check(own["action"])

    def __getstate__(self) -> dict[str, Any]:
        if original(self.action.optimizer) is not self.action.optimizer:
            raise InputError(
                f"a JumpOptimizer of a {type(self.inner).__name__} that is spread over processes can neither be copied "
                "nor pickled: save its state_dict()."
            )
        # As torch's own: hooks stay behind, and so does ``step`` as schedulers replace it on the instance.
        kept = {key: value for key, value in self.__dict__.items() if key != "step" and not key.endswith("_hooks")}
        return {**kept, "total": None, "_begun": None}  # a copy is in nobody's loop

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _jump_hooks=())
        super().__setstate__({})

    def __repr__(self) -> str:
        accepted = sum(result.accepted for result in self.results)
        return (
            f"JumpOptimizer({self.inner!r}, {self.action.name}, taken={self.taken}, skipped={self.skipped}, "
            f"jumps={accepted}/{self.jumps})"
        )
