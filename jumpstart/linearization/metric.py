"""Diagonal metrics: the geometry in which the user's optimizer moves, and its weight decay.

With a metric D the flow is θ̇ = −D Jᵀ g − w∘θ; in scaled coordinates z = D^{−½} θ it is plain gradient flow with
decay (docs/theory.md, equations 7 and 8; the decision on weight decay is docs/decisions/0004).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, MetricError, NonFiniteError, ShapeError
from ..objectives.objective import Objective
from ..objectives.parameters import ParameterSpace

CLIP = 1e3  # largest entry of D over its median: parameters whose v̂ is almost 0 would otherwise own the metric


@dataclass(frozen=True)
class Metric:
    """D = root² (P,), or the identity for None; ``decay`` is a rate w for all parameters or one each (P,)."""

    root: Tensor | None = None
    decay: float | Tensor = 0.0

    def scale(self, v: Tensor) -> Tensor:
        """D^{½} v."""
        return v if self.root is None else self.root * v

    def unscale(self, v: Tensor) -> Tensor:
        """D^{−½} v."""
        return v if self.root is None else v / self.root

    def penalty(self, theta: Tensor) -> float:
        """½ zᵀ W z, the loss that weight decay descends along with Φ."""
        if not self.decays:
            return 0.0
        return float(0.5 * (self.decay * self.unscale(theta).square()).sum())

    @property
    def decays(self) -> bool:
        return isinstance(self.decay, Tensor) or self.decay != 0


MetricLike = Metric | Tensor | Mapping[str, Tensor] | torch.optim.Optimizer | None


def make(source: MetricLike, model: nn.Module, space: ParameterSpace, weight_decay: float | None = None) -> Metric:
    """A metric from None, D itself (a vector (P,) or tensors by name), or the state of an optimizer.

    Args:
        weight_decay: overrides the optimizer's; the flow is θ̇ = … − weight_decay·θ, decoupled.

    Raises:
        InputError, ShapeError, NonFiniteError: quoting what cannot serve as a metric.
    """
    if isinstance(source, Metric):
        metric = source
    elif source is None:
        metric = Metric()
    elif isinstance(source, torch.optim.Optimizer):
        metric = from_optimizer(source, model, space)
    elif isinstance(source, Mapping):
        missing = [name for name in space.names if name not in source]
        if missing:
            raise InputError(f"metric: no entry for parameters {missing[:5]}; give one tensor for each.")
        metric = Metric(_root(space.flatten(source), space))
    elif isinstance(source, Tensor):
        metric = Metric(_root(source, space))
    else:
        raise InputError(
            f"metric of type {type(source).__name__}: give None, a (P,) tensor, tensors by parameter name, or a "
            "torch optimizer."
        )
    if weight_decay is not None:
        if not (weight_decay >= 0 and weight_decay < float("inf")):
            raise InputError(f"weight_decay={weight_decay!r} must be 0 or more.")
        metric = replace(metric, decay=float(weight_decay))
    return metric


def _root(d: Tensor, space: ParameterSpace) -> Tensor:
    if d.numel() != space.size:
        raise ShapeError(f"metric has {d.numel()} entries, the parameters {space.size}.")
    d = d.detach().reshape(-1).to(space.device, space.dtype)
    if not bool(torch.isfinite(d).all()):
        raise NonFiniteError("metric holds NaN or infinity.")
    if not bool((d > 0).all()):
        raise InputError(f"a metric must be positive; its smallest entry is {float(d.min()):.3g}.")
    return d.sqrt()


def _adam(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    correction = 1 - group["betas"][1] ** float(state["step"])
    return 1 / ((second / correction).sqrt() + group["eps"])


def _rmsprop(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    square = state["square_avg"]
    if group.get("centered", False):
        square = (square - state["grad_avg"].square()).clamp_min(0)
    return 1 / (square.sqrt() + group["eps"])


def _adagrad(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    return 1 / (state["sum"].sqrt() + group["eps"])


# Which entry of an optimizer's state holds its second moments, and the diagonal metric that follows from it.
RULES: tuple[tuple[str, Callable[[dict[str, Any], dict[str, Any]], Tensor]], ...] = (
    ("exp_avg_sq", _adam),
    ("square_avg", _rmsprop),
    ("sum", _adagrad),
)


def from_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, space: ParameterSpace) -> Metric:
    """The metric in which an optimizer moves now: 1/(√v̂ + ε) for the Adam family, RMSprop and Adagrad, 1 for SGD.

    Flow time is in units of the first group's learning rate × steps; groups with another rate get D scaled by the
    ratio. Weight decay is taken along: decoupled (AdamW, and SGD, where there is no difference) as it is, coupled
    through the metric (Adam's L2 term) as decay·D.

    Raises:
        InputError: the optimizer holds other parameters, or has not taken a step yet.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    present = dict(model.named_parameters())
    missing = [name for name in space.names if id(present[name]) not in groups]
    if missing:
        raise InputError(
            f"metric: the optimizer does not hold {missing[:5]}; restrict the objective with params=[…] to what it "
            "trains."
        )
    base = float(optimizer.param_groups[0]["lr"])
    plain = isinstance(optimizer, torch.optim.SGD)
    diagonal, fixed, through = {}, {}, {}  # D; decay rates that are decoupled; those that act through D
    for name in space.names:
        parameter = present[name]
        group, state = groups[id(parameter)], optimizer.state.get(parameter, {})
        # Adadelta's step is also scaled by the size of past updates: its second moments alone are no metric.
        rule = None if "acc_delta" in state else next((rule for key, rule in RULES if key in state), None)
        if rule is None and not plain:
            raise MetricError(
                f"metric: {type(optimizer).__name__} holds no second moments for {name!r} that make a metric: take a "
                "few steps first (Adam family, RMSprop, Adagrad), or pass metric=None for the plain metric."
            )
        d = torch.ones_like(parameter) if rule is None else rule(state, group)
        ratio = float(group["lr"]) / base if base else 1.0
        coupled = rule is not None and not group.get("decoupled_weight_decay", False)
        coupled = coupled and not type(optimizer).__name__.lower().endswith("adamw")
        diagonal[name] = d * ratio
        wd = float(group.get("weight_decay", 0.0))
        fixed[name] = torch.full_like(parameter, 0.0 if coupled else wd * ratio)
        through[name] = torch.full_like(parameter, wd if coupled else 0.0)
    flat = space.flatten(diagonal).detach()
    if not bool(torch.isfinite(flat).all()):
        raise NonFiniteError(
            f"metric: the second moments of {type(optimizer).__name__} hold NaN: the run has diverged."
        )
    flat = flat.clamp(max=CLIP * float(flat.median()))
    if float(flat.min()) <= 0:
        raise InputError(
            "metric: an entry is zero (a parameter group with learning rate 0, or infinite second moments): leave "
            "those parameters out with params=[…]."
        )
    rates = (space.flatten(fixed) + space.flatten(through) * flat).detach()
    uniform = float(rates[0])
    same = bool((rates == uniform).all())
    root = None if bool((flat == 1).all()) else flat.sqrt()
    return Metric(root, uniform if same else rates)


def metric_of(source: MetricLike, objective: Objective, weight_decay: float | None = None) -> Metric:
    """A checked metric for an objective's parameters."""
    return make(source, objective.model, objective.space, weight_decay)
