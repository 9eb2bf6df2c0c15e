"""Σ_i c_i² of one parameter from its uses in a backward pass, held against the gradient that arrived."""

from __future__ import annotations

import functools
from math import isqrt

import torch
from torch import Tensor

from ..errors import InputError
from ..utils.autodiff import normal
from . import layers
from .replayed import Call
from .uses import Use

CHUNK = 2**20  # numbers that per-sample gradients may take at a time: about a processor's cache


def contributions(uses: list[tuple[Use, str]], parameter: Tensor, gradient: Tensor) -> tuple[Tensor, int, Tensor]:
    """Σ_i c_i², the number of samples, and whether Σ_i c_i is not the gradient, which is left on the device.

    Raises:
        InputError: the uses do not tell what a sample is.
    """
    counts = sorted({use.rows for use, _ in uses})
    if len(counts) > 1:
        raise InputError(
            f"one backward pass went through calls with {counts[0]} and {counts[-1]} rows, so that row i is not one "
            "sample; call backward for each, or use each='microbatch'."
        )
    if any(use.again for use, _ in uses):
        raise InputError("a checkpoint with use_reentrant=True hides who used it; use use_reentrant=False.")
    wide = accumulating(parameter.dtype)
    use, name = uses[0]
    formula = use.unit.formula(use.given())
    if len(uses) == 1 and formula is not None:
        x, delta = _pair(use, wide)
        module = use.unit.module
        found = layers.squares(module, name, x, delta)
        if found is not None:
            probe = _probe(parameter.shape[-1], wide, str(parameter.device))
            total = layers.probed(module, name, x, delta, probe)
            g = gradient.to(wide)
            arrived = g * probe if name == "bias" else g @ probe
            return found, use.rows, _missed(total, arrived, found, uses, wide, g)
    if len(uses) == 1 and formula is None:
        found, total = _replayed(use, wide)[name]
    else:
        found, total = _chunked(uses, parameter, wide)
    return found, use.rows, _missed(total, gradient.to(wide), found, uses, wide)


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """Sums of squares of half precision are kept in single."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _pair(use: Use, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Input and gradient at the output of a layer with a formula."""
    x = use.given()[0]
    return x.to(wide) if x.is_floating_point() else x, use.deltas[0].to(wide)


def _chunked(uses: list[tuple[Use, str]], parameter: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Contributions of a sample are added over the uses before they are squared, some samples at a time."""
    rows, size = uses[0][0].rows, parameter.numel()
    calls: list[tuple[Call | None, Tensor | None, list[Tensor]]] = []
    for use, _ in uses:
        if use.unit.formula(use.given()) is None:
            calls.append((use.call(parameter.dtype), None, use.cotangents()))
            size += sum(d.numel() for d in use.cotangents()) // max(1, rows)
        else:
            x, delta = _pair(use, wide)
            calls.append((None, x, [delta]))
            size += layers.work(use.unit.module, x, delta)
    squares, total = (torch.zeros_like(parameter, dtype=wide) for _ in range(2))
    step = _step(parameter, size)
    for low in range(0, rows, step):
        high, chunk = min(low + step, rows), None
        for (use, name), (call, x, deltas) in zip(uses, calls, strict=True):
            if call is not None:
                part = call.gradients([name], deltas, low, high)[name].to(wide)
            else:
                formula = use.unit.formula(use.given())
                assert formula is not None and x is not None
                part = formula(use.unit.module, name, x[low:high], deltas[0][low:high])
            chunk = part if chunk is None else chunk + part
        assert chunk is not None
        total += chunk.sum(0)
        squares += chunk.square().sum(0)  # a copy: a chunk may be the gradient at an output itself
    return squares, total


def _replayed(use: Use, wide: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """All parameters of a module at once; kept until they are all asked for, or another output gets its gradient."""
    places = sorted(use.deltas)
    if use.squared is None or use.squared[0] != places:
        names = {id(record): name for name, record in use.unit.records.items()}.values()
        values = dict(use.unit.module.named_parameters(remove_duplicate=False))
        chosen = {name: values[name] for name in names if values[name].requires_grad}
        deltas, call = use.cotangents(), use.call(next(iter(chosen.values())).dtype)
        sums = {name: [torch.zeros_like(value, dtype=wide) for _ in range(2)] for name, value in chosen.items()}
        size = sum(value.numel() for value in chosen.values()) + sum(d.numel() for d in deltas) // max(1, use.rows)
        step = _step(deltas[0], size)
        for low in range(0, use.rows, step):
            found = call.gradients(list(chosen), deltas, low, min(low + step, use.rows))
            for name, part in found.items():
                sums[name][0] += part.to(wide).square().sum(0)
                sums[name][1] += part.to(wide).sum(0)
        use.squared = (places, {name: (pair[0], pair[1]) for name, pair in sums.items()})
    return use.squared[1]


def _step(at: Tensor, size: int) -> int:
    """Samples at a time, of so many numbers each; an accelerator wants more to do at once."""
    return max(1, (16 * CHUNK if at.is_cuda else CHUNK) // max(1, size))


@functools.lru_cache(maxsize=64)
def _probe(size: int, dtype: torch.dtype, device: str) -> Tensor:
    return normal((size,), size).to(device, dtype)


def _missed(
    total: Tensor,
    arrived: Tensor,
    squares: Tensor,
    uses: list[tuple[Use, str]],
    wide: torch.dtype,
    gradient: Tensor | None = None,
) -> Tensor:
    """Is Σ_i c_i not what arrived, beyond rounding? Not finite on either side is not for us to say."""
    coarse = max((use.deltas[i].dtype for use, _ in uses for i in use.deltas), key=lambda d: torch.finfo(d).eps)
    coarse = max(coarse, wide, key=lambda d: torch.finfo(d).eps)
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-4}.get(coarse, 0.05)
    if total.is_cuda and coarse == torch.float32:
        tolerance = 5e-3  # TF32
    # Where contributions cancel within a sample (a key's bias), both are rounding of what was added up.
    floor = sum((_norm(d, wide) for use, _ in uses for d in use.deltas.values()), start=squares.new_zeros(()))
    inputs = [v for use, name in uses if name != "bias" for v in use.given() if isinstance(v, Tensor)]
    largest = [_norm(v, wide) for v in inputs if v.is_floating_point()]
    floor = floor * (1 + (torch.stack(largest).amax() if largest else 0.0))
    # As many terms as rows and positions: their rounding grows with the root.
    terms = max(d.numel() for use, _ in uses for d in use.deltas.values())
    scale = _norm(arrived if gradient is None else gradient, wide) + squares.sum().sqrt()
    bound = tolerance * scale + 4 * torch.finfo(wide).eps * (1 + isqrt(isqrt(terms))) * floor
    return _norm(total - arrived, wide) > bound


def _norm(t: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(t, dtype=dtype)
