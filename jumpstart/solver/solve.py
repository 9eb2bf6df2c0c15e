"""``solve``: where training would end, on train and new points, at any horizon, without moving a weight.

Source: docs/theory.md, sections 1 to 4.
"""

from __future__ import annotations

import time
from pathlib import Path

from ..distributed.wrapped import entry
from ..errors import InputError
from ..flow.reduced_flow import FLOW_TOLERANCE, ReducedFlow
from ..gating import Gate
from ..linearization.metric import MetricLike
from ..linearization.problem import linearized
from ..objectives.objective import Objective
from ..objectives.parameters import Select
from ..surrogate.select import SOLUTION, BasisLike, build, require_memory_limit
from ..utils.brief import brief
from ..utils.guard import guarded
from ..utils.progress import shown
from . import archive
from .solution import Solution


@guarded(lambda objective, *_, **__: getattr(objective, "model", None))
def solve(
    objective: Objective,
    basis: BasisLike = "auto",
    metric: MetricLike = None,
    params: Select = None,
    memory_limit: float | None = None,
    *,
    depth: int | None = None,
    weight_decay: float | None = None,
    gate: str | None = None,
    tolerance: float | None = None,
    progress: bool | None = None,
) -> Solution:
    """Solve the training run from the present weights, linearized there; nothing is changed.

    Answers are about this moment: buffers, weights that do not move, inputs, targets and modes are kept as they are now
    (copied; watched where they are large). A model that has become another one, or data that a function reads and that
    have changed, are noticed and refused.

    Args:
        objective: a model, its outputs and their loss; see :func:`jumpstart.supervised`.
        basis: "auto", "dense" (every mode, exact), "krylov" (``depth`` modes, with an error bound), or a function
            (linearized problem) -> Basis made of ``jumpstart.bases``, for instance
            ``lambda problem: js.bases.span(problem, updates)`` for a trajectory prefix.
        metric: None for plain gradient flow; a torch optimizer (its state gives D, and its weight decay is taken
            along), a (P,) tensor, or tensors by parameter name.
        params: restrict what moves, by names, patterns or a function.
        memory_limit: bytes for the solve; None for half of what is free.
        weight_decay: decoupled decay rate w, θ̇ = … − wθ.
        gate: None, "hard", "soft" or "snr": damp modes whose per-sample contributions do not agree.
        tolerance: local error of the integration for losses that are not quadratic (1e-8).
        progress: bars on loops that take over a second; None where stderr is a terminal.

    Raises:
        InputError and its kinds: quoting what was given.

    Example:
        >>> import torch
        >>> from jumpstart import supervised
        >>> model = torch.nn.Linear(3, 1)
        >>> solution = solve(supervised(model, torch.randn(8, 3), torch.randn(8, 1)))
        >>> solution.outputs(float("inf")).shape
        torch.Size([8, 1])
    """
    if not isinstance(objective, Objective):
        raise InputError(f"solve needs a js.Objective (see js.supervised), got {type(objective).__name__}.")
    gating = Gate.named(gate)
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0 < tolerance < 1):
        raise InputError(f"solve(tolerance={brief(tolerance)}): give a relative local error between 0 and 1.")
    objective = objective if params is None else objective.subset(params)
    begun = time.perf_counter()
    require_memory_limit(memory_limit)
    with entry(objective.world, "solve"), shown(progress):
        problem = linearized(objective, metric, weight_decay, keep=True, memory_limit=memory_limit)
        built, plan = build(problem, basis, depth, memory_limit, worth=SOLUTION)
        flow = ReducedFlow(built, problem.loss, FLOW_TOLERANCE if tolerance is None else tolerance, gating)
        return Solution(objective, flow, plan, objective.elapsed(begun))


@guarded(lambda path, objective, *_, **__: getattr(objective, "model", None))
def load(path: str | Path, objective: Objective, params: Select = None) -> Solution:
    """A solution from the ``path`` of ``Solution.save``, for an ``objective`` of the same model, data and ``params``.

    Costs one forward pass.

    Raises:
        ArchiveError: the file is no solution, or was saved from another model or other data.
    """
    objective = objective if params is None else objective.subset(params)
    return Solution(objective, archive.load(path, objective), None)
