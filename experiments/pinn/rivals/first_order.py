"""First-order rivals and L-BFGS, which a user's own loop would run.

Points are fixed, or drawn anew every so many steps: what most published runs of Adam and SOAP do (jaxpi, for one, draws
a batch each step). L-BFGS keeps fixed ones, since its curvature pairs are of one function.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from jumpstart.comparison.contenders import Contender, Factory, Progress
from jumpstart.objectives.objective import Objective

from .peers import peer
from .sampled import Renewal, Rows, renew, trained

FLOOR = 0.01  # of the learning rate, where a cosine ends


def adam(problem: Rows, lr: float, decay: float | None = None, renewal: Renewal | None = None) -> Contender:
    """Adam; ``decay`` is the seconds of training over which a cosine takes the rate to 1%, None for a constant one."""
    return _stepped(problem, lambda p: torch.optim.Adam(p, lr=lr, fused=True), decay, renewal)


def adamw(problem: Rows, lr: float, weight_decay: float = 0.0, decay: float | None = None) -> Contender:
    """AdamW; ``decay`` as in :func:`adam`."""
    return _stepped(problem, lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=weight_decay, fused=True), decay)


def lbfgs(problem: Rows, history: int = 50) -> Contender:
    """L-BFGS with strong Wolfe line search, set as in :func:`jumpstart.contenders.lbfgs`."""
    return _stepped(
        problem,
        lambda p: torch.optim.LBFGS(
            p, lr=1.0, max_iter=20, max_eval=50, tolerance_grad=0.0, tolerance_change=0.0,
            history_size=history, line_search_fn="strong_wolfe",
        ),
    )  # fmt: skip


def soap(
    problem: Rows, lr: float, decay: float | None = None, renewal: Renewal | None = None, **options: Any
) -> Contender:
    """SOAP of pytorch_optimizer, without weight decay; ``options`` are its own, ``decay`` as in :func:`adam`."""
    package = peer("pytorch_optimizer", "pytorch_optimizer==4.1.0")
    return _stepped(problem, lambda p: package.SOAP(p, lr=lr, **{"weight_decay": 0.0, **options}), decay, renewal)


def _stepped(
    problem: Rows, factory: Factory, decay: float | None = None, renewal: Renewal | None = None
) -> Contender:  # fmt: skip
    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        parameters = trained(model)
        optimizer = factory(parameters)
        rates = [group["lr"] for group in optimizer.param_groups]
        cost, spent, step = 0, 0.0, 0

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
            if renewal is not None and renewal.due(step):
                renew(problem, model, renewal, step)
            if decay is not None:
                share = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, spent / decay)))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share
            optimizer.step(closure)  # type: ignore[call-overload]  # torch types closures as float
            if parameters[0].is_cuda:
                torch.cuda.synchronize()
            spent += time.perf_counter() - begun
            step += 1
            yield {"gradient_evaluations": cost}

    return run
