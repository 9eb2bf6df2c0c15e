"""Whole numbers, and tensors that hold their numbers in an ordinary way: others cannot be looked at or batched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .brief import brief


def require_dense(tensor: Tensor, what: str) -> None:
    """Refuse a sparse, nested, quantized or meta tensor.

    Raises:
        InputError: names the layout and the way out of it.
    """
    if tensor.is_meta:
        kind, remedy = "on the meta device, without values", "give a tensor on the model's device"
    elif tensor.is_nested:
        kind, remedy = "nested", "pad it (tensor.to_padded_tensor(0.0)), and mask what is padding"
    elif tensor.is_quantized:
        kind, remedy = "quantized", "give its numbers (tensor.dequantize())"
    elif tensor.layout != torch.strided:
        kind, remedy = f"of layout {str(tensor.layout).removeprefix('torch.')}", "give it as tensor.to_dense()"
    else:
        return
    shape = "" if tensor.is_nested else f" of shape {tuple(tensor.shape)}"
    raise InputError(f"{what}{shape}: a tensor {kind}, which torch.func cannot batch or differentiate: {remedy}.")


def require_count(who: str, name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 1.

    Raises:
        InputError: quotes it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{who}: {name}={brief(value)}: give a whole number of at least 1.")
