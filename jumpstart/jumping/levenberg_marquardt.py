"""Levenberg and Marquardt's method: one horizon a jump, taken from the last one, a little longer after a success.

With geodesic acceleration (Transtrum & Sethna, arXiv:1201.5885); damping is 1/horizon. The search may be nonmonotone:
it then also accepts a loss that rises, as long as the step goes on in the direction of the last one, which lets the
horizon grow in curved valleys where a falling loss would keep it short. Whoever lets it must keep the best weights
(``fit`` does). Source: docs/theory.md, section 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .candidates import Candidate, Descent
from .search import RESERVE, Found, Search
from .state import Memory
from .trust import Outcome, Trust

PACE = 3.0  # factor between horizons: after a success at the first try, and between tries (chosen on seeds 100 to 105)


@dataclass(frozen=True)
class LevenbergMarquardt(Search):
    """Tries one horizon after the other, ever shorter, until one is accepted.

    Args:
        nonmonotone: let the loss rise along the last step.
        chord_steps: how many to try after a step that lowers the loss.
    """

    nonmonotone: bool = False
    chord_steps: int = 0

    def __call__(self, descent: Descent, trust: Trust, memory: Memory) -> Found:
        before = descent.problem.before
        ledger = descent.problem.lin.ledger
        if self.nonmonotone:
            memory = replace(memory, best=min(memory.best, before))
        t = descent.start(trust, memory)
        lowest: Candidate | None = None
        hoped, k = 0.0, 0
        for k in range(trust.limit):
            found = descent.at(t)
            hoped = max(hoped, before - found.predicted)
            # A nonmonotone search keeps its best by the sum of loss and penalty.
            lowers = self.nonmonotone or descent.score(found) < descent.before
            falls = lowers and trust.accepts(before, found.predicted, found.loss)
            if falls or (self.nonmonotone and goes_on(memory, found.loss, found.first)):
                done = 0
                if falls and self.chord_steps:
                    found, done = descent.chord(found, self.chord_steps)
                # Perhaps beyond what this run has digits for: the next may have more (surrogate.select).
                memory = memory.at(t * PACE if k == 0 else t)
                if self.nonmonotone:
                    memory = replace(memory, best=min(memory.best, found.loss), heading=found.first)
                outcome = Outcome.ACCEPTED if falls else Outcome.CLIMBED
                return Found(outcome, found, before, k + 1, done, memory, hoped)
            if lowest is None or found.loss < lowest.loss or math.isnan(lowest.loss):
                lowest = found
            t /= PACE
            if ledger.spent + RESERVE > ledger.allowance:
                break
        finite = lowest is not None and lowest.loss < math.inf
        outcome = Outcome.NO_DECREASE if finite else Outcome.NOT_FINITE
        memory = memory.at(max(t, 1e-280))
        return Found(outcome, lowest if finite else None, before, k + 1, 0, memory, hoped)


def goes_on(memory: Memory, loss: float, step: Tensor) -> bool:
    """Whether a loss that has risen is accepted: (1 − cos ∠(step, last step))² · loss ≤ best; NaN is a no.

    The rule compares losses by their ratio: a loss below zero, whose minimum is not known, never rises.
    """
    if memory.heading is None or memory.best < 0:
        return False
    norms = torch.linalg.vector_norm(step) * torch.linalg.vector_norm(memory.heading)
    cosine = float(torch.dot(step, memory.heading) / norms) if bool(norms > 0) else math.nan
    return (1 - cosine) ** 2 * loss <= memory.best
