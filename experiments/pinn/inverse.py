"""An inverse problem: the viscosity of Burgers' equation from a few noisy values, with an error bar.

u_t + u u_x = ν u_xx on [−1, 1] × [0, 1) with ν = 0.01/π unknown. Known are 300 noisy values of u and that the equation
holds; neither initial nor boundary values are. The network and log ν are fitted together, from a ν 16 times too large.

Weights make Φ = ½ [mean (misfit/σ)² + mean (equation residual/τ)²], up to the number of values: misfits count in units
of their noise σ, which an experimenter knows (with a floor where there is none), so that at the optimum the first mean
is about 1 whatever the noise. τ is the residual that is put up with; where the data are noisy it has to be small
enough to keep 921 weights from following 300 noisy values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart.objective import Objective

from . import references
from .problems import jet

NOISE = (0.0, 0.01, 0.05, 0.1)  # of the root mean square of u
START = 0.05  # first guess of ν
FLOOR = 0.003  # least σ in the weights, of the rms of u: what a network of this size leaves unexplained
TAU = 0.1  # equation residual that is put up with (u_t and u u_x are of order 1, hundreds in the shock)
BUDGET = 20.0
RATE = 3e-3  # Adam's, decayed by a cosine to 1%


class Model(nn.Module):
    """u(x, t) by an MLP, and log ν."""

    def __init__(self, seed: int, widths: tuple[int, ...] = (20, 20, 20)) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = (2, *widths, 1)
            layers: list[nn.Module] = []
            for a, b in zip(sizes[:-1], sizes[1:], strict=True):
                layers += [nn.Linear(a, b, dtype=torch.float64), nn.Tanh()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.log_viscosity = nn.Parameter(torch.tensor(math.log(START), dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return self.mlp(z)


def observed(seed: int, noise: float, count: int = 300) -> tuple[Tensor, float]:
    """Rows (count, 3) of x, t and noisy u at random grid points of the reference, and the rms of u."""
    x, t, u = references.burgers()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(u.numel(), generator=generator)[:count]
    rms = float(u.square().mean().sqrt())
    errors = noise * rms * torch.randn(count, generator=generator, dtype=torch.float64)
    return torch.stack([x[chosen // len(t)], t[chosen % len(t)], u.flatten()[chosen] + errors], 1), rms


def collocation(seed: int, count: int = 1500) -> Tensor:
    """(count, 2) Sobol points, a quarter of which gather at x = 0, where the values show a shock."""
    z = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    z[:, 0] = 2 * z[:, 0] - 1
    z[3 * count // 4 :, 0] **= 3
    return z


def equation(net: Any, z: Tensor) -> Tensor:
    """u_t + u u_x − ν u_xx at one point."""
    u, ux, ut, uxx = jet(net, z)
    return ut + u * ux - net.log_viscosity.exp() * uxx


def weights(noise: float, rms: float, values: int, points: int, tau: float = TAU) -> tuple[float, float]:
    """Of the data and of the equation, in Φ = ½ Σ weight·residual²."""
    return 1 / (noise**2 + FLOOR**2) / rms**2 / values, 1 / tau**2 / points


def objective_of(model: Model, rows: Tensor, points: Tensor, scales: tuple[float, float]) -> Objective:
    """Both terms at one point each; data first."""
    return js.residual(
        model,
        js.Term(lambda net, row: net(row[:2])[0] - row[2], rows, weight=scales[0], name="data"),
        js.Term(equation, points, weight=scales[1], name="equation"),
    )
