"""An equation on domains: for jumps, and at points drawn from the domains for plain torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart.domains import Domain
from jumpstart.objectives.drawn import POOL, by_size
from jumpstart.objectives.residual import Residuals

from .formulas import Formula, Net
from .solutions import Grid

Reference = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Part:
    """One term on a domain.

    Args:
        point: the residual at one row (d,), as ``js.residual`` takes it: a number, or (k,) of a system.
        batch: at rows (m, d) at once, (m,) or (m·k,) with the numbers of a point side by side; a graph to the weights.
        weight: on the mean of squares. count: points at the start.
    """

    name: str
    point: Callable[[Any, Tensor], Tensor]
    batch: Callable[[Net, Tensor], Tensor]
    domain: Domain
    weight: float
    count: int


@dataclass(frozen=True)
class Equation:
    """An equation, its network, domains and solution.

    Args:
        network: by seed, float64.
        reference: points (m, d) and the solution's values (m, outputs) there; computed once.
    """

    name: str
    title: str
    network: Callable[[int], nn.Module]
    parts: tuple[Part, ...]
    reference: Reference

    def error(self, model: nn.Module) -> float:
        """Relative L² distance over the reference's points, all outputs together."""
        points, exact = self.reference()
        with torch.no_grad():
            return float((model(points) - exact).norm() / exact.norm())

    def objective(self, model: nn.Module, share: float = 1.0) -> Residuals:
        """As jumps take it: Φ = ½ Σ_parts weight · mean |residual|²."""
        terms = [
            js.Term(part.point, part.domain, weight=part.weight, count=_count(part, share), name=part.name)
            for part in self.parts
        ]
        return js.residual(model, *terms)

    def drawn(self, seed: int, share: float = 1.0) -> Drawn:
        """At points for plain torch; ``share`` of as many."""
        return Drawn(self, seed, share)


class Drawn:
    """An equation at points, for plain torch.

    Attributes:
        points: of each part (m, d).
    """

    def __init__(self, equation: Equation, seed: int, share: float = 1.0) -> None:
        self.equation, self.seed = equation, seed
        self.points = [part.domain.points(_count(part, share), seed) for part in equation.parts]

    def residuals(self, net: Net) -> Tensor:
        """(N,), with a graph to the weights: ½‖·‖² is the objective's Φ at the same points."""
        pairs = zip(self.equation.parts, self.points, strict=True)
        return torch.cat([math.sqrt(part.weight / len(rows)) * part.batch(net, rows) for part, rows in pairs])

    def renew(self, net: Net | None = None, seed: int = 0) -> None:
        """As many points drawn anew: evenly, or where a network's residual is large.

        Residual-based adaptive distribution as ``fit`` has it (``jumpstart.objectives.drawn``): of six candidates for
        each point, at random in proportion to |r| / mean |r| + 1 (Wu et al. 2023, arXiv:2207.10289).

        Args:
            seed: of the draw, such as the step's number; every draw is apart from the first points.
        """
        first = (self.seed + 1) * 1_000_003 + seed * len(self.points)
        for i, (part, old) in enumerate(zip(self.equation.parts, self.points, strict=True)):
            if net is None:
                self.points[i] = part.domain.points(len(old), first + i)
                continue
            candidates = part.domain.points(POOL * len(old), first + i)
            # As many at a time as there are points: graphs of high derivatives are large.
            rows = [part.batch(net, some).detach().reshape(len(some), -1) for some in candidates.split(len(old))]
            sizes = torch.linalg.vector_norm(torch.cat(rows), dim=1)
            self.points[i] = candidates[by_size(sizes, len(old), first + i)]


def _count(part: Part, share: float) -> int:
    return max(1, round(part.count * share))


def network(
    widths: Sequence[int], front: Callable[[], Any] | None = None, inputs: int = 2, outputs: int = 1
) -> Callable[[int], nn.Module]:
    """Networks of tanh by seed, torch's initialization, float64; behind a module of ``js.features`` if one is given."""

    def made(seed: int) -> nn.Module:
        before = [] if front is None else [front()]
        sizes = (before[0].outputs if before else inputs, *widths)
        torch.manual_seed(seed)
        layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.Tanh())]
        return nn.Sequential(*before, *layers, nn.Linear(sizes[-1], outputs)).double()

    return made


def periodic(period: float) -> Callable[[], nn.Module]:
    """x of that period, and t."""
    return lambda: js.features.Periodic(2, {0: period})


def part(name: str, formula: Formula, domain: Domain, weight: float, count: int) -> Part:
    return Part(name, formula.point, formula.batch, domain, weight, count)


def of_grid(grid: Grid) -> Reference:
    """A reference on a grid, x (a,), y (b,), u (a, b), NaN outside the domain, as points and values."""

    @functools.cache
    def points() -> tuple[Tensor, Tensor]:
        x, y, u = grid()
        inside = ~u.reshape(-1).isnan()
        return torch.cartesian_prod(x, y)[inside], u.reshape(-1, 1)[inside]

    return points
