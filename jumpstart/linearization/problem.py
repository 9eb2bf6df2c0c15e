"""A linearized problem: a network at θ₀, the loss on its outputs, and the metric that the weights move in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..distributed.wrapped import entry
from ..errors import InputError, KinkWarning
from ..losses.base import Loss
from ..objectives.objective import Objective
from ..objectives.snapshot import Witness, held
from ..utils.cost import Ledger
from ..utils.warn import warn
from .linearize import Linearization, linearize
from .metric import Metric, MetricLike, metric_of
from .operators import GaussNewton, Jacobian

ROWS = 5  # that a message names


@dataclass(frozen=True, eq=False)
class LinearizedProblem:
    """min Φ(u₀ + A (z − z₀)) over z = D^{−½}θ, and the real loss beside it.

    Attributes:
        lin: the network's outputs around θ₀. loss: Φ with its targets. metric: D, and weight decay.
    """

    lin: Linearization
    loss: Loss
    metric: Metric = field(default_factory=Metric)

    @cached_property
    def jacobian(self) -> Jacobian:
        """A (N, P)."""
        return Jacobian(self.lin, self.metric)

    @property
    def curvature(self) -> GaussNewton:
        """G = Aᵀ B A + W (P, P)."""
        return GaussNewton(self.jacobian, self.loss)

    @cached_property
    def z(self) -> Tensor:
        """z₀ (P,)."""
        return self.metric.unscale(self.lin.theta)

    def gradient(self) -> Tensor:
        """Aᵀ∇Φ(u₀) + W z₀ (P,), the gradient in scaled coordinates; one vjp."""
        pulled = self.jacobian.apply_adjoint(self.loss.grad(self.lin.u))
        return pulled + self.metric.decay * self.z if self.metric.decays else pulled

    @property
    def at_rest(self) -> bool:
        """Whether nothing pulls: no gradient in the outputs, and no weight decay."""
        return not self.metric.decays and not bool((self.loss.grad(self.lin.u) != 0).any())

    def training(self, u: Tensor) -> float:
        """Φ at outputs u, the training loss alone; of half-precision outputs in float32, as loops take it."""
        return float(self.loss.value(u.float() if u.dtype in (torch.float16, torch.bfloat16) else u))

    @cached_property
    def training_before(self) -> float:
        """The training loss at θ₀."""
        return self.training(self.lin.u)

    def require_symmetric(self, what: str) -> None:
        """Refuse weight decay on weights that get no gradient but that the outputs respond to: G is not symmetric then.

        Raises:
            InputError: says what to do.
        """
        if self.metric.decays and self.lin.still_responds:
            raise InputError(
                f"{what}: weight decay moves weights that get no gradient (a padding row of an embedding, say) but "
                "that the outputs depend on: use basis='dense', leave them out with params=[…], or set them to zero."
            )

    @cached_property
    def before(self) -> float:
        """The loss at θ₀, with the penalty of weight decay."""
        return self.training_before + self.metric.penalty(self.lin.theta)

    def measure(self, displacement: Tensor) -> tuple[Tensor, float, float]:
        """Real outputs, training loss, and loss with the penalty at θ₀ + δ, for δ (P,); one forward pass.

        The last is NaN where δ is not finite.
        """
        theta = self.lin.theta + displacement
        u = self.lin.outputs(theta)
        training = self.training(u)
        loss = training + self.metric.penalty(theta)
        return u, training, loss if bool(torch.isfinite(displacement).all()) else math.nan


def linearized(
    objective: Objective,
    metric: MetricLike = None,
    weight_decay: float | None = None,
    ledger: Ledger | None = None,
    *,
    keep: bool = False,
    memory_limit: float | None = None,
) -> LinearizedProblem:
    """An objective at the model's present weights, linearized.

    Args:
        keep: own what is read, so that answers given later are about this moment (``objectives.snapshot``).
        memory_limit: bytes, a share of which copies may take; None for half of what is free.

    Raises:
        NonFiniteError, NondeterministicError: see ``linearize``; InputError and its kinds for the metric.
    """
    ledger = ledger if ledger is not None else Ledger()
    with entry(objective.world, "the linearized problem"):
        if not keep:
            lin = linearize(objective, ledger=ledger)
            return LinearizedProblem(lin, objective.loss, metric_of(metric, objective, weight_decay))
        lin, loss = kept(objective, None, ledger, memory_limit)
        return LinearizedProblem(lin, loss, metric_of(metric, objective, weight_decay).owned())


def kept(
    objective: Objective, theta: Tensor | None, ledger: Ledger, memory_limit: float | None = None
) -> tuple[Linearization, Loss]:
    """A linearization at θ (P,), the present weights by default, that owns what it reads, and a loss that does."""
    objective.require_current()
    twin, watched = held(objective, memory_limit)
    lin = linearize(twin, theta, ledger)
    _tell_kinks(objective, twin)
    objective.checked, objective.work = twin.checked, twin.work
    objective.still_responds, objective.kink = twin.still_responds, twin.kink
    lin.witness = Witness(lin.net, lin.parts, lin.theta, watched)
    return lin, twin.loss


def _tell_kinks(objective: Objective, twin: Objective) -> None:
    """Warn, once an objective, where an answer without the real network may miss what training does at a kink."""
    share, rows = twin.kink
    if not share or objective.told:
        return
    objective.told = True
    listed = ", ".join(map(str, rows[:ROWS])) + (f" and {len(rows) - ROWS} more" if len(rows) > ROWS else "")
    warn(
        f"the present weights lie exactly on kinks of the model, as biases of 0 on a blank sample do under ReLU: "
        f"{min(share, 1.0):.1%} of how the outputs respond to the weights has another slope on either side (rows "
        f"{listed} of the outputs), and training moves it otherwise than a linearized run. Leave those samples out, or "
        "start from biases that are not 0; js.jump is judged by the real loss.",
        KinkWarning,
    )
