"""``Searching``: at scheduled steps a jump, at the horizon that lowers the training loss most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch

from ..errors import InputError, MetricError, NonFiniteError
from ..jumping.conditions import Conditions
from ..jumping.jump import JumpResult
from ..jumping.jumper import Jumper
from ..jumping.settings import Settings
from ..linearization.metric import MetricLike, metric_of
from ..linearization.problem import linearized
from ..objectives.objective import Consistent, Objective
from ..utils.brief import brief
from ..utils.fallback import described
from ..utils.warn import warn
from .actions import Action
from .data import GATHERED, Stream
from .next_step import AFTER, NextStep
from .reach import Names, Reach
from .schedule import BackOff, Schedule, schedule

PERIOD = 50
BUDGET = 20.0  # chosen so that dense jumps on tens of samples fit in between every tenth step
_PACE = {"tried": 0, "loss": math.nan, "changes": None}
# A state_dict() from which nothing is known.
_FRESH = {"moving": [], "memory": None, "back_off": vars(BackOff()), "pace": _PACE, "data": None, "objective": None}
# Nobody here keeps the best weights of a climb, or of a sum.
OPTIONS = (Jumper.OPTIONS | {"keep"}) - {"params", "nonmonotone", "penalty_pays"}


class Searching(Action):
    """A searched descent at scheduled steps: what ``JumpOptimizer(…, search=True)`` does after them.

    Jumps go in the optimizer's own metric (Adam's 1/√v̂, frozen at the jump), along the objective given, and remember
    from one to the next. A jump is accepted if the training loss falls, with weight decay its sum with the penalty as
    well, and if the optimizer's own next step, tried on a copy, does not undo it. A rejected jump leaves weights,
    buffers, optimizer state and random state to the bit; after an accepted one second moments are kept, first moments
    are as ``after`` says, and copies of the weights in the optimizer's state move along; what is known of an optimizer
    stands in :mod:`jumpstart.optim.adapters`. Parameters that are frozen, or in groups with learning rate 0, are left
    out.

    After a jump that failed, or lowered the loss by less than a step did since the last one, twice as many due steps
    go by as before; one that pays ends that.

    Args:
        optimizer: the wrapped one. One with ``maximize=True`` is taken to climb the negative of the objective.
        objective: what jumps descend, or a function that returns it for the next jump (a fresh subset, say). Where
            the data of a function turn out to change from call to call, it is called at four steps in a row; the
            last objective is solved, and the jump must lower the loss of the others, too.
        at: when to jump, in completed steps: a period, a set of step numbers, or a function of the number of
            steps taken; () for never (call ``jump()`` yourself), None for every 50th.
        after: what becomes of first moments after an accepted jump, of parameters that moved: "keep", "rebuild" (as
            after one step from rest, along the gradient at the new point), or "reset" to zero. Where the next step
            would undo the jump, the next of the three is taken, and after the last the jump is rejected.
        judge: an objective of other data (or a function that returns one) whose loss a jump must lower as well.
        budget: most that a scheduled jump may cost, network passes and dense work counted together, in steps of the
            loop for each step since the last one that was tried; None for no limit.
        metric: "optimizer" (where its state gives none, the plain metric, with a warning), None for the plain
            metric, or anything :func:`jumpstart.jump` takes.
        params: which of the objective's parameters jumps move (names, patterns, or a function); None for all.
        options: passed to :class:`jumpstart.Jumper` (basis, depth, horizon, gate, …).

    Raises:
        InputError and its kinds, NondeterministicError: an objective that does not fit the optimizer or cannot be
            jumped along, a metric of another shape, options that are unknown. Where the objective is a function, what
            is wrong with it is found at the first jump.
    """

    name: ClassVar[str] = "search"
    OPTIONS: ClassVar[frozenset[str]] = OPTIONS | {"after", "judge", "budget", "metric", "params"}

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        objective: Objective | Callable[[], Objective],
        at: Schedule = None,
        *,
        after: str = "keep",
        judge: Objective | Callable[[], Objective] | None = None,
        budget: float | None = BUDGET,
        metric: MetricLike | str = "optimizer",
        params: Any = None,
        **options: Any,
    ) -> None:
        if after not in AFTER:
            raise InputError(f"after={brief(after)} is none of {tuple(AFTER)}.")
        if judge is not None and not isinstance(judge, Objective) and not callable(judge):
            raise InputError(f"judge must be a js.Objective, a function returning one, or None, got {brief(judge)}.")
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget > 0):
            raise InputError(f"budget={brief(budget)}: give a positive number of steps' worth of work a step, or None.")
        Settings.of({name: value for name, value in options.items() if name != "keep"}, "JumpOptimizer")
        super().__init__(optimizer)
        self.objective, self.after, self.options = objective, after, options
        self.reach = Reach(optimizer, params, metric)
        self.judge, self.budget = judge, budget
        self._due = schedule(PERIOD if at is None else at)
        self.back_off = BackOff()
        self._stream = Stream()  # what a function has given
        self._consistent = Consistent()
        self._gathering = False  # a jump is due, and waits for more of it
        self._said = False
        self._tried = 0  # the step of the last scheduled jump
        self._loss = math.nan  # the training loss that it left
        self.jumper: Jumper | None = None
        self._memory: tuple[tuple[str, ...], dict[str, Any]] | None = None  # loaded, for a jumper still to be made
        self._chosen: Objective | None = None  # the objective given, for ``params``
        self._grown = False  # the optimizer has got more parameters since
        if isinstance(objective, Objective):
            self._chosen = self.reach.chosen(objective)
            problem = linearized(self._chosen)  # asks the network twice
            if not isinstance(self.reach.metric, torch.optim.Optimizer):
                metric_of(self.reach.metric, self._chosen)
            self.jumper = Jumper(self._chosen, **options)
            self.jumper.settings.require(problem)
        if isinstance(judge, Objective):
            self.reach.chosen(judge)

    def after_step(self, taken: int, limit: int | None) -> JumpResult | None:
        """A jump if one is due; None where there is none, or a function's data are still being compared."""
        due = self._due(taken) and self.back_off.ready()
        if not (due or self._gathering):
            return None
        self._gathering = True
        objective = self._next()
        if objective is None:
            return None
        result = self._jump(objective, self._allowance())
        self.back_off.learn(self._pays(result))
        self._end()
        return self.results[-1]

    def broke_off(self, cause: str) -> JumpResult:
        result = self.failed(cause)
        self.back_off.learn(False)
        self._end()
        return result

    def not_tried(self, cause: str) -> JumpResult:
        return JumpResult.skipped(cause)

    def parameters_added(self) -> None:
        self._grown = True  # looked at when a jump is due: groups may come one after the other

    def _next(self) -> Objective | None:
        """The objective to jump along now; None while a function's data are still being compared."""
        objective = self._given()
        if isinstance(self.objective, Objective) or self.judge is not None:
            return objective
        self._stream.add(objective)
        if self._stream.changes and not self._said:
            self._said = True
            warn(
                "the objective's data change from call to call, as minibatches do: a jump solves the last of "
                f"{GATHERED} and is judged by the others, which little data do badly. Give judge= an objective of "
                "other data, or a fixed objective of more samples.",
                RuntimeWarning,
            )
        return objective if self._stream.ready else None

    def _end(self) -> None:
        """After a scheduled jump, however it ended."""
        self._gathering, self._tried = False, self.taken
        self._stream.forget()

    def _allowance(self) -> float:
        return math.inf if self.budget is None else self.budget * max(1, self.taken - self._tried)

    def _pays(self, result: JumpResult) -> bool:
        """Whether a jump lowered its training loss by more than one step did since the last one, in the mean."""
        stepped = (self._loss - result.training_before) / max(1, self.taken - self._tried)
        self._loss = result.training_actual if result.accepted else result.training_before
        if self._stream.changes:
            self._loss = math.nan  # losses of other data say nothing here
        return result.accepted and not result.training_before - result.training_actual <= stepped

    def now(self, taken: int) -> JumpResult:
        """Try a jump now; see :meth:`JumpOptimizer.jump`."""
        self.taken = taken
        try:
            objective = self._given()
            if not isinstance(self.objective, Objective) and self.judge is None:
                self._stream.add(objective)
            return self._jump(objective, math.inf)
        except NonFiniteError as error:
            # A run that has diverged goes on or stops by its owner's rules.
            return self.failed(described(error))

    def _given(self) -> Objective:
        if self._chosen is not None:
            if self._grown and self._chosen.params is None:
                self._chosen = self.reach.chosen(self._chosen.subset(None))  # with what has been thawed
            self._grown = False
            return self._chosen
        objective = self.reach.chosen(self.objective())  # type: ignore[operator]
        objective.require_alone("an objective that changes from call to call (a function, js.from_loader)")
        objective.consistent = self._consistent  # the data are new, the model is not
        return objective

    def _jump(self, whole: Objective, allowance: float) -> JumpResult:
        objective = self.reach.moving(whole)
        if objective is None:
            return self.failed("every parameter of the objective is frozen or has learning rate 0.")
        jumper = self._jumper(objective)
        judges = self._judges(whole, objective)
        look = NextStep(self.optimizer, objective, self.after, () if self.judge is not None else judges)
        conditions = Conditions(judges, look, allowance, look.cost)
        metric = self.reach.metric_for(whole, objective)
        try:
            result = jumper.jump(metric, conditions)
        except MetricError as error:
            if metric is not self.optimizer:
                raise
            why = str(error).removeprefix("metric: ")
            warn(f"jumping in the plain metric: {why}", RuntimeWarning)
            result = jumper.jump(None, conditions)
        self.book(replace(result, directions=None))  # a vector of the parameters' size for every jump
        return result

    def _judges(self, whole: Objective, objective: Objective) -> list[Objective]:
        """Objectives of other data, for the parameters that move."""
        if self.judge is None:
            found = self._stream.judges(whole)
        else:
            found = [self.reach.chosen(self.judge if isinstance(self.judge, Objective) else self.judge())]
        names = Names(frozenset(objective.space.names))
        return [judge if judge.space.names == objective.space.names else judge.subset(names) for judge in found]

    def _jumper(self, objective: Objective) -> Jumper:
        """The jumper, on this objective; another set of parameters starts afresh."""
        if self.jumper is None or self.jumper.objective.space.names != objective.space.names:
            self.jumper = Jumper(objective, **self.options)
        self.jumper.objective = objective
        if self._memory is not None and self._memory[0] == objective.space.names:
            self.jumper.load_state_dict(self._memory[1])
        self._memory = None
        return self.jumper

    def state_dict(self) -> dict[str, Any]:
        """What jumps remember, and their pace."""
        moving, memory = self._memory if self._memory is not None else ((), None)
        if self.jumper is not None:
            moving, memory = self.jumper.objective.space.names, self.jumper.state_dict()
        own = {"moving": list(moving), "memory": memory, "back_off": vars(self.back_off).copy()}
        own["pace"] = {"tried": self._tried, "loss": self._loss, "changes": self._stream.changes}
        own["data"], loader = self._stream.last, self._loader()
        own["objective"] = None if loader is None else loader.state_dict()
        return own

    def _loader(self) -> Any:
        """A function that says which data come next (:func:`jumpstart.from_loader`), or None."""
        draws = not isinstance(self.objective, Objective) and callable(getattr(self.objective, "state_dict", None))
        return self.objective if draws else None

    def check(self, state: Any) -> None:
        """Raise where the state is none, or its memory is of jumps along other parameters.

        Raises:
            InputError: as said.
        """
        if not isinstance(state, dict) or set(state) != set(_FRESH):
            raise InputError(f"this is no state of a search: {brief(state)}.")
        BackOff.read(state["back_off"])
        _pace(state["pace"])
        names, memory = tuple(state["moving"]), state["memory"]
        if memory is None or self._chosen is None:
            return
        if other := set(names) - set(self._chosen.space.names):
            raise InputError(f"this state remembers jumps of {sorted(other)[:5]}, which the objective does not move.")
        if names == self._chosen.space.names:
            Jumper(self._chosen, **self.options).load_state_dict(memory)  # raises here rather than at the next jump

    def load_state_dict(self, state: Any) -> None:
        if state is not None:
            self.check(state)
        found, loader = _FRESH if state is None else state, self._loader()
        if found["objective"] is not None and loader is not None:
            loader.load_state_dict(found["objective"])
        self._memory = None if found["memory"] is None else (tuple(found["moving"]), found["memory"])
        self.jumper, self.back_off = None, BackOff.read(found["back_off"])
        self._tried, self._loss, self._gathering = found["pace"]["tried"], found["pace"]["loss"], False
        self._stream = Stream(found["pace"]["changes"], found["data"])


def _pace(state: Any) -> dict[str, Any]:
    """The pace of jumps, as ``state_dict`` gave it.

    Raises:
        InputError: it is none.
    """
    if not isinstance(state, dict) or set(state) != set(_PACE):
        raise InputError(f"this is no pace of jumps: {brief(state)}.")
    tried, loss, changes = state["tried"], state["loss"], state["changes"]
    if isinstance(tried, bool) or not isinstance(tried, int) or not isinstance(loss, float):
        raise InputError(f"this is no pace of jumps: tried={brief(tried)}, loss={brief(loss)}.")
    if changes not in (None, True, False):
        raise InputError(f"this is no pace of jumps: changes={brief(changes)}.")
    return state
