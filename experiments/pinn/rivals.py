"""How others train a PINN, as contenders: torch's optimizers, other packages' and the natural gradient.

All minimize ½‖residuals‖² of the same points and weights, with a problem's plain-torch residuals; methods that need
the whole Jacobian are given the one that jumps use. Peers are imported when asked for:

    pip install --no-deps pytorch_optimizer==4.1.0 torch-levenberg-marquardt==1.2.3 pytorch-minimize==0.1.0
    pip install --no-deps pytorch-lightning torchmetrics lightning-utilities pyyaml  # torch-levenberg-marquardt's
"""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jumpstart.comparison.contenders import Contender, Factory, Progress
from jumpstart.errors import JumpstartError
from jumpstart.linearization.linearize import linearize
from jumpstart.objectives.objective import Objective
from jumpstart.utils.cost import FORWARD

from .problems import Problem

FLOOR = 0.01  # of the learning rate, where a cosine ends
GRID = tuple(0.5**k for k in range(31))  # step lengths of the natural gradient's line search
RCOND = 1e-13  # eigenvalues of JᵀJ below this share of the largest are taken as zero


def adam(problem: Problem, lr: float, decay: float | None = None) -> Contender:
    """Adam; ``decay`` is the seconds of training over which a cosine takes the rate to 1%, None for a constant one."""
    return _stepped(problem, lambda p: torch.optim.Adam(p, lr=lr, fused=True), decay)


def adamw(problem: Problem, lr: float, weight_decay: float = 0.0, decay: float | None = None) -> Contender:
    """AdamW; ``decay`` as in :func:`adam`."""
    return _stepped(problem, lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=weight_decay, fused=True), decay)


def lbfgs(problem: Problem, history: int = 50) -> Contender:
    """L-BFGS with strong Wolfe line search, set as in :func:`jumpstart.contenders.lbfgs`."""
    return _stepped(
        problem,
        lambda p: torch.optim.LBFGS(
            p, lr=1.0, max_iter=20, max_eval=50, tolerance_grad=0.0, tolerance_change=0.0,
            history_size=history, line_search_fn="strong_wolfe",
        ),
        None,
    )  # fmt: skip


def soap(problem: Problem, lr: float, decay: float | None = None, **options: Any) -> Contender:
    """SOAP of pytorch_optimizer, without weight decay; ``options`` are its own, ``decay`` as in :func:`adam`."""
    package = peer("pytorch_optimizer", "pytorch_optimizer==4.1.0")
    return _stepped(problem, lambda p: package.SOAP(p, lr=lr, **{"weight_decay": 0.0, **options}), decay)


def _stepped(problem: Problem, factory: Factory, decay: float | None) -> Contender:
    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        parameters = _trained(model)
        optimizer = factory(parameters)
        rates = [group["lr"] for group in optimizer.param_groups]
        cost, spent = 0, 0.0

        def closure() -> Tensor:
            nonlocal cost
            cost += 1
            rows = problem.residuals(model)
            loss = 0.5 * rows.dot(rows)
            # Not backward(): that would differentiate with respect to the points as well.
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            return loss.detach()

        while True:
            begun = time.perf_counter()
            if decay is not None:
                share = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, spent / decay)))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share
            optimizer.step(closure)  # type: ignore[call-overload]  # torch types closures as float
            if parameters[0].is_cuda:
                torch.cuda.synchronize()
            spent += time.perf_counter() - begun
            yield {"gradient_evaluations": cost}

    return run


class _Rows(nn.Module):
    """A network whose outputs are a problem's residuals, times √N: their mean of squares is then ‖residuals‖²."""

    def __init__(self, problem: Problem, model: nn.Module) -> None:
        super().__init__()
        self.problem, self.model, self.calls = problem, model, 0

    def forward(self, _: Any) -> Tensor:
        self.calls += 1
        with torch.enable_grad():
            rows = self.problem.residuals(self.model).detach()
        return rows * math.sqrt(len(rows))


def torch_lm(problem: Problem, solve_method: str = "cholesky", attempts: int = 100, **damping: Any) -> Contender:
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
                jacobian, u, evaluations = _jacobian(objective, objective.theta())
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
        jacobian, u, evaluations = _jacobian(objective, theta.detach())
        ctx.save_for_backward(jacobian)
        count(evaluations)
        return u.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        return cotangent @ ctx.saved_tensors[0], None, None


class _Over(Exception):
    """Nobody asks for further steps."""


def least_squares(problem: Problem, tr_solver: str = "cgls", **options: Any) -> Contender:
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


def natural_gradient(problem: Problem) -> Contender:
    """Energy natural gradient descent (Müller and Zeinhofer 2023, arXiv 2302.13163), our own writing.

    The displacement is (JᵀJ)⁺Jᵀr, by eigenvalues on the smaller side; its length, the best of 0.5^0 to 0.5^30.
    """

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        parameters = _trained(model)
        cost = 0.0
        while True:
            theta = objective.theta()
            jacobian, u, evaluations = _jacobian(objective, theta)
            displacement = _pseudoinverse(jacobian, u)
            losses = []
            for parameter in parameters:
                parameter.requires_grad_(False)  # trials need no graph to the weights
            for length in GRID:
                objective.space.write(model, theta - length * displacement)
                rows = problem.residuals(model)
                losses.append(float(rows.detach().dot(rows.detach())))
            for parameter in parameters:
                parameter.requires_grad_(True)
            best = min(range(len(GRID)), key=lambda k: losses[k] if math.isfinite(losses[k]) else math.inf)
            if not math.isfinite(losses[best]):
                objective.space.write(model, theta)
                return
            objective.space.write(model, theta - GRID[best] * displacement)
            cost += evaluations + FORWARD * len(GRID)
            yield {"gradient_evaluations": cost}

    return run


def _pseudoinverse(jacobian: Tensor, rows: Tensor) -> Tensor:
    """(JᵀJ)⁺Jᵀr (P,) for J (N, P), r (N,)."""
    wide = jacobian.shape[0] < jacobian.shape[1]
    values, vectors = torch.linalg.eigh(jacobian @ jacobian.T if wide else jacobian.T @ jacobian)
    inverse = torch.where(values > RCOND * values[-1], 1 / values, 0.0)
    right = rows if wide else jacobian.T @ rows
    found = vectors @ (inverse * (vectors.T @ right))
    return jacobian.T @ found if wide else found


@torch.enable_grad()
def _jacobian(objective: Objective, theta: Tensor) -> tuple[Tensor, Tensor, float]:
    """J (N, P) and u (N,) at θ (P,), and the gradient evaluations that they took."""
    lin = linearize(objective, theta)
    jacobian = lin.jacobian()
    return jacobian, lin.u, lin.ledger.gradient_evaluations


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def installed(made: Mapping[str, Callable[[], Contender]]) -> dict[str, Contender]:
    """Those contenders whose packages are here; the others are named."""
    found = {}
    for name, make in made.items():
        try:
            found[name] = make()
        except JumpstartError as error:
            print(f"{name} is left out: {error}")
    return found


def peer(name: str, requirement: str) -> Any:
    """A package that only comparisons need.

    Raises:
        JumpstartError: it does not import, with what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise JumpstartError(
            f"this rival needs pip install --no-deps {requirement} and what it imports, see experiments/pinn/rivals.py "
            f"(it said: {error})."
        ) from error
