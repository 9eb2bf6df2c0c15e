"""Partial differential equations as least squares on fixed points, for jumps and for plain torch alike.

Conditions are those of :mod:`formulas` at points given once and for all. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, cartesian_prod, nn

from jumpstart import Term, residual
from jumpstart.demo import poisson
from jumpstart.objectives.objective import Objective

from . import formulas, references, solutions
from .formulas import Formula, Net
from .solutions import WAVE, Grid, cells, known

Field = tuple[Tensor, Tensor, Tensor, Tensor]  # x (a,), y (b,), exact (a, b), found (a, b)


@dataclass(frozen=True)
class Condition:
    """One term: a formula at rows (m, d), a point and what is given there, times √weight."""

    formula: Formula
    rows: Tensor
    weight: float


@dataclass(frozen=True)
class Problem:
    """An equation, its network and points, and how far a network is from the solution.

    Args:
        network: by seed and initialization: "torch" (its default) or "small" (0.1·randn).
        objective: ½ Σ_terms weight · Σ_points residual², as jumps take it.
        residuals: the same vector (N,), times √weight, in plain torch with a graph to the weights.
        error: relative L² distance from the exact or reference solution.
        field: both on a grid, NaN outside the domain; the second coordinate is y, or t. seconds: what jumps are given.
    """

    name: str
    title: str
    network: Callable[[int, str], nn.Module]
    objective: Callable[[nn.Module], Objective]
    residuals: Callable[[Net], Tensor]
    error: Callable[[nn.Module], float]
    field: Callable[[nn.Module], Field]
    seconds: float


def line(x: Tensor, t: float) -> Tensor:
    """Points (m, 2) at x (m,) and one t."""
    return torch.stack([x, torch.full_like(x, t)], 1)


def tabled(rows: Tensor) -> Tensor:
    """What is given at a point (2,) stands behind it."""
    return rows[..., 2]


def with_table(points: Tensor, table: Tensor | float) -> Tensor:
    """Rows (m, 3) of points (m, 2) and what is given there."""
    column = torch.as_tensor(table, dtype=torch.float64).expand(len(points))
    return torch.cat([points, column[:, None]], 1)


def given(points: Tensor, target: Tensor | float, weight: float) -> Condition:
    """u = target (m,) at the points, a boundary or initial condition; ``weight`` on the mean of squares."""
    return Condition(formulas.given(tabled), with_table(points, target), weight / len(points))


def laplace(points: Tensor, source: Tensor | float, square: float = 0.0) -> Condition:
    """Δu + square·u − source (m,), mean of squares."""
    return Condition(formulas.laplace(tabled, square), with_table(points, source), 1 / len(points))


def mean(formula: Formula, points: Tensor) -> Condition:
    """The mean of a formula's squares."""
    return Condition(formula, points, 1 / len(points))


def periodic(times: Tensor, length: float, weight: float) -> Condition:
    """u(0, t) = u(length, t) at times (m,)."""
    sides = [line(times, end).flip(1) for end in (0.0, length)]
    return Condition(formulas.PERIODIC, torch.cat(sides, 1), weight / len(times))


def problem(
    name: str, title: str, widths: tuple[int, ...], conditions: Sequence[Condition],
    reference: Grid, seconds: float,
) -> Problem:  # fmt: skip
    """Errors and fields are taken on the reference's own grid: x (a,), y (b,), u (a, b), NaN outside the domain."""
    scales = [math.sqrt(condition.weight) for condition in conditions]

    def residuals(net: Net) -> Tensor:
        return torch.cat([s * c.formula.batch(net, c.rows) for s, c in zip(scales, conditions, strict=True)])

    def field(model: nn.Module) -> Field:
        x, y, exact = reference()
        with torch.no_grad():
            found = model(cartesian_prod(x, y)).reshape(exact.shape)
        return x, y, exact, found.masked_fill(exact.isnan(), math.nan)

    def error(model: nn.Module) -> float:
        _, _, exact, found = field(model)
        inside = ~exact.isnan()
        return float((found - exact)[inside].norm() / exact[inside].norm())

    return Problem(
        name, title,
        lambda seed, init: poisson.network(seed, widths, init),
        lambda model: residual(model, *[Term(c.formula.point, c.rows, weight=c.weight) for c in conditions]),
        residuals, error, field, seconds,
    )  # fmt: skip


def _poisson(name: str, title: str, widths: tuple[int, ...], seconds: float) -> Problem:
    """Anchor 1: boundary weighed 4 times."""
    inside, outside = poisson.grid(30), poisson.boundary(30)
    conditions = [laplace(inside, -2 * math.pi**2 * poisson.exact(inside)), given(outside, 0.0, 4.0)]
    return problem(name, title, widths, conditions, known(poisson.exact), seconds)


def _helmholtz() -> Problem:
    """The boundary weighs 100 times: the operator makes residuals inside k² ≈ 158 times as large as u."""

    inside = poisson.grid(36)
    source = -(WAVE**2) * solutions.helmholtz(inside)
    conditions = [laplace(inside, source, WAVE**2), given(poisson.boundary(50), 0.0, 100.0)]
    return problem("helmholtz", "Helmholtz, k = 4π, 2-32-32-1", (32, 32), conditions, known(solutions.helmholtz), 15.0)


def _heat() -> Problem:
    """Weights as in Poisson's: initial and boundary values 4 times."""

    sides = torch.cat([line(cells(30), end).flip(1) for end in (0.0, 1.0)])
    start = given(line(cells(60), 0.0), torch.sin(math.pi * cells(60)), 4.0)
    conditions = [mean(formulas.HEAT, poisson.grid(30)), start, given(sides, 0.0, 4.0)]
    return problem("heat", "Heat, α = 0.1, 2-32-32-1", (32, 32), conditions, known(solutions.heat), 3.0)


def _convection() -> Problem:
    """Initial values and periodicity weigh 100 times: u_t and 30 u_x are 30 times as large as u."""
    length = 2 * math.pi
    start = cells(100, 0.0, length)
    conditions = [
        mean(formulas.CONVECTION, cartesian_prod(cells(30, 0.0, length), cells(50))),
        given(line(start, 0.0), torch.sin(start), 100.0),
        periodic(cells(50), length, 100.0),
    ]
    return problem(
        "convection", "Convection at speed 30, 2-32-32-1", (32, 32), conditions,
        known(solutions.convection, length), 15.0,
    )  # fmt: skip


def _burgers() -> Problem:
    """Means of squares added as they are (Raissi et al.); a quarter of the Sobol points gather at the shock, x = 0."""
    sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(2000, dtype=torch.float64)
    x = 2 * sobol[:, 0] - 1
    x[1500:] = x[1500:] ** 3
    start = cells(100, -1.0, 1.0)
    sides = torch.cat([line(cells(50), end).flip(1) for end in (-1.0, 1.0)])
    first = given(line(start, 0.0), -torch.sin(math.pi * start), 1.0)
    inside = mean(formulas.BURGERS, torch.stack([x, sobol[:, 1]], 1))
    conditions = [inside, first, given(sides, 0.0, 1.0)]
    return problem("burgers", "Burgers, ν = 0.01/π, 2-20-20-20-1", (20, 20, 20), conditions, references.burgers, 9.0)


def _lshape() -> Problem:
    """Boundary weighed 100 times, 30 points a unit (with 4, seeds 100 and 101 ended four to seven times higher)."""
    square = cartesian_prod(cells(40, -1.0, 1.0), cells(40, -1.0, 1.0))
    inside = square[~((square[:, 0] > 0) & (square[:, 1] > 0))]
    half = torch.cat([line(cells(60, -1.0, 1.0), -1.0), line(cells(30, -1.0, 0.0), 1.0), line(cells(30), 0.0)])
    conditions = [laplace(inside, -1.0), given(torch.cat([half, half.flip(1)]), 0.0, 100.0)]
    return problem("lshape", "Poisson on an L-shape, 2-32-32-1", (32, 32), conditions, references.lshape, 8.0)


PROBLEMS: dict[str, Problem] = {
    found.name: found
    for found in (
        _poisson("poisson", "Poisson, 2-32-1", (32,), 4.0), _poisson("poisson2", "Poisson, 2-32-32-1", (32, 32), 5.0),
        _helmholtz(), _heat(), _convection(), _burgers(), _lshape(),
    )
}  # fmt: skip
