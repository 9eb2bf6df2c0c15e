"""What gradient flow keeps: the balance of a neuron's weights, before it against behind it.

Where a unit is linear or rectified, its outputs do not change when the weights before it are multiplied by a > 0 and
those behind it divided by a. Gradient flow of any loss therefore keeps ‖before‖² + bias² − ‖behind‖² of each unit
(Du, Hu & Lee 2018, arXiv:1806.00900); steps, momentum, metrics and weight decay do not, and a jump is judged by it. The
same symmetry leads back: weights of any other balance that are the same function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError

HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU)  # f(a x) = a f(x) for a > 0


def pairs(model: nn.Module) -> Iterator[tuple[str, nn.Linear, nn.Linear]]:
    """Linear layers that follow each other in an ``nn.Sequential``, with nothing but homogeneous units between them.

    A layer that stands in several places, or whose weights another one shares, is left out.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners[id(p)] = owners.get(id(p), 0) + 1
    for path, parent in model.named_modules():
        if not isinstance(parent, nn.Sequential):
            continue
        before: tuple[str, nn.Linear] | None = None
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear):
                if before is not None and all(owners[id(m.weight)] == 1 for m in (before[1], layer)):
                    yield f"{path}.{before[0]}".lstrip("."), before[1], layer
                before = name, layer
            elif not isinstance(layer, HOMOGENEOUS):
                before = None


@torch.no_grad()
def balance(model: nn.Module) -> dict[str, Tensor]:
    """‖before‖² + bias² − ‖behind‖² of each unit (width,), by the name of the layer before it.

    Raises:
        InputError: the model has no such layers.
    """
    found = {}
    for name, before, behind in pairs(model):
        bias = 0.0 if before.bias is None else before.bias.square()
        found[name] = before.weight.square().sum(1) + bias - behind.weight.square().sum(0)
    if not found:
        raise InputError(
            "balance: no two Linear layers follow each other in an nn.Sequential with ReLU, LeakyReLU or nothing "
            "between them: this symmetry, and what it keeps, is of such layers."
        )
    return found


@torch.no_grad()
def rebalance(model: nn.Module, target: Mapping[str, Tensor]) -> None:
    """Give each unit its balance of ``target`` (as of :func:`balance`) by scaling its weights; the function stays.

    One sweep over pairs that share a layer changes each other's balance: sweeps go on until all are met.

    Raises:
        InputError: ``target`` is of other layers, or a unit has no weights to scale; nothing has changed then.
    """
    found = balance(model)
    if found.keys() != target.keys() or any(target[name].shape != value.shape for name, value in found.items()):
        raise InputError(f"rebalance: target has the layers {sorted(target)}, the model {sorted(found)}.")
    if any(bool((before.weight.square().sum(1) == 0).any()) for _, before, _ in pairs(model)) or any(
        bool((behind.weight.square().sum(0) == 0).any()) for _, _, behind in pairs(model)
    ):
        raise InputError("rebalance: a unit has no weights before or behind it, so that scaling them does nothing.")
    for _ in range(SWEEPS):
        for name, before, behind in pairs(model):
            _scale(before, behind, target[name])
        worst = max(float((balance(model)[name] - target[name]).abs().max()) for name in found)
        scale = max(float(p.abs().max()) ** 2 for p in model.parameters())
        if worst <= CLOSE * torch.finfo(next(model.parameters()).dtype).eps * scale:
            return


SWEEPS, CLOSE = 200, 1e3


def _scale(before: nn.Linear, behind: nn.Linear, target: Tensor) -> None:
    """a per unit with a²·b − c/a² = target: a² = (t + √(t² + 4bc)) / 2b, b and c the squares before and behind."""
    b = before.weight.square().sum(1) + (0.0 if before.bias is None else before.bias.square())
    c, t = behind.weight.square().sum(0), target.to(before.weight)
    root = torch.sqrt(t.square() + 4 * b * c)
    # the sum of opposite signs is taken by its conjugate, which keeps its digits
    square = torch.where(t >= 0, (t + root) / (2 * b), 2 * c / (root - t))
    a = square.sqrt()
    before.weight.mul_(a[:, None])
    if before.bias is not None:
        before.bias.mul_(a)
    behind.weight.div_(a)
