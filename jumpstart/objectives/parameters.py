"""The parameters that move, as one flat vector θ ∈ R^P, and the model as a pure function of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..distributed.sharded import settled
from ..errors import InputError, NonFiniteError, NoParametersError
from ..utils.brief import brief
from ..utils.interrupts import uninterrupted

Select = str | Iterable[str] | Callable[[str, nn.Parameter], bool] | None


class ParameterSpace:
    """Names, shapes and order of the parameters that are free to move.

    Tied weights appear once. Half-precision parameters are kept as float32 in the vector and rounded on the way
    into the model. A complex parameter is two real numbers an entry, as torch's optimizers take it; ``shapes`` and
    ``dtypes`` are the model's own, ``sizes`` count real numbers.

    Args:
        model: any module.
        select: None for every parameter that requires a gradient; names, prefixes or shell patterns
            (``"head.*"``); or a function of name and parameter.

    Raises:
        NoParametersError: nothing is selected.
        InputError: a pattern matches nothing, the parameters lie on several devices, or one is of a dtype that cannot
            be trained.
    """

    def __init__(self, model: nn.Module, select: Select = None) -> None:
        chosen = _select(model, select)
        self.names = tuple(chosen)
        self.shapes = tuple(p.shape for p in chosen.values())
        self.sizes = tuple(p.numel() * (2 if p.is_complex() else 1) for p in chosen.values())
        self.dtypes = tuple(p.dtype for p in chosen.values())
        self.size = sum(self.sizes)
        devices = {p.device for p in chosen.values()}
        if len(devices) > 1:
            raise InputError(f"parameters lie on several devices ({sorted(map(str, devices))}): move them to one.")
        self.device = devices.pop()
        dtype = torch.float32
        for p in chosen.values():
            dtype = torch.promote_types(dtype, p.real.dtype if p.is_complex() else p.dtype)
        self.dtype = dtype

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A vector (P,) from tensors by name, shaped like the parameters, complex ones also as two reals an entry."""
        return torch.cat([as_reals(tensors[name]).reshape(-1).to(self.dtype) for name in self.names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Tensors by name from a vector (P,), in the parameters' own shapes and dtypes."""
        return self.assembled(self.pieces(vector))

    def pieces(self, vector: Tensor) -> dict[str, Tensor]:
        """Tensors of real numbers by name: like ``unflatten``, but complex parameters as (*shape, 2)."""
        return {
            name: piece.view(*shape, 2) if dtype.is_complex else piece.view(shape).to(dtype)
            for name, piece, shape, dtype in zip(
                self.names, vector.split(self.sizes), self.shapes, self.dtypes, strict=True
            )
        }

    def assembled(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the model's own dtypes from ``pieces``."""
        complexes = {name: dtype for name, dtype in zip(self.names, self.dtypes, strict=True) if dtype.is_complex}
        return {
            name: torch.view_as_complex(piece.contiguous()).to(complexes[name]) if name in complexes else piece
            for name, piece in pieces.items()
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

    def write(self, model: nn.Module, vector: Tensor) -> None:
        """Copy a vector (P,) into the model's parameters, in place; an interrupt finds all of them written or none."""
        present = dict(model.named_parameters())
        pairs = [(present[name], value) for name, value in self.unflatten(vector).items()]
        with uninterrupted(), torch.no_grad():  # within: an interrupt on its way out would leave gradients off
            for parameter, value in pairs:
                parameter.copy_(value)
            settled(model)


def as_reals(tensor: Tensor) -> Tensor:
    """A complex tensor as two real numbers an entry (*shape, 2); others as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _select(model: nn.Module, select: Select) -> dict[str, nn.Parameter]:
    present = dict(model.named_parameters())
    if select is None:
        chosen = {name: p for name, p in present.items() if p.requires_grad}
    elif callable(select):
        chosen = {name: p for name, p in present.items() if select(name, p)}
    else:
        if not isinstance(select, (str, Iterable)):
            raise InputError(f"params={brief(select)}: give names or patterns, or a function of name and parameter.")
        patterns = [select] if isinstance(select, str) else list(select)
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise InputError(
                    f"params: {brief(pattern)} is no name: give names or patterns of {_few(present)}, or a function "
                    "of name and parameter."
                )
            if not any(_matches(name, pattern) for name in present):
                raise InputError(f"params: {brief(pattern)} matches none of the parameters {_few(present)}.")
        chosen = {name: p for name, p in present.items() if any(_matches(name, pat) for pat in patterns)}
    _require_trainable(chosen)
    chosen = {name: p for name, p in chosen.items() if p.numel() and (p.is_floating_point() or p.is_complex())}
    if not chosen:
        raise NoParametersError(
            f"{type(model).__name__} has no trainable parameter left (of {len(present)}): set requires_grad, or "
            "name some with params=[…]."
        )
    return chosen


def _few(names: Iterable[str]) -> str:
    """The first names, for people."""
    names = list(names)
    return f"{names[:8]}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _require_trainable(chosen: Mapping[str, nn.Parameter]) -> None:
    for name, p in chosen.items():
        tiny = p.is_floating_point() and p.element_size() < 2
        if tiny or (p.requires_grad and not (p.is_floating_point() or p.is_complex())):
            raise InputError(
                f"parameter {name!r} is {p.dtype}, in which nothing can be trained: freeze it (requires_grad_(False)), "
                "leave it out with params=[…], or convert it."
            )


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern + ".") or fnmatchcase(name, pattern)
