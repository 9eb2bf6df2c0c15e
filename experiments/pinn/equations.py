"""The equations of the races on domains.

Weights are on means of squares; those of conditions make up for the size of what an equation's terms leave over.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

import jumpstart as js
from jumpstart.demo import poisson
from jumpstart.domains import Box, Polygon

from . import formulas, high, references, solutions, spectral
from .formulas import given
from .on_domains import Drawn, Equation, Part, network, of_grid, part, periodic
from .solutions import WAVE, known

__all__ = ["EQUATIONS", "EVERY", "Drawn", "Equation", "Part"]
SQUARE = Box((0.0, 0.0), (1.0, 1.0))
SPACE_TIME = Box((-1.0, 0.0), (1.0, 1.0))
WAKE = Box((-0.5, -0.5), (1.0, 1.5))
LSHAPE = Polygon([(-1, -1), (1, -1), (1, 0), (0, 0), (0, 1), (-1, 1)])


def _poisson() -> Equation:
    """Weights of anchor 1."""
    return Equation(
        "poisson", "Poisson, 2-32-32-1", network((32, 32)),
        (
            part("equation", formulas.laplace(lambda z: -2 * math.pi**2 * poisson.exact(z)), SQUARE, 1.0, 1000),
            part("sides", given(0.0), SQUARE.boundary(), 4.0, 200),
        ),
        of_grid(known(poisson.exact)),
    )  # fmt: skip


def _helmholtz() -> Equation:
    """The operator makes residuals inside k² ≈ 158 times as large as u."""
    source = lambda z: -(WAVE**2) * solutions.helmholtz(z)  # noqa: E731
    return Equation(
        "helmholtz", "Helmholtz, k = 4π, 2-32-32-1", network((32, 32)),
        (
            part("equation", formulas.laplace(source, WAVE**2), SQUARE, 1.0, 1300),
            part("sides", given(0.0), SQUARE.boundary(), 100.0, 200),
        ),
        of_grid(known(solutions.helmholtz)),
    )  # fmt: skip


def _heat() -> Equation:
    return Equation(
        "heat", "Heat, α = 0.1, 2-32-32-1", network((32, 32)),
        (
            part("equation", formulas.HEAT, SQUARE, 1.0, 1000),
            part("start", given(lambda z: torch.sin(math.pi * z[..., 0])), SQUARE.initial(), 4.0, 60),
            part("sides", given(0.0), SQUARE.boundary(axes=[0]), 4.0, 60),
        ),
        of_grid(known(solutions.heat)),
    )  # fmt: skip


def _convection() -> Equation:
    """u_t and 30 u_x are 30 times as large as u."""
    length = 2 * math.pi
    box = Box((0.0, 0.0), (length, 1.0))
    return Equation(
        "convection", "Convection at speed 30, 2-32-32-1", network((32, 32)),
        (
            part("equation", formulas.CONVECTION, box, 1.0, 1500),
            part("start", given(lambda z: torch.sin(z[..., 0])), box.initial(), 100.0, 100),
            part("sides", formulas.PERIODIC, box.periodic(0), 100.0, 50),
        ),
        of_grid(known(solutions.convection, length)),
    )  # fmt: skip


def _burgers() -> Equation:
    """Means of squares added as they are (Raissi et al.)."""
    return Equation(
        "burgers", "Burgers, ν = 0.01/π, 2-30-30-30-1", network((30, 30, 30)),
        (
            part("equation", formulas.BURGERS, SPACE_TIME, 1.0, 1000),
            part("start", given(lambda z: -torch.sin(math.pi * z[..., 0])), SPACE_TIME.initial(), 1.0, 100),
            part("walls", given(0.0), SPACE_TIME.boundary(axes=[0]), 1.0, 100),
        ),
        of_grid(references.burgers),
    )  # fmt: skip


def _lshape() -> Equation:
    """With a feature that is like the solution at the inner corner: without it jumps stand still near 1e-3."""
    return Equation(
        "lshape", "Poisson on an L-shape, 3-32-32-1, corner",
        network((32, 32), lambda: js.features.Corner((0, 0), (0, 1), (1, 0))),
        (
            part("equation", formulas.laplace(-1.0), LSHAPE, 1.0, 1200),
            part("sides", given(0.0), LSHAPE.boundary(), 100.0, 240),
        ),
        of_grid(references.lshape),
    )  # fmt: skip


def _allen_cahn() -> Equation:
    """With a feature that is like the solution where the start's slopes, −2 and 2, meet at x = ±1: without it jumps
    stand still near 5e-5, and all of the error is there."""
    kink = functools.partial(js.features.Kink, 1.0, spectral.DIFFUSION, period=2.0)
    return Equation(
        "allen_cahn", "Allen–Cahn, ε = 1e-4, 4-30-30-30-1, periodic, kink",
        network((30, 30, 30), lambda: js.features.Beside(periodic(2.0)(), kink())),
        (
            part("equation", formulas.ALLEN_CAHN, SPACE_TIME, 1.0, 1000),
            part(
                "start", given(lambda z: z[..., 0].square() * torch.cos(math.pi * z[..., 0])), SPACE_TIME.initial(),
                100.0, 200,
            ),
        ),
        of_grid(functools.partial(spectral.reference, "allen_cahn")),
    )  # fmt: skip


def _kdv() -> Equation:
    return Equation(
        "kdv", "KdV, 0.022², 3-30-30-30-1, periodic", network((30, 30, 30), periodic(2.0)),
        (
            part("equation", formulas.KDV, SPACE_TIME, 1.0, 1000),
            part("start", given(lambda z: torch.cos(math.pi * z[..., 0])), SPACE_TIME.initial(), 1.0, 200),
        ),
        of_grid(functools.partial(spectral.reference, "kdv")),
    )  # fmt: skip


def _kuramoto_sivashinsky() -> Equation:
    """Past the front that forms at t = 0.1, before ripples grow all over: to 0.4 a network of this size ended at 0.6
    after 158 s, to 0.2 at 0.02 after 40 s and falling (seed 100)."""
    box = Box((0.0, 0.0), (2 * math.pi, spectral.HORIZON))
    return Equation(
        "kuramoto_sivashinsky", f"Kuramoto–Sivashinsky to t = {spectral.HORIZON}, 3-30-30-30-1, periodic",
        network((30, 30, 30), periodic(2 * math.pi)),
        (
            part("equation", formulas.KURAMOTO_SIVASHINSKY, box, 1.0, 1000),
            part(
                "start", given(lambda z: torch.cos(z[..., 0]) * (1 + torch.sin(z[..., 0]))), box.initial(), 1e4, 200
            ),
        ),
        of_grid(functools.partial(spectral.reference, "kuramoto_sivashinsky")),
    )  # fmt: skip


def _kovasznay() -> Equation:
    """Velocity given all around, pressure where the flow leaves, which fixes its level."""
    velocity = given(lambda z: solutions.kovasznay(z)[..., :2], slice(0, 2))
    pressure = given(lambda z: solutions.kovasznay(z)[..., 2], 2)

    @functools.cache
    def reference() -> tuple[Tensor, Tensor]:
        points = torch.cartesian_prod(solutions.cells(100, -0.5, 1.0), solutions.cells(100, -0.5, 1.5))
        return points, solutions.kovasznay(points)

    return Equation(
        "kovasznay", "Kovasznay's flow, Re = 40, 2-32-32-3", network((32, 32), outputs=3),
        (
            part("equation", formulas.FLOW, WAKE, 1.0, 1000),
            part("sides", velocity, WAKE.boundary(), 10.0, 200),
            part("outflow", pressure, WAKE.face(0, "high"), 10.0, 50),
        ),
        reference,
    )  # fmt: skip


EQUATIONS: dict[str, Equation] = {
    found.name: found
    for found in (
        _poisson(), _helmholtz(), _heat(), _convection(), _burgers(), _lshape(), _allen_cahn(), _kdv(),
        _kuramoto_sivashinsky(), _kovasznay(),
    )
}  # fmt: skip
EVERY = {**EQUATIONS, **high.EQUATIONS}  # with those in more dimensions, which are raced where they are asked for
