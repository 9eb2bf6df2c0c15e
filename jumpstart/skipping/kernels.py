"""Steps of torch's commonest optimizers on one flat vector, without what the classes do around them.

A step of ``torch.optim.Adam`` spends nine tenths of its time on finding out what there is to do; on one vector, with
everything known, the same arithmetic is one kernel. Classes and options that are not here are stepped by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, dict[str, Any], dict[str, Any]], None]  # weights, gradient, state, group

CALLS = 4  # operations that such a step takes


def kernel(optimizer: torch.optim.Optimizer, group: dict[str, Any], state: dict[str, Any]) -> Step | None:
    """The step of a class with these options and this state (weights and gradient are written over), or None."""
    if group.get("capturable") or group.get("differentiable"):
        return None
    return next((step for kind, step, fits in _KNOWN if type(optimizer) is kind and fits(group, state)), None)


def _adam(theta: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    state["step"] += 1
    fused = torch._fused_adamw_ if group.get("decoupled_weight_decay") else torch._fused_adam_
    fused(
        [theta], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
        lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
        eps=group["eps"], amsgrad=False, maximize=False,
    )  # fmt: skip


def _sgd(theta: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if group["weight_decay"]:
        gradient = gradient.add(theta, alpha=group["weight_decay"])
    if momentum := group["momentum"]:
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient, alpha=1 - group["dampening"])
        gradient = gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer
    theta.add_(gradient, alpha=-group["lr"])


def _rmsprop(theta: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    state["step"] += 1
    if group["weight_decay"]:
        gradient = gradient.add(theta, alpha=group["weight_decay"])
    square = state["square_avg"].mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
    theta.addcdiv_(gradient, square.sqrt().add_(group["eps"]), value=-group["lr"])


def _adagrad(theta: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    state["step"] += 1
    if group["weight_decay"]:
        gradient = gradient.add(theta, alpha=group["weight_decay"])
    rate = group["lr"] / (1 + (float(state["step"]) - 1) * group["lr_decay"])
    total = state["sum"].addcmul_(gradient, gradient, value=1)
    theta.addcdiv_(gradient, total.sqrt().add_(group["eps"]), value=-rate)


def _numbers(group: dict[str, Any], *names: str) -> bool:
    return all(isinstance(group.get(name), (int, float)) for name in names)


def _fits_adam(group: dict[str, Any], state: dict[str, Any]) -> bool:
    plain = not group["amsgrad"] and all(isinstance(beta, float) for beta in group["betas"])
    steps = state.get("step")
    held = isinstance(steps, Tensor) and steps.device == state["exp_avg"].device
    return plain and held and _numbers(group, "lr", "weight_decay", "eps")


def _fits_sgd(group: dict[str, Any], state: dict[str, Any]) -> bool:
    started = not group["momentum"] or isinstance(state.get("momentum_buffer"), Tensor)
    return started and _numbers(group, "lr", "weight_decay", "momentum", "dampening")


def _fits_rmsprop(group: dict[str, Any], state: dict[str, Any]) -> bool:
    plain = not group["centered"] and not group["momentum"] and isinstance(state.get("square_avg"), Tensor)
    return plain and _numbers(group, "lr", "weight_decay", "alpha", "eps")


def _fits_adagrad(group: dict[str, Any], state: dict[str, Any]) -> bool:
    return isinstance(state.get("sum"), Tensor) and _numbers(group, "lr", "weight_decay", "lr_decay", "eps")


Fits = Callable[[dict[str, Any], dict[str, Any]], bool]
_KNOWN: tuple[tuple[type, Step, Fits], ...] = (
    (torch.optim.Adam, _adam, _fits_adam),
    (torch.optim.AdamW, _adam, _fits_adam),
    (torch.optim.SGD, _sgd, _fits_sgd),
    (torch.optim.RMSprop, _rmsprop, _fits_rmsprop),
    (torch.optim.Adagrad, _adagrad, _fits_adagrad),
)
