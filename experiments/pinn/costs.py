"""Point 0: where a jump's time goes, against the floor and against the general way, at three sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from jumpstart import Jumper
from jumpstart.demo import poisson
from jumpstart.jumping.candidates import AlongFlow
from jumpstart.linalg.cholesky import factor, lower_gram
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.operators import Explicit
from jumpstart.linearization.problem import LinearizedProblem
from jumpstart.objectives.collocation import Points
from jumpstart.report.records import Row
from jumpstart.surrogate.damped_cholesky import DampedCholesky
from jumpstart.surrogate.damped_sketch import DampedSketch, width_for
from jumpstart.surrogate.implicit_euler import ImplicitEuler

from .problems import given, laplace, problem
from .solutions import known

# hidden widths, points a side inside, points a side of the boundary
SIZES = {"129": ((32,), 30, 30), "1,185": ((32, 32), 36, 51), "17,025": ((128, 128), 36, 51)}
REPEATS = 9
WARM = 6


def run(quick: bool) -> list[Row]:
    """Medians of interleaved turns, in milliseconds."""
    rows: list[Row] = []
    for label, (widths, inside, side) in list(SIZES.items())[: 1 if quick else None]:
        rows += _measure(label, widths, 8 if quick else inside, 8 if quick else side, 2 if quick else REPEATS)
    return rows


def _measure(label: str, widths: tuple[int, ...], inside: int, side: int, repeats: int) -> list[Row]:
    model = poisson.network(0, widths)
    objective = poisson.objective(model, inside, side)
    jumper = Jumper(objective)
    for _ in range(WARM):  # a jump in the middle of a run, not the first one, which has to find its horizon
        jumper.jump()
    theta = objective.theta()
    n, p = objective.shape[0], theta.numel()
    lin = linearize(objective)
    jacobian = lin.jacobian()
    dual = n < p
    matrix = lower_gram(jacobian.T if dual else jacobian)
    shift = 1e-6 * float(matrix.diagonal().sum())
    held = factor(matrix, shift, shift)
    small = min(n, p)
    b = torch.randn(small, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = LinearizedProblem(lin, objective.loss)
    formed = Explicit(lin, whole.metric)
    width = min(width_for(jumper.memory.modes or small), small)
    damped, sketched = DampedCholesky(whole, formed), DampedSketch(whole, formed, width)
    general = [Points(part.fn, part.points, part.scale) for part in objective.parts if isinstance(part, Points)]
    points, edge = poisson.grid(inside), poisson.boundary(side)
    conditions = [laplace(points, -2 * torch.pi**2 * poisson.exact(points)), given(edge, 0.0, 4.0)]
    same = problem(label, label, widths, conditions, known(poisson.exact), 0.0)
    parameters = list(model.parameters())

    def plain() -> Any:  # what L-BFGS evaluates in the races
        rows = same.residuals(model)
        return torch.autograd.grad(0.5 * rows.dot(rows), parameters)

    pieces: dict[str, Callable[[], Any]] = {
        "one L-BFGS evaluation (plain torch)": plain,
        "residuals": lambda: objective.outputs(theta),
        "residuals, general way": lambda: [part.outputs(objective.net.bind(theta)) for part in general],
        "Jacobian": lin.jacobian,
        "Jacobian, general way": lambda: [part.jacobian(objective.net, theta) for part in general],
        "Gram matrix": lambda: lower_gram(jacobian.T if dual else jacobian),
        "Gram matrix, by a product": lambda: jacobian @ jacobian.T if dual else jacobian.T @ jacobian,
        "Cholesky factor": lambda: factor(matrix, shift, shift),
        "eigenvectors instead": lambda: torch.linalg.eigh(matrix),
        "one solve": lambda: held.solve(b),
        "candidate (step, bend, correction, real loss)": lambda: _candidate(damped),
        f"sketch of {width} instead of the Gram matrix": lambda: DampedSketch(whole, formed, width),
        "candidate within it": lambda: _candidate(sketched),
        "whole jump": lambda: _jump(jumper, theta),
    }
    times: dict[str, list[float]] = {name: [] for name in pieces}
    for piece in pieces.values():
        piece()
    for turn in range(repeats):
        for name, piece in pieces.items():
            if name == "eigenvectors instead" and turn >= 3:
                continue
            begun = time.perf_counter()
            piece()
            times[name].append(1e3 * (time.perf_counter() - begun))
    floors = _floors(n, p, jacobian.element_size())
    evaluation = _median(times["one L-BFGS evaluation (plain torch)"])
    return [
        {
            "parameters": label, "residuals": n, "piece": name, "ms": _median(found), "fastest": min(found),
            "floor, ms": floors.get(name), "in L-BFGS evaluations": _median(found) / evaluation,
        }
        for name, found in times.items()
    ]  # fmt: skip


def _candidate(run: ImplicitEuler) -> Any:
    """With the factor of its horizon, which a run keeps for the next."""
    return AlongFlow(run, geodesic=True).at(1e6 / run.known_rates[1])


def _jump(jumper: Jumper, theta: torch.Tensor) -> Any:
    memory = jumper.memory
    result = jumper.jump()
    jumper.memory = memory
    jumper.objective.space.write(jumper.objective.model, theta)
    return result


def _floors(n: int, p: int, size: int) -> dict[str, float]:
    """Least milliseconds: bytes over this machine's copying rate, multiply-adds over its rate in a large product."""
    a = torch.randn(1500, 1500, dtype=torch.float64)
    flops = 2 * 1500**3 / min(_seconds(lambda: lower_gram(a)) for _ in range(5)) / 2  # half of a product is done
    big = torch.empty(n * p, dtype=torch.float64)
    rate = big.numel() * size / min(_seconds(lambda: big.fill_(1.0)) for _ in range(5))
    small, large = min(n, p), max(n, p)
    return {
        "Jacobian": 1e3 * n * p * size / rate,
        "Gram matrix": 1e3 * small * small * large / flops,
        "Cholesky factor": 1e3 * small**3 / 3 / flops,
    }


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def verdict(rows: list[Row]) -> dict[str, Any]:
    """A jump at P = 1,185 and N = 1,500 in L-BFGS evaluations: the limit is 12."""
    found = next((r for r in rows if r["parameters"] == "1,185" and r["piece"] == "whole jump"), None)
    return {} if found is None else {"jump / L-BFGS evaluation": found["in L-BFGS evaluations"], "limit": 12}
