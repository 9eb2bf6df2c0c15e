"""What stands beside a training loop and is told of its steps: linearizations of the run as it really goes."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import InputError, NonFiniteError
from ..linearization.linearize import at_query, linearize
from ..linearization.products import Linearization
from ..objectives.objective import Objective, require_objective
from ..objectives.parts import Batch, Opaque, require_finite
from ..utils.brief import brief
from ..utils.memory import allowance
from ..utils.values import require_count
from ..utils.warn import warn
from . import rules
from .propagation import SIMPSON, TRAPEZOID, Columns, Tangent, advanced, within
from .rules import Rule

ORDERS = {2: TRAPEZOID, 4: SIMPSON}
STRAYED = 0.1  # share of a move that the optimizer's rule may miss before it is told
NOTHING = 1e3  # times the rounding of the weights: moves of this size are none
EXPLICIT = 0.25  # share of the allowed memory that one Jacobian may take


def asked(queries: Any) -> Batch | Opaque:
    """Inputs at which the network is asked as well, or a function of it.

    Raises:
        NonFiniteError: an input is NaN or infinite.
    """
    require_finite(queries, "query points")
    return Opaque(cast(Any, queries)) if callable(queries) else Batch(queries, "query points")


class Follower(AbstractContextManager["Follower"]):
    """Carries columns along the steps of a run; whoever derives from it says which, and whose the real move is.

    Args and errors: :class:`jumpstart.trajectory.Recorder`.
    """

    columns: Columns
    real: Tensor  # (rows,), the combination of rows that is the run itself

    def __init__(
        self,
        objective: Objective,
        queries: Any,
        optimizer: torch.optim.Optimizer | None,
        lr: float | None,
        every: int,
        order: int,
        memory_limit: float | None,
    ) -> None:
        who = type(self).__name__
        require_objective(objective, who)
        objective.require_alone(who)
        if (optimizer is None) == (lr is None):
            raise InputError(f"{who}: say what steps are like, by optimizer= or, for plain ones, by lr=.")
        if lr is not None and (isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf):
            raise InputError(f"{who}: lr={brief(lr)} must be positive and finite.")
        require_count(who, "every", every)
        if order not in ORDERS:
            raise InputError(f"{who}: order={brief(order)}: 2, or 4.")
        if order == 4 and every > 1:
            raise InputError(f"{who}: order=4 looks into the middle of each step, and every={every} skips steps.")
        self.objective, self.every, self.order = objective, every, order
        self.optimizer = None if optimizer is None else rules.plain(optimizer)
        self.lr = lr
        self.limit = allowance(objective.space.device, memory_limit)
        self._asked = None if queries is None else asked(queries)
        self._pending: list[tuple[Rule, Tensor | None]] = []
        self._handle: Any = None
        self.strayed = 0.0  # largest share of a move that the optimizer's rule did not say
        self.ended = ""  # why nothing more is recorded
        self._theta = self._start = objective.theta()
        self._tangent = self._at(self._theta)

    def _gradient(self) -> Tensor:
        """∇Φ in the outputs (N,) at the last linearization."""
        lin = self._tangent.lin
        return self._tangent.loss.grad(lin.u).reshape(-1).to(lin.theta.dtype)

    def _buffer(self) -> Tensor | None:
        return None if self.optimizer is None else rules.buffer_of(self.optimizer, self.objective)

    def _at(self, theta: Tensor) -> Tangent:
        lin = linearize(self.objective, theta)
        queries = None if self._asked is None else at_query(lin, self._asked)
        return Tangent(
            lin, self.objective.loss, self._explicit(lin), queries, None if queries is None else self._explicit(queries)
        )

    def _explicit(self, lin: Linearization) -> Tensor | None:
        bytes_needed = lin.u.numel() * lin.theta.numel() * lin.theta.element_size()
        return lin.jacobian() if bytes_needed <= EXPLICIT * self.limit else None

    # -- the run -----------------------------------------------------------------------------------------------

    def step(self, rows: Any = None) -> None:
        """Tell of a step that the optimizer has just taken.

        Args:
            rows: the samples of its minibatch (b,), by number; its gradient is then that of their mean loss. None for
                all samples.

        Raises:
            InputError: ``rows`` are not samples, or the optimizer's step is not known.
        """
        if self.ended:
            return
        try:
            theta = self.objective.theta()
        except NonFiniteError as error:
            return self._end(str(error))
        rule = (
            rules.of_rate(cast(float, self.lr), theta)
            if self.optimizer is None
            else rules.of_optimizer(self.optimizer, self.objective)
        )
        self._pending.append((rule, self._shares(rows)))
        if len(self._pending) >= self.every:
            self._advance(theta)

    def _settle(self) -> None:
        """Take in what is pending."""
        if self._pending and not self.ended:
            self._advance(self.objective.theta())

    def _shares(self, rows: Any) -> Tensor | None:
        if rows is None:
            return None
        n = len(self._tangent.lin.u)
        found = torch.as_tensor(rows, device=self._theta.device)
        if found.dim() != 1 or found.numel() == 0 or found.dtype not in (torch.int32, torch.int64):
            raise InputError(f"step: rows={brief(rows)}: give the numbers of the minibatch's samples, (b,).")
        if not bool(((found >= 0) & (found < n)).all()):
            raise InputError(f"step: rows={brief(rows)}: the objective has samples 0 to {n - 1}.")
        counts = torch.bincount(found.long(), minlength=n)
        return counts.to(self._theta.dtype) * (n / found.numel())

    def _advance(self, theta: Tensor) -> None:
        """Take what is pending into the columns, by the tangents before and after it."""
        steps, self._pending = self._pending, []
        if not _same(self.objective.outputs(self._theta), self._tangent.lin.u):
            return self._end("the model or its data are others than at the last record")
        try:
            after = self._at(theta)
        except NonFiniteError as error:
            return self._end(str(error))
        nodes = [self._tangent, after]
        if self.order == 4:
            nodes.insert(1, self._at(0.5 * (self._theta + theta)))
        columns, moved = self.columns, torch.zeros_like(theta)
        for j, (rule, shares) in enumerate(steps):
            quadrature = ORDERS[self.order] if len(steps) == 1 else within(j / len(steps), (j + 1) / len(steps))
            columns, moves = advanced(columns, rule, nodes, quadrature, self._start, shares)
            columns = self._corrected(columns)
            moved += self.real @ moves
        if not all(bool(torch.isfinite(t).all()) for t in columns.tensors().values()):
            return self._end(
                "directions other than the run's own have grown beyond numbers, as they do where steps are longer than "
                "2 over the largest curvature: record a run at a lower rate, or fewer modes="
            )
        self._compare(moved, theta - self._theta, columns.steps, steps[-1][0])
        self.columns, self._tangent, self._theta = columns, after, theta

    def _corrected(self, columns: Columns) -> Columns:
        """What is known better than by the columns' own recursion."""
        return columns

    def _end(self, reason: str) -> None:
        """Record nothing more: the loop goes on, and the operators up to here stay."""
        self.ended = reason
        warn(f"{type(self).__name__}: the record ends after {self.columns.steps} steps: {reason}", RuntimeWarning)

    def _compare(self, told: Tensor, real: Tensor, steps: int, rule: Rule) -> None:
        """Notice weights that moved otherwise than the optimizer's rule says."""
        norm, eps = torch.linalg.vector_norm, torch.finfo(real.dtype).eps
        # what rounding moves the weights by is no move
        floor = NOTHING * eps * float(norm(self._theta)) + torch.finfo(real.dtype).tiny
        off = float(norm(told - real)) / max(float(norm(real)), floor)
        if off > STRAYED >= self.strayed:
            rate = float(rule.rate.max()) * (STRAYED / off) ** (1 / self.order)
            warn(
                f"{type(self).__name__}: at step {steps} the weights moved otherwise than is told, by {off:.0%} of the "
                "move: gradients were clipped or of other samples (rows=), something else moved the weights, or steps "
                f"are too long for order={self.order}, or at the edge of stability (a rate of {rate:.2g} would do). "
                "What is told from here on is of another run.",
                RuntimeWarning,
            )
        self.strayed = max(self.strayed, off)

    # -- beside an optimizer -----------------------------------------------------------------------------------

    def __enter__(self) -> Any:
        if self.optimizer is None:
            raise InputError(
                f"{type(self).__name__}: as a context manager it is called by an optimizer: give optimizer=."
            )
        self._handle = self.optimizer.register_step_post_hook(lambda *_: self.step())
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def _same(one: Tensor, two: Tensor) -> bool:
    """Whether outputs are those of before, up to the order in which a device adds."""
    if one.shape != two.shape:
        return False
    off = float(torch.linalg.vector_norm((one - two).float()))
    return off <= NOTHING * torch.finfo(two.dtype).eps * float(torch.linalg.vector_norm(two.float()))
