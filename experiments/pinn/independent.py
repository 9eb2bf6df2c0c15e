"""The spectral references by other means: an explicit method of order 8 (Dormand & Prince's, its step chosen by itself)
on other modes, or on elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import scipy.sparse
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.interpolate import BarycentricInterpolator

from .spectral import DIFFUSION, REACTION, Array, Periodic

TOLERANCE = 1e-12  # relative, of each step


def marched(change: Callable[[float, Array], Array], start: Array, times: Array, floor: float) -> Array:
    """Values (n, times), from one time to the next: what the method puts between its steps is of a lower order."""
    found = [start]
    for begin, end in pairwise(times):
        # Its own first step may be too long for the stiffest parts.
        run = solve_ivp(
            change, (begin, end), found[-1], "DOP853", rtol=TOLERANCE, atol=floor, first_step=1e-3 * (end - begin)
        )
        found.append(run.y[:, -1])
    return np.stack(found, 1)


def turned(equation: Periodic, modes: int, times: Array, points: Array) -> Array:
    """u (points, times) on the modes that are free of aliases.

    Waves that turn (imaginary rates) are taken out exactly, so that they ask for no small steps.
    """
    kept = equation.kept(modes)
    count, k = int(kept.sum()), equation.numbers(modes)
    rates = equation.linear(k)[kept]
    waves, rest = 1j * np.imag(rates), np.real(rates)

    def change(t: float, v: NDArray[np.complex128]) -> NDArray[np.complex128]:
        u = np.exp(waves * t) * v
        forced = equation.change(np.pad(u, (0, len(k) - count)), k, kept, modes)[:count]
        return np.exp(-waves * t) * (rest * u + forced)

    start = equation.transform(modes)[kept].astype(complex)
    floor = TOLERANCE * float(np.abs(start).max())
    v = np.exp(waves[:, None] * times) * marched(change, start, times, floor) / modes
    v[1:] *= 2  # those of −k
    return np.real(np.exp(1j * np.outer(points - equation.low, k[kept])) @ v)


def lobatto(degree: int) -> tuple[Array, Array, Array]:
    """Nodes and weights (degree + 1,) of Gauss and Lobatto on [−1, 1], and the matrix that differentiates there."""
    top = legendre.Legendre.basis(degree)
    x = np.concatenate([[-1.0], np.sort(top.deriv().roots().real), [1.0]])
    values = top(x)
    apart = x[:, None] - x + np.eye(degree + 1)
    matrix = values[:, None] / values / apart
    np.fill_diagonal(matrix, 0.0)
    return x, 2 / (degree * (degree + 1) * values**2), matrix - np.diag(matrix.sum(1))


def allen_cahn(edges: Array, degree: int, times: Array, points: Array) -> Array:
    """u (points, times) at points of [−1, 1], by Galerkin's method on elements of [0, 1] (Patera 1984).

    The solution is even and of period 2: a weak solution on half the period without flux at either end. Of the kink at
    x = 1 nothing is taken but the values that make it.
    """
    nodes, weights, first = lobatto(degree)
    size = degree * (len(edges) - 1) + 1
    mass, stiffness, x = np.zeros(size), scipy.sparse.lil_matrix((size, size)), np.zeros(size)
    places = [slice(degree * i, degree * (i + 1) + 1) for i in range(len(edges) - 1)]
    for place, low, high in zip(places, edges[:-1], edges[1:], strict=True):
        half = (high - low) / 2
        x[place] = low + half * (nodes + 1)
        mass[place] += half * weights
        stiffness[place, place] += (first.T * weights) @ first / half
    spread = scipy.sparse.csr_matrix(-DIFFUSION * scipy.sparse.diags(1 / mass) @ stiffness)

    def change(_: float, u: Array) -> Array:
        return spread @ u + REACTION * (u - u**3)

    start = x**2 * np.cos(math.pi * x)
    found = marched(change, start, times, TOLERANCE)
    there = np.abs(points)
    at = np.clip(np.searchsorted(edges, there, side="right") - 1, 0, len(places) - 1)
    values = np.empty((len(points), len(times)))
    for i in np.unique(at):
        values[at == i] = BarycentricInterpolator(x[places[i]], found[places[i]])(there[at == i])
    return values
