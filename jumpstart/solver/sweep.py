"""Many label vectors at once, on one kernel and one factorization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..flow.horizon import Horizon, Parsed, filters, parse
from ..flow.reduced_flow import ReducedFlow
from ..objectives.parts import require_finite
from ..utils.guard import guarded
from .query import Queries

Answer = TypeVar("Answer")

_entry = guarded(lambda self, *_, **__: self.flow.problem.lin.net.model)


@dataclass(frozen=True)
class Sweep(Generic[Answer]):
    """The same run towards r different targets; answers have a leading axis r (after T for many horizons).

    Built by ``Solution.with_targets``. For squared loss all of them cost one product of matrices; for other losses they
    are integrated one by one.

    Attributes:
        flow: the run towards the targets that it was solved for. targets: (r, …), each like those.
        queries: the basis on other inputs. answer: what is made of the run towards one of the targets.
        look: called with the run towards the first targets and a horizon, before an answer is given.
    """

    flow: ReducedFlow
    targets: Tensor
    queries: Queries
    answer: Callable[[ReducedFlow], Answer]
    look: Callable[[ReducedFlow, Parsed], None] | None = None

    def __post_init__(self) -> None:
        if len(self.targets) == 0:
            raise InputError(f"with_targets: shape {tuple(self.targets.shape)} holds no target.")
        loss, u = self.flow.problem.loss, self.flow.problem.lin.u
        require_finite(self.targets, "targets")
        for one in self.targets[:1] if loss.follows_targets else self.targets:
            loss.with_targets(one).to(u).check(u)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> Answer:
        """The answer for one of the targets: a Solution, with everything that it answers."""
        return self.answer(self.flow.with_targets(self.targets[i]))

    def _coefficients(self, horizon: Parsed) -> Tensor:
        """(T, r, k)."""
        flow = self.flow
        if self.look is not None:
            self.look(flow.with_targets(self.targets[0]), horizon)
        if not flow.loss.follows_targets or flow.gate is not None:  # a gate asks the samples anew for each target
            return torch.stack([flow.with_targets(y).coefficients(horizon) for y in self.targets], 1)
        # The gradient is affine in the targets: g(y) = g(y₀) − B (y − y₀).
        moved = (self.targets.to(flow.u) - flow.loss.targets).expand(len(self), *flow.u.shape)
        forces = flow.initial_gradient - flow.loss.hvp(flow.u, moved).reshape(len(self), -1) @ flow.images.T
        return flow.start.out(-filters(flow.start, horizon)[:, None] * flow.start.into(forces))

    @_entry
    def outputs(self, t: Horizon) -> Tensor:
        """(r, n, …), or (T, r, n, …)."""
        horizon = parse(t)
        found = self.flow.outputs(self._coefficients(horizon)).to(self.flow.problem.lin.u.dtype)
        return found[0] if horizon.scalar else found

    @_entry
    def loss(self, t: Horizon) -> Tensor:
        """(r,), or (T, r): each run's loss towards its own targets."""
        outputs = self.outputs(t)
        losses = [self.flow.problem.loss.with_targets(y) for y in self.targets]
        rows = outputs.unbind(-1 - self.flow.u.dim())
        return torch.stack([loss.to(row).value(row) for loss, row in zip(losses, rows, strict=True)], -1)

    @_entry
    def predict(self, x: Any, t: Horizon) -> Tensor:
        """(r, m, …) at query points x, or (T, r, m, …)."""
        horizon = parse(t)
        c = self._coefficients(horizon)
        found = self.queries.shifted(x, c.flatten(0, 1)).unflatten(0, c.shape[:2])
        return found[0] if horizon.scalar else found
