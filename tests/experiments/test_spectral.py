"""Spectral references against another integrator, other resolutions, and what their equations conserve."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.pinn import formulas, independent, spectral
from experiments.pinn.spectral import ALLEN_CAHN, KDV, KURAMOTO_SIVASHINSKY

SHORT = {
    "kdv": (replace(KDV, end=0.3), formulas.KDV),
    "allen_cahn": (replace(ALLEN_CAHN, end=0.1), formulas.ALLEN_CAHN),
    "kuramoto_sivashinsky": (replace(KURAMOTO_SIVASHINSKY, end=0.06), formulas.KURAMOTO_SIVASHINSKY),
}


def test_kdv_and_kuramoto_sivashinsky_by_another_integrator():
    for name, modes, steps in (("kdv", 256, 2000), ("kuramoto_sivashinsky", 224, 600)):
        equation, _ = SHORT[name]
        x, times, u = spectral.solved(equation, 384, equation.end / steps, 10)
        other = independent.turned(equation, modes, times[[0, 5, 10]], x)
        assert np.abs(other - u[:, [0, 5, 10]]).max() < 1e-8


def test_allen_cahn_by_elements():
    """Nothing is common to both: no modes, half the period, the kink as the values at the nodes make it."""
    equation, _ = SHORT["allen_cahn"]
    x, times, u = spectral.solved(equation, 4096, 2e-3, 5)
    coarse, fine = (independent.allen_cahn(np.linspace(0, 1, count + 1), 12, times, x) for count in (30, 60))
    apart = [np.abs(other - u).max(0) for other in (coarse, fine)]
    assert (apart[1][1:] < 0.1 * apart[0][1:]).all()
    assert apart[1][1] < 5e-7 and apart[1][-1] < 1e-9  # what the kink leaves fades


def test_coefficients_of_the_kink():
    """Their series tends to x² cos πx, at the kink by one over the number of modes, elsewhere by its square and more.

    Those of the values on a grid are off by their aliases."""
    for modes, worst, inside in ((512, 3e-3, 1e-5), (4096, 4e-4, 2e-7)):
        x = ALLEN_CAHN.grid(modes)
        apart = np.abs(np.fft.irfft(modes * spectral.kinked(modes), modes) - x**2 * np.cos(math.pi * x))
        assert apart.max() < worst and apart[np.abs(x) < 0.9].max() < inside
    values = replace(ALLEN_CAHN, exact=None).transform(512) / 512
    aliases = np.abs(values - spectral.kinked(512))[:10]
    assert 1e-6 < aliases.max() < 1e-5


def test_finer_steps_move_no_digit_that_is_claimed():
    for name, tolerance in (("kuramoto_sivashinsky", 1e-8), ("allen_cahn", 1e-9)):
        equation = replace(spectral.EQUATIONS[name], end=0.1)
        modes, step = spectral.FINENESS[name]
        own, finer = (spectral.solved(equation, modes, s, 2)[2] for s in (step, step / 2))
        assert np.abs(own - finer).max() < tolerance


def test_kdv_keeps_its_digits_mass_and_momentum():
    coarse, fine = (spectral.solved(KDV, modes, step, 2)[2] for modes, step in ((384, 2e-4), (512, 1e-4)))
    shared = np.abs(coarse[::3] - fine[::4]).max()  # every third and fourth point are the same
    assert shared < 2e-7
    assert np.abs(fine.mean(0)).max() < 1e-12
    assert np.square(fine).mean(0) == pytest.approx(0.5, abs=1e-8)


def test_linear_waves_are_exact():
    """Without a flux every mode turns by itself."""
    equation = spectral.Periodic(
        -1.0, 2.0, 1.0, lambda x: np.sin(math.pi * x), lambda k: 1j * k**3 - 0.1 * k**2, spectral.flux(0.0), 2
    )
    x, t, u = spectral.solved(equation, 32, 0.1, 5)
    exact = np.exp(-0.1 * math.pi**2 * t) * np.sin(math.pi * x[:, None] + math.pi**3 * t)
    assert np.abs(u - exact).max() < 1e-12
    other = independent.turned(equation, 32, t, x)
    assert np.abs(other - exact).max() < 1e-10


@pytest.mark.parametrize("name", SHORT)
def test_references_satisfy_the_equation_as_networks_are_held_to_it(name: str):
    """Waves in x with coefficients that are polynomials in t through nine times: as a network, the residual is small.

    Beside the size of one of its terms; formulas know nothing of modes.
    """
    equation, formula = SHORT[name]
    modes, steps = (2048, 200) if name == "allen_cahn" else (512, 1200)
    _, times, u = spectral.solved(equation, modes, equation.end / steps, 200)
    near = slice(150, 159)  # behind the start's kink
    waves = torch.tensor(np.fft.rfft(u[:, near], axis=0) / modes)
    waves[1:] *= 2
    k = torch.tensor(equation.numbers(modes))
    middle, unit = float(times[154]), float(times[158] - times[154])
    powers = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None] ** torch.arange(9)
    coefficients = torch.linalg.solve(powers.to(waves.dtype), waves.T)

    def net(z: torch.Tensor) -> torch.Tensor:
        t, amplitudes = ((z[..., 1] - middle) / unit), coefficients[8][:, None]
        for below in coefficients[:8].flip(0):
            amplitudes = amplitudes * t + below[:, None]
        angles = k[:, None] * (z[..., 0] - equation.low)
        return (amplitudes.real * torch.cos(angles) - amplitudes.imag * torch.sin(angles)).sum(0)[..., None]

    x = torch.linspace(equation.low, equation.low + equation.length, 101, dtype=torch.float64)
    rows = torch.stack([x, torch.full_like(x, middle + 0.1 * unit)], 1)
    left, size = formula.batch(net, rows).detach(), formulas.jets(net, rows, 1)[0].detach()
    assert float(left.abs().max() / size.abs().max()) < 1e-8
