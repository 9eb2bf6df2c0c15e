"""``Trajectory``: the best point in the span of the last updates, for a forward pass each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...losses.base import Loss
from ...utils.brief import brief
from ...utils.cost import FORWARD, PRODUCTS, rate
from .proposal import Candidate, Here, Proposal, Weights, counted

DAMPING = (1e-4, 1e-2, 1.0)  # shares of the curvature along the updates
NEWTON = 20  # steps; one is exact where the loss is quadratic
SETTLED = 1e-12  # of the loss: what another Newton step would take off


class Trajectory(Proposal):
    """The best point in the span of the last updates, where outputs are taken for linear between what they were there.

    u(θ + Σ cᵢ dᵢ) ≈ u + Σ cᵢ eᵢ with dᵢ = θᵢ − θ, eᵢ = u(θᵢ) − u for the last weights θᵢ: differences in place of
    directional derivatives, at a third of their cost, and exact at the θᵢ themselves. The damped loss in the k
    coefficients is minimized by Newton's method, in closed form where it is quadratic, once for each damping, and the
    real network is asked.

    Args:
        every: steps between tries. updates: how many span the space. damping: of the displacement's square, as shares
            of the mean curvature along the updates.
    """

    name: ClassVar[str] = "trajectory"

    def __init__(self, every: int = 12, updates: int = 5, damping: Sequence[float] = DAMPING) -> None:
        super().__init__(every)
        self.updates, self.damping = counted("updates", updates), _damping(damping)

    def cost(self) -> float:
        return (1 + self.updates + len(self.damping)) * FORWARD

    def wants(self, step: int, due: Callable[[int], bool]) -> bool:
        return any(due(step + ahead) for ahead in range(1, self.updates + 1))

    def keep(self, step: int, weights: Weights) -> None:
        self.kept = [row for row in self.kept if row[0] > step - self.updates]
        super().keep(step, weights)

    def ready(self, step: int) -> bool:
        return [at for at, _ in self.kept if at >= step - self.updates and at < step] == list(
            range(step - self.updates, step)
        )

    def seen(self) -> list[Weights]:
        return super().seen()[-self.updates :]

    def propose(self, here: Here) -> list[Candidate]:
        moved = torch.stack([theta - here.theta for theta in here.seen]).double()
        u = here.outputs.double()
        images = torch.stack([(here.at(theta) - here.outputs).double() for theta in here.seen])
        gram, k = moved @ moved.T, len(moved)
        if not bool(torch.isfinite(images).all()) or not float(gram.trace()) > 0:
            return []
        here.ledger.charge(2.0 * k * k * moved.shape[1] / rate(PRODUCTS, moved.device))
        loss, found = here.objective.loss.to(u), []
        flat = images.flatten(1)
        scale = float((flat * loss.hvp(u, images).reshape(k, -1)).sum() / gram.trace())
        for share in self.damping:
            here.ledger.charge(NEWTON * 4.0 * k * k * u.numel() / rate(PRODUCTS, u.device))
            c = within_span(loss, u, images, share * scale * gram)
            displacement = (c @ moved).to(here.theta)
            found.append(Candidate(displacement, here.value(here.theta + displacement), self._words(share)))
        return [candidate for candidate in found if math.isfinite(candidate.loss)]

    def _words(self, share: float) -> str:
        return f"best in the span of {self.updates} updates, damped by {share:g}"


def within_span(loss: Loss, u: Tensor, images: Tensor, damping: Tensor) -> Tensor:
    """Coefficients c (k,) that minimize Φ(u + Σ cᵢ eᵢ) + ½ cᵀ R c, in float64.

    Args:
        images: eᵢ (k, *outputs). damping: R (k, k), positive semidefinite.
    """
    flat = images.flatten(1)

    def outputs(c: Tensor) -> Tensor:
        return u + (c @ flat).reshape(u.shape)

    def total(c: Tensor) -> Tensor:
        return loss.value(outputs(c)) + 0.5 * c @ damping @ c

    c = u.new_zeros(len(images))
    value = total(c)
    for _ in range(NEWTON):
        v = outputs(c)
        slope = flat @ loss.grad(v).reshape(-1) + damping @ c
        curvature = flat @ loss.hvp(v, images).reshape(len(c), -1).T + damping
        step = -torch.linalg.pinv(0.5 * (curvature + curvature.T), hermitian=True, rtol=1e-13) @ slope
        fall = -float(slope @ step)
        if not fall > SETTLED * abs(float(value)):
            break
        length = 1.0
        while not float(total(c + length * step)) <= float(value) - 1e-4 * length * fall and length > 1e-6:
            length *= 0.5
        if length <= 1e-6:
            break
        c = c + length * step
        value = total(c)
    return c


def _damping(given: Any) -> tuple[float, ...]:
    found = tuple(given) if isinstance(given, (list, tuple)) else ()
    if not found or any(isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 <= x < math.inf for x in found):
        raise InputError(f"damping={brief(given)}: give a list of numbers of 0 or more.")
    return tuple(map(float, found))
