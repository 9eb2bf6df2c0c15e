"""An inverse problem: the viscosity of Burgers' equation from a few noisy values, with an error bar.

u_t + u u_x = ν u_xx on [−1, 1] × [0, 1) with ν = 0.01/π unknown. Known are 300 noisy values of u and that the equation
holds; neither initial nor boundary values are. The network and log ν are fitted together, from a ν 16 times too large.

Φ is, up to a factor, the negative logarithm of a posterior: ½ Σ (misfit/σ)² of the n values, with the σ of their noise
(an experimenter knows it; a floor where there is none), n/2 · mean (equation residual/τ)², and ½ Σ (weight/s)², a
weight decay that keeps directions in hand which neither values nor points decide (ν has none). τ is the residual that
is put up with: the smaller, the less 921 weights follow noise, and the slower the way down; so a first fit takes ten
times the τ of the second, which starts where it ended.

The error bar is the Gauss-Newton posterior's: C = σ̂² (JᵀJ + prior)⁻¹ at log ν, J of both terms in these units, the
prior 1/s² for each weight, σ̂² = Σ (misfit/σ)²/(n − d) with the d degrees of freedom that the fit takes from the values.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.metric import Metric
from jumpstart.objectives.objective import Objective
from jumpstart.report import plots

from ..common import spread
from . import references
from .formulas import VISCOSITY, jet

NOISE = (0.0, 0.01, 0.05, 0.1)  # of the root mean square of u
START = 0.05  # first guess of ν
FLOOR = 0.003  # least σ in the weights, of the rms of u
# Chosen on seed 100 (τ of 0.003 to 0.3, s of 1 to 10 and infinite, one stage or two):
STAGES = ((0.1, 0.3), (0.01, 0.7))  # τ, and its share of the time
PRIOR = 5.0  # s, root mean square of a weight before it is known
BUDGET = 30.0


class Model(nn.Module):
    """u(x, t) by an MLP, and log ν."""

    def __init__(self, seed: int, widths: tuple[int, ...] = (20, 20, 20)) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = (2, *widths, 1)
            layers: list[nn.Module] = []
            for a, b in pairwise(sizes):
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
    ut, u, ux, uxx = jet(net, z, 2)
    return ut + u * ux - net.log_viscosity.exp() * uxx


def objective_of(model: Model, rows: Tensor, sigma: float, points: Tensor, tau: float) -> Objective:
    """Φ/n without the prior; data come first."""
    return js.residual(
        model,
        js.Term(lambda net, row: net(row[:2])[0] - row[2], rows, weight=1 / sigma**2 / len(rows), name="data"),
        js.Term(equation, points, weight=1 / tau**2 / len(points), name="equation"),
    )


def prior(objective: Objective, count: int) -> Tensor:
    """Decay (P,) that belongs to Φ/n: 1/(n s²) for each weight, none for log ν."""
    sizes = zip(objective.space.names, objective.space.sizes, strict=True)
    rates = [torch.full((size,), 0.0 if name == "log_viscosity" else 1 / PRIOR**2 / count) for name, size in sizes]
    return torch.cat(rates).double()


def bar(objective: Objective, count: int) -> tuple[float, float, float]:
    """Standard deviation of log ν, σ̂, and the degrees of freedom that the fit takes from the data."""
    names, sizes = objective.space.names, objective.space.sizes
    place = sum(sizes[: names.index("log_viscosity")])
    lin = linearize(objective)
    j, misfit = lin.jacobian() * math.sqrt(count), lin.u[:count] * math.sqrt(count)
    precision = j.T @ j
    precision.diagonal().add_(prior(objective, count) * count)
    covariance = torch.linalg.inv(precision)
    freedom = float((j[:count] @ covariance * j[:count]).sum())
    scale = math.sqrt(float(misfit.square().sum()) / max(count - freedom, 1.0))
    return scale * float(covariance[place, place].clamp_min(0).sqrt()), scale, freedom


def jumped(model: Model, rows: Tensor, sigma: float, points: Tensor, seconds: float) -> list[tuple[float, float]]:
    """Fit by jumps in two stages; seconds and ν on the way."""
    found: list[tuple[float, float]] = []
    for tau, share in STAGES:
        objective = objective_of(model, rows, sigma, points, tau)
        decay, trace = Metric(None, prior(objective, len(rows))), []
        result = js.fit(
            objective, budget=share * seconds, metric=decay, progress=False,
            callback=lambda _, trace=trace: trace.append(float(model.log_viscosity.detach().exp())),
        )  # fmt: skip
        spent = found[-1][0] if found else 0.0
        found += [(spent + row["seconds"], nu) for row, nu in zip(result.history, trace, strict=True)]
        found.append((spent + result.seconds, float(model.log_viscosity.detach().exp())))
    return found


def run(seeds: list[int], quick: bool, progress: bool) -> list[dict[str, Any]]:
    """One row a seed and noise level."""
    found = []
    cases = [(seed, noise) for seed in seeds for noise in ((0.0, 0.1) if quick else NOISE)]
    for seed, noise in tqdm(cases, disable=not progress, desc="inverse", leave=False):
        rows, rms = observed(seed, noise, 60 if quick else 300)
        points, sigma = collocation(seed, 150 if quick else 1500), rms * math.hypot(noise, FLOOR)
        model = Model(seed, (8, 8) if quick else (20, 20, 20))
        trace = jumped(model, rows, sigma, points, 1.0 if quick else BUDGET)
        last = objective_of(model, rows, sigma, points, STAGES[-1][0])
        nu = float(model.log_viscosity.detach().exp())
        deviation, scale, freedom = bar(last, len(rows))
        off = math.log(nu / VISCOSITY)
        found.append({
            "seed": seed, "noise": noise, "viscosity": nu, "ratio": nu / VISCOSITY,
            "relative_error": abs(nu / VISCOSITY - 1), "bar": deviation, "covered": abs(off) <= 2 * deviation,
            "off_in_bars": off / deviation, "sigma_ratio": scale, "freedom": freedom, "seconds": trace[-1][0],
            "field_error": field_error(model), "trace": trace[:: max(1, len(trace) // 150)],
        })  # fmt: skip
    return found


def field_error(model: nn.Module) -> float:
    """Relative L² distance from the reference solution."""
    x, t, u = references.burgers()
    with torch.no_grad():
        return float((model(torch.cartesian_prod(x, t))[:, 0] - u.flatten()).norm() / u.norm())


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By noise: median and range of ν, the median error bar of log ν, and in how many runs ±2 bars cover the truth."""
    found = []
    for noise in dict.fromkeys(row["noise"] for row in rows):
        some = [row for row in rows if row["noise"] == noise]
        ratio = spread([row["ratio"] for row in some])
        median = {key: spread([row[key] for row in some])["median"] for key in ("bar", "field_error", "seconds")}
        found.append({
            "noise": noise, "ν / true, median": ratio["median"], "smallest": ratio["min"], "largest": ratio["max"],
            "error bar of log ν": median["bar"],
            "±2 bars cover": f"{sum(row['covered'] for row in some)}/{len(some)}",
            "error of u": median["field_error"], "seconds": median["seconds"],
        })  # fmt: skip
    return found


def figure(rows: list[dict[str, Any]]) -> Any:
    """ν over the truth on the way, and at the end with ±2 bars against the noise."""
    plt = plots.pyplot()
    result, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
    levels = sorted({row["noise"] for row in rows})
    for row in rows:
        colour = plots.COLOURS[levels.index(row["noise"])]
        line = [(seconds, nu / VISCOSITY) for seconds, nu in row["trace"]]
        left.plot(*zip(*line, strict=True), color=colour, linewidth=1.0)
        of_level = [r for r in rows if r["noise"] == row["noise"]]
        place = levels.index(row["noise"]) + 0.6 * ((of_level.index(row) + 0.5) / len(of_level) - 0.5)
        ends = [[row["ratio"] * (1 - math.exp(-2 * row["bar"]))], [row["ratio"] * (math.exp(2 * row["bar"]) - 1)]]
        right.errorbar([place], [row["ratio"]], yerr=ends, color=colour, fmt="o", markersize=3)
    for level, colour in zip(levels, plots.COLOURS, strict=False):
        left.plot([], [], color=colour, label=f"{level:.0%} noise")
    for axis in (left, right):
        axis.axhline(1.0, color="black", linewidth=0.6)
        axis.set(yscale="log", ylabel="ν found / ν")
    left.set(xlabel="seconds", xscale="log")
    left.legend(frameon=False)
    right.set(xlabel="noise", xticks=range(len(levels)), xticklabels=[f"{level:.0%}" for level in levels])
    result.tight_layout()
    return result
