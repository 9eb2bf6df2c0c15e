"""A recorder beside a training loop: operators along the run as it really goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import InputError, MemoryLimitError, NonFiniteError
from ..linalg.lanczos import lanczos
from ..linearization.linearize import at_query, linearize
from ..linearization.operators import Jacobian, Kernel
from ..linearization.products import Linearization
from ..objectives.objective import Objective, require_objective
from ..objectives.parts import Batch, Opaque, require_finite
from ..utils.brief import brief
from ..utils.memory import allowance
from ..utils.warn import warn
from . import rules
from .operators import Operators
from .propagation import SIMPSON, TRAPEZOID, Columns, Tangent, advanced, within
from .rules import Rule

ORDERS = {2: TRAPEZOID, 4: SIMPSON}
STRAYED = 0.1  # share of a move that the optimizer's rule may miss before it is told
EXPLICIT = 0.25  # share of the allowed memory that one Jacobian may take
SLOTS = ("gradients", "moved", "buffer", "displaced", "shown", "dissipated", "action")


class Recorder(AbstractContextManager["Recorder"]):
    """Operators along the real run: what the gradient at the start becomes, moves and dissipates.

    Call :meth:`step` after each step of the optimizer, before a scheduler's; or use the recorder as a context manager,
    in which the optimizer calls it. The recorder only reads the model. A step costs the Jacobian of the samples (and of
    the queries) and three products with it; its memory does not grow with the run.

    Args:
        objective: what is trained; with its whole data, also where steps are of minibatches.
        queries: inputs at which the run's effect is asked for as well, in the form that the model takes.
        optimizer: that takes the steps: SGD (momentum, Nesterov), Adam and AdamW as they are, others whose metric is
            known and that keep no average of gradients. lr: instead, for plain gradient steps of that rate.
        modes: how many directions of the outputs the start's gradient is written in: the gradient itself and those that
            Lanczos finds from it. Answers about these are exact. None for all N of them.
        every: steps between two linearizations, which are interpolated between.
        order: of the quadrature over a step: 2, or 4 with the middle of each step as well.
        memory_limit: bytes; None for half of what is free. Above a quarter of it a Jacobian is not kept, and products
            are taken one by one.

    Raises:
        InputError and its kinds: quoting what cannot be recorded.
        MemoryLimitError: all directions do not fit; says how many would.

    Example:
        >>> x = torch.linspace(-1, 1, 8)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> objective = supervised(model, x, x**2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with Recorder(objective, optimizer=optimizer) as recorder:
        ...     for _ in range(5):
        ...         optimizer.zero_grad(); torch.nn.functional.mse_loss(model(x), x**2).backward(); optimizer.step()
        >>> recorder.operators().dissipation.shape
        torch.Size([8, 8])
    """

    def __init__(
        self,
        objective: Objective,
        queries: Any = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        lr: float | None = None,
        modes: int | None = None,
        every: int = 1,
        order: int = 2,
        memory_limit: float | None = None,
    ) -> None:
        require_objective(objective, "Recorder")
        if (optimizer is None) == (lr is None):
            raise InputError("Recorder: say what steps are like, by optimizer= or, for plain ones, by lr=.")
        if lr is not None and (isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf):
            raise InputError(f"Recorder: lr={brief(lr)} must be positive and finite.")
        for name, value in (("modes", modes), ("every", every)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"Recorder: {name}={brief(value)}: give a whole number of at least 1.")
        if order not in ORDERS:
            raise InputError(f"Recorder: order={brief(order)}: 2, or 4.")
        if order == 4 and every > 1:
            raise InputError(f"Recorder: order=4 looks into the middle of each step, and every={every} skips steps.")
        self.objective, self.every, self.order = objective, every, order
        self.optimizer = None if optimizer is None else rules.plain(optimizer)
        self.lr = lr
        self.limit = allowance(objective.space.device, memory_limit)
        self._asked: Batch | Opaque | None = None
        if queries is not None:
            require_finite(queries, "query points")
            self._asked = Opaque(cast(Any, queries)) if callable(queries) else Batch(queries, "query points")
        self._pending: list[tuple[Rule, Tensor | None]] = []
        self._handle: Any = None
        self.strayed = 0.0  # largest share of a move that the optimizer's rule did not say
        self.ended = ""  # why nothing more is recorded
        self._theta = self._start = objective.theta()
        self._tangent = self._at(self._theta)
        self._begin(modes)

    def _begin(self, modes: int | None) -> None:
        lin, loss = self._tangent.lin, self._tangent.loss
        gradient = loss.grad(lin.u).reshape(-1).to(lin.theta.dtype)
        if not bool((gradient != 0).any()):
            raise InputError("Recorder: the loss has no gradient in the outputs here: there is nothing to record.")
        n, p = gradient.numel(), lin.theta.numel()
        count = n if modes is None else min(modes, n)
        needed = 3.0 * lin.theta.element_size() * count * (n + p)
        if needed > self.limit:
            fits = int(count * self.limit / needed)
            raise MemoryLimitError(
                f"Recorder: {count} directions of {n:,} outputs and {p:,} weights take {needed / 2**30:.2g} GiB, above "
                f"{self.limit / 2**30:.2g}: modes={max(1, fits)} would fit."
            )
        if modes is None:
            directions, self.basis = torch.eye(n, dtype=gradient.dtype, device=gradient.device), None
            coordinates = gradient
        else:
            kernel = Kernel(Jacobian(lin))
            directions = self.basis = lanczos(kernel.apply, gradient, count).vectors
            coordinates = directions @ gradient
        rest = gradient - coordinates @ directions
        self.gradient, self.coordinates = gradient, torch.cat([coordinates, coordinates.new_ones(1)])
        buffer = None if self.optimizer is None else rules.buffer_of(self.optimizer, self.objective)
        queries = 0 if self._tangent.queries is None else self._tangent.queries.u.numel()
        self.columns = Columns.begun(directions, rest, p, queries, buffer)
        self.first = self._outputs(self._tangent)

    def _at(self, theta: Tensor) -> Tangent:
        lin = linearize(self.objective, theta)
        queries = None if self._asked is None else at_query(lin, self._asked)
        return Tangent(
            lin, self.objective.loss, self._explicit(lin), queries, None if queries is None else self._explicit(queries)
        )

    def _explicit(self, lin: Linearization) -> Tensor | None:
        bytes_needed = lin.u.numel() * lin.theta.numel() * lin.theta.element_size()
        return lin.jacobian() if bytes_needed <= EXPLICIT * self.limit else None

    @staticmethod
    def _outputs(tangent: Tangent) -> tuple[Tensor, Tensor, float]:
        """Outputs (N,), query outputs (m,) and loss."""
        u = tangent.lin.u
        seen = u.new_zeros(0) if tangent.queries is None else tangent.queries.u.reshape(-1)
        return u.reshape(-1), seen, float(tangent.loss.value(u))

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
            raise InputError(f"Recorder.step: rows={brief(rows)}: give the numbers of the minibatch's samples, (b,).")
        if not bool(((found >= 0) & (found < n)).all()):
            raise InputError(f"Recorder.step: rows={brief(rows)}: the objective has samples 0 to {n - 1}.")
        counts = torch.bincount(found.long(), minlength=n)
        return counts.to(self._theta.dtype) * (n / found.numel())

    def _advance(self, theta: Tensor) -> None:
        """Take what is pending into the columns, by the tangents before and after it."""
        steps, self._pending = self._pending, []
        if not torch.equal(self.objective.outputs(self._theta), self._tangent.lin.u):
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
            moved += self.coordinates @ moves
        self._compare(moved, theta - self._theta, columns.steps, steps[-1][0])
        self.columns, self._tangent, self._theta = columns, after, theta

    def _end(self, reason: str) -> None:
        """Record nothing more: the loop goes on, and the operators up to here stay."""
        self.ended = reason
        warn(f"Recorder: the record ends after {self.columns.steps} steps: {reason}", RuntimeWarning)

    def _compare(self, told: Tensor, real: Tensor, steps: int, rule: Rule) -> None:
        """Notice weights that moved otherwise than the optimizer's rule says."""
        norm = torch.linalg.vector_norm
        off = float(norm(told - real) / norm(real).clamp_min(torch.finfo(real.dtype).tiny))
        if off > STRAYED >= self.strayed:
            rate = float(rule.rate.max()) * (STRAYED / off) ** (1 / self.order)
            warn(
                f"Recorder: at step {steps} the weights moved otherwise than the operators say, by {off:.0%} of the "
                "move: gradients were clipped or of other samples (rows=), something else moved the weights, or steps "
                f"are too long for order={self.order} (a rate of {rate:.2g} would do then). From here on the operators "
                "are not of this run.",
                RuntimeWarning,
            )
        self.strayed = max(self.strayed, off)

    def operators(self) -> Operators:
        """The operators from the start to now, or to where the record ended."""
        self._settle()
        loss = self._tangent.loss
        gradient = loss.grad(self._tangent.lin.u).reshape(-1).to(self.gradient.dtype)
        outputs = self.first, self._outputs(self._tangent)
        return Operators.of(self.columns, self.basis, self.coordinates, (self.gradient, gradient), outputs)

    # -- beside an optimizer -----------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        if self.optimizer is None:
            raise InputError("Recorder: as a context manager it is called by an optimizer: give optimizer=.")
        self._handle = self.optimizer.register_step_post_hook(lambda *_: self.step())
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    # -- to go on later ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a recorder of the same run needs to go on; takes in what is pending."""
        self._settle()
        c = self.columns
        return {
            **c.tensors(), "reach": c.reach, "time": c.time, "steps": c.steps, "start": self._start,
            "theta": self._theta, "gradient": self.gradient, "coordinates": self.coordinates, "basis": self.basis,
            "strayed": self.strayed, "outputs": self.first[0], "queries": self.first[1], "loss": self.first[2],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, with the model and the optimizer as they were then.

        Raises:
            InputError: it is of another run, or the model holds other weights.
        """
        here = self.objective.theta()
        missing = [name for name in ("gradients", "moved", "theta", "start", "coordinates") if name not in state]
        if missing or state["moved"].shape[1:] != here.shape or state["gradients"].shape[1:] != self.gradient.shape:
            raise InputError(f"Recorder: this state is of another problem (missing: {missing}).")
        if not bool(torch.allclose(state["theta"].to(here), here, rtol=1e-6, atol=0)):
            raise InputError("Recorder: the model's weights are not those of the state: load them first.")
        self.columns = Columns(
            **{name: state.get(name) for name in SLOTS}, **{name: state[name] for name in ("reach", "time", "steps")}
        )
        self._start, self.gradient, self.coordinates = state["start"], state["gradient"], state["coordinates"]
        self.basis, self.strayed = state["basis"], state["strayed"]
        self.first = state["outputs"], state["queries"], state["loss"]
        self._theta, self._tangent, self._pending = here, self._at(here), []
