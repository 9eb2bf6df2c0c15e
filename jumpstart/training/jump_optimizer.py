"""``JumpOptimizer``: any torch optimizer, with jumps between its steps; the loop stays the user's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, MetricError, NonFiniteError
from ..jumping.jump import JumpResult
from ..jumping.jumper import Jumper
from ..jumping.settings import Settings
from ..linearization.linearize import linearize
from ..linearization.metric import MetricLike, held, metric_of, restrict
from ..objectives.objective import Objective
from ..optim import adapters

Schedule = int | Iterable[int] | Callable[[int], bool] | None

AFTER = ("rebuild", "reset", "keep")
OWN = "jumpstart"  # the entry of state_dict() that is not the wrapped optimizer's
OPTIONS = (Jumper.OPTIONS | {"keep"}) - {"params", "nonmonotone"}  # nobody here keeps the best weights of a climb


class JumpOptimizer(torch.optim.Optimizer):
    """Wraps an optimizer: ``step()`` takes its step, and at the scheduled steps a jump as well.

    Jumps go in the optimizer's own metric (Adam's 1/√v̂, frozen at the jump), along the objective given, and remember
    from one to the next. A rejected jump leaves weights, buffers, optimizer state and random state to the bit; after
    an accepted one second moments are kept, first moments rebuilt from the gradient at the new point, and copies of
    the weights in the optimizer's state move along; what is known of an optimizer stands in
    :mod:`jumpstart.optim.adapters`. Parameters that are frozen, or in groups with learning rate 0, are left out.

    Args:
        optimizer: any torch optimizer; learning-rate schedulers may hold either of the two. One with ``maximize=True``
            is taken to climb the negative of the objective.
        objective: what jumps descend, or a function that returns it for the next jump (a fresh subset, say).
        at: when to jump, in completed steps: a period, a set of step numbers, or a function of the number of
            steps taken; None for never (call :meth:`jump` yourself).
        after: what becomes of first moments after an accepted jump, of parameters that moved: "rebuild" (one gradient
            evaluation), "reset" to zero, or "keep".
        metric: "optimizer" (where its state gives none, the plain metric, with a warning), None for the plain
            metric, or anything :func:`jumpstart.jump` takes.
        params: which of the objective's parameters jumps move (names, patterns, or a function); None for all.
        options: passed to :class:`jumpstart.Jumper` (basis, depth, horizon, gate, …).

    Raises:
        InputError and its kinds, NondeterministicError: an objective that does not fit the optimizer or cannot be
            jumped along, a metric of another shape, options that are unknown. Where the objective is a function, what
            is wrong with it is found at the first jump.

    Example:
        >>> from jumpstart import supervised
        >>> model = torch.nn.Linear(3, 1)
        >>> objective = supervised(model, torch.randn(8, 3), torch.randn(8, 1))
        >>> optimizer = JumpOptimizer(torch.optim.AdamW(model.parameters()), objective, at=5)
        >>> for _ in range(5):
        ...     optimizer.zero_grad()
        ...     _ = objective.loss.value(model(objective.parts[0].inputs)).backward()
        ...     _ = optimizer.step()
        >>> optimizer.results[0].outcome.name
        'ACCEPTED'
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        objective: Objective | Callable[[], Objective],
        at: Schedule = 50,
        *,
        after: str = "rebuild",
        metric: MetricLike | str = "optimizer",
        params: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(f"JumpOptimizer wraps a torch optimizer, got {type(optimizer).__name__}.")
        if isinstance(optimizer, JumpOptimizer):
            raise InputError("JumpOptimizer: this optimizer jumps already; wrap the one inside it (optimizer.inner).")
        if not isinstance(objective, Objective) and not callable(objective):
            raise InputError(f"objective must be a js.Objective or a function returning one, got {objective!r}.")
        if after not in AFTER:
            raise InputError(f"after={after!r} is none of {AFTER}.")
        if unknown := set(options) - OPTIONS:
            raise InputError(
                f"JumpOptimizer: {sorted(unknown)} is no option of its jumps; there are {sorted(OPTIONS)}."
            )
        Settings.of({name: value for name, value in options.items() if name != "keep"}, "JumpOptimizer")
        self.inner, self.objective, self.after, self.metric = optimizer, objective, after, metric
        self.params, self.options = params, options
        self._asked()  # refuses other names than "optimizer"
        self._due = _schedule(at)
        self.steps = 0
        self.results: list[JumpResult] = []
        self.jumper: Jumper | None = None
        self._memory: tuple[tuple[str, ...], dict[str, Any]] | None = None  # loaded, for a jumper still to be made
        self._part: tuple[Objective, Objective] | None = None  # an objective, and the same for what moves of it
        self._chosen: Objective | None = None  # the objective given, for ``params``
        if isinstance(objective, Objective):
            self._chosen = self._choose(objective)
            linearize(self._chosen)  # asks the network twice
            if not isinstance(self._asked(), torch.optim.Optimizer):
                metric_of(self._asked(), self._chosen)
            self.jumper = Jumper(self._chosen, **options)
        super().__setstate__({})  # the hook tables that torch expects, without a second set of parameter groups

    # The wrapped optimizer's own tables, so that schedulers, clipping and logging see one optimizer.
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.inner.defaults

    def __getattr__(self, name: str) -> Any:
        if name in ("train", "eval") and "inner" in self.__dict__:  # schedule-free optimizers have modes
            return getattr(self.inner, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.inner.add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """The wrapped optimizer's step, and a jump where one is due; returns what the wrapped step returns."""
        idle = closure is None and self._idle()
        answer = self.inner.step() if closure is None else self.inner.step(closure)
        if idle:
            return answer
        self.steps += 1
        if self._due(self.steps):
            self.jump()
        return answer

    def _idle(self) -> bool:
        """Whether a step would change no weight: torch.distributed.checkpoint makes an optimizer's state by such."""
        if any(adapters.moves(group) for group in self.param_groups):
            return False
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return not any(bool((grad != 0).any()) for grad in grads)

    def jump(self) -> JumpResult | None:
        """Try a jump now; the result is kept in ``results``, without the displacement.

        Returns:
            The result; None, with a warning, where the present point is not finite or nothing has a learning rate.

        Raises:
            InputError and its kinds for an objective that cannot be jumped along.
        """
        try:
            whole = self._chosen if self._chosen is not None else self._choose(self.objective())  # type: ignore[operator]
            objective = self._moving(whole)
            if objective is None:
                why = "every parameter of the objective is frozen or has learning rate 0"
                warnings.warn(f"jump skipped after step {self.steps}: {why}.", RuntimeWarning, stacklevel=2)
                return None
            jumper = self._jumper(objective)
            metric = self._metric(whole, objective)
            try:
                result = jumper.jump(metric=metric)
            except MetricError as error:
                if metric is not self.inner:
                    raise
                why = str(error).removeprefix("metric: ")
                warnings.warn(f"jumping in the plain metric: {why}", RuntimeWarning, stacklevel=2)
                result = jumper.jump(metric=None)
        except NonFiniteError as error:
            # The loop is the user's: a run that has diverged goes on or stops by its own rules.
            warnings.warn(f"jump skipped after step {self.steps}: {error}", RuntimeWarning, stacklevel=2)
            return None
        self.results.append(replace(result, directions=None))  # a vector of the parameters' size for every jump
        if result.accepted:
            assert result.directions is not None
            self._tell(objective, result.directions[0])
        return result

    def _choose(self, objective: Objective) -> Objective:
        """The objective for the parameters that were asked for, all of which the optimizer must hold."""
        if not isinstance(objective, Objective):
            raise InputError(f"the objective's function returned {type(objective).__name__}, not a js.Objective.")
        chosen = objective if self.params is None else objective.subset(self.params)
        held(self.inner, chosen.model, chosen.space)
        return chosen

    def _moving(self, whole: Objective) -> Objective | None:
        """The objective for the parameters that the optimizer moves now; None if there are none."""
        groups = held(self.inner, whole.model, whole.space)
        frozen = set()
        if whole.params is None:  # parameters that were asked for by name are another matter
            frozen = {name for name, p in whole.model.named_parameters() if not p.requires_grad}
        names = tuple(name for name in whole.space.names if name not in frozen and adapters.moves(groups[name]))
        if not names or names == whole.space.names:
            return whole if names else None
        if self._part is None or self._part[0] is not whole or self._part[1].space.names != names:
            self._part = whole, whole.subset(Names(frozenset(names)))
        return self._part[1]

    def _jumper(self, objective: Objective) -> Jumper:
        """The jumper, on this objective; another set of parameters starts afresh."""
        if self.jumper is None or self.jumper.objective.space.names != objective.space.names:
            self.jumper = Jumper(objective, **self.options)
        self.jumper.objective = objective
        if self._memory is not None and self._memory[0] == objective.space.names:
            self.jumper.load_state_dict(self._memory[1])
        self._memory = None
        return self.jumper

    def _asked(self) -> MetricLike:
        """The metric that was asked for."""
        if isinstance(self.metric, str):
            if self.metric != "optimizer":
                raise InputError(f"metric={self.metric!r}: the only name is 'optimizer', the wrapped optimizer's own.")
            return self.inner
        return self.metric

    def _metric(self, whole: Objective, objective: Objective) -> MetricLike:
        """The same, for the parameters that move."""
        asked = self._asked()
        if asked is None or isinstance(asked, torch.optim.Optimizer) or objective is whole:
            return asked
        return restrict(metric_of(asked, whole), whole.space, objective.space.names)

    def _tell(self, objective: Objective, displacement: Tensor) -> None:
        """Tell the wrapped optimizer of an accepted jump along δ (P,)."""
        space, present = objective.space, dict(objective.model.named_parameters())
        moved: dict[Tensor, Tensor] = {present[name]: piece for name, piece in space.unflatten(displacement).items()}
        adapters.tell(self.inner, moved)
        if self.after == "keep":
            return
        gradients: dict[Tensor, Tensor | None] = dict.fromkeys(moved)
        if self.after == "rebuild":
            flat = objective.gradient(objective.theta())[1]
            if bool(torch.isfinite(flat).all()):
                gradients = {present[name]: piece for name, piece in space.unflatten(flat).items()}
        adapters.refresh(self.inner, gradients)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's ``state`` and ``param_groups``, and under "jumpstart" what jumps remember."""
        moving, memory = self._memory if self._memory is not None else ((), None)
        if self.jumper is not None:
            moving, memory = self.jumper.objective.space.names, self.jumper.state_dict()
        own = {"steps": self.steps, "moving": list(moving), "memory": memory}
        return {**self.inner.state_dict(), OWN: own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        A state without the entry "jumpstart" (a bare optimizer's, or one that went through
        torch.distributed.checkpoint) is loaded with a warning: the count of steps and what jumps remember start
        afresh.

        Raises:
            InputError: this is no optimizer's state, or its memory is of jumps along other parameters; nothing has
                changed.
        """
        if missing := {"state", "param_groups"} - set(state_dict):
            raise InputError(f"this is no optimizer's state: {sorted(missing)} missing, it has {sorted(state_dict)}.")
        steps, memory = 0, None
        if state_dict.get(OWN) is not None:
            steps, memory = self._read(state_dict[OWN])
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != OWN})
        if state_dict.get(OWN) is None:
            warnings.warn(
                f"this state has no entry {OWN!r}: the count of steps and what jumps remember start afresh.",
                UserWarning,
                stacklevel=2,
            )
        self.steps, self._memory, self.jumper = steps, memory, None

    def _read(self, own: Any) -> tuple[int, tuple[tuple[str, ...], dict[str, Any]] | None]:
        """Steps, and the memory with the names that it is about."""
        if not isinstance(own, dict) or set(own) != {"steps", "moving", "memory"}:
            raise InputError(f"the entry {OWN!r} of this state is no JumpOptimizer's: it holds {own!r:.80}.")
        steps, moving, memory = own["steps"], own["moving"], own["memory"]
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise InputError(f"the entry {OWN!r} of this state counts {steps!r} steps.")
        if memory is None:
            return steps, None
        names = tuple(moving)
        if self._chosen is not None:
            if other := set(names) - set(self._chosen.space.names):
                raise InputError(
                    f"this state remembers jumps of {sorted(other)[:5]}, which the objective does not move."
                )
            if names == self._chosen.space.names:
                Jumper(self._chosen, **self.options).load_state_dict(memory)  # raises here rather than at the next jump
        return steps, (names, memory)

    def __getstate__(self) -> dict[str, Any]:
        # As torch's own: hooks stay behind, and so does ``step`` as schedulers replace it on the instance.
        return {key: value for key, value in self.__dict__.items() if key != "step" and not key.endswith("_hooks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        super().__setstate__({})

    def __repr__(self) -> str:
        accepted = sum(result.accepted for result in self.results)
        return f"JumpOptimizer({self.inner!r}, steps={self.steps}, jumps={accepted}/{len(self.results)})"


@dataclass(frozen=True)
class Names:
    """Selects parameters by their exact names, for :meth:`Objective.subset`."""

    names: Collection[str]

    def __call__(self, name: str, parameter: nn.Parameter) -> bool:
        return name in self.names


# Schedules: classes, so that the wrapper can be pickled.
@dataclass(frozen=True)
class Every:
    period: int

    def __call__(self, step: int) -> bool:
        return step % self.period == 0


@dataclass(frozen=True)
class Among:
    steps: frozenset[int]

    def __call__(self, step: int) -> bool:
        return step in self.steps


def _schedule(at: Schedule) -> Callable[[int], bool]:
    if at is None:
        return Among(frozenset())
    if callable(at):
        return at
    if isinstance(at, int) and not isinstance(at, bool):
        if at < 1:
            raise InputError(f"at={at!r}: jump every so many steps, at least 1 (or None for never).")
        return Every(at)
    if isinstance(at, bool) or not isinstance(at, Iterable):
        raise InputError(f"at={at!r}: give a period, step numbers, a function of the step, or None for never.")
    chosen = frozenset(at)
    if wrong := [step for step in chosen if isinstance(step, bool) or not isinstance(step, int) or step < 1]:
        raise InputError(f"at={sorted(map(str, wrong))[:5]}: give step numbers, from 1.")
    return Among(chosen)
