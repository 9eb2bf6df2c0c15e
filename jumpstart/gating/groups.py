"""Parameter groups of a model: those that are gated, and those that never are."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import InputError
from ..utils.brief import brief


def groups(model: nn.Module, never: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Two groups for a gated optimizer: matrices and larger, and, with ``rule=None``, norms, biases and what is named.

    Args:
        model: whose parameters that require a gradient are grouped.
        never: patterns of names (``"*router*"``) of more that are never gated.

    Raises:
        InputError: a pattern names nothing.

    Example:
        >>> import torch
        >>> from jumpstart.gating import groups
        >>> found = groups(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)))
        >>> [len(group["params"]) for group in found]
        [1, 3]
    """
    if isinstance(never, str):
        raise InputError(f"never={brief(never)}: give a list of patterns.")
    present = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for pattern in never:
        if not fnmatch.filter(present, pattern):
            raise InputError(
                f"never={brief(pattern)} names no parameter that is trained; there are {list(present)[:8]}."
            )
    plain = {n for n, p in present.items() if p.dim() < 2 or any(fnmatch.fnmatch(n, pattern) for pattern in never)}
    found = [
        {"params": [p for n, p in present.items() if n not in plain]},
        {"params": [p for n, p in present.items() if n in plain], "rule": None},
    ]
    return [group for group in found if group["params"]]
