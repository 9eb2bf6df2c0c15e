"""Partial differential equations as least squares on fixed points, for jumps and for plain torch alike.

Every condition is written twice: at one point with ``torch.func`` (what :func:`jumpstart.residual` takes), and over
all points with nested ``autograd.grad`` (what an ordinary training loop runs). Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, cartesian_prod, nn
from torch.func import grad, jacrev

from jumpstart import Term, residual
from jumpstart.demo import poisson
from jumpstart.objectives.objective import Objective

from . import references

Net = Callable[[Tensor], Tensor]  # points (m, 2) to values (m, 1)
Field = tuple[Tensor, Tensor, Tensor, Tensor]  # x (a,), y (b,), exact (a, b), found (a, b)
WAVE = 4 * math.pi  # Helmholtz' k
DIFFUSION = 0.1  # heat's α: the solution falls to 0.37 of its start
SPEED = 30.0  # convection's: where ordinary training fails (Krishnapriyan et al. 2021, arXiv 2109.01050)
VISCOSITY = references.BURGERS


@dataclass(frozen=True)
class Condition:
    """One term: ``point(net, x)`` at x (2,), and ``batch(net)`` (m,) for all points (m, 2) at once, unweighted."""

    point: Callable[[Any, Tensor], Tensor]
    batch: Callable[[Net], Tensor]
    points: Tensor
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


def cells(count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Centres (count,) of equal cells."""
    return low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count


def line(x: Tensor, t: float) -> Tensor:
    """Points (m, 2) at x (m,) and one t."""
    return torch.stack([x, torch.full_like(x, t)], 1)


def columns(points: Tensor) -> tuple[Tensor, Tensor]:
    """Two coordinates (m,), each a leaf of its own, so that derivatives along one leave the other alone."""
    first, second = (column.clone().requires_grad_() for column in points.unbind(1))
    return first, second


def values(net: Net, *coordinates: Tensor) -> Tensor:
    """u (m,) at coordinates (m,)."""
    return net(torch.stack(coordinates, 1))[:, 0]


def slopes(u: Tensor, *coordinates: Tensor) -> tuple[Tensor, ...]:
    """∂u/∂(each coordinate), for values u (m,) that depend on their own point alone."""
    return torch.autograd.grad(u, coordinates, torch.ones_like(u), create_graph=True)


def given(points: Tensor, target: Tensor | float, weight: float) -> Condition:
    """u = target (m,) at the points, a boundary or initial condition; ``weight`` on the mean of squares."""
    table = torch.as_tensor(target, dtype=torch.float64).expand(len(points))
    rows = torch.cat([points, table[:, None]], 1)
    return Condition(
        lambda net, row: net(row[:2])[0] - row[2], lambda net: net(points)[:, 0] - table, rows, weight / len(points)
    )


def laplace(points: Tensor, source: Tensor | float, square: float = 0.0) -> Condition:
    """Δu + square·u − source (m,), mean of squares."""
    table = torch.as_tensor(source, dtype=torch.float64).expand(len(points)).clone()
    x, y = columns(points)

    def point(net: Any, row: Tensor) -> Tensor:
        # Reverse over reverse takes half the time of torch.func.hessian, here and below.
        second, u = jacrev(grad(lambda z: (net(z)[0],) * 2, has_aux=True), has_aux=True)(row[:2])
        return second.diagonal().sum() + square * u - row[2]

    def batch(net: Net) -> Tensor:
        u = values(net, x, y)
        ux, uy = slopes(u, x, y)
        return slopes(ux, x)[0] + slopes(uy, y)[0] + square * u - table

    return Condition(point, batch, torch.cat([points, table[:, None]], 1), 1 / len(points))


def jet(net: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, u_x, u_t and u_xx at one point z = (x, t)."""

    def along_x(z: Tensor) -> tuple[Tensor, Tensor]:
        first, u = grad(lambda z: (net(z)[0],) * 2, has_aux=True)(z)
        return first[0], torch.cat([u[None], first])

    second, (u, ux, ut) = grad(along_x, has_aux=True)(z)
    return u, ux, ut, second[0]


def heat(points: Tensor) -> Condition:
    """u_t − α u_xx at (x, t), mean of squares."""
    x, t = columns(points)

    def point(net: Any, z: Tensor) -> Tensor:
        _, _, ut, uxx = jet(net, z)
        return ut - DIFFUSION * uxx

    def batch(net: Net) -> Tensor:
        ux, ut = slopes(values(net, x, t), x, t)
        return ut - DIFFUSION * slopes(ux, x)[0]

    return Condition(point, batch, points, 1 / len(points))


def convection(points: Tensor) -> Condition:
    """u_t + 30 u_x at (x, t), mean of squares."""
    x, t = columns(points)

    def point(net: Any, z: Tensor) -> Tensor:
        ux, ut = grad(lambda z: net(z)[0])(z)
        return ut + SPEED * ux

    def batch(net: Net) -> Tensor:
        ux, ut = slopes(values(net, x, t), x, t)
        return ut + SPEED * ux

    return Condition(point, batch, points, 1 / len(points))


def periodic(times: Tensor, length: float, weight: float) -> Condition:
    """u(0, t) = u(length, t) at times (m,)."""
    left, right = line(times, 0.0).flip(1), line(times, length).flip(1)
    both = torch.cat([left, right])

    def batch(net: Net) -> Tensor:
        first, second = net(both)[:, 0].chunk(2)
        return first - second

    return Condition(
        lambda net, row: (net(row[:2]) - net(row[2:]))[0], batch, torch.cat([left, right], 1), weight / len(times)
    )


def burgers(points: Tensor) -> Condition:
    """u_t + u u_x − ν u_xx at (x, t), mean of squares."""
    x, t = columns(points)

    def point(net: Any, z: Tensor) -> Tensor:
        u, ux, ut, uxx = jet(net, z)
        return ut + u * ux - VISCOSITY * uxx

    def batch(net: Net) -> Tensor:
        u = values(net, x, t)
        ux, ut = slopes(u, x, t)
        return ut + u * ux - VISCOSITY * slopes(ux, x)[0]

    return Condition(point, batch, points, 1 / len(points))


def known(exact: Net, width: float = 1.0) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """An exact solution (m, 2) -> (m, 1) on 200 × 200 cells of [0, width] × [0, 1], the anchor's grid for errors."""

    def reference() -> tuple[Tensor, Tensor, Tensor]:
        x, y = cells(200, 0.0, width), cells(200)
        return x, y, exact(cartesian_prod(x, y)).reshape(200, 200)

    return reference


def problem(
    name: str, title: str, widths: tuple[int, ...], conditions: Sequence[Condition],
    reference: Callable[[], tuple[Tensor, Tensor, Tensor]], seconds: float,
) -> Problem:  # fmt: skip
    """Errors and fields are taken on the reference's own grid: x (a,), y (b,), u (a, b), NaN outside the domain."""
    scales = [math.sqrt(condition.weight) for condition in conditions]

    def residuals(net: Net) -> Tensor:
        return torch.cat([s * condition.batch(net) for s, condition in zip(scales, conditions, strict=True)])

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
        lambda model: residual(model, *[Term(c.point, c.points, weight=c.weight) for c in conditions]),
        residuals, error, field, seconds,
    )  # fmt: skip


def _poisson(name: str, title: str, widths: tuple[int, ...], seconds: float) -> Problem:
    """Anchor 1: boundary weighed 4 times."""
    inside, outside = poisson.grid(30), poisson.boundary(30)
    conditions = [laplace(inside, -2 * math.pi**2 * poisson.exact(inside)), given(outside, 0.0, 4.0)]
    return problem(name, title, widths, conditions, known(poisson.exact), seconds)


def _helmholtz() -> Problem:
    """The boundary weighs 100 times: the operator makes residuals inside k² ≈ 158 times as large as u."""

    def exact(z: Tensor) -> Tensor:
        return torch.sin(WAVE * z[:, :1]) * torch.sin(WAVE * z[:, 1:])

    inside = poisson.grid(36)
    conditions = [laplace(inside, -(WAVE**2) * exact(inside)[:, 0], WAVE**2), given(poisson.boundary(50), 0.0, 100.0)]
    return problem("helmholtz", "Helmholtz, k = 4π, 2-32-32-1", (32, 32), conditions, known(exact), 15.0)


def _heat() -> Problem:
    """Weights as in Poisson's: initial and boundary values 4 times."""

    def exact(z: Tensor) -> Tensor:
        return torch.exp(-DIFFUSION * math.pi**2 * z[:, 1:]) * torch.sin(math.pi * z[:, :1])

    sides = torch.cat([line(cells(30), end).flip(1) for end in (0.0, 1.0)])
    start = given(line(cells(60), 0.0), torch.sin(math.pi * cells(60)), 4.0)
    conditions = [heat(poisson.grid(30)), start, given(sides, 0.0, 4.0)]
    return problem("heat", "Heat, α = 0.1, 2-32-32-1", (32, 32), conditions, known(exact), 3.0)


def _convection() -> Problem:
    """Initial values and periodicity weigh 100 times: u_t and 30 u_x are 30 times as large as u."""
    length = 2 * math.pi
    start = cells(100, 0.0, length)
    conditions = [
        convection(cartesian_prod(cells(30, 0.0, length), cells(50))),
        given(line(start, 0.0), torch.sin(start), 100.0),
        periodic(cells(50), length, 100.0),
    ]
    return problem(
        "convection", "Convection at speed 30, 2-32-32-1", (32, 32), conditions,
        known(lambda z: torch.sin(z[:, 0] - SPEED * z[:, 1]), length), 15.0,
    )  # fmt: skip


def _burgers() -> Problem:
    """Means of squares added as they are (Raissi et al.); a quarter of the Sobol points gather at the shock, x = 0."""
    sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(2000, dtype=torch.float64)
    x = 2 * sobol[:, 0] - 1
    x[1500:] = x[1500:] ** 3
    start = cells(100, -1.0, 1.0)
    sides = torch.cat([line(cells(50), end).flip(1) for end in (-1.0, 1.0)])
    first = given(line(start, 0.0), -torch.sin(math.pi * start), 1.0)
    conditions = [burgers(torch.stack([x, sobol[:, 1]], 1)), first, given(sides, 0.0, 1.0)]
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
