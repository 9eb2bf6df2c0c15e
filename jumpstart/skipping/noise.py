"""What minibatches add to gradients, where an optimizer's second moments have seen it: the replay must not lose it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..objectives.parameters import ParameterSpace


def minibatch_noise(
    optimizer: torch.optim.Optimizer, space: ParameterSpace, model: nn.Module, gradient: Tensor
) -> Callable[[int], Tensor] | None:
    """The noise that second moments hold besides the gradient (P,): √(v̂ − g²)₊, with a sign that turns at each step.

    Squares of gradients then average to what they did along minibatches, and first moments hardly move. None where the
    optimizer has no second moments, whose steps noise does not shorten.
    """
    present = dict(model.named_parameters())
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    found = {name: _second(optimizer.state.get(present[name], {}), groups[present[name]]) for name in space.names}
    if all(second is None for second in found.values()):
        return None
    filled = {name: torch.zeros_like(present[name]) if v is None else v for name, v in found.items()}
    size = (space.flatten(filled) - gradient.square()).clamp_min(0).sqrt()
    # Signs by coordinate, the same on every machine; the average over two steps is zero.
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, size.shape, generator=generator, device="cpu") * 2 - 1
    size = size * signs.to(size)
    return lambda i: size if i % 2 == 0 else -size


def _second(state: dict, group: dict) -> Tensor | None:
    """E[g²] as the optimizer estimates it, for the names that torch's optimizers use."""
    if isinstance(state.get("exp_avg_sq"), Tensor) and "step" in state and "betas" in group:
        return state["exp_avg_sq"] / max(1 - float(group["betas"][1]) ** float(state["step"]), 1e-12)
    return state["square_avg"] if isinstance(state.get("square_avg"), Tensor) else None
