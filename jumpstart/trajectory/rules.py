"""What one step of an optimizer does with a gradient, as a linear map: the weights' move from many gradients at once.

An optimizer's rule is applied to rows of gradients side by side: what it keeps of earlier ones (momentum) is kept for
each row, and what it makes of all of them together (second moments) is taken as it stands in the real run. The last row
holds what does not come from the gradient that a record begins with: it alone sees the weights that decay acts on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..linearization.metric import held
from ..objectives.objective import Objective
from ..optim import adapters

Group = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One step of an optimizer, as it was taken.

    δ = −rate · D · d, where d is the gradient, or with ``inertia`` what a buffer makes of it:
    b ← momentum·b + fresh·(gradient), d = look·b + direct·(gradient); at rest b ← first·(gradient).

    Attributes:
        rate: of each weight (P,). root: D^½ (P,) or None. decay: rate of decoupled decay (P,) or 0, that of the step;
            coupled: decay that is added to the gradient. time: flow time of the step.
    """

    rate: Tensor
    root: Tensor | None = None
    momentum: float = 0.0
    first: float = 1.0
    fresh: float = 1.0
    look: float = 1.0
    direct: float = 0.0
    coupled: float | Tensor = 0.0
    decay: float | Tensor = 0.0
    time: float = 0.0

    @property
    def inertia(self) -> bool:
        return self.momentum != 0.0

    @property
    def decays(self) -> bool:
        return any(isinstance(w, Tensor) or w != 0 for w in (self.coupled, self.decay))

    def moved(self, gradients: Tensor, buffer: Tensor | None, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Moves (k, P) of the weights and the buffers (k, P) after, from gradients (k, P).

        Args:
            buffer: before the step; None at rest. weights: (k, P), what decay acts on; None where nothing decays.
        """
        if weights is not None:
            gradients = gradients + self.coupled * weights
        direction = gradients
        if self.inertia:
            buffer = self.first * gradients if buffer is None else self.momentum * buffer + self.fresh * gradients
            direction = self.look * buffer + self.direct * gradients if self.direct else self.look * buffer
        moves = -self.rate * direction if self.root is None else -(self.rate * self.root.square()) * direction
        return (moves if weights is None else moves - self.decay * weights), buffer

    def action(self, moves: Tensor) -> Tensor:
        """Moves (k, P) in units in which their inner products are those of δᵀ D⁻¹ δ / rate."""
        scale = self.rate.sqrt() if self.root is None else self.rate.sqrt() * self.root
        return torch.where(scale > 0, moves / scale.clamp_min(torch.finfo(moves.dtype).tiny), moves)


Reader = Callable[[Any, Group, Mapping[str, Any]], dict[str, Any]]  # optimizer, group, state of a parameter
BUFFERS = ("momentum_buffer", "exp_avg")  # what readers' momentum is kept in


def _sgd(optimizer: Any, group: Group, state: Mapping[str, Any]) -> dict[str, Any]:
    mu = float(group.get("momentum", 0.0))
    found: dict[str, Any] = {"momentum": mu, "coupled": float(group.get("weight_decay", 0.0))}
    if mu:
        found["fresh"] = 1.0 - float(group.get("dampening", 0.0))
        if group.get("nesterov"):
            found |= {"look": mu, "direct": 1.0}
    return found


def _adam(optimizer: Any, group: Group, state: Mapping[str, Any]) -> dict[str, Any]:
    beta = float(group["betas"][0])
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
    found: dict[str, Any] = {"momentum": beta, "first": 1 - beta, "fresh": 1 - beta}
    found["look"] = 1 / (1 - beta ** float(state["step"]))
    found["decay" if decoupled else "coupled"] = float(group.get("weight_decay", 0.0))
    return found


# Optimizers whose step is written out; of any other the metric is used if it keeps no average of gradients.
READERS: dict[type[torch.optim.Optimizer], Reader] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
}


def of_rate(rate: float, theta: Tensor) -> Rule:
    """Plain gradient steps."""
    return Rule(torch.full_like(theta, rate), time=rate)


def plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer itself, of one that wraps it."""
    while isinstance(inner := getattr(optimizer, "inner", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def buffer_of(optimizer: torch.optim.Optimizer, objective: Objective) -> Tensor | None:
    """The average of gradients (P,) that an optimizer holds; None at rest."""
    present = dict(objective.model.named_parameters())
    found = {}
    for name in objective.space.names:
        state = optimizer.state.get(present[name], {})
        kept = next((state[key] for key in BUFFERS if isinstance(state.get(key), Tensor)), None)
        found[name] = torch.zeros_like(present[name]) if kept is None else kept
    flat = objective.space.flatten(found).detach()
    return flat if bool((flat != 0).any()) else None


def of_optimizer(optimizer: torch.optim.Optimizer, objective: Objective) -> Rule:
    """The step that an optimizer has just taken: read after it, before the next or a scheduler's.

    Raises:
        InputError: the optimizer's step is no linear map of gradients that is known here, or its groups differ in more
            than rates and decay.
        MetricError: see :func:`jumpstart.optim.adapters.diagonal`.
    """
    space, present = objective.space, dict(objective.model.named_parameters())
    groups = held(optimizer, objective.model, space)
    if adapters.climbing(optimizer):
        raise InputError(f"Recorder: {type(optimizer).__name__} maximizes; give the loss that it minimizes.")
    read = READERS.get(type(optimizer))
    told = {
        name: read(optimizer, groups[name], optimizer.state.get(present[name], {})) if read else {}
        for name in space.names
    }
    first = next(iter(told.values()))
    if any({**own, "coupled": 0, "decay": 0} != {**first, "coupled": 0, "decay": 0} for own in told.values()):
        raise InputError("Recorder: parameter groups differ in momentum: give one value to all of them.")
    rate, diagonal = {}, {}
    for name in space.names:
        group, parameter = groups[name], present[name]
        rate[name] = torch.full_like(parameter.detach(), adapters.rate(optimizer, group))
        if read is None:
            _require_memoryless(optimizer, name, parameter, group)
        if read is not _sgd:
            diagonal[name] = adapters.diagonal(optimizer, name, parameter, group)[0]
    rates = space.flatten(rate).detach()
    decays = {}
    for key in ("coupled", "decay"):
        if any(own.get(key) for own in told.values()):
            by_name = {name: torch.full_like(rate[name], own.get(key, 0.0)) for name, own in told.items()}
            decays[key] = space.flatten(by_name).detach()
    base, mu = float(rates[0]), first.get("momentum", 0.0)
    numbers = {key: first[key] for key in ("momentum", "first", "fresh", "look", "direct") if key in first}
    return Rule(
        rates, space.flatten(diagonal).detach().sqrt() if diagonal else None, **numbers,
        coupled=decays.get("coupled", 0.0), decay=rates * decays["decay"] if "decay" in decays else 0.0,
        time=base / (1 - mu) if read is _sgd and mu < 1 else base,
    )  # fmt: skip


def _require_memoryless(optimizer: Any, name: str, parameter: Tensor, group: Group) -> None:
    adapter, state = adapters.find(optimizer, parameter, group), optimizer.state.get(parameter, {})
    kind = type(optimizer).__name__
    averages = adapter is None or any(isinstance(state.get(key), Tensor) for key in (*adapter.moments, *adapter.copies))
    if averages or float(group.get("weight_decay", 0.0)):
        known = sorted(k.__name__ for k in READERS)
        raise InputError(
            f"Recorder: what {kind} makes of a gradient (of {name!r}) is not known here: {known}, and optimizers with "
            "a metric that keep no average of gradients and do not decay. Give lr= for plain steps, or another one."
        )
