"""Periodic equations in one dimension to nine digits: Fourier modes, and ETDRK4 in time (Kassam & Trefethen 2005).

u_t = L u + N(u), L diagonal in the modes. Coefficients of the scheme are means over a circle of complex steps, which
takes the cancellation out of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
CIRCLE = 64  # points of the circle
LOOKS = 50  # times after the first at which a reference is kept
DISPERSION = 0.022**2  # KdV's (Zabusky & Kruskal 1965)
DIFFUSION, REACTION = 1e-4, 5.0  # Allen and Cahn's, as the field has them (Raissi, Perdikaris & Karniadakis 2019)
# Kuramoto and Sivashinsky's, of u u_x, u_xx and u_xxxx (Wang, Sankaran, Wang & Perdikaris 2023, arXiv:2308.08468)
STEEPENING, GROWTH, DAMPING = 100 / 16, 100 / 16**2, 100 / 16**4
HORIZON = 0.2  # theirs is 1; ripples, and errors with them, grow up to 12-fold in every tenth


@dataclass(frozen=True)
class Periodic:
    """u_t = L u + N(u) on [low, low + length], up to time ``end``.

    Args:
        start: u at x (m,). exact: its coefficients û_k in Σ û_k exp(ik(x − low)), k = 0, 1, … times 2π/length, by the
            number of modes; None for those of its values on the grid, as far as they are exact to rounding.
        linear: L of wave numbers. nonlinear: the transform of N(u), of u on the grid and the wave numbers, before
            scaling (``numpy.fft.rfft``). degree: of N, which says how many modes are free of aliases.
    """

    low: float
    length: float
    end: float
    start: Callable[[Array], Array]
    linear: Callable[[Array], Array]
    nonlinear: Callable[[Array, Array], Array]
    degree: int
    exact: Callable[[int], Array] | None = None

    def grid(self, modes: int) -> Array:
        return self.low + self.length * np.arange(modes) / modes

    def numbers(self, modes: int) -> Array:
        """Wave numbers (modes/2 + 1,)."""
        return 2 * math.pi / self.length * np.arange(modes // 2 + 1)

    def transform(self, modes: int) -> Array:
        """Of the start, scaled as ``numpy.fft.rfft``."""
        return np.fft.rfft(self.start(self.grid(modes))) if self.exact is None else modes * self.exact(modes)

    def change(self, v: Array, k: Array, kept: Array, modes: int) -> Array:
        """N in the modes, of which those that are not free of aliases are left out."""
        u = np.fft.irfft(np.where(kept, v, 0), modes)
        return np.where(kept, self.nonlinear(u, k), 0)

    def kept(self, modes: int) -> Array:
        return np.arange(modes // 2 + 1) < modes / (self.degree + 1)


def solved(equation: Periodic, modes: int, step: float, looks: int = LOOKS) -> tuple[Array, Array, Array]:
    """x (modes,) from the low end on, t (looks + 1,), u (modes, looks + 1)."""
    k, kept = equation.numbers(modes), equation.kept(modes)
    rates = equation.linear(k)
    circle = step * rates[:, None] + np.exp(2j * math.pi * (np.arange(CIRCLE) + 0.5) / CIRCLE)
    grown = np.exp(circle)
    whole, half = np.exp(step * rates), np.exp(step * rates / 2)
    one = step * ((np.exp(circle / 2) - 1) / circle).mean(1)
    first = step * ((-4 - circle + grown * (4 - 3 * circle + circle**2)) / circle**3).mean(1)
    middle = step * ((2 + circle + grown * (circle - 2)) / circle**3).mean(1)
    last = step * ((-4 - 3 * circle - circle**2 + grown * (4 - circle)) / circle**3).mean(1)

    def moved(v: Array) -> Array:
        return equation.change(v, k, kept, modes)

    v, steps = equation.transform(modes), round(equation.end / step)
    found = [equation.start(equation.grid(modes))]
    for i in range(1, steps + 1):
        n = moved(v)
        a = half * v + one * n
        na = moved(a)
        b = half * v + one * na
        nb = moved(b)
        nc = moved(half * a + one * (2 * nb - n))
        v = whole * v + first * n + 2 * middle * (na + nb) + last * nc
        if i % (steps // looks) == 0:
            found.append(np.fft.irfft(v, modes))
    return equation.grid(modes), np.linspace(0, equation.end, looks + 1), np.stack(found, 1)


def kinked(modes: int) -> Array:
    """Of x² cos πx, whose slope jumps from −2 to 2 at x = ±1; the values' own would be off by 1/modes².

    On [−1, 1] it is Σ a_k cos kπx by ∫₀¹ x² cos mπx dx = 2(−1)^m / (mπ)².
    """
    k = np.arange(modes // 2 + 1)
    with np.errstate(divide="ignore"):
        below = np.where(k == 1, 0.0, 1 / (k - 1.0) ** 2)
    a = 2 * (-1.0) ** (k + 1) / math.pi**2 * (1 / (k + 1.0) ** 2 + below)
    a[0], a[1] = -2 / math.pi**2, 1 / 3 + 1 / (2 * math.pi**2)
    a[1:] /= 2  # of each of k and −k
    return a * (-1.0) ** k  # from the low end on


def flux(c: float) -> Callable[[Array, Array], Array]:
    """−½ c (u²)_x."""
    return lambda u, k: -0.5j * c * k * np.fft.rfft(u**2)


KDV = Periodic(
    -1.0, 2.0, 1.0, lambda x: np.cos(math.pi * x), lambda k: 1j * DISPERSION * k**3, flux(1.0), 2
)  # fmt: skip
ALLEN_CAHN = Periodic(
    -1.0, 2.0, 1.0, lambda x: x**2 * np.cos(math.pi * x), lambda k: REACTION - DIFFUSION * k**2,
    lambda u, _: -REACTION * np.fft.rfft(u**3), 3, kinked,
)  # fmt: skip
KURAMOTO_SIVASHINSKY = Periodic(
    0.0, 2 * math.pi, HORIZON, lambda x: np.cos(x) * (1 + np.sin(x)),
    lambda k: GROWTH * k**2 - DAMPING * k**4, flux(STEEPENING), 2,
)  # fmt: skip
# Modes and step of each reference; finer ones move it by less than 1e-9 (python -m experiments.pinn.references)
FINENESS = {"kdv": (512, 1e-4), "allen_cahn": (4096, 2e-3), "kuramoto_sivashinsky": (512, 1e-4)}
EQUATIONS = {"kdv": KDV, "allen_cahn": ALLEN_CAHN, "kuramoto_sivashinsky": KURAMOTO_SIVASHINSKY}


@functools.cache
def reference(name: str, points: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """x (points,), t (51,) from 0 to the end, u (points, 51) of "kdv", "allen_cahn" or "kuramoto_sivashinsky"."""
    modes, step = FINENESS[name]
    x, t, u = solved(EQUATIONS[name], modes, step)
    every = modes // points
    return torch.tensor(x[::every]), torch.tensor(t), torch.tensor(u[::every])
