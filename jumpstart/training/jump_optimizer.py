"""``JumpOptimizer``: any torch optimizer, with jumps between its steps; the loop stays the user's."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MetricError, NonFiniteError
from ..jumping.jump import JumpResult, jump
from ..jumping.trust import Outcome, Trust
from ..objectives.objective import Objective

Schedule = int | Iterable[int] | Callable[[int], bool] | None

# First moments, and by what the gradient at the new point becomes one: "keep" keeps the entry as it is.
MOMENTA: dict[str, Callable[[dict[str, Any], dict[str, Any]], float]] = {
    "exp_avg": lambda state, group: (
        1 - group["betas"][0] ** float(state["step"]) if "betas" in group and "step" in state else 0.0
    ),
    # What the buffer settles at under a constant gradient. RMSprop's is preconditioned: it starts afresh.
    "momentum_buffer": lambda state, group: (
        0.0 if "square_avg" in state else (1 - group.get("dampening", 0.0)) / max(1 - group["momentum"], 1e-3)
    ),
}
AFTER = ("rebuild", "reset", "keep")


class JumpOptimizer(torch.optim.Optimizer):
    """Wraps an optimizer: ``step()`` takes its step, and at the scheduled steps a jump as well.

    Jumps go in the optimizer's own metric (Adam's 1/√v̂, frozen at the jump), along the objective given. A rejected
    jump leaves weights, buffers, optimizer state and random state to the bit; after an accepted one second moments
    are kept and first moments rebuilt from the gradient at the new point.

    Args:
        optimizer: any torch optimizer; learning-rate schedulers may hold either of the two.
        objective: what jumps descend, or a function that returns it for the next jump (a fresh subset, say).
        at: when to jump, in completed steps: a period, a set of step numbers, or a function of the number of
            steps taken; None for never (call :meth:`jump` yourself).
        after: what becomes of first moments after an accepted jump: "rebuild" (one gradient evaluation), "reset"
            to zero, or "keep".
        metric: "optimizer" (where its state gives none, the plain metric, with a warning), None for the plain
            metric, or anything :func:`jumpstart.jump` takes.
        options: passed to :func:`jumpstart.jump` (basis, depth, second_order, reuse, gate, …).

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
        metric: Any = "optimizer",
        **options: Any,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(f"JumpOptimizer wraps a torch optimizer, got {type(optimizer).__name__}.")
        if not isinstance(objective, Objective) and not callable(objective):
            raise InputError(f"objective must be a js.Objective or a function returning one, got {objective!r}.")
        if after not in AFTER:
            raise InputError(f"after={after!r} is none of {AFTER}.")
        known = set(inspect.signature(jump).parameters) - {"objective", "metric", "trust", "course"}
        if unknown := set(options) - known:
            raise InputError(f"JumpOptimizer: {sorted(unknown)} is no option of js.jump; there are {sorted(known)}.")
        if isinstance(at, int) and at < 1:
            raise InputError(f"at={at!r}: jump every so many steps, at least 1 (or None for never).")
        self.inner, self.objective, self.after, self.metric, self.options = optimizer, objective, after, metric, options
        self._scheduled = _schedule(at)
        self.steps = 0
        self.trust = Trust()
        self.results: list[JumpResult] = []
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

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.inner.add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """The wrapped optimizer's step, and a jump where one is due; returns what the wrapped step returns."""
        answer = self.inner.step() if closure is None else self.inner.step(closure)
        self.steps += 1
        if self._scheduled(self.steps):
            self.jump()
        return answer

    def jump(self) -> JumpResult | None:
        """Try a jump now; the result is kept in ``results``. None where the present point is not finite.

        Raises:
            InputError and its kinds for an objective that cannot be jumped along.
        """
        objective = self.objective if isinstance(self.objective, Objective) else self.objective()
        metric: Any = self.inner if isinstance(self.metric, str) and self.metric == "optimizer" else self.metric
        try:
            try:
                result = jump(objective, metric=metric, trust=self.trust, **self.options)
            except MetricError as error:
                if metric is not self.inner:
                    raise
                warnings.warn(f"jumping in the plain metric: {error}", RuntimeWarning, stacklevel=2)
                result = jump(objective, metric=None, trust=self.trust, **self.options)
        except NonFiniteError as error:
            # The loop is the user's: a run that has diverged goes on or stops by its own rules.
            warnings.warn(f"jump skipped after step {self.steps}: {error}", RuntimeWarning, stacklevel=2)
            return None
        self.trust = result.trust
        self.results.append(replace(result, directions=None))  # a vector of the parameters' size for every jump
        if result.outcome is Outcome.ACCEPTED and self.after != "keep":
            self._refresh(objective)
        return result

    @torch.no_grad()
    def _refresh(self, objective: Objective) -> None:
        """Make the first moments describe the new point: the gradient there, or nothing."""
        gradient: dict[str, Tensor] = {}
        if self.after == "rebuild":
            flat = objective.gradient(objective.theta())[1]
            gradient = objective.space.unflatten(flat) if bool(torch.isfinite(flat).all()) else {}
        names = {id(p): name for name, p in objective.model.named_parameters()}
        for group in self.param_groups:
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name not in objective.space.names:
                    continue
                state = self.state.get(parameter, {})
                for key, factor in MOMENTA.items():
                    moment = state.get(key)
                    if isinstance(moment, Tensor):
                        moment.zero_()
                        if gradient:
                            moment.add_(gradient[name].to(moment.dtype), alpha=factor(state, group))

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state, steps taken, and the trust in the next horizon: plain numbers."""
        return {
            "optimizer": self.inner.state_dict(),
            "steps": self.steps,
            "horizon": self.trust.horizon,
            "scale": self.trust.scale,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            InputError: the state is not a JumpOptimizer's.
        """
        missing = {"optimizer", "steps", "horizon", "scale"} - set(state_dict)
        if missing:
            raise InputError(
                f"this is no JumpOptimizer state ({sorted(missing)} missing): for a bare optimizer's state call "
                "optimizer.inner.load_state_dict(state)."
            )
        self.inner.load_state_dict(state_dict["optimizer"])
        self.steps = int(state_dict["steps"])
        self.trust = Trust().after(horizon=state_dict["horizon"], scale=state_dict["scale"])

    def __getstate__(self) -> dict[str, Any]:
        # Schedulers replace ``step`` on the instance; a copy gets the class's own.
        return {key: value for key, value in self.__dict__.items() if key != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        super().__setstate__({})

    def __repr__(self) -> str:
        accepted = sum(result.accepted for result in self.results)
        return f"JumpOptimizer({self.inner!r}, steps={self.steps}, jumps={accepted}/{len(self.results)})"


def _schedule(at: Schedule) -> Callable[[int], bool]:
    if at is None:
        return lambda step: False
    if callable(at):
        return at
    if isinstance(at, int):
        return lambda step: step % at == 0
    chosen = frozenset(at)
    if not all(isinstance(step, int) for step in chosen):
        raise InputError(f"at={sorted(map(str, chosen))[:5]}: give step numbers.")
    return lambda step: step in chosen
