"""An objective linearized at the model's present weights, and a network on other inputs; asked once if that can be."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.world import World
from ..distributed.wrapped import entry
from ..objectives.objective import Objective, require_finite_outputs
from ..objectives.parts import Part
from ..utils.cost import Ledger
from ..utils.guard import guarded
from .consistency import require_consistent, require_deterministic
from .products import Linearization
from .subject import subject


@guarded(lambda objective, *_, **__: objective.model)
def linearize(objective: Objective, theta: Tensor | None = None, ledger: Ledger | None = None) -> Linearization:
    """Linearize an objective's outputs at θ (P,), the model's present weights by default.

    Raises:
        NonFiniteError: weights or outputs are not finite.
        NondeterministicError: the model answers differently when asked twice.
        NoParametersError: its outputs have no path to the weights that move.
        InconsistentError: torch's derivatives are not those of what the model computes.
        UntraceableError, EvaluationError: the model cannot be evaluated, differentiated or batched.
    """
    with entry(objective.world, "linearizing"):
        return _linearized(objective, theta, ledger)


def _linearized(objective: Objective, theta: Tensor | None, ledger: Ledger | None) -> Linearization:
    objective.require_current()
    theta = objective.theta() if theta is None else theta
    objective.require_equal("the weights to linearize at", theta)
    objective.prepare(theta)
    lin = Linearization(objective.net, objective.parts, theta, ledger, objective.shards)
    require_finite_outputs(lin.u)
    # Asked once, and again whenever a module has changed its mode since.
    modes = tuple(module.training for module in objective.model.modules())
    if objective.checked != modes:
        objective.work, trace = require_deterministic(lin)
        about = subject(objective, trace)
        new, shards = about not in objective.consistent, objective.shards
        if shards is not None:  # an answer that is another one on each process would be an endless wait
            objective.work, new = shards.work(objective.work), shards.world.any("new to some", new)
            lin.arithmetic = _coarsest(shards.world, lin.arithmetic)
        if new:
            found = require_consistent(lin)
            objective.consistent.learn(about, found.still_responds)
            objective.kink = found.kink, found.rows
        objective.still_responds, objective.checked = objective.consistent[about], modes
    lin.work, lin.still_responds = objective.work, objective.still_responds
    return lin


def _coarsest(world: World, own: torch.dtype) -> torch.dtype:
    """Of the processes' arithmetics; one without samples has seen none."""
    told = {str(dtype).removeprefix("torch.") for dtype in world.exchanged("arithmetic", own)}
    return max((getattr(torch, name) for name in sorted(told)), key=lambda dtype: torch.finfo(dtype).eps)


def at_query(lin: Linearization, part: Part) -> Linearization:
    """The same network and weights, linearized on other inputs."""
    query = Linearization(lin.net, [part], lin.theta, lin.ledger)
    require_finite_outputs(query.u)
    return query


def rounding_error(lin: Linearization) -> float:
    """A generous estimate of what rounding in the network's own precision does to the outputs, in their units."""
    return 1e4 * torch.finfo(lin.u.dtype).eps * float(torch.linalg.vector_norm(lin.u) + 1e-300)
