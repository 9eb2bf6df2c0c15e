"""Points of a fit: the loss on others that are never trained on, and when points are renewed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, NonFiniteError
from ..objectives.drawn import POOL
from ..objectives.objective import Objective
from ..objectives.residual import Residuals
from ..utils.brief import brief
from ..utils.cost import FORWARD
from ..utils.warn import warn
from ..weighting import Rule
from .settings import FitSettings
from .state import FitState

LOOK = 5  # jumps between two looks at unseen points
PARTED = 3.0  # times the loss on the points that are trained on: beyond this they are renewed
GROWTH = 1.4  # times as many points, at every second renewal
HOLD = 1e-2  # of the first loss: until it has been there, points are added only where a climb no longer gains
SOLVED = 1e-10  # of the first loss: residuals that are as small as this between the points are no trouble
COPIES = 3.0  # of the Jacobian that a jump holds
TERMS = 1000  # seeds of one renewal


@dataclass
class Collocation:
    """Watches a fit whose objective has terms on domains.

    Attributes:
        unseen: these terms on points that are never trained on. moves: whether points are renewed.
        decides: whether weights are chosen by unseen points; where all points stay, they are only told of.
        limit: bytes that the Jacobian of a grown set may take. patience: jumps without a fall after which points are
            added in any case. rule: that weighs points. told: of what it was warned.
    """

    unseen: Residuals
    seed: int
    moves: bool
    decides: bool
    limit: float
    patience: int
    rule: Rule | None = None
    told: set[str] = field(default_factory=set)

    @staticmethod
    def of(objective: Objective, settings: FitSettings, memory_limit: float | None, moving: bool) -> Collocation | None:
        """None for an objective without domains.

        Raises:
            InputError: ``adaptive`` is asked for and there is no domain.
        """
        unseen = objective.unseen(settings.seed) if isinstance(objective, Residuals) else None
        if unseen is None:
            if settings.adaptive is not None:
                raise InputError(
                    f"fit: adaptive={settings.adaptive} is about points that are drawn from a domain, and no term has "
                    "one: js.Term(fn, js.domains.Box(low, high))."
                )
            if settings.weigh is not None:
                raise InputError(
                    f"fit: weigh={brief(settings.weigh)} weighs points that are drawn from a domain, and no term has "
                    "one: js.Term(fn, js.domains.Box(low, high)); a term at given points takes weight=, one for each."
                )
            return None
        limit = objective.allowance(memory_limit) / COPIES
        free = settings.adaptive is not False
        return Collocation(unseen, settings.seed, moving and free, free, limit, settings.patience, settings.weigh)

    def due(self, state: FitState) -> bool:
        return state.jumps % LOOK == 0

    def looked(self, state: FitState, objective: Objective) -> tuple[FitState, Residuals | None]:
        """The state with what is found, and the objective on other points, or with other weights, where it is time."""
        assert isinstance(objective, Residuals)
        state, other = self._renewed(state, objective)
        if self.rule is None:
            return state, other
        return replace(state, cost=state.cost + FORWARD), (other or objective).weighed(state.theta, self.rule)

    def _renewed(self, state: FitState, objective: Residuals) -> tuple[FitState, Residuals | None]:
        found, own = self.loss(state.theta), objective.drawn_loss(state.theta)
        *rows, last = state.history
        state = replace(state, unseen=found, cost=state.cost + 2 * FORWARD, history=[*rows, {**last, "unseen": found}])
        if self.decides and found < state.kept_unseen:
            state = replace(state, kept=state.theta, kept_unseen=found)
        if not (self.moves and found > PARTED * own):
            return state, None
        wanted = state.best_loss <= HOLD * state.start or state.jumps - state.since >= self.patience
        growth = GROWTH if wanted and state.renewals % 2 and self._fits(objective, GROWTH) else 1.0
        seed = self.seed + TERMS * (state.renewals + 1)
        try:
            other = objective.refined(state.theta, seed, growth, self.unseen)
        except NonFiniteError as error:
            self._tell("infinite", f"fit goes on with the points that it has: {error}")
            return state, None
        return replace(state, cost=state.cost + FORWARD * POOL, renewals=state.renewals + 1), other

    def loss(self, theta: Tensor) -> float:
        """The loss at weights θ on points never trained on, which weights are chosen by."""
        return self.unseen.drawn_loss(theta)

    def fresh(self, theta: Tensor) -> float:
        """The loss at weights θ on points that nothing was chosen by: neither points nor weights."""
        return self.unseen.drawn_loss(theta, self.seed + 1)

    def _fits(self, objective: Residuals, growth: float) -> bool:
        entries = growth * math.prod(objective.shape) * objective.space.size
        if 8 * entries <= self.limit:
            return True
        self._tell(
            "memory",
            f"fit would go on with {growth:g} times as many points, but the Jacobian of {entries:.3g} entries does not "
            f"fit into memory ({self.limit / 2**30:.2g} GiB): it stays with {math.prod(objective.shape):,} residuals.",
        )
        return False

    def _tell(self, what: str, text: str) -> None:
        if what not in self.told:
            warn(text, RuntimeWarning)
        self.told.add(what)


def what_parted(other: float, own: float, start: float, domains: bool) -> str:
    """The warning of a loss that is another between the points; empty where it is not, or small everywhere."""
    if not (other > PARTED * own and other > SOLVED * start):
        return ""
    ratio = f"{other / own:.2g} times" if own > 0 else "infinitely"
    remedy = (
        "adaptive=False kept the points where they are: leave it out, and they are renewed where the residual is large."
        if domains
        else "Give more points, or a domain in their place, from which fit draws others where the residual is large: "
        "js.Term(fn, js.domains.Box(low, high))."
    )
    return (
        f"the loss is {own:.3g} at the points that were trained on, and {other:.3g} at others, {ratio} as much: the "
        f"network fits the points and not the equation. {remedy}"
    )


def placed(objective: Residuals) -> dict[str, Any]:
    """Where an objective's drawn points are, and what they weigh, for a state."""
    parts = objective.drawn
    weights = [part.weights for part in parts if part.weights is not None]
    return {
        "points": torch.cat([part.points.reshape(-1) for part in parts]),
        "counts": [{"term": part.name, "count": len(part.points)} for part in parts],
        "emphasis": torch.cat(weights) if weights else None,
    }


def replaced(state: FitState, objective: Residuals) -> Residuals | None:
    """The objective where ``placed`` told of; None where the state has the first points.

    Raises:
        InputError: the state has points of other terms.
    """
    if state.points is None:
        return None
    parts: Sequence[Any] = objective.drawn
    sizes = [row["count"] * part.points[0].numel() for row, part in zip(state.counts, parts, strict=False)]
    names = [str(row.get("term")) for row in state.counts]
    if names != [part.name for part in parts] or sum(sizes) != state.points.numel():
        raise InputError(f"its points are of the terms {names}, here {[part.name for part in parts]} have domains.")
    found = objective.resampled(
        {
            part.name: own.view(-1, *part.points.shape[1:])
            for part, own in zip(parts, state.points.split(sizes), strict=True)
        }
    )
    if state.emphasis is None:
        return found
    rows = [row["count"] for row in state.counts]
    if sum(rows) != state.emphasis.numel():
        raise InputError(f"{state.emphasis.numel()} weights for {sum(rows)} points.")
    return found.with_weights(dict(zip(names, state.emphasis.split(rows), strict=True)))
