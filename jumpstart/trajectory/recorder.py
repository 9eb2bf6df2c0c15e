"""A recorder beside a training loop: operators along the run as it really goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MemoryLimitError, ShapeError
from ..linalg.lanczos import lanczos, orthogonalize
from ..linearization.operators import Jacobian, Kernel
from ..objectives.objective import Objective
from ..utils.values import require_count
from .follower import Follower
from .operators import Operators
from .propagation import Columns, Tangent

SLOTS = ("gradients", "moved", "weighs", "buffer", "displaced", "shown", "dissipated", "action")


class Recorder(Follower):
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
            Lanczos finds from it; or (j, N) directions to ask about beside it, such as noise in the targets, or the
            channel of another record, transposed. Answers about these are exact. None for all N of them.
        every: steps between two linearizations, which are interpolated between.
        order: of the quadrature over a step: 2, or 4 with the middle of each step as well.
        memory_limit: bytes; None for half of what is free. Above a quarter of it a Jacobian is not kept, and products
            are taken one by one.

    Raises:
        InputError and its kinds: quoting what cannot be recorded.
        MemoryLimitError: all directions do not fit; says how many would.

    Example:
        >>> from jumpstart import supervised
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
        modes: int | Tensor | None = None,
        every: int = 1,
        order: int = 2,
        memory_limit: float | None = None,
    ) -> None:
        if modes is not None and not isinstance(modes, Tensor):
            require_count("Recorder", "modes", modes)
        super().__init__(objective, queries, optimizer, lr, every, order, memory_limit)
        self._begin(modes)

    def _begin(self, modes: int | Tensor | None) -> None:
        lin = self._tangent.lin
        gradient = self._gradient()
        if not bool((gradient != 0).any()):
            raise InputError("Recorder: the loss has no gradient in the outputs here: there is nothing to record.")
        n, p = gradient.numel(), lin.theta.numel()
        given = _directions(modes, gradient) if isinstance(modes, Tensor) else None
        count = n if modes is None else len(given) if given is not None else min(int(modes), n)
        needed = 3.0 * lin.theta.element_size() * count * (n + p)
        if needed > self.limit:
            fits = int(count * self.limit / needed)
            raise MemoryLimitError(
                f"Recorder: {count} directions of {n:,} outputs and {p:,} weights take {needed / 2**30:.2g} GiB, above "
                f"{self.limit / 2**30:.2g}: modes={max(1, fits)} would fit."
            )
        if given is None and modes is not None:
            given = lanczos(Kernel(Jacobian(lin)).apply, gradient, count).vectors
        self.basis = given
        directions = torch.eye(n, dtype=gradient.dtype, device=gradient.device) if given is None else given
        coordinates = gradient if given is None else given @ gradient
        rest = gradient - coordinates @ directions
        self.gradient, self.real = gradient, torch.cat([coordinates, coordinates.new_ones(1)])
        queries = 0 if self._tangent.queries is None else self._tangent.queries.u.numel()
        self.columns = Columns.begun(directions, rest, p, queries, self._buffer())
        self.first = self._outputs(self._tangent)

    @staticmethod
    def _outputs(tangent: Tangent) -> tuple[Tensor, Tensor, float]:
        """Outputs (N,), query outputs (m,) and loss."""
        u = tangent.lin.u
        seen = u.new_zeros(0) if tangent.queries is None else tangent.queries.u.reshape(-1)
        return u.reshape(-1), seen, float(tangent.loss.value(u))

    def operators(self) -> Operators:
        """The operators from the start to now, or to where the record ended."""
        self._settle()
        gradient = self._gradient()
        outputs = self.first, self._outputs(self._tangent)
        return Operators.of(self.columns, self.basis, self.real, (self.gradient, gradient), outputs)

    # -- to go on later ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a recorder of the same run needs to go on; takes in what is pending."""
        self._settle()
        c = self.columns
        return {
            **c.tensors(), "reach": c.reach, "time": c.time, "steps": c.steps, "start": self._start,
            "theta": self._theta, "gradient": self.gradient, "coordinates": self.real, "basis": self.basis,
            "strayed": self.strayed, "outputs": self.first[0], "queries": self.first[1], "loss": self.first[2],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, a :meth:`state_dict`, with the model and the optimizer as they were then.

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
        self._start, self.gradient, self.real = state["start"], state["gradient"], state["coordinates"]
        self.basis, self.strayed = state["basis"], state["strayed"]
        self.first = state["outputs"], state["queries"], state["loss"]
        self._theta, self._tangent, self._pending = here, self._at(here), []


def _directions(asked: Tensor, gradient: Tensor) -> Tensor:
    """The gradient (N,) and directions (j, N), or one (N,), made orthonormal (k, N); those that depend are left out.

    Raises:
        ShapeError: they are of another number of outputs.
        InputError: an entry is NaN or infinite.
    """
    if asked.dim() not in (1, 2) or asked.shape[-1] != gradient.numel():
        raise ShapeError(
            f"Recorder: modes of shape {tuple(asked.shape)}, where there are {gradient.numel()} outputs: give (j, N) "
            "directions in the outputs (of operators.channel() the transpose)."
        )
    rows = asked.detach().reshape(-1, gradient.numel())
    if not bool(torch.isfinite(rows).all()):
        raise InputError("Recorder: modes hold NaN or infinity.")
    found = gradient.new_zeros(0, gradient.numel())
    for row in torch.cat([gradient[None], rows.to(gradient)]):  # the gradient itself comes first
        rest = orthogonalize(row, found)
        left = torch.linalg.vector_norm(rest)
        if bool(left > 1e2 * torch.finfo(row.dtype).eps ** 0.75 * torch.linalg.vector_norm(row)):
            found = torch.cat([found, rest[None] / left])
    return found
