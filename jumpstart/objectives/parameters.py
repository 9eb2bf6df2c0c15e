"""The parameters that move, as one flat vector θ ∈ R^P, and the model as a pure function of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import InputError, NonFiniteError, NoParametersError
from ..utils.interrupts import uninterrupted

Select = str | Iterable[str] | Callable[[str, nn.Parameter], bool] | None


class ParameterSpace:
    """Names, shapes and order of the parameters that are free to move.

    Tied weights appear once. Half-precision parameters are kept as float32 in the vector and rounded on the way
    into the model.

    Args:
        model: any module.
        select: None for every parameter that requires a gradient; names, prefixes or shell patterns
            (``"head.*"``); or a function of name and parameter.

    Raises:
        NoParametersError: nothing is selected.
        InputError: a pattern matches nothing, or the parameters lie on several devices.
    """

    def __init__(self, model: nn.Module, select: Select = None) -> None:
        chosen = _select(model, select)
        self.names = tuple(chosen)
        self.shapes = tuple(p.shape for p in chosen.values())
        self.sizes = tuple(p.numel() for p in chosen.values())
        self.dtypes = tuple(p.dtype for p in chosen.values())
        self.size = sum(self.sizes)
        devices = {p.device for p in chosen.values()}
        if len(devices) > 1:
            raise InputError(f"parameters lie on several devices ({sorted(map(str, devices))}): move them to one.")
        self.device = devices.pop()
        dtype = torch.float32
        for p in chosen.values():
            dtype = torch.promote_types(dtype, p.dtype)
        self.dtype = dtype

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A vector (P,) from tensors by name."""
        return torch.cat([tensors[name].reshape(-1).to(self.dtype) for name in self.names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Tensors by name from a vector (P,), in the parameters' own dtypes."""
        pieces = vector.split(self.sizes)
        return {
            name: piece.view(shape).to(dtype)
            for name, piece, shape, dtype in zip(self.names, pieces, self.shapes, self.dtypes, strict=True)
        }

    def read(self, model: nn.Module) -> Tensor:
        """The model's present weights as a fresh vector (P,).

        Raises:
            NonFiniteError: a weight is NaN or infinite.
        """
        present = {name: p.detach() for name, p in model.named_parameters()}
        vector = self.flatten(present)
        if not bool(torch.isfinite(vector).all()):  # asked once: on a GPU each question waits for it
            name = next(name for name in self.names if not bool(torch.isfinite(present[name]).all()))
            raise NonFiniteError(f"parameter {name!r} holds NaN or infinity: restore finite weights first.")
        return vector

    @torch.no_grad()
    def write(self, model: nn.Module, vector: Tensor) -> None:
        """Copy a vector (P,) into the model's parameters, in place; an interrupt finds all of them written or none."""
        present = dict(model.named_parameters())
        pairs = [(present[name], value) for name, value in self.unflatten(vector).items()]
        with uninterrupted():
            for parameter, value in pairs:
                parameter.copy_(value)


def _select(model: nn.Module, select: Select) -> dict[str, nn.Parameter]:
    present = dict(model.named_parameters())
    if select is None:
        chosen = {name: p for name, p in present.items() if p.requires_grad}
    elif callable(select):
        chosen = {name: p for name, p in present.items() if select(name, p)}
    else:
        patterns = [select] if isinstance(select, str) else list(select)
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in present):
                raise InputError(f"params: {pattern!r} matches none of the parameters {list(present)}.")
        chosen = {name: p for name, p in present.items() if any(_matches(name, pat) for pat in patterns)}
    chosen = {name: p for name, p in chosen.items() if p.numel() and p.is_floating_point()}
    if not chosen:
        raise NoParametersError(
            f"{type(model).__name__} has no trainable parameter left (of {len(present)}): set requires_grad, or "
            "name some with params=[…]."
        )
    return chosen


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern + ".") or fnmatchcase(name, pattern)
