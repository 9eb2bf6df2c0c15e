"""Several networks trained at once: members of a stack share nothing but the calls that they are computed by.

A stack takes (samples, members, …) and gives (samples, members, classes). Row i is sample i of every member, so that
what a row adds to a gradient is, in each member's part of it, what that member's own sample adds: exact statistics of a
stack are its members' own. Each member starts from what torch would have given it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Dense(nn.Module):
    """A linear layer of each member."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers])[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).transpose(0, 1)


class Joined(nn.Module):
    """(samples, members, channels, …) to channels of all members, as grouped convolutions take them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)


class Parted(nn.Module):
    """Back again, each member's features in a row."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.members, -1)


def convolutions(layers: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """A convolution in groups, one a member."""
    one: Any = layers[0]
    count = len(layers)
    joined = nn.Conv2d(count * one.in_channels, count * one.out_channels, one.kernel_size, one.stride, one.padding,
                       groups=count)  # fmt: skip
    joined.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
    joined.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers if layer.bias is not None]))
    return joined


def stacked(networks: Sequence[nn.Sequential]) -> nn.Sequential:
    """One module that computes all of them; of linear layers, convolutions, ReLU and Flatten."""
    found: list[nn.Module] = []
    if isinstance(networks[0][0], nn.Conv2d):
        found.append(Joined())
    for layers in zip(*networks, strict=True):
        if isinstance(layers[0], nn.Linear):
            found.append(Dense(layers))
        elif isinstance(layers[0], nn.Conv2d):
            found.append(convolutions(layers))
        elif isinstance(layers[0], nn.Flatten):
            found.append(Parted(len(networks)))
        elif isinstance(layers[0], nn.ReLU):
            found.append(nn.ReLU())
        else:
            raise NotImplementedError(f"no stack of {type(layers[0]).__name__}")
    return nn.Sequential(*found)


class Each(nn.Module):
    """Networks one after the other, of torch's own layers, of which exact statistics take a product (δ²)ᵀ(a²)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x[:, i]) for i, network in enumerate(self.networks)], 1)


def stack(make: Callable[[], nn.Sequential], seeds: Sequence[int], each: bool = False) -> nn.Module:
    """Networks from these seeds; ``each`` with parameters of its own."""
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        networks.append(make())
    return Each(networks) if each else stacked(networks)


def perceptron(inputs: int, width: int, classes: int) -> Callable[[], nn.Sequential]:
    return lambda: nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


def convolutional() -> nn.Sequential:
    """Patches of 4 × 4, a convolution, a linear layer: 16,000 parameters, and no norm, whose samples would interact."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
