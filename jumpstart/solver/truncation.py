"""Whether a truncated basis that nobody asked for is good enough at a horizon; a warning where it is not.

Two looks. The run in all but the last directions costs no network pass; where that is the same, so is the full run
(measured, docs/decisions/0023). Where it is not, the error bound decides, for some products.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import TruncationWarning
from ..flow import truncation_bounds as bounds
from ..flow.basis import Basis
from ..flow.horizon import Parsed, Steps, Times
from ..flow.reduced_flow import ReducedFlow
from ..utils.warn import warn

FEWER = 2  # directions that the smaller run lacks
ALIKE = 1e-3  # of the movement: runs this close are not asked for a bound
GOOD = 1e-2  # of the movement: bounds up to this are good enough


class Truncation:
    """Looks at the answers of one solution, and warns once.

    Args:
        own: the basis was grown for this very run; the smaller run says little about others.
    """

    def __init__(self, flow: ReducedFlow, own: bool) -> None:
        self.flow, self.own = (flow if flow.gate is None else flow.gated(None)), own
        self.warned = False
        self.good = 0.0  # flow time up to which the bound was found good enough
        self._smaller: ReducedFlow | None = None

    def look(self, horizon: Parsed) -> None:
        """Warn where the answer at a horizon may be off by more than ``GOOD`` of how far the outputs have moved."""
        if self.warned or self.flow.basis.complete or horizon.time <= self.good:
            return
        last = horizon if isinstance(horizon, Steps) else Times.at(horizon.time)
        u = self.flow.outputs(self.flow.coefficients(last))[0]
        moved = float(torch.linalg.vector_norm(u - self.flow.u))
        if self.own and self._alike(u, last, moved):
            return
        bound = bounds.error_bound(self.flow, horizon.time)
        if isinstance(horizon, Steps):
            bound = min(bound, bounds.steps_bound(self.flow, horizon)) if self.own else bound
        if bound <= GOOD * moved:
            self.good = horizon.time
            return
        self.warned = True
        k, kind = self.flow.size, self.flow.kind
        warn(
            f"the answer at horizon {horizon.time:.3g} is from a {kind} basis of {k} directions, chosen for its cost, "
            f"and may be off: the outputs move by {moved:.3g} there, and the error bound is {bound:.3g}. Pass "
            f"basis='dense' to js.solve for the exact run, depth={4 * max(k, 1)} for a longer basis, or ask for a "
            "shorter horizon (Solution.error_bound).",
            TruncationWarning,
        )

    def _alike(self, u: torch.Tensor, horizon: Parsed, moved: float) -> bool:
        if self.flow.size <= FEWER:
            return False
        if self._smaller is None:
            self._smaller = self.flow.within(shortened(self.flow.basis, self.flow.size - FEWER))
        other = self._smaller.outputs(self._smaller.coefficients(horizon))[0]
        return float(torch.linalg.vector_norm(other - u)) <= ALIKE * moved


def shortened(basis: Basis, k: int) -> Basis:
    """The first k directions of a basis that has vectors or cotangents."""

    def first(t: torch.Tensor | None) -> torch.Tensor | None:
        return None if t is None else t[:k]

    return replace(
        basis,
        images=basis.images[:k],
        vectors=first(basis.vectors),
        cotangents=first(basis.cotangents),
        squares=first(basis.squares),
        decay=None if basis.decay is None else basis.decay[:k, :k],
        decay_force=first(basis.decay_force),
        remainder=None,
    )
