"""−Δu = 1 on the L-shape [−1, 1]² less its upper right quarter, zero on the boundary: a series to twelve digits."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from jumpstart.errors import JumpstartError

from ..common import folder

TERMS, POWERS = 60, range(2, 8)
OBLIQUE = ((-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0))  # corners away from the sides that meet at the inner one


@functools.cache
def lshape(count: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    """x, y (count,) cells of [−1, 1], u (count, count), NaN where x > 0 and y > 0.

    By the series of :func:`corner_series`; DeepXDE's file of this problem is 9% off (docs/decisions/0014).
    """
    x = -1 + (2 * torch.arange(count, dtype=torch.float64) + 1) / count
    points = torch.cartesian_prod(x, x)
    u = corner_series(points)
    return x, x, u.masked_fill((points > 0).all(1), math.nan).reshape(count, count)


def corner_series(points: Tensor, terms: int = TERMS, corners: bool = True) -> Tensor:
    """u (m,) at points (m, 2) of the L-shape; within 1e-12.

    A particular solution that vanishes on both sides of the inner corner, plus harmonic functions that do so too, with
    coefficients by least squares on the rest of the boundary (Fox, Henrici & Moler 1967): r^(2k/3) sin(2kθ/3), and at
    the outer corners, where u is no polynomial either, powers times a logarithm. What is left over is harmonic, so
    that nowhere is it larger than on the boundary.

    Args:
        corners: False leaves the logarithms out: within 5e-5 then.
    """
    return _particular(points) + _basis(points, terms, corners) @ _coefficients(terms, corners)


@functools.cache
def _coefficients(terms: int, corners: bool) -> Tensor:
    clustered = torch.cos(math.pi * (torch.arange(5 * terms, dtype=torch.float64) + 0.5) / (5 * terms))
    half, edge = (clustered - 1) / 2, torch.ones_like(clustered)
    sides = ((clustered, -edge), (-edge, clustered), (edge, half), (half, edge))
    outer = torch.cat([torch.stack(side, 1) for side in sides])
    columns = _basis(outer, terms, corners)
    scale = columns.abs().amax(0)
    solve = torch.linalg.lstsq
    return solve(columns / scale, -_particular(outer)[:, None], driver="gelsd").solution[:, 0] / scale


def _basis(points: Tensor, terms: int, corners: bool) -> Tensor:
    """Harmonic functions (m, …) that vanish on the sides of the inner corner."""
    found = _singular(points, terms)
    return torch.cat([found, _logarithms(points)], 1) if corners else found


def boundary(count: int) -> Tensor:
    """Points (12·count, 2) on all six sides, half of them ever closer to a side's two ends."""
    even = 0.5 * (torch.arange(count // 2, dtype=torch.float64) + 0.5) / (count // 2)
    s = torch.cat([even, 10.0 ** -torch.linspace(1, 12, count - count // 2, dtype=torch.float64)])
    s = torch.cat([s, 1 - s])
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    sides = ((2 * s - 1, -one), (-one, 2 * s - 1), (one, -s), (-s, one), (zero, s), (s, zero))
    return torch.cat([torch.stack(side, 1) for side in sides])


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


def _unfolded(points: Tensor) -> Tensor:
    """z^(2/3), which makes the two sides of the inner corner one straight line: the real axis, u = 0 on it."""
    r, a = _polar(points)
    return torch.polar(r ** (2 / 3), 2 / 3 * a)


def _power(d: Tensor, n: int, way: Tensor | float) -> Tensor:
    """d^n log d up to polynomials, the cut opposite to a way in."""
    return d**n * torch.log(torch.where(d == 0, 1.0, d) / way)  # 0 at the corner itself


def _logarithms(points: Tensor) -> Tensor:
    """(m, 8 powers): Im d^n log d, d the distance from an outer corner in the unfolded plane, cut away from the domain.

    With its mirror image, so that it vanishes on the real axis; the corners at that axis are images of themselves.
    """
    w, found = _unfolded(points), []
    for corner in _unfolded(torch.tensor(OBLIQUE, dtype=torch.float64)):
        out = corner / corner.abs()
        for n in POWERS:
            one, two = _power(w - corner, n, -out), _power(w - corner.conj(), n, -out.conj())
            found += [(one + two).imag, (1j * (one - two)).imag]
    for corner in (1.0, -1.0):
        found += [_power(w - corner, n, -corner).imag for n in POWERS]
    return torch.stack(found, 1)


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
