"""What every rival is given: residuals at points, which some draw anew as they go, and the Jacobian there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jumpstart.errors import JumpstartError
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.products import Linearization
from jumpstart.objectives.objective import Objective
from jumpstart.objectives.residual import Residuals


class Rows(Protocol):
    """A problem on fixed points, or an equation at points drawn from its domains."""

    @property
    def residuals(self) -> Callable[[Any], Tensor]:
        """Of the network: (N,), with a graph to the weights."""
        ...


@dataclass(frozen=True)
class Renewal:
    """Points drawn anew: every so many steps; evenly, or where the residual is large (RAD, Wu et al. 2023)."""

    every: int
    by_residual: bool = False

    def due(self, step: int) -> bool:
        return step > 0 and step % self.every == 0


def renew(problem: Any, model: nn.Module, renewal: Renewal, step: int) -> None:
    """Draw an equation's points anew; the step's number is the seed.

    Raises:
        JumpstartError: the problem's points are given once and for all.
    """
    if not hasattr(problem, "renew"):
        raise JumpstartError(f"{type(problem).__name__} has fixed points: renew those of an Equation's drawn(seed).")
    problem.renew(model if renewal.by_residual else None, step)


def at_points(objective: Objective, points: Sequence[Tensor]) -> Residuals:
    """The objective at an equation's present points."""
    assert isinstance(objective, Residuals)
    return objective.resampled({part.name: rows for part, rows in zip(objective.drawn, points, strict=True)})


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.enable_grad()
def jacobian(objective: Objective, theta: Tensor) -> tuple[Tensor, Tensor, float]:
    """J (N, P) and u (N,) at θ (P,), and the gradient evaluations that they took."""
    lin, found = linearized(objective, theta)
    return found, lin.u, lin.ledger.gradient_evaluations


@torch.enable_grad()
def linearized(objective: Objective, theta: Tensor) -> tuple[Linearization, Tensor]:
    """The linearization at θ (P,), for products beside J, and J (N, P)."""
    lin = linearize(objective, theta)
    return lin, lin.jacobian()
