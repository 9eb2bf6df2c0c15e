"""Periodic equations in one dimension to nine digits: Fourier modes, and ETDRK4 in time (Kassam & Trefethen 2005).

u_t = L u + N(u), L diagonal in the modes. Coefficients of the scheme are means over a circle of complex steps, which
takes the cancellation out of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
CIRCLE = 64  # points of the circle
DISPERSION = 0.022**2  # KdV's (Zabusky & Kruskal 1965)


def solved(
    start: Callable[[Array], Array],
    length: float,
    linear: Callable[[Array], NDArray[Any]],
    flux: float,
    end: float,
    step: float,
    modes: int,
    looks: int,
) -> tuple[Array, Array, Array]:
    """x (modes,) from −length/2 on, t (looks + 1,) in [0, end], u (modes, looks + 1).

    Args:
        linear: of wave numbers. flux: c in N(u) = −½ c (u²)_x, without the upper third of the modes (aliases).
    """  # fmt: skip
    x = -length / 2 + length * np.arange(modes) / modes
    numbers = np.fft.fftfreq(modes, 1 / modes)
    k = 2 * math.pi / length * numbers
    kept = np.abs(numbers) < modes / 3
    rates = linear(k)
    circle = step * rates[:, None] + np.exp(2j * math.pi * (np.arange(CIRCLE) + 0.5) / CIRCLE)
    grown = np.exp(circle)
    whole, half = np.exp(step * rates), np.exp(step * rates / 2)
    one = step * ((np.exp(circle / 2) - 1) / circle).mean(1)
    first = step * ((-4 - circle + grown * (4 - 3 * circle + circle**2)) / circle**3).mean(1)
    middle = step * ((2 + circle + grown * (circle - 2)) / circle**3).mean(1)
    last = step * ((-4 - 3 * circle - circle**2 + grown * (4 - circle)) / circle**3).mean(1)

    def moved(v: NDArray[Any]) -> NDArray[Any]:
        u = np.fft.ifft(np.where(kept, v, 0)).real
        return np.where(kept, -0.5j * flux * k * np.fft.fft(u**2), 0)

    v, steps = np.fft.fft(start(x)), round(end / step)
    found = [start(x)]
    for i in range(1, steps + 1):
        n = moved(v)
        a = half * v + one * n
        na = moved(a)
        b = half * v + one * na
        nb = moved(b)
        nc = moved(half * a + one * (2 * nb - n))
        v = whole * v + first * n + 2 * middle * (na + nb) + last * nc
        if i % (steps // looks) == 0:
            found.append(np.fft.ifft(v).real)
    return x, np.linspace(0, end, looks + 1), np.stack(found, 1)


def kdv_with(modes: int, step: float, looks: int = 50) -> tuple[Array, Array, Array]:
    return solved(
        lambda x: np.cos(math.pi * x), 2.0, lambda k: 1j * DISPERSION * k**3, 1.0, 1.0, step, modes, looks
    )  # fmt: skip


@functools.cache
def kdv() -> tuple[Tensor, Tensor, Tensor]:
    """u_t + u u_x + 0.022² u_xxx = 0 from cos πx, period 2: x (512,), t (51,) in [0, 1], u (512, 51); within 2e-9."""
    x, t, u = (torch.tensor(a) for a in kdv_with(512, 1e-4))
    return x, t, u
