"""Least squares by other packages: torch-levenberg-marquardt and pytorch-minimize, from an explicit Jacobian."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from jumpstart.comparison.contenders import Contender, Progress
from jumpstart.objectives.objective import Objective
from jumpstart.utils.cost import FORWARD

from .peers import peer
from .sampled import Rows
from .sampled import jacobian as jacobian_of


class _Rows(nn.Module):
    """A network whose outputs are a problem's residuals, times √N: their mean of squares is then ‖residuals‖²."""

    def __init__(self, problem: Rows, model: nn.Module) -> None:
        super().__init__()
        self.problem, self.model, self.calls = problem, model, 0

    def forward(self, _: Any) -> Tensor:
        self.calls += 1
        with torch.enable_grad():
            rows = self.problem.residuals(self.model).detach()
        return rows * math.sqrt(len(rows))


def torch_lm(problem: Rows, solve_method: str = "cholesky", attempts: int = 100, **damping: Any) -> Contender:
    """Levenberg and Marquardt's method by torch-levenberg-marquardt, from an explicit Jacobian.

    Its own Jacobian takes one function of one sample, so that boundary terms would have to be computed inside, too.
    ``damping`` are the settings of its StandardDampingStrategy. Chosen on Poisson's equation, seed 100: damping times
    0.3 and 2 rather than its 0.1 and 10 (a loss 100 times lower after 3 s), attempts until the loss falls rather than
    10 and then any step. Ends where the damping reaches its largest value.
    """
    package = peer("torch_levenberg_marquardt", "torch-levenberg-marquardt==1.2.3")
    settings = {"min_value": 1e-16, "dec_factor": 0.3, "inc_factor": 2.0, **damping}

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        cost = 0.0

        class Module(package.training.LevenbergMarquardtModule):
            def _compute_jacobian(self, inputs: Any, targets: Any, param_indices: Any) -> tuple[Tensor, Tensor, Tensor]:
                nonlocal cost
                jacobian, u, evaluations = jacobian_of(objective, objective.theta())
                cost += evaluations
                scale = math.sqrt(len(u))
                return jacobian * scale, u[:, None] * scale, u * scale

        rows = _Rows(problem, model)
        strategy = package.damping.StandardDampingStrategy(**settings)
        module = Module(rows, damping_strategy=strategy, solve_method=solve_method, attempts_per_step=attempts)
        zero = torch.zeros((), dtype=objective.space.dtype)
        stop = False
        while not stop:
            _, _, stop, _ = module.training_step(zero, zero)
            yield {"gradient_evaluations": cost + FORWARD * rows.calls}

    return run


class _Function(torch.autograd.Function):
    """Residuals (N,) of θ (P,), differentiated by their explicit Jacobian."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, objective: Objective, count: Callable[[float], None]) -> Tensor:  # type: ignore[override]
        jacobian, u, evaluations = jacobian_of(objective, theta.detach())
        ctx.save_for_backward(jacobian)
        count(evaluations)
        return u.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        return cotangent @ ctx.saved_tensors[0], None, None


class _Over(Exception):
    """Nobody asks for further steps."""


def least_squares(problem: Rows, tr_solver: str = "cgls", **options: Any) -> Contender:
    """Trust-region least squares of pytorch-minimize; a step is one trial of a displacement.

    It runs to completion, hence in a thread of its own that waits after each trial. Its tolerances are switched off;
    the model holds the best weights so far, which are the ones it goes on from.

    Args:
        tr_solver: "cgls", "lsmr" (its own default) or "exact", by singular values of the Jacobian: of the three, the
            first has the lowest loss for its time on two hidden layers. options: its own.
    """
    package = peer("torchmin", "pytorch-minimize==0.1.0")
    smallest = torch.finfo(torch.float64).eps
    settings = {"ftol": smallest, "xtol": smallest, "gtol": smallest, "max_nfev": 10**9, **options}

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        go, ready = threading.Semaphore(0), threading.Semaphore(0)
        cost, best = 0.0, math.inf
        over, ended = False, False
        failure: list[Exception] = []

        def count(evaluations: float) -> None:
            nonlocal cost
            cost += evaluations

        def residuals(theta: Tensor) -> Tensor:
            nonlocal best
            if theta.requires_grad:
                return _Function.apply(theta, objective, count)  # type: ignore[return-value]
            rows = objective.outputs(theta)
            count(FORWARD)
            value = float(rows.dot(rows))
            if value < best:
                best = value
                objective.space.write(model, theta)
            ready.release()
            go.acquire()
            if over:
                raise _Over
            return rows

        def work() -> None:
            nonlocal ended
            try:
                package.least_squares(residuals, objective.theta(), tr_solver=tr_solver, **settings)
            except _Over:
                pass
            except Exception as error:
                failure.append(error)
            ended = True
            ready.release()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while True:
                ready.acquire()
                if failure:
                    raise failure[0]
                if ended:
                    return
                yield {"gradient_evaluations": cost}
                go.release()
        finally:
            over = True
            go.release()
            thread.join()

    return run
