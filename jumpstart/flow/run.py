"""The contract for the linearized run: whoever answers for it answers these questions, at any horizon.

Four answer: modes of a reduced flow (``reduced_flow``); damped Cholesky factors, sketches and conjugate gradients (all
in ``surrogate``). Coefficients c are whatever an implementation keeps a displacement as.
"""

from __future__ import annotations

import abc
import math
from typing import Any

from torch import Tensor

from ..linearization.problem import LinearizedProblem
from .horizon import Parsed


class LinearizedRun(abc.ABC):
    """Training from θ₀ on the linearized problem that it owns.

    Attributes:
        problem: network, loss and metric. u: u₀ in float64.
        kind, route: what answers and how it was made, for people. size: numbers in c.
        initial_gradient: the gradient at the start in the run's own coordinates; zero where nothing moves.
        supports_leave_out: runs with samples left out can be read off. is_krylov: a subspace that follows this run.
    """

    problem: LinearizedProblem
    u: Tensor
    kind: str
    route: str
    size: int
    initial_gradient: Tensor
    supports_leave_out: bool = False
    is_krylov: bool = False

    @abc.abstractmethod
    def coefficients(self, horizon: Parsed) -> Tensor:
        """Coefficients c (T, size) at each horizon."""

    @abc.abstractmethod
    def response(self, g: Tensor, horizon: Parsed, c: Tensor | None = None, decayed: Tensor | None = None) -> Tensor:
        """How the run answers a gradient g (outputs' shape) met on the way, (T, size).

        With g = B ½ f''[δ, δ] this is the second-order correction, with g = ∇Φ(u_new) a chord step (docs/theory.md,
        equations 11 and 13).

        Args:
            c: where the curvature is taken, the start by default.
            decayed: coefficients of the point where g was met, whose weight decay is answered too.
        """

    @abc.abstractmethod
    def outputs(self, c: Tensor) -> Tensor:
        """Linearized outputs in float64, shaped like u."""

    @abc.abstractmethod
    def predicted_loss(self, c: Tensor) -> Tensor:
        """Φ of the linearized outputs."""

    @abc.abstractmethod
    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """B(u) v in the outputs' space, for v shaped like u."""

    @abc.abstractmethod
    def displacement(self, c: Tensor) -> Tensor:
        """δθ (P,)."""

    @abc.abstractmethod
    def length(self, c: Tensor) -> Tensor:
        """‖z − z₀‖."""

    @abc.abstractmethod
    def initial_horizon(self) -> float:
        """A flow time for a search over horizons to start from."""

    @property
    @abc.abstractmethod
    def max_horizon(self) -> float:
        """The flow time at which every direction above rounding has relaxed."""

    @property
    @abc.abstractmethod
    def max_rate(self) -> float:
        """The largest rate at the start (or an estimate of it), 0 where nothing relaxes."""

    def learned(self, t: float) -> dict[str, Any]:
        """What the next jump may know of this one, whose search ended at a horizon t, by its name in the memory."""
        return {}

    @property
    def known_rates(self) -> tuple[float, float]:
        """The largest rate at the start and the sum of all; NaN where that would take work of its own."""
        return math.nan, math.nan

    @property
    def gradient_evaluations(self) -> float:
        """What has been spent on the network so far, linearization included."""
        return self.problem.lin.ledger.gradient_evaluations
