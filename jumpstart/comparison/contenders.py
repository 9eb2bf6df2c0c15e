"""Contenders of a comparison: ways to train a model on an objective, step by step, with their costs counted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from ..fitting.fit import Fit
from ..fitting.settings import FitSettings
from ..jumping.jump import JumpResult
from ..jumping.jumper import Jumper
from ..objectives.objective import Objective
from ..objectives.parts import join
from ..training.jump_optimizer import JumpOptimizer, Schedule

Factory = Callable[[Any], torch.optim.Optimizer]
Progress = dict[str, Any]  # what a contender yields after each step: gradient evaluations so far, jumps tried, …
TRIED = "tried"  # the entry of that with the jumps since the last step: pairs of the action's name and the result
Contender = Callable[[nn.Module, Objective], Iterator[Progress]]


def stepped(factory: Factory) -> Contender:
    """Steps of an optimizer on the full objective; ``factory`` makes it from parameters. L-BFGS works too."""

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        optimizer = factory(_trained(model, objective))
        cost = 0

        def closure() -> torch.Tensor:
            nonlocal cost
            cost += 1
            return _backward(model, objective, optimizer)

        while True:
            optimizer.step(closure)  # type: ignore[call-overload]  # torch types closures as float
            yield {"gradient_evaluations": cost}

    return run


def lbfgs(history: int = 50) -> Contender:
    """L-BFGS with strong Wolfe line search and ``history`` past updates, as strong as torch has it.

    torch's default tolerances stop it for good near a loss of 1e-8, and every call evaluates its start once more; both
    are switched off, respectively thinned out.
    """
    return stepped(
        lambda parameters: torch.optim.LBFGS(
            parameters, lr=1.0, max_iter=20, max_eval=50, tolerance_grad=0.0, tolerance_change=0.0,
            history_size=history, line_search_fn="strong_wolfe",
        )
    )  # fmt: skip


def jumped(factory: Factory, at: Schedule = None, **options: Any) -> Contender:
    """Steps of the optimizer that ``factory`` makes, and jumps over others.

    Args:
        factory: as for :func:`stepped`. at, options: of :class:`jumpstart.JumpOptimizer` around it.
    """

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        optimizer = JumpOptimizer(factory(_trained(model, objective)), objective, at, **options)
        cost = 0.0
        seen = accepted = 0
        while True:
            _backward(model, objective, optimizer)
            with warnings.catch_warnings():  # a comparison counts what is spent, and has no number of steps to reach
                warnings.filterwarnings("ignore", "this loop is not told")
                optimizer.step()
            cost += 1
            tried = []
            for result in optimizer.results[len(optimizer.results) - (optimizer.jumps - seen) :]:
                cost += result.gradient_evaluations
                accepted += result.accepted
                tried.append((getattr(result, "action", optimizer.action.name), result))
            seen = optimizer.jumps
            yield {"gradient_evaluations": cost, "jumps": seen, "accepted": accepted, TRIED: tried}

    return run


def jumps_only(options: Callable[[int], dict[str, Any]], count: float = math.inf) -> Contender:
    """Jumps and nothing else, which remember; ``options`` gives :class:`jumpstart.Jumper`'s for the k-th jump.

    Ends after ``count`` jumps, or three rejections in a row.
    """

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        jumper: Jumper | None = None
        cost, accepted, refused, k = 0.0, 0, 0, 0
        asked: dict[str, Any] = {}
        while refused < 3 and k < count:
            if jumper is None or options(k) != asked:  # other settings, the same memory
                asked, before = options(k), jumper
                jumper = Jumper(objective, **asked)
                if before is not None:
                    jumper.load_state_dict(before.state_dict())
            result = jumper.jump()
            k += 1
            cost += result.gradient_evaluations
            accepted += result.accepted
            refused = 0 if result.accepted else refused + 1
            yield {"gradient_evaluations": cost, "jumps": k, "accepted": accepted, TRIED: [("jump", result)]}

    return run


def fitted(**options: Any) -> Contender:
    """:func:`jumpstart.fit` with these options; what is recorded are the best weights so far, which it would return.

    Raises:
        InputError: neither budget (as many seconds as ``compare`` gives it), nor jumps, nor a tolerance is given.
    """
    own = {f.name for f in fields(FitSettings)}
    FitSettings(**{name: value for name, value in options.items() if name in own})

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        tried: list[tuple[str, JumpResult]] = []
        asked = options.get("callback")

        def callback(result: JumpResult) -> Any:
            tried.append((f"jump ({fit.run.state.history[-1]['stage'].lower()})", result))
            return None if asked is None else asked(result)

        hears = asked is None or callable(asked)  # what is neither, Fit refuses
        fit = Fit(objective, progress=False, **{**options, "callback": callback if hears else asked})
        for state in fit.steps():
            present = objective.theta()
            objective.space.write(model, state.best)
            counted = {"gradient_evaluations": state.cost, "jumps": state.jumps, "accepted": state.accepted}
            yield {**counted, TRIED: [*tried]}
            tried.clear()
            objective.space.write(model, present)

    return run


def _trained(model: nn.Module, objective: Objective) -> list[nn.Parameter]:
    present = dict(model.named_parameters())
    return [present[name] for name in objective.space.names]


def _backward(model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One gradient evaluation in plain torch, as a user's loop would do it."""
    optimizer.zero_grad()
    loss = objective.loss.value(join([part.outputs(model) for part in objective.parts]))
    loss.backward()
    return loss.detach()
