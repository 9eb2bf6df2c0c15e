"""The two derivative maps that all is made of, typed, forward (push) and reverse (pullback); and what probes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

Function = Callable[[Tensor], Tensor]


def normal(shape: Any, source: int | torch.Generator) -> Tensor:
    """Standard normal numbers in float64 on the CPU, whatever the default device, from a seed or a CPU generator."""
    generator = torch.Generator().manual_seed(source) if isinstance(source, int) else source
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def pullback(f: Function, x: Tensor) -> tuple[Tensor, Function]:
    """f(x), and the map w -> (∂f/∂x)ᵀ w through a graph that is kept."""
    found: Any = vjp(f, x)
    return found[0], lambda w: found[1](w)[0]


def push(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """(∂f/∂x) v by forward mode."""
    return jvp(f, (x,), (v,))[1]


def push_by_reverse(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """(∂f/∂x) v where an operation knows no forward mode: the transpose of the backward pass."""
    u, pull = pullback(f, x)
    return pullback(pull, u.detach().new_zeros(u.shape))[1](v)


def push_symmetric(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """(∂f/∂x) v for a gradient f where an operation knows no forward mode: its derivative is its own transpose."""
    return pullback(f, x)[1](v)
