"""The run with each sample left out, carried along the run with all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import MemoryLimitError
from ..objectives.objective import Objective
from .follower import Follower
from .propagation import Columns


class LeaveOneOut(Follower):
    """What each sample's output would be had the run gone without that sample.

    Beside the run go n others, each with one sample's row of the gradient set to zero. What they move is told by the
    kernel of the real run, at every step; their gradients are those of the loss at their own outputs, so that for a
    linear model all of this is exact. What is left out is that a run without a sample has another kernel. Compare
    :meth:`jumpstart.Solution.risk`, whose kernel is that of the start. Call :meth:`step` after each step, or use it as
    a context manager.

    Args:
        objective, optimizer, lr, every, order, memory_limit: as for :class:`jumpstart.trajectory.Recorder` (the
            limit in bytes).

    Raises:
        InputError and its kinds: quoting what cannot be recorded; MemoryLimitError: n runs do not fit.

    Example:
        >>> from jumpstart import supervised
        >>> x = torch.linspace(-1, 1, 8)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with LeaveOneOut(supervised(model, x, x**2), optimizer=optimizer) as left_out:
        ...     for _ in range(5):
        ...         optimizer.zero_grad(); torch.nn.functional.mse_loss(model(x), x**2).backward(); optimizer.step()
        >>> left_out.risk() > 0
        True
    """

    def __init__(
        self,
        objective: Objective,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        lr: float | None = None,
        every: int = 1,
        order: int = 2,
        memory_limit: float | None = None,
    ) -> None:
        super().__init__(objective, None, optimizer, lr, every, order, memory_limit)
        u, theta = self._tangent.lin.u, self._tangent.lin.theta
        n = len(u)
        needed = 3.0 * theta.element_size() * n * (u.numel() + theta.numel())
        if needed > self.limit:
            raise MemoryLimitError(
                f"LeaveOneOut: {n:,} runs of {u.numel():,} outputs and {theta.numel():,} weights take "
                f"{needed / 2**30:.2g} GiB, above {self.limit / 2**30:.2g}: give fewer samples, or fewer weights "
                "(params=[…])."
            )
        gradient = self._gradient()
        rows = gradient.expand(n, -1)
        buffer = self._buffer()
        columns = Columns.begun(rows, gradient, theta.numel(), 0, buffer).whole(range(n + 1))
        if buffer is not None:
            columns = replace(columns, buffer=buffer.expand(n + 1, -1).to(theta))
        self.columns, self._u = columns, u.reshape(-1)
        self.real = torch.zeros(n + 1, dtype=theta.dtype, device=theta.device)
        self.real[-1] = 1.0  # the last row is the run with all samples

    def _shares(self, rows: Any) -> Tensor:
        shares = super()._shares(rows)
        n = len(self._tangent.lin.u)
        whole = torch.ones(n, dtype=self._theta.dtype, device=self._theta.device) if shares is None else shares
        return torch.cat([(1 - torch.eye(n, dtype=whole.dtype, device=whole.device)) * whole, whole[None]])

    def _corrected(self, columns: Columns) -> Columns:
        """The gradients at each run's own outputs, where the recursion has them by the curvature along the real one."""
        loss, shape = self._tangent.loss, self._tangent.lin.u.shape
        outputs = self._u + columns.displaced.to(self._u)
        gradients = [loss.grad(row.reshape(shape)).reshape(-1) for row in outputs]
        return replace(columns, gradients=torch.stack(gradients).to(columns.gradients))

    def outputs(self) -> Tensor:
        """Each sample's outputs by now in the run without it (n, …)."""
        self._settle()
        u = self._tangent.lin.u
        n = len(u)
        moved = self.columns.displaced[:n].reshape(n, n, -1)
        own = moved[torch.arange(n), torch.arange(n)]
        return (self._u.reshape(n, -1) + own.to(self._u)).reshape(u.shape)

    def losses(self) -> Tensor:
        """Each sample's loss by now in the run without it (n,): their sum is an estimate of the population's Φ."""
        return self._tangent.loss.per_sample(self.outputs())

    def risk(self) -> float:
        """An estimate of the loss on samples that the run has not seen, by now."""
        return float(self.losses().sum())
