"""What gradient flow keeps: the balance of a neuron's weights, before it against behind it.

Where a unit is linear or rectified, its outputs do not change when the weights before it are multiplied by a > 0 and
those behind it divided by a. Gradient flow of any loss therefore keeps ‖before‖² + bias² − ‖behind‖² of each unit
(Du, Hu & Lee 2018, arXiv:1806.00900); steps, momentum, metrics and weight decay do not, and a jump is judged by it. The
same symmetry leads back: weights of any other balance that are the same function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError

HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU)  # f(a x) = a f(x) for a > 0
SWEEPS, CLOSE = 200, 1e3
NONE = (
    "no two Linear layers follow each other in an nn.Sequential with ReLU, LeakyReLU or nothing between them: this "
    "symmetry, and what it keeps, is of such layers."
)


@dataclass(frozen=True)
class Pair:
    """Names of the weights before and behind a layer of units; ``bias`` is None where there is none."""

    name: str
    before: str
    bias: str | None
    behind: str

    @property
    def weights(self) -> list[str]:
        return [self.before, self.behind] + ([] if self.bias is None else [self.bias])


def pairs(model: nn.Module) -> list[Pair]:
    """Linear layers that follow each other in an ``nn.Sequential``, with nothing but homogeneous units between them.

    A layer that stands in several places, or whose weights another one shares, is left out.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners[id(p)] = owners.get(id(p), 0) + 1
    return list(_pairs(model, owners))


def _pairs(model: nn.Module, owners: Mapping[int, int]) -> Iterator[Pair]:
    for path, parent in model.named_modules():
        if not isinstance(parent, nn.Sequential):
            continue
        before: tuple[str, nn.Linear] | None = None
        for name, layer in parent.named_children():
            here = f"{path}.{name}".lstrip(".")
            if isinstance(layer, nn.Linear):
                if before is not None and all(owners[id(m.weight)] == 1 for m in (before[1], layer)):
                    first = before[0]
                    bias = None if before[1].bias is None else f"{first}.bias"
                    yield Pair(first, f"{first}.weight", bias, f"{here}.weight")
                before = here, layer
            elif not isinstance(layer, HOMOGENEOUS):
                before = None


def balance(model: nn.Module) -> dict[str, Tensor]:
    """‖before‖² + bias² − ‖behind‖² of each unit (width,), by the name of the layer before it.

    Raises:
        InputError: the model has no such layers.
    """
    found = pairs(model)
    if not found:
        raise InputError(f"balance: {NONE}")
    return balances(_present(model), found)


def rebalance(model: nn.Module, target: Mapping[str, Tensor]) -> None:
    """Give each unit its balance of ``target`` (as of :func:`balance`) by scaling its weights; the function stays.

    ``target`` has (units,) for each layer of ``model`` by name.

    Raises:
        InputError: ``target`` is of other layers, or a unit has no weights to scale; nothing has changed then.
    """
    present, found = _present(model), balance(model)
    if found.keys() != target.keys() or any(target[name].shape != value.shape for name, value in found.items()):
        raise InputError(f"rebalance: target has the layers {sorted(target)}, the model {sorted(found)}.")
    if any(bool((square == 0).any()) for pair in pairs(model) for square in _squares(present, pair)):
        raise InputError("rebalance: a unit has no weights before or behind it, so that scaling them does nothing.")
    with torch.no_grad():
        for name, value in rebalanced(present, pairs(model), target).items():
            model.get_parameter(name).copy_(value)


def balances(weights: Mapping[str, Tensor], layers: Sequence[Pair]) -> dict[str, Tensor]:
    """The balance of each unit (width,), by layer, of weights by name."""
    found = {}
    for pair in layers:
        before, behind = _squares(weights, pair)
        found[pair.name] = before - behind
    return found


def rebalanced(
    weights: Mapping[str, Tensor], layers: Sequence[Pair], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights by name that are the same function with the balance of ``target``; those that change alone.

    A unit without weights before or behind it stays as it is. Pairs that share a layer change each other's balance:
    sweeps go on until all are met to rounding.
    """
    found = {name: weights[name].detach().clone() for pair in layers for name in pair.weights}
    scale = max((float(p.abs().max()) ** 2 for p in found.values()), default=0.0)
    for _ in range(SWEEPS):
        for pair in layers:
            _scale(found, pair, target[pair.name])
        worst = 0.0
        for pair in layers:
            before, behind = _squares(found, pair)
            off = torch.where((before > 0) & (behind > 0), before - behind - target[pair.name].to(before), 0.0)
            worst = max(worst, float(off.abs().max()))
        if worst <= CLOSE * max((torch.finfo(p.dtype).eps for p in found.values()), default=0.0) * scale:
            break
    return found


def _present(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def _squares(weights: Mapping[str, Tensor], pair: Pair) -> tuple[Tensor, Tensor]:
    """Sums of squares before, bias included, and behind each unit (width,)."""
    before = weights[pair.before].square().sum(1)
    return before if pair.bias is None else before + weights[pair.bias].square(), weights[pair.behind].square().sum(0)


def _scale(weights: dict[str, Tensor], pair: Pair, target: Tensor) -> None:
    """a per unit with a²·b − c/a² = target: a² = (t + √(t² + 4bc)) / 2b, b and c the squares before and behind."""
    b, c = _squares(weights, pair)
    t, whole = target.to(b), (b > 0) & (c > 0)
    root = torch.sqrt(t.square() + 4 * b * c)
    # the sum of opposite signs is taken by its conjugate, which keeps its digits
    square = torch.where(t >= 0, (t + root) / (2 * b), 2 * c / (root - t))
    a = torch.where(whole, square, 1.0).sqrt()
    weights[pair.before] = weights[pair.before] * a[:, None]
    if pair.bias is not None:
        weights[pair.bias] = weights[pair.bias] * a
    weights[pair.behind] = weights[pair.behind] / a
