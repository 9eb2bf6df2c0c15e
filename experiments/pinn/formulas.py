"""Residuals of equations and conditions, each written twice: at one point, and at many points at once.

At one point with ``torch.func`` (what :func:`jumpstart.residual` takes), and at rows of points with nested
``autograd.grad`` (what an ordinary training loop runs). Points are (x, y) or (x, t); a row may hold more behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev

from . import references

Net = Callable[[Tensor], Tensor]  # points (m, d) to values (m, outputs)
Function = Callable[[Tensor], Tensor]  # of points (…, d), to (…)
WAVE = 4 * math.pi  # Helmholtz' k
DIFFUSION = 0.1  # heat's α: the solution falls to 0.37 of its start
SPEED = 30.0  # convection's: where ordinary training fails (Krishnapriyan et al. 2021, arXiv 2109.01050)
VISCOSITY = references.BURGERS


@dataclass(frozen=True)
class Formula:
    """``point(net, row)`` at a row (d,); ``batch(net, rows)`` at rows (m, d): the same numbers, rows side by side."""

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


def jet(net: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, u_x, u_t and u_xx at one point z = (x, t)."""

    def along_x(z: Tensor) -> tuple[Tensor, Tensor]:
        first, u = grad(lambda z: (net(z)[0],) * 2, has_aux=True)(z)
        return first[0], torch.cat([u[None], first])

    second, (u, ux, ut) = grad(along_x, has_aux=True)(z)
    return u, ux, ut, second[0]


def given(target: Function | float, output: int = 0) -> Formula:
    """u = target, a boundary or initial condition of one output."""

    def wanted(rows: Tensor) -> Tensor | float:
        return target(rows) if callable(target) else target

    return Formula(
        lambda net, row: net(row[:2])[output] - wanted(row),
        lambda net, rows: net(rows[:, :2])[:, output] - wanted(rows),
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


def moving(right: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Formula:
    """u_t − right(u, u_x, u_xx)."""

    def point(net: Any, z: Tensor) -> Tensor:
        u, ux, ut, uxx = jet(net, z)
        return ut - right(u, ux, uxx)

    def batch(net: Net, rows: Tensor) -> Tensor:
        x, t = columns(rows)
        u = values(net, x, t)
        ux, ut = slopes(u, x, t)
        return ut - right(u, ux, slopes(ux, x)[0])

    return Formula(point, batch)


HEAT = moving(lambda u, ux, uxx: DIFFUSION * uxx)
BURGERS = moving(lambda u, ux, uxx: VISCOSITY * uxx - u * ux)


def _convection() -> Formula:
    """u_t + 30 u_x."""

    def point(net: Any, z: Tensor) -> Tensor:
        ux, ut = grad(lambda z: net(z)[0])(z)
        return ut + SPEED * ux

    def batch(net: Net, rows: Tensor) -> Tensor:
        x, t = columns(rows)
        ux, ut = slopes(values(net, x, t), x, t)
        return ut + SPEED * ux

    return Formula(point, batch)


def _periodic() -> Formula:
    """u at a point less u at its partner, side by side in a row."""

    def batch(net: Net, rows: Tensor) -> Tensor:
        first, second = net(torch.cat(rows.chunk(2, 1)))[:, 0].chunk(2)
        return first - second

    return Formula(lambda net, row: (net(row[:2]) - net(row[2:]))[0], batch)


CONVECTION, PERIODIC = _convection(), _periodic()
