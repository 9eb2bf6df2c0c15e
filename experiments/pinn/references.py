"""Reference solutions where there is no closed form: from ``$JUMPSTART_DATA/pde`` (DeepXDE's examples), or our own.

python -m experiments.pinn.references [--quick] [--out DIR]

measures the L-shape's three references against each other: our series, finite differences, and DeepXDE's file.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import scipy.special
import torch
from torch import Tensor

from jumpstart.errors import JumpstartError
from jumpstart.report import records
from jumpstart.report.records import Row

from ..common import arguments, folder

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


@functools.cache
def lshape(count: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    """−Δu = 1 on the L-shape: x, y (count,) cells of [−1, 1], u (count, count), NaN where x > 0 and y > 0.

    By the series of :func:`corner_series`; DeepXDE's file of this problem is 9% off (docs/decisions/0014).
    """
    x = -1 + (2 * torch.arange(count, dtype=torch.float64) + 1) / count
    points = torch.cartesian_prod(x, x)
    u = corner_series(points)
    return x, x, u.masked_fill((points > 0).all(1), math.nan).reshape(count, count)


def corner_series(points: Tensor, terms: int = 200) -> Tensor:
    """u (m,) of −Δu = 1, zero on the L-shape's boundary, at points (m, 2) of it; within 5e-5 (the largest error on the
    boundary, next to the outer corners) everywhere, and within 1e-7 half a unit away from them.

    A particular solution that vanishes on both sides of the inner corner, plus r^(2k/3) sin(2kθ/3), which do so too,
    with coefficients by least squares on the rest of the boundary (Fox, Henrici & Moler 1967).
    """
    clustered = torch.cos(math.pi * (torch.arange(4 * terms, dtype=torch.float64) + 0.5) / (4 * terms))
    half, edge = (clustered - 1) / 2, torch.ones_like(clustered)
    sides = ((clustered, -edge), (-edge, clustered), (edge, half), (half, edge))
    boundary = torch.cat([torch.stack(side, 1) for side in sides])
    solve = torch.linalg.lstsq
    coefficients = solve(_singular(boundary, terms), -_particular(boundary)[:, None], driver="gelsd").solution[:, 0]
    return _particular(points) + _singular(points, terms) @ coefficients


def _polar(points: Tensor) -> tuple[Tensor, Tensor]:
    """r and θ in [0, 3π/2], from the upper side of the inner corner."""
    angle = torch.atan2(points[:, 1], points[:, 0]) - math.pi / 2
    return torch.linalg.vector_norm(points, dim=1).clamp_min(1e-300), torch.remainder(angle, 2 * math.pi)


def _particular(points: Tensor) -> Tensor:
    r, a = _polar(points)
    bent = r.log() * torch.sin(2 * a) + a * torch.cos(2 * a)  # Im z² log z over r²
    return r**2 / 4 * (torch.cos(2 * a) - 1 - 4 / (3 * math.pi) * bent)


def _singular(points: Tensor, terms: int) -> Tensor:
    """(m, terms); scaled by the largest r, √2."""
    r, a = _polar(points)
    k = 2 / 3 * torch.arange(1, terms + 1, dtype=torch.float64)
    return (r[:, None] / math.sqrt(2)) ** k * torch.sin(k * a[:, None])


def _path(name: str) -> Path:
    path = folder() / "pde" / name
    if not path.is_file():
        raise JumpstartError(
            f"the reference solution {name} is not here: set JUMPSTART_DATA to a folder with pde/{name} "
            "(arrays as in DeepXDE's examples, github.com/lululxvi/deepxde)."
        )
    return path


def finite_differences(count: int) -> tuple[Tensor, Tensor]:
    """Grid points (m, 2) inside the L-shape, ``count`` cells a side, and u (m,) there by five-point differences."""
    x = np.linspace(-1, 1, count + 1)
    first, second = np.meshgrid(x, x, indexing="ij")
    inside = (np.maximum(abs(first), abs(second)) < 1 - 1e-9) & ((first < -1e-9) | (second < -1e-9))
    place = np.full(inside.shape, -1)
    place[inside] = np.arange(inside.sum())
    size = int(inside.sum())
    matrix = 4 * scipy.sparse.identity(size, format="csc")
    for axis in (0, 1):
        for shift in (-1, 1):
            neighbour = np.roll(place, shift, axis)[inside]
            rows = np.flatnonzero(neighbour >= 0)
            ones = np.ones(len(rows))
            matrix = matrix - scipy.sparse.csc_matrix((ones, (rows, neighbour[rows])), shape=(size, size))
    u = scipy.sparse.linalg.spsolve(matrix, np.full(size, (2 / count) ** 2))
    return torch.tensor(np.stack([first[inside], second[inside]], 1)), torch.tensor(u)


def deepxde() -> tuple[Tensor, Tensor]:
    """Points (m, 2) and u (m,) of DeepXDE's file, those inside."""
    with np.load(_path("poisson_lshape.npz")) as arrays:
        points, u = (torch.tensor(arrays[key], dtype=torch.float64) for key in ("X_test", "y_ref"))
    kept = ~u.flatten().isnan()
    return points[kept], u.flatten()[kept]


def distances(quick: bool) -> list[Row]:
    """Each reference's distance from the series, relative in L² over its points, and its largest value."""
    found: dict[str, tuple[Tensor, Tensor]] = {
        f"finite differences, {count} cells a side": finite_differences(count)
        for count in ((40, 80) if quick else (80, 160, 320, 640))
    }
    try:
        found["DeepXDE's file"] = deepxde()
    except JumpstartError as error:
        print(error)
    rows: list[Row] = []
    for name, (points, u) in found.items():
        own = corner_series(points)
        rows.append(
            {"reference": name, "from the series": float((u - own).norm() / own.norm()), "largest": float(u.max())}
        )
    _, _, series = lshape()
    rows.append({"reference": "the series", "from the series": 0.0, "largest": float(series[~series.isnan()].max())})
    return rows


def main() -> None:
    settings = arguments("pinn.references", __doc__, seeds=1)
    rows = distances(settings.quick)
    print(records.table(rows, {key: key for key in rows[0]}))
    print(f"\nwritten: {records.write(settings.out, 'pinn.references', {'quick': settings.quick}, rows, [])}")


if __name__ == "__main__":
    main()
