"""Reference solutions where there is no closed form, and how far each is from the same by other means.

python -m experiments.pinn.references [--quick] [--out DIR]

Burgers' by its integrals, the L-shape's by a series (``lshape``), periodic ones by Fourier modes (``spectral``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import scipy.special
import torch
from torch import Tensor

from jumpstart.errors import JumpstartError
from jumpstart.report import records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments
from . import independent, spectral
from .lshape import boundary, corner_series, deepxde, finite_differences, lshape

BURGERS = 0.01 / math.pi  # viscosity (Raissi, Perdikaris and Karniadakis 2019)
NODES = 400  # of Gauss and Hermite; 800 change no digit


@functools.cache
def burgers() -> tuple[Tensor, Tensor, Tensor]:
    """Burgers' equation at viscosity 0.01/π from −sin πx: x (256,) in [−1, 1], t (100,) in [0, 0.99], u (256, 100)."""
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    t = torch.arange(100, dtype=torch.float64) / 100
    return x, t, torch.stack([cole_hopf(x, float(time)) for time in t], 1)


def cole_hopf(x: Tensor, t: float) -> Tensor:
    """u (m,) at x (m,) and one t: a quotient of two integrals over a Gaussian (Cole 1951), by Gauss and Hermite."""
    if t == 0:
        return -torch.sin(math.pi * x)
    nodes, weights = (torch.tensor(a) for a in scipy.special.roots_hermite(NODES))
    y = x[:, None] - 2 * math.sqrt(BURGERS * t) * nodes
    exponent = -torch.cos(math.pi * y) / (2 * math.pi * BURGERS)
    share = weights * torch.exp(exponent - exponent.amax(1, keepdim=True))
    return -(share * torch.sin(math.pi * y)).sum(1) / share.sum(1)


def trapezoidal(x: Tensor, t: float, count: int = 8001) -> Tensor:
    """The same quotient by the trapezoidal rule, which converges as fast for what decays like a Gaussian."""
    eta = torch.linspace(-2.5, 2.5, count, dtype=torch.float64)
    y = x[:, None] - eta
    exponent = -eta.square() / (4 * BURGERS * t) - torch.cos(math.pi * y) / (2 * math.pi * BURGERS)
    share = torch.exp(exponent - exponent.amax(1, keepdim=True))
    return -(share * torch.sin(math.pi * y)).sum(1) / share.sum(1)


def row(problem: str, against: str, exact: Tensor, other: Tensor) -> Row:
    """Distances of others from the reference: relative in L² over its points, and the largest."""
    apart = other - exact
    return {
        "problem": problem, "against": against, "relative L²": float(apart.norm() / exact.norm()),
        "largest": float(apart.abs().max()), "largest value": float(other.abs().max()),
    }  # fmt: skip


def of_burgers(quick: bool) -> Iterator[Row]:
    x, t, u = burgers()
    later = [int(i) for i in np.linspace(1, len(t) - 1, 3 if quick else 12)]
    other = torch.stack([trapezoidal(x, float(t[i])) for i in later], 1)
    yield row("Burgers, ν = 0.01/π", "the trapezoidal rule, 8,001 points", u[:, later], other)


def of_lshape(quick: bool) -> Iterator[Row]:
    problem = "Poisson on an L-shape"
    edge = boundary(200 if quick else 2000)
    bound = float(corner_series(edge).abs().max())
    yield {"problem": problem, "against": "zero, on its boundary", "largest": bound, "largest value": bound}
    x, y, u = lshape()
    inside = ~u.reshape(-1).isnan()
    points, exact = torch.cartesian_prod(x, y)[inside], u.reshape(-1)[inside]
    yield row(problem, "100 terms instead of 60", exact, corner_series(points, 100))
    yield row(problem, "200 terms without logarithms", exact, corner_series(points, 200, corners=False))
    for count in (40, 80) if quick else (80, 160, 320, 640):
        nodes, found = finite_differences(count)
        yield row(problem, f"finite differences, {count} cells a side", corner_series(nodes), found)
    try:
        nodes, found = deepxde()
        yield row(problem, "DeepXDE's file", corner_series(nodes), found)
    except JumpstartError as error:
        print(error)


def of_modes(problem: str, name: str, quick: bool) -> Iterator[Row]:
    """Finer and coarser modes and steps, and another integrator on modes or elements of its own."""
    equation, (modes, step) = spectral.EQUATIONS[name], spectral.FINENESS[name]
    if quick:
        equation = replace(equation, end=0.1 * equation.end)
    x, t, u = spectral.solved(equation, modes, step)
    every = modes // 256
    x, exact = x[::every], torch.tensor(u[::every])
    for m, s in ((modes // 2, step), (modes, step / 2)) if quick else (
        (modes // 8, step), (modes // 4, step), (modes // 2, step), (modes, 2 * step), (modes, step / 2),
        (2 * modes, step / 2),
    ):  # fmt: skip
        if m < 256:
            continue
        other = torch.tensor(spectral.solved(equation, m, s)[2][:: m // 256])
        yield row(problem, f"{m:,} modes, step {s:g} (instead of {modes:,}, {step:g})", exact, other)
    if name == "allen_cahn":
        for count in (20,) if quick else (20, 40, 80):
            other = independent.allen_cahn(np.linspace(0, 1, count + 1), 12, t, x)
            yield row(problem, f"DOP853 on {count} elements of degree 12", exact, torch.tensor(other))
    else:
        m = {"kdv": 400, "kuramoto_sivashinsky": 320}[name]
        other = independent.turned(equation, m, t, x)
        yield row(problem, f"DOP853 on {m} modes", exact, torch.tensor(other))


def main() -> None:
    settings = arguments("pinn.references", __doc__, seeds=1)
    periodic = {
        "Allen–Cahn, ε = 1e-4": "allen_cahn", "KdV, 0.022²": "kdv", "Kuramoto–Sivashinsky": "kuramoto_sivashinsky"
    }  # fmt: skip
    groups = [of_burgers(settings.quick), of_lshape(settings.quick)]
    groups += [of_modes(problem, name, settings.quick) for problem, name in periodic.items()]
    rows: list[Row] = []
    with counter("references", len(groups), settings.progress) as count:
        for group in groups:
            rows += group
            count(str(rows[-1]["problem"]))
    print(records.table(rows, {key: key for key in rows[-1]}))
    print(f"\nwritten: {records.write(settings.out, 'pinn.references', {'quick': settings.quick}, rows, [])}")


if __name__ == "__main__":
    main()
