"""Marching: one horizon a jump, taken from the last one; longer after a first success, shorter until one succeeds.

This is Levenberg and Marquardt's method with geodesic acceleration (Transtrum & Sethna, arXiv:1201.5885), whose damping
is 1/horizon. A march may be bold: it then also accepts a loss that rises, as long as the step goes on in the direction
of the last one, which lets the horizon grow in curved valleys where a falling loss would keep it short. Whoever lets it
must keep the best weights (``fit`` does). Source: docs/theory.md, section 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .candidates import Attempt, Candidate, Proposal
from .trust import Outcome, Trust

PACE = 3.0  # factor between horizons: after a success at the first try, and between tries (chosen on seeds 100 to 105)


@dataclass(frozen=True)
class Course:
    """What a bold march remembers: the lowest loss so far, and the last step before its second-order part."""

    best: float = math.inf
    heading: Tensor | None = None

    def allows(self, loss: float, step: Tensor) -> bool:
        """Whether a loss that has risen is accepted: (1 − cos ∠(step, last step))² · loss ≤ best; NaN is a no."""
        if self.heading is None:
            return False
        norms = torch.linalg.vector_norm(step) * torch.linalg.vector_norm(self.heading)
        cosine = float(torch.dot(step, self.heading) / norms) if bool(norms > 0) else math.nan
        return (1 - cosine) ** 2 * loss <= self.best

    def after(self, best: Candidate) -> Course:
        return Course(min(self.best, best.loss), best.first)


def march(proposal: Proposal, trust: Trust, course: Course | None = None, reuse: int = 0) -> Attempt:
    """One jump of a march; ``course`` makes it bold. The weights are not written."""
    before, flow = proposal.before(), proposal.flow
    if not bool(flow.length(flow.slope) > 0):
        return Attempt(Outcome.STATIONARY, None, before, 0, 0, trust)
    longest = flow.longest
    t = min(trust.horizon or flow.opening(), longest)
    if course is not None:
        course = Course(min(course.best, before), course.heading)
    lowest: Candidate | None = None
    promised = 0.0
    for k in range(trust.limit):
        found = proposal.candidate(flow.at_time(t), t)
        promised = max(promised, before - found.predicted)
        falls = trust.accepts(before, found.predicted, found.loss)
        if falls or (course is not None and course.allows(found.loss, found.first)):
            corrections = 0
            if falls and reuse:
                found, corrections = proposal.reuse(found, reuse)
            longer = min(t * PACE, longest) if k == 0 else t
            outcome = Outcome.ACCEPTED if falls else Outcome.CLIMBED
            return Attempt(outcome, found, before, k + 1, corrections, trust.after(horizon=longer), promised)
        if lowest is None or found.loss < lowest.loss or math.isnan(lowest.loss):
            lowest = found
        t /= PACE
    finite = lowest is not None and lowest.loss < math.inf
    outcome = Outcome.NO_DECREASE if finite else Outcome.NOT_FINITE
    return Attempt(
        outcome, lowest if finite else None, before, trust.limit, 0, trust.after(horizon=max(t, 1e-280)), promised
    )
