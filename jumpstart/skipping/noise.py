"""What minibatches add to the squares of gradients, which a replay along their mean would lose.

Adam's second moments hold E[g²] = ḡ² + σ². A replay sees ḡ alone; without σ² its steps would grow, by a factor of √2
and more while the moments are young.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..objectives.parameters import ParameterSpace
from .replica import Replica

ENTRIES = {"exp_avg_sq": lambda group: float(group["betas"][1]), "square_avg": lambda group: float(group["alpha"])}


def minibatch_noise(
    optimizer: torch.optim.Optimizer, space: ParameterSpace, model: nn.Module, gradient: Tensor
) -> Callable[[Replica], None] | None:
    """What is done before each virtual step: σ² = (v̂ − ḡ²)₊ of now is added to what second moments take in.

    Args:
        gradient: ḡ (P,).

    Returns:
        None where the optimizer has no second moments by a name that is known.
    """
    present = dict(model.named_parameters())
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    found = {name: _second(optimizer.state.get(present[name], {}), groups[present[name]]) for name in space.names}
    if all(second is None for second in found.values()):
        return None
    filled = {name: torch.zeros_like(present[name]) if v is None else v for name, v in found.items()}
    variance = (space.flatten(filled) - gradient.square()).clamp_min(0)

    @torch.no_grad()
    def add(replica: Replica) -> None:
        for piece, group in zip(replica.pieces, replica.groups, strict=True):
            state = replica.copy.state.get(piece.twin, {})
            for key, decay in ENTRIES.items():
                if isinstance(state.get(key), Tensor) and 0 < (beta := decay(group)) < 1:
                    state[key].add_(piece.read(variance).to(state[key]), alpha=(1 - beta) / beta)

    return add


def _second(state: dict, group: dict) -> Tensor | None:
    """E[g²] as the optimizer estimates it, for the names that torch's optimizers use."""
    if isinstance(state.get("exp_avg_sq"), Tensor) and "step" in state and "betas" in group:
        return state["exp_avg_sq"] / max(1 - float(group["betas"][1]) ** float(state["step"]), 1e-12)
    return state["square_avg"] if isinstance(state.get("square_avg"), Tensor) and "alpha" in group else None
