"""A gate of a parameter: its options in a group, what it keeps in the state, and how far that says it stands open."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..gating import streaming
from ..gating.averages import STATISTICS, Average
from ..gating.contributions import accumulating
from ..gating.rules import RULES
from ..utils.brief import brief
from .adapters import Group, State

REDUCE = ("parameter", "row", "tensor")
OPTIONS = ("rule", "statistics", "correction", "alpha", "reduce", "rho", "isometry")
BLOCK = 2**16  # coordinates gated at a time on a CPU: what they need stays in its cache
AJAR = 1e-2  # a gate in a metric, which must be positive: where it is shut a coordinate moves by a hundredth
VARIANCE = "exp_avg_var"  # state: the average squared deviation of a gradient from the average before it
BEGUN = "exp_avg_var_begun"  # state: the step that this average began with


def require_options(group: Group, who: str) -> None:
    """Refuse what a gate cannot be, by the name of the optimizer."""
    rule, statistics, alpha, rho = (group[name] for name in ("rule", "statistics", "alpha", "rho"))
    if rule is not None and rule not in RULES:
        raise InputError(f"{who}: rule={brief(rule)} is none of {sorted(RULES)}, nor None.")
    if statistics not in STATISTICS:
        raise InputError(f"{who}: statistics={brief(statistics)} is none of {STATISTICS}.")
    if group["reduce"] not in REDUCE:
        raise InputError(f"{who}: reduce={brief(group['reduce'])} is none of {REDUCE}.")
    if not isinstance(group["correction"], bool):
        raise InputError(f"{who}: correction={brief(group['correction'])}: give True or False.")
    if not _number(alpha) or not 0 < alpha < math.inf:
        hint = " At full batch b/(n − b) is infinite: every gate is shut." if alpha == math.inf else ""
        raise InputError(f"{who}: alpha={brief(alpha)}: give a positive number.{hint}")
    if not _number(rho) or not 0 < rho < 1:
        raise InputError(f"{who}: rho={brief(rho)}: give a number between 0 and 1.")
    isometry = group["isometry"]
    if not _number(isometry) or not 0 <= isometry < math.inf:
        raise InputError(f"{who}: isometry={brief(isometry)}: give a number of 0 or more.")
    for option in ("differentiable", "capturable"):
        if group.get(option):
            raise InputError(f"{who}: {option}=True is not supported: leave it out.")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def streams(group: Group) -> bool:
    """Whether a group's gates need a variance in the state."""
    return group["rule"] is not None and group["statistics"] == "streaming"


def absorb(group: Group, state: State, p: Tensor, signal: str, average: Average | None) -> None:
    """Take a gradient's deviation from the average before it, which the state holds, into the variance."""
    assert average is not None and p.grad is not None
    if group["correction"]:
        entry = streaming.unbiased(average, group["rho"])
    else:
        beta = group["betas"][0] if "betas" in group else group["momentum"]
        entry = streaming.published(average, group["rho"], 1 - float(beta) ** int(state["step"]))
    if group.get("maximize"):  # an average of gradients turned round
        entry = replace(entry, share=-entry.share)
    for gradient, variance, before in blocks([p.grad, state[VARIANCE], state[signal]]):
        entry.take(variance, gradient, before)


def begin(group: Group, state: dict[str, Any], p: Tensor) -> None:
    """The variance at a first step: one gradient says nothing of its noise; as published, all of it is that."""
    assert p.grad is not None
    wide = accumulating(p.dtype)
    state[VARIANCE] = torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format)
    state[BEGUN] = int(state.get("step", 0))
    if not group["correction"]:
        state[VARIANCE].addcmul_(p.grad.to(wide), p.grad.to(wide), value=1 - group["rho"])


def opened(group: Group, signal: Tensor, noise: Tensor, times: float = 1.0) -> Tensor:
    """The gate of a group for a signal and its variance times a number, both shaped like a parameter.

    Rules know no unit, so that an average need not be divided by the sum of its weights.
    """
    square = _reduced(signal.to(noise.dtype).square(), group["reduce"])
    rule, alpha = group["rule"], group["alpha"]
    if rule == "soft":
        return RULES[rule](square, _reduced(noise, group["reduce"]) * times, alpha=alpha)
    return RULES[rule](square, _reduced(noise, group["reduce"]) * (times * alpha))


def streamed(group: Group, state: State, signal: Tensor, average: Average | None) -> tuple[Tensor, Tensor, float]:
    """A settled signal, the variance that is kept, and what that is to be multiplied by to be the signal's."""
    assert average is not None
    seen = int(state["step"]) - state[BEGUN] + (not group["correction"])
    times = average.square if group["correction"] else average.total**2
    return signal, state[VARIANCE], streaming.factor(times, group["rho"], seen)


def settled(state: State) -> bool:
    """Whether a parameter's state says anything of its noise."""
    return VARIANCE in state and int(state["step"]) > state[BEGUN]


def ajar(group: Group, state: State, signal: str, average: Average | None) -> Tensor:
    """The gate that a parameter's state says, for a metric: nowhere shut; 1 where nothing is known of noise."""
    if not settled(state):
        return torch.ones_like(state[signal])
    gate = opened(group, *streamed(group, state, state[signal], average)).clamp_min(AJAR)
    return gate.to(state[signal].dtype).expand_as(state[signal]).contiguous()


def _reduced(values: Tensor, reduce: str) -> Tensor:
    if reduce == "tensor":
        return values.mean()
    if reduce == "row" and values.dim() > 1:
        return values.mean(dim=tuple(range(1, values.dim())), keepdim=True)
    return values


def blocks(tensors: list[Tensor], split: bool = True) -> Iterator[list[Tensor]]:
    """Tensors of one shape, or parts of them at a time."""
    size = tensors[0].numel()
    flat = split and size > BLOCK and tensors[0].device.type == "cpu" and all(t.is_contiguous() for t in tensors)
    if not flat:
        yield tensors
        return
    yield from map(list, zip(*(t.view(-1).split(BLOCK) for t in tensors), strict=True))
