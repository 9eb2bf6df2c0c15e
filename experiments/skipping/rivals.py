"""Rivals of a skip, written plainly: the recursion on the frozen linearization, and the last update, repeated.

They know nothing of the library: the Jacobian is torch's own, of a network with one batch of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils import parameters_to_vector

from ..random_problems.problems import LOSSES, Problem
from ..random_problems.runs import Run

FLOW, STATE, MOMENTS = "frozen, flow", "frozen, with state", "frozen, moving second moments"
WAYS = {"SGD": (FLOW,), "momentum": (FLOW, STATE), "Adam": (FLOW, STATE, MOMENTS)}
LARGEST = 5_000_000  # entries of a Jacobian


def applies(run: Run) -> bool:
    """Whether the frozen linearization is tried: small perceptrons, whole batches, optimizers written out below."""
    of = run.problem
    count = sum(p.numel() for p in run.model.parameters())
    size = of.samples * of.outputs * count
    return of.full and of.network == "mlp" and of.optimizer in WAYS and size <= LARGEST


def frozen(run: Run, way: str, at: Sequence[int]) -> list[Tensor]:
    """Displacements (P,) after each number of steps of the run's optimizer on the linearized model."""
    of, x, y = run.problem, run.data.x, run.data.y
    names = [name for name, _ in run.model.named_parameters()]
    params = {name: p.detach() for name, p in run.model.named_parameters()}
    table = vmap(jacrev(lambda p, z: functional_call(run.model, p, (z[None],))[0]), (None, 0))(params, x)
    u = run.model(x).detach()
    jacobian = torch.cat([table[name].reshape(u.numel(), -1) for name in names], 1)
    theta = flat(run.model)

    def gradient(d: Tensor) -> Tensor:
        slope = grad(lambda v: LOSSES[of.loss](v.reshape(u.shape), y))(u.reshape(-1) + jacobian @ d)
        return jacobian.T @ slope + of.decay * (theta + d)

    advance, d, found = stepper(run, way), torch.zeros_like(theta), []
    for step in range(1, max(at) + 1):
        d = d + advance(gradient(d))
        if step in at:
            found.append(d)
    return found


def stepper(run: Run, way: str) -> Callable[[Tensor], Tensor]:
    """The optimizer's next update on a gradient, by its state at the start: SGD, momentum 0.9, Adam.

    A flow knows the metric alone: rate / (1 − momentum), or Adam's rate / √v̂ as it stands.
    """
    rate, state = run.problem.rate, _state(run)
    if run.problem.optimizer == "SGD":
        return lambda g: -rate * g
    if run.problem.optimizer == "momentum":
        if way == FLOW:
            return lambda g: -rate / (1 - 0.9) * g
        velocity = state["momentum_buffer"]

        def momentum(g: Tensor) -> Tensor:
            velocity.mul_(0.9).add_(g)
            return -rate * velocity

        return momentum
    m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
    if way == FLOW:
        return lambda g: -rate * g / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    def adam(g: Tensor) -> Tensor:
        nonlocal t
        before, t = t, t + 1
        m.mul_(0.9).add_(0.1 * g)
        if way == MOMENTS:
            v.mul_(0.999).add_(0.001 * g * g)
            before = t
        return -rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**before)).sqrt() + 1e-8)

    return adam


def _state(run: Run) -> dict[str, Any]:
    """The optimizer's state, each entry of all parameters in one (P,); counts of steps as numbers."""
    states = [run.optimizer.state[p] for p in run.model.parameters()]
    found: dict[str, Any] = {}
    for key, value in states[0].items():
        if isinstance(value, Tensor) and value.dim() > 0:
            found[key] = torch.cat([state[key].reshape(-1) for state in states]).clone()
        elif value is not None:
            found[key] = float(value)
    return found


def flat(model: nn.Module) -> Tensor:
    """All weights, (P,)."""
    return parameters_to_vector(model.parameters()).detach().clone()


def names(of: Problem) -> tuple[str, ...]:
    return WAYS.get(of.optimizer, ())
