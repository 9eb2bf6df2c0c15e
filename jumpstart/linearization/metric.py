"""Diagonal metrics: the geometry in which the user's optimizer moves, and its weight decay.

With a metric D the flow is θ̇ = −D Jᵀ g − w∘θ; in scaled coordinates z = D^{−½} θ it is plain gradient flow with
decay (docs/theory.md, equations 7 and 8; the decision on weight decay is docs/decisions/0004).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed.optimizers import current
from ..distributed.wrapped import whole
from ..errors import InputError, NonFiniteError, ShapeError
from ..objectives.objective import Objective
from ..objectives.parameters import ParameterSpace, as_reals
from ..optim import adapters
from ..utils.brief import brief

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

    def owned(self) -> Metric:
        """The same numbers in tensors of its own."""
        decay = self.decay.clone() if isinstance(self.decay, Tensor) else self.decay
        return Metric(None if self.root is None else self.root.clone(), decay)

    @property
    def decays(self) -> bool:
        return isinstance(self.decay, Tensor) or self.decay != 0


MetricLike = Metric | Tensor | Mapping[str, Tensor] | torch.optim.Optimizer | None


def as_metric(source: MetricLike, model: nn.Module, space: ParameterSpace, weight_decay: float | None = None) -> Metric:
    """A metric from None, D itself (a vector (P,) or tensors by name), or the state of an optimizer.

    Args:
        weight_decay: overrides the optimizer's; the flow is θ̇ = … − weight_decay·θ, decoupled.

    Raises:
        InputError, ShapeError, NonFiniteError: quoting what cannot serve as a metric.
    """
    if isinstance(source, Metric):
        for what in (source.root, source.decay):
            if isinstance(what, Tensor) and what.shape != (space.size,):
                raise ShapeError(f"a Metric of shape {tuple(what.shape)}, where the parameters are ({space.size},).")
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
    require_weight_decay(weight_decay)
    if weight_decay is not None:
        metric = replace(metric, decay=float(weight_decay))
    return metric


def require_weight_decay(rate: Any) -> None:
    """Raise unless a rate of weight decay is None or a number of 0 or more."""
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if rate is not None and not (number and 0 <= rate < math.inf):
        raise InputError(f"weight_decay={brief(rate)} must be a number of 0 or more, or None.")


def _root(d: Tensor, space: ParameterSpace) -> Tensor:
    if d.numel() != space.size:
        raise ShapeError(f"metric has {d.numel()} entries, the parameters {space.size}.")
    d = d.detach().reshape(-1).to(space.device, space.dtype)
    if not bool(torch.isfinite(d).all()):
        raise NonFiniteError("metric holds NaN or infinity.")
    if not bool((d > 0).all()):
        raise InputError(f"a metric must be positive; its smallest entry is {float(d.min()):.3g}.")
    return d.sqrt()


def from_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, space: ParameterSpace) -> Metric:
    """The metric in which an optimizer moves now, as its adapter in :mod:`jumpstart.optim.adapters` says.

    Flow time is in units of the first learning rate that is not zero, × steps; groups with another rate get D scaled
    by the ratio. Weight decay is taken along: decoupled (AdamW, and SGD, where there is no difference) as it is,
    coupled through the metric (Adam's L2 term) as decay·D.

    Raises:
        MetricError: the optimizer's state is unknown or partial, or gives no metric.
        InputError: the optimizer holds other parameters, or does not move some of them (learning rate 0).
        NonFiniteError: second moments are NaN or infinite.
    """
    while isinstance(inner := getattr(optimizer, "inner", None), torch.optim.Optimizer):
        optimizer = inner  # a JumpOptimizer's
    optimizer = whole(optimizer)
    with current(optimizer):
        return _read(optimizer, model, space)


def _read(optimizer: torch.optim.Optimizer, model: nn.Module, space: ParameterSpace) -> Metric:
    kind, present = type(optimizer).__name__, dict(model.named_parameters())
    groups = held(optimizer, model, space)
    rates = {name: adapters.rate(optimizer, groups[name]) for name in space.names}
    if not any(adapters.moves(group) for group in optimizer.param_groups):
        raise InputError(f"metric: every learning rate of {kind} is 0: set one, or pass metric=None.")
    if resting := [name for name in space.names if rates[name] == 0]:
        raise InputError(
            f"metric: {kind} does not move {resting[:5]}, whose learning rate is 0: leave them out with params=[…]."
        )
    base = next(adapters.rate(optimizer, group) for group in optimizer.param_groups if adapters.moves(group))
    diagonal, fixed, through = {}, {}, {}  # D; decay rates that are decoupled; those that act through D
    for name in space.names:
        parameter, group, ratio = present[name], groups[name], rates[name] / base
        d, coupled = adapters.diagonal(optimizer, name, parameter, group)
        decay = float(group.get("weight_decay", 0.0))
        diagonal[name] = d * ratio
        reals = as_reals(parameter.detach())
        fixed[name] = torch.full_like(reals, 0.0 if coupled else decay * ratio)
        through[name] = torch.full_like(reals, decay if coupled else 0.0)
    flat = space.flatten(diagonal).detach()
    if not bool(torch.isfinite(flat).all()) or not bool((flat > 0).all()):
        raise NonFiniteError(
            f"metric: the state of {kind} gives entries for {_where(flat, space)} that are NaN, infinite or not "
            "positive: the run has diverged, or met a gradient that overflowed."
        )
    flat = flat.clamp(max=CLIP * float(flat.median()))
    decays = (space.flatten(fixed) + space.flatten(through) * flat).detach()
    uniform = float(decays[0])
    same = bool((decays == uniform).all())
    root = None if bool((flat == 1).all()) else flat.sqrt()
    return Metric(root, uniform if same else decays)


def held(optimizer: torch.optim.Optimizer, model: nn.Module, space: ParameterSpace) -> dict[str, dict[str, Any]]:
    """The parameter group that each parameter lies in, by name.

    Raises:
        InputError: the optimizer does not hold them all.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    present = dict(model.named_parameters())
    missing = [name for name in space.names if id(present[name]) not in groups]
    if missing:
        raise InputError(
            f"the optimizer {type(optimizer).__name__} does not hold {missing[:5]}: no metric for them, and never "
            "moves them; restrict the objective with params=[…] to what it trains."
        )
    return {name: groups[id(present[name])] for name in space.names}


def _where(d: Tensor, space: ParameterSpace) -> str:
    """The first parameter in which D is no positive number."""
    pieces = zip(space.names, d.split(space.sizes), strict=True)
    return repr(next(name for name, piece in pieces if not bool(((piece > 0) & torch.isfinite(piece)).all())))


def restrict(metric: Metric, space: ParameterSpace, names: Collection[str]) -> Metric:
    """A metric of all parameters of a space, for those of the given names alone, in the space's order."""
    kept = torch.cat([torch.full((size,), name in names) for name, size in zip(space.names, space.sizes, strict=True)])
    kept = kept.to(space.device)
    root = None if metric.root is None else metric.root[kept]
    return Metric(root, metric.decay[kept] if isinstance(metric.decay, Tensor) else metric.decay)


def metric_of(source: MetricLike, objective: Objective, weight_decay: float | None = None) -> Metric:
    """A checked metric for an objective's parameters."""
    return as_metric(source, objective.model, objective.space, weight_decay)
