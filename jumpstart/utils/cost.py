"""The unit in which costs are stated: one gradient evaluation (a forward and a backward pass).

A backward pass costs two forward passes and a forward-mode pass carries value and tangent, which gives the
weights below (see docs/decisions/0003-cost-unit.md). They are conventions, the same for jumped and stepped runs.
"""

from __future__ import annotations

from dataclasses import dataclass

FORWARD = 1 / 3
PULL = 2 / 3  # backward alone, through a graph that is already there
GRADIENT = FORWARD + PULL
PUSH = 1.0  # forward mode: value and tangent, with its overhead
SECOND = 2.0  # forward over forward
SECOND_PULL = 2.0  # forward over a gradient evaluation: value and tangent of it


@dataclass
class Ledger:
    """Counts of network passes; a part of the batch counts as its fraction of a pass."""

    forwards: float = 0.0
    pulls: float = 0.0
    pushes: float = 0.0
    seconds: float = 0.0  # second directional derivatives
    gradients: float = 0.0
    second_pulls: float = 0.0  # derivatives of a vjp along the weights

    @property
    def gradient_evaluations(self) -> float:
        """The counts in units of one gradient evaluation."""
        return (
            FORWARD * self.forwards
            + PULL * self.pulls
            + PUSH * self.pushes
            + SECOND * self.seconds
            + GRADIENT * self.gradients
            + SECOND_PULL * self.second_pulls
        )
