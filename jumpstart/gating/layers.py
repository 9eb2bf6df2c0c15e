"""Per-sample gradients of a layer's parameters, from its input and the gradient at its output.

A row of ``LAYERS`` is a kind of module that has a formula; every other module goes through ``replayed``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize


def linear(module: Any, name: str, x: Tensor, delta: Tensor) -> Tensor:
    """Σ_t δ_t a_tᵀ over positions t. A Gram form Σ_tt' would cost T times as much: each entry is squared by itself."""
    d = delta.reshape(len(delta), -1, delta.shape[-1])
    if name == "bias":
        return d.sum(1)
    return d.transpose(1, 2) @ x.reshape(len(x), -1, x.shape[-1])


def convolution(module: Any, name: str, x: Tensor, delta: Tensor) -> Tensor:
    """The same, over the places of a kernel and the patches it meets there."""
    n, groups = len(x), module.groups
    if name == "bias":
        return delta.flatten(2).sum(2)
    patches = _patches(module, x)  # (n, groups, places, entries of a kernel)
    d = delta.reshape(n, groups, delta.shape[1] // groups, -1)
    return (d @ patches).reshape(n, *module.weight.shape)


def embedding(module: Any, name: str, x: Tensor, delta: Tensor) -> Tensor:
    """δ_t added to the row of token t; the row of padding receives none."""
    n, (size, width) = len(x), module.weight.shape
    found = delta.new_zeros(n * size, width)
    row, index, d = _tokens(module, x, delta)
    return found.index_add_(0, row * size + index, d).view(n, size, width)


def norm(module: Any, name: str, x: Tensor, delta: Tensor) -> Tensor:
    """δ, times the normalized input for a weight, summed over the places that share an entry."""
    shape = getattr(module, name).shape
    product = delta if name == "bias" else delta * _normalized(module, x)
    if isinstance(module, (nn.LayerNorm, _RMSNorm)):
        return product.reshape(len(delta), -1, *shape).sum(1)
    return product.reshape(len(delta), *shape, -1).sum(-1)


def slope(module: Any, name: str, x: Tensor, delta: Tensor) -> Tensor:
    """PReLU: δ times the negative part, summed over what shares a slope. (Its batching rule can be wrong.)"""
    product = delta * x.clamp_max(0)
    if module.num_parameters == 1:
        return product.reshape(len(delta), -1).sum(1, keepdim=True)
    return product.reshape(len(delta), module.num_parameters, -1).sum(2)


_RMSNorm: Any = getattr(nn, "RMSNorm", nn.LayerNorm)  # torch's since 2.4

Formula = Callable[[Any, str, Tensor, Tensor], Tensor]
LAYERS: list[tuple[Any, Formula]] = [
    (nn.Linear, linear),
    (nn.Conv1d, convolution),
    (nn.Conv2d, convolution),
    (nn.Conv3d, convolution),
    (nn.Embedding, embedding),
    (nn.LayerNorm, norm),
    (_RMSNorm, norm),
    (nn.GroupNorm, norm),
    (_InstanceNorm, norm),
    (_BatchNorm, norm),
    (nn.PReLU, slope),
]


def formula(module: nn.Module) -> Formula | None:
    """The row of a module: it must compute what torch's own layer does, from parameters of its own."""
    plain = "forward" not in vars(module) and set(module._parameters) <= {"weight", "bias"}
    if not plain or parametrize.is_parametrized(module):
        return None
    for kind, found in LAYERS:
        if isinstance(module, kind) and type(module).forward is kind.forward:
            own = getattr(type(module), "_conv_forward", None)
            return found if own is getattr(kind, "_conv_forward", None) else None
    return None


def rank(module: Any) -> int:
    """Fewest dimensions of an input that has one for samples."""
    if isinstance(module, _ConvNd):
        return module.weight.dim()
    if isinstance(module, nn.Embedding):
        return 1
    if isinstance(module, (nn.LayerNorm, _RMSNorm)):
        return len(module.normalized_shape) + 1
    if isinstance(module, _InstanceNorm):
        return {"InstanceNorm1d": 3, "InstanceNorm2d": 4, "InstanceNorm3d": 5}.get(type(module).__name__, 3)
    return 1 if getattr(module, "num_parameters", 0) == 1 else 2


def work(module: nn.Module, x: Tensor, delta: Tensor) -> int:
    """Numbers that a formula holds for one sample besides its gradient: patches, products."""
    n = max(1, len(delta))
    if isinstance(module, _ConvNd):
        return 2 * module.weight[0].numel() * module.groups * prod(delta.shape[2:]) + delta.numel() // n
    return 2 * (x.numel() + delta.numel()) // n


def squares(module: Any, name: str, x: Tensor, delta: Tensor) -> Tensor | None:
    """Σ_i c_i² where it takes no per-sample gradient: one position a sample, or the rows of a table that are met."""
    if isinstance(module, nn.Linear) and delta.dim() == 2:
        return delta.square().sum(0) if name == "bias" else delta.square().T @ x.square()
    if isinstance(module, nn.Embedding):
        row, index, d = _tokens(module, x, delta)
        size = module.weight.shape[0]
        pairs, which = torch.unique(row * size + index, return_inverse=True)
        summed = d.new_zeros(len(pairs), d.shape[1]).index_add_(0, which, d)
        return d.new_zeros(module.weight.shape).index_add_(0, pairs % size, summed.square_())
    return None


def probed(module: Any, name: str, x: Tensor, delta: Tensor, probe: Tensor) -> Tensor:
    """(Σ_i c_i) r along the last dimension, where ``squares`` has no c_i."""
    if name == "bias":
        return delta.sum(0) * probe
    if isinstance(module, nn.Embedding):
        _, index, d = _tokens(module, x, delta)
        return d.new_zeros(module.weight.shape[0]).index_add_(0, index, d @ probe)
    return delta.T @ (x @ probe)


def _tokens(module: Any, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, index and gradient of every token but padding."""
    row = torch.arange(len(x), device=x.device).repeat_interleave(x[0].numel() if len(x) else 0)
    index, d = x.reshape(-1).long(), delta.reshape(-1, delta.shape[-1])
    if module.padding_idx is not None:
        real = index != module.padding_idx
        row, index, d = row[real], index[real], d[real]
    return row, index, d


def _normalized(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, _RMSNorm):
        return F.rms_norm(x, list(module.normalized_shape), eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    if isinstance(module, _InstanceNorm) and (module.training or module.running_mean is None):
        return F.instance_norm(x, eps=module.eps)
    running: Any = module
    mean, variance = running.running_mean.to(x.dtype), running.running_var.to(x.dtype)
    return F.batch_norm(x, mean, variance, eps=module.eps)


def _patches(module: Any, x: Tensor) -> Tensor:
    """What each place of a kernel meets: (n, groups, places, channels of a group × kernel)."""
    dims, n = len(module.kernel_size), len(x)
    sides = module._reversed_padding_repeated_twice  # of every dimension, the last first, as F.pad wants them
    if any(sides):
        x = F.pad(x, sides, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    for axis, (size, stride, apart) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        x = x.unfold(2 + axis, apart * (size - 1) + 1, stride)[..., ::apart]
    x = x.reshape(n, module.groups, -1, *x.shape[2:])
    x = x.permute(0, 1, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    return x.reshape(n, module.groups, prod(x.shape[2 : 2 + dims]), -1)
