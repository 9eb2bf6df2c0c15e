"""Spectral references against another integrator, other resolutions, and what their equations conserve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from experiments.pinn import spectral


def test_kdv_by_another_integrator():
    """The modes' equations by an explicit method of order 8 with its own step, on fewer modes and a shorter time."""
    modes, end = 160, 0.3
    x = -1 + 2 * np.arange(modes) / modes
    k = math.pi * np.fft.fftfreq(modes, 1 / modes)

    def change(t, u):
        v = np.fft.fft(u)
        return np.fft.ifft(-1j * k * np.fft.fft(u**2) / 2 + 1j * spectral.DISPERSION * k**3 * v).real

    exact = solve_ivp(change, (0, end), np.cos(math.pi * x), method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    grid, times, u = spectral.kdv_with(512, 1e-4, 10)
    assert times[3] == pytest.approx(end)
    there = np.fft.fft(u[:, 3]) / len(grid)
    found = np.real(np.exp(1j * np.pi * np.outer(x + 1, np.fft.fftfreq(512, 1 / 512))) @ there)
    assert np.abs(found - exact).max() < 1e-8


def test_kdv_keeps_its_digits_mass_and_momentum():
    _, _, coarse = spectral.kdv_with(384, 2e-4, 2)
    _, _, fine = spectral.kdv_with(512, 1e-4, 2)
    shared = np.abs(coarse[::3] - fine[::4]).max()  # every third and fourth point are the same
    assert shared < 2e-7
    assert np.abs(fine.mean(0)).max() < 1e-12
    assert np.square(fine).mean(0) == pytest.approx(0.5, abs=1e-8)


def test_linear_waves_are_exact():
    """Without a flux every mode turns by itself."""
    rate = lambda k: 1j * k**3 - 0.1 * k**2  # noqa: E731
    x, t, u = spectral.solved(lambda x: np.sin(math.pi * x), 2.0, rate, 0.0, 1.0, 0.1, 32, 5)
    exact = np.exp(-0.1 * math.pi**2 * t) * np.sin(math.pi * x[:, None] + math.pi**3 * t)
    assert np.abs(u - exact).max() < 1e-12
