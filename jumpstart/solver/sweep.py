"""Many label vectors at once, on one kernel and one factorization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..flow.horizon import Horizon, Parsed, filters, parse
from ..objectives.parts import require_finite

if TYPE_CHECKING:
    from .solution import Solution


@dataclass(frozen=True)
class Sweep:
    """The same run towards r different targets; answers have a leading axis r (after T for many horizons).

    Built by ``Solution.with_targets``. For squared loss all of them cost one product of matrices; for other losses they
    are integrated one by one.
    """

    solution: Solution
    targets: Tensor

    @staticmethod
    def of(solution: Solution, targets: Tensor) -> Sweep:
        """Checked targets (r, …), each like those of the solution.

        Raises:
            InputError and its kinds: quoting what cannot be a target.
        """
        if len(targets) == 0:
            raise InputError(f"with_targets: shape {tuple(targets.shape)} holds no target.")
        loss, u = solution.flow.loss, solution.lin.u
        some = targets[:1] if loss.quadratic else targets
        require_finite(targets, "targets")
        for one in some:
            loss.with_targets(one).to(u).check(u)
        return Sweep(solution, targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> Solution:
        """The solution for one of the targets, with everything that a Solution answers."""
        found = self.solution.with_targets(self.targets[i])
        assert not isinstance(found, Sweep)
        return found

    def _coefficients(self, horizon: Parsed) -> Tensor:
        """(T, r, k)."""
        flow = self.solution.flow
        if not flow._loss.quadratic:
            return torch.stack([self[i].flow.at(horizon) for i in range(len(self))], 1)
        # The gradient is affine in the targets: g(y) = g(y₀) − B (y − y₀).
        moved = (self.targets.to(flow.u) - flow._loss.targets).expand(len(self), *flow.u.shape)
        forces = flow.slope - flow._loss.hvp(flow.u, moved).reshape(len(self), -1) @ flow.images.T
        return flow.start.out(-filters(flow.start, horizon)[:, None] * flow.start.into(forces))

    def outputs(self, t: Horizon) -> Tensor:
        """(r, n, …), or (T, r, n, …)."""
        horizon = parse(t)
        found = self.solution.flow.outputs(self._coefficients(horizon)).to(self.solution.lin.u.dtype)
        return found[0] if horizon.scalar else found

    def loss(self, t: Horizon) -> Tensor:
        """(r,), or (T, r): each run's loss towards its own targets."""
        outputs = self.outputs(t)
        losses = [self.solution.flow.loss.with_targets(y) for y in self.targets]
        rows = outputs.unbind(-1 - self.solution.lin.u.dim())
        return torch.stack([loss.to(row).value(row) for loss, row in zip(losses, rows, strict=True)], -1)

    def predict(self, x: Any, t: Horizon) -> Tensor:
        """(r, m, …) at query points x, or (T, r, m, …)."""
        horizon = parse(t)
        c = self._coefficients(horizon)
        found = self.solution.queries.shifted(x, c.flatten(0, 1)).unflatten(0, c.shape[:2])
        return found[0] if horizon.scalar else found
