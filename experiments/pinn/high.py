"""Equations in five, ten and ten-and-one dimensions, with solutions in closed form.

The first two are those of energy natural gradients and SPRING (Guzmán-Cordero, Dangel, Goldshlager & Zeinhofer 2025,
arXiv:2505.12149), with their 3,000 points inside and 500 on the boundary; networks are of their smaller size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from jumpstart.domains import Box

from .formulas import diffusion, given
from .on_domains import Equation, Reference, network, part

INSIDE, OUTSIDE, ASKED = 3000, 500, 4000
WIDTHS = (64, 64, 48, 48)
SEED = 2**21  # of the points that errors are taken at


def waves(z: Tensor) -> Tensor:
    """Σ cos πx_i."""
    return torch.cos(math.pi * z).sum(-1)


def products(z: Tensor) -> Tensor:
    """x₁x₂ + x₃x₄ + …, which is harmonic."""
    return (z[..., ::2] * z[..., 1::2]).sum(-1)


def fading(z: Tensor) -> Tensor:
    """e^{−t} Σ cos πx_i, t behind the others."""
    return torch.exp(-z[..., -1]) * waves(z[..., :-1])


def at(box: Box, exact: Callable[[Tensor], Tensor]) -> Reference:
    @functools.cache
    def points() -> tuple[Tensor, Tensor]:
        rows = box.points(ASKED, SEED)
        return rows, exact(rows)[:, None]

    return points


def _poisson(name: str, dimensions: int, source: Callable[[Tensor], Tensor] | float, exact: Callable[[Tensor], Tensor]):
    box = Box((0.0,) * dimensions, (1.0,) * dimensions)
    return Equation(
        name, f"Poisson in {dimensions} dimensions, {dimensions}-64-64-48-48-1", network(WIDTHS, inputs=dimensions),
        (
            part("equation", diffusion(dimensions, 1.0, source), box, 1.0, INSIDE),
            part("sides", given(exact, coordinates=dimensions), box.boundary(), 1.0, OUTSIDE),
        ),
        at(box, exact),
    )  # fmt: skip


def _heat(dimensions: int) -> Equation:
    """u_t = Δu / π²."""
    box = Box((0.0,) * (dimensions + 1), (1.0,) * (dimensions + 1))
    value = given(fading, coordinates=dimensions + 1)
    return Equation(
        "heat10", f"Heat in {dimensions} + 1 dimensions, {dimensions + 1}-64-64-48-48-1",
        network(WIDTHS, inputs=dimensions + 1),
        (
            part("equation", diffusion(dimensions, -1 / math.pi**2, timed=True), box, 1.0, INSIDE),
            part("start", value, box.initial(), 1.0, OUTSIDE),
            part("sides", value, box.boundary(axes=list(range(dimensions))), 1.0, OUTSIDE),
        ),
        at(box, fading),
    )  # fmt: skip


EQUATIONS: dict[str, Equation] = {
    found.name: found
    for found in (
        _poisson("poisson5", 5, lambda z: math.pi**2 * waves(z), waves), _poisson("poisson10", 10, 0.0, products),
        _heat(10),
    )
}  # fmt: skip
