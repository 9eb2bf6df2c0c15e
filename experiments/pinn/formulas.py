"""Residuals of equations and conditions, each written twice: at one point, and at many points at once.

At one point with ``torch.func`` (what :func:`jumpstart.residual` takes), and at rows of points with nested
``autograd.grad`` (what an ordinary training loop runs). Points are (x, y) or (x, t); a row may hold more behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev

from . import references, spectral
from .solutions import DIFFUSION, REYNOLDS, SPEED, Function

Net = Callable[[Tensor], Tensor]  # points (m, d) to values (m, outputs)
VISCOSITY = references.BURGERS


@dataclass(frozen=True)
class Formula:
    """``point(net, row)`` at a row (d,), a number or (k,) of a system; ``batch(net, rows)`` at rows (m, d): the same
    numbers (m,) or (m·k,), those of a row side by side."""

    point: Callable[[Any, Tensor], Tensor]
    batch: Callable[[Net, Tensor], Tensor]


def columns(rows: Tensor, count: int = 2) -> list[Tensor]:
    """The first coordinates (m,), each a leaf of its own, so that derivatives along one leave the others alone."""
    return [column.clone().requires_grad_() for column in rows.detach().unbind(1)[:count]]


def values(net: Net, *coordinates: Tensor) -> Tensor:
    """u (m,) at coordinates (m,)."""
    return net(torch.stack(coordinates, 1))[:, 0]


def slopes(u: Tensor, *coordinates: Tensor) -> tuple[Tensor, ...]:
    """∂u/∂(each coordinate), for values u (m,) that depend on their own point alone."""
    return torch.autograd.grad(u, coordinates, torch.ones_like(u), create_graph=True)


def jet(net: Any, z: Tensor, order: int) -> tuple[Tensor, ...]:
    """u_t and u, u_x, u_xx, … at one point z = (x, t), the last of that order, at least 1."""

    def along(n: int) -> Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]:
        """∂ⁿu/∂xⁿ, and what comes before it."""
        if n == 0:
            return lambda z: ((u := net(z)[0]), (u,))
        below = along(n - 1)

        def derivative(z: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            first, before = grad(below, has_aux=True)(z)
            return first[0], ((first[1], *before) if n == 1 else before) + (first[0],)

        return derivative

    return along(order)(z)[1]


def jets(net: Net, rows: Tensor, order: int) -> tuple[Tensor, ...]:
    """The same (m,) at rows (m, 2)."""
    x, t = columns(rows)
    u = values(net, x, t)
    ux, ut = slopes(u, x, t)
    found = [ut, u, ux]
    for _ in range(order - 1):
        found.append(slopes(found[-1], x)[0])
    return tuple(found)


def evolution(left: Callable[..., Tensor], order: int) -> Formula:
    """left(u_t, u, u_x, …), with derivatives up to an order."""
    return Formula(lambda net, z: left(*jet(net, z, order)), lambda net, rows: left(*jets(net, rows, order)))


HEAT = evolution(lambda ut, u, ux, uxx: ut - DIFFUSION * uxx, 2)
CONVECTION = evolution(lambda ut, u, ux: ut + SPEED * ux, 1)
BURGERS = evolution(lambda ut, u, ux, uxx: ut + u * ux - VISCOSITY * uxx, 2)
ALLEN_CAHN = evolution(
    lambda ut, u, ux, uxx: ut - spectral.DIFFUSION * uxx - spectral.REACTION * (u - u.square() * u), 2
)
KDV = evolution(lambda ut, u, ux, uxx, uxxx: ut + u * ux + spectral.DISPERSION * uxxx, 3)
KURAMOTO_SIVASHINSKY = evolution(
    lambda ut, u, ux, uxx, uxxx, uxxxx: (
        ut + spectral.STEEPENING * u * ux + spectral.GROWTH * uxx + spectral.DAMPING * uxxxx
    ),
    4,
)


def given(target: Function | float, outputs: slice | int = 0, coordinates: int = 2) -> Formula:
    """u − target, a boundary or initial condition of one output, or of several."""

    def wanted(rows: Tensor) -> Tensor | float:
        return target(rows) if callable(target) else target

    return Formula(
        lambda net, row: net(row[:coordinates])[outputs] - wanted(row),
        lambda net, rows: (net(rows[:, :coordinates])[:, outputs] - wanted(rows)).reshape(-1),
    )


def laplace(source: Function | float, square: float = 0.0) -> Formula:
    """Δu + square·u − source."""

    def wanted(rows: Tensor) -> Tensor | float:
        return source(rows) if callable(source) else source

    def point(net: Any, row: Tensor) -> Tensor:
        # Reverse over reverse takes half the time of torch.func.hessian, here and below.
        second, u = jacrev(grad(lambda z: (net(z)[0],) * 2, has_aux=True), has_aux=True)(row[:2])
        return second.diagonal().sum() + square * u - wanted(row)

    def batch(net: Net, rows: Tensor) -> Tensor:
        x, y = columns(rows)
        u = values(net, x, y)
        ux, uy = slopes(u, x, y)
        return slopes(ux, x)[0] + slopes(uy, y)[0] + square * u - wanted(rows)

    return Formula(point, batch)


def diffusion(dimensions: int, factor: float, source: Function | float = 0.0, timed: bool = False) -> Formula:
    """factor · Δu + source in any number of dimensions; with u_t before it where time is the coordinate behind them."""
    count = dimensions + timed

    def wanted(rows: Tensor) -> Tensor | float:
        return source(rows) if callable(source) else source

    def point(net: Any, row: Tensor) -> Tensor:
        first = grad(lambda z: net(z)[0])
        bent = torch.stack([grad(lambda z, i=i: first(z)[i])(row)[i] for i in range(dimensions)]).sum()
        return (first(row)[-1] if timed else 0.0) + factor * bent + wanted(row)

    def batch(net: Net, rows: Tensor) -> Tensor:
        each = columns(rows, count)
        first = slopes(values(net, *each), *each)
        bent = torch.stack([slopes(first[i], each[i])[0] for i in range(dimensions)]).sum(0)
        return (first[-1] if timed else 0.0) + factor * bent + wanted(rows)

    return Formula(point, batch)


def _periodic() -> Formula:
    """u at a point less u at its partner, side by side in a row."""

    def batch(net: Net, rows: Tensor) -> Tensor:
        first, second = net(torch.cat(rows.chunk(2, 1)))[:, 0].chunk(2)
        return first - second

    return Formula(lambda net, row: (net(row[:2]) - net(row[2:]))[0], batch)


def _flow() -> Formula:
    """(u·∇)u + ∇p − Δu/Re (2 numbers) and ∇·u, for a network with outputs u, v, p."""

    def point(net: Any, z: Tensor) -> Tensor:
        def first(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            jacobian, w = jacrev(lambda z: (net(z),) * 2, has_aux=True)(z)
            return jacobian[:2], (jacobian, w)

        second, (jacobian, w) = jacrev(first, has_aux=True)(z)
        bent = second.diagonal(dim1=-2, dim2=-1).sum(-1)
        moment = jacobian[:2] @ w[:2] + jacobian[2] - bent / REYNOLDS
        return torch.cat([moment, (jacobian[0, 0] + jacobian[1, 1])[None]])

    def batch(net: Net, rows: Tensor) -> Tensor:
        x, y = columns(rows)
        u, v, p = net(torch.stack([x, y], 1)).unbind(1)
        (ux, uy), (vx, vy), (px, py) = slopes(u, x, y), slopes(v, x, y), slopes(p, x, y)
        along = u * ux + v * uy + px - (slopes(ux, x)[0] + slopes(uy, y)[0]) / REYNOLDS
        across = u * vx + v * vy + py - (slopes(vx, x)[0] + slopes(vy, y)[0]) / REYNOLDS
        return torch.stack([along, across, ux + vy], 1).reshape(-1)

    return Formula(point, batch)


PERIODIC, FLOW = _periodic(), _flow()
