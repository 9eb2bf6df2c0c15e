"""Batches as loaders give them: split into inputs and targets, cut into samples, put together again, told apart."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError, OutputTypeError, ShapeError
from ...utils.brief import brief
from ..parts import leaves, substitute, taken

TARGET = "labels"  # of a mapping, where nothing is said
NAMED = 6  # keys that a message names

Pair = tuple[Any, Tensor]  # inputs (a tensor, a tuple, a dict) and targets, of as many rows


@dataclass(frozen=True)
class Split:
    """What of a batch is inputs and what targets.

    Attributes:
        target: the name of the targets in a mapping; None for ``labels``.
        function: batch -> (inputs, targets), in place of all rules.
    """

    target: str | None = None
    function: Callable[[Any], Any] | None = None

    def __call__(self, batch: Any) -> Pair:
        """Inputs and targets of a batch, checked.

        Raises:
            InputError and its kinds: quotes what came.
        """
        if self.function is not None:
            found, who = self.function(batch), "split"
            if not (isinstance(found, (tuple, list)) and len(found) == 2):
                raise InputError(f"split returned {brief(found)}: it must return (inputs, targets).")
            inputs, targets = found
        else:
            inputs, targets = self._by_rule(batch)
            who = "the loader"
        inputs = taken(inputs)
        for place, leaf in _places("inputs", inputs):
            if not isinstance(leaf, (Tensor, bool, int, float, type(None))):
                raise InputError(
                    f"{who} gives {place} = {brief(leaf)}, which is no tensor: convert it, or leave it out, in "
                    "collate_fn= or split=."
                )
        if not isinstance(targets, Tensor):
            raise InputError(f"{who} gives targets {brief(targets)}: they must be one tensor; split= makes them so.")
        tensors = [leaf for leaf in leaves(inputs) if leaf.dim()]
        if not tensors:
            raise InputError(f"{who} gives inputs {brief(inputs)} without a tensor of samples.")
        if targets.dim() == 0 or len(targets) != len(tensors[0]):
            raise ShapeError(
                f"{who} gives inputs of shape {tuple(tensors[0].shape)} and targets of shape {tuple(targets.shape)}: "
                "one row a sample; split= makes them so."
            )
        return inputs, taken(targets)

    def _by_rule(self, batch: Any) -> Pair:
        if isinstance(batch, Mapping):
            name = TARGET if self.target is None else self.target
            if name not in batch:
                raise InputError(
                    f"the loader gives a {type(batch).__name__} with keys {list(batch)[:NAMED]} and no {name!r}: say "
                    "which are the targets by target=, or give split= a function batch -> (inputs, targets)."
                )
            return {key: value for key, value in batch.items() if key != name}, batch[name]
        if self.target is not None:
            raise InputError(
                f"target={self.target!r} is for batches that are mappings; the loader gives {brief(batch)}."
            )
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[0], batch[1]
        raise InputError(
            f"the loader gives {brief(batch)}: a batch must be (inputs, targets) or a mapping with its targets under "
            f"{TARGET!r}; for anything else give split= a function batch -> (inputs, targets)."
        )


@dataclass(frozen=True)
class Row:
    """One sample of a batch that is there."""

    pair: Pair
    at: int

    def digest(self) -> str:
        n = len(self.pair[1])
        return digest((substitute(self.pair[0], n, lambda leaf: leaf[self.at]), self.pair[1][self.at]))


def rows_of(pair: Pair) -> Iterator[Row]:
    return (Row(pair, at) for at in range(len(pair[1])))


def together(rows: list[Row]) -> Pair:
    """The samples in their order as one batch.

    Raises:
        ShapeError: they are of different shapes. InputError: what belongs to no sample differs between batches.
    """
    groups = [(pair, [row.at for row in group]) for pair, group in _by_batch(rows)]
    inputs = _joined("inputs", [(pair[0], len(pair[1]), at) for pair, at in groups])
    return inputs, _joined("targets", [(pair[1], len(pair[1]), at) for pair, at in groups])


def _by_batch(rows: list[Row]) -> Iterator[tuple[Pair, list[Row]]]:
    for _, group in itertools.groupby(rows, lambda row: id(row.pair)):
        members = list(group)
        yield members[0].pair, members


def _joined(name: str, pieces: list[tuple[Any, int, list[int]]]) -> Any:
    """One nest from several, each with its number of samples and those of them that are taken."""
    nests = [nest for nest, _, _ in pieces]
    first = nests[0]
    _require_alike(name, nests)
    if isinstance(first, dict):
        return {key: _joined(f"{name}[{key!r}]", [(nest[key], n, at) for nest, n, at in pieces]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_joined(f"{name}[{i}]", [(nest[i], n, at) for nest, n, at in pieces]) for i in range(len(first)))
    if isinstance(first, Tensor) and all(nest.dim() and len(nest) == n for nest, n, _ in pieces):
        return _stacked(name, [nest[at] for nest, _, at in pieces])
    if not all(torch.equal(first, nest) if isinstance(first, Tensor) else first == nest for nest in nests):
        raise InputError(
            f"{name} differ between the loader's batches ({brief(nests)}) and have no row for each sample: give "
            "split= a function batch -> (inputs, targets) that leaves them out."
        )
    return first


def _require_alike(name: str, nests: list[Any]) -> None:
    """Raise where nests have other kinds, keys or lengths."""
    first = nests[0]
    if len(kinds := {type(nest): brief(nest) for nest in nests}) > 1:
        raise InputError(f"{name} of the loader's batches are of different kinds: {' and '.join(kinds.values())}.")
    if isinstance(first, dict) and any(nest.keys() != first.keys() for nest in nests):
        raise InputError(f"{name} of the loader's batches have different keys: {brief([list(n) for n in nests])}.")
    if isinstance(first, (tuple, list)) and any(len(nest) != len(first) for nest in nests):
        raise InputError(f"{name} of the loader's batches have different lengths: {brief([len(n) for n in nests])}.")


def _stacked(name: str, pieces: list[Tensor]) -> Tensor:
    shapes = list(dict.fromkeys(tuple(piece.shape[1:]) for piece in pieces))
    if len(shapes) > 1:
        raise ShapeError(
            f"{name}: samples of shape {shapes[0]} and of shape {shapes[1]} do not go into one batch: let collate_fn "
            "pad all of them to one length (padding='max_length')."
        )
    return torch.cat(pieces)


def copied(pair: Pair, device: torch.device | None = None) -> Pair:
    """The same in memory of its own, on a device or where it is."""
    inputs, targets = pair
    return _copied(inputs, device), targets.to(device, copy=True)


def _copied(nest: Any, device: torch.device | None) -> Any:
    if isinstance(nest, dict):
        return {key: _copied(value, device) for key, value in nest.items()}
    if isinstance(nest, (tuple, list)):
        return tuple(_copied(value, device) for value in nest)
    return nest.to(device, copy=True) if isinstance(nest, Tensor) else nest


def next_token(pair: Pair, shift: bool | None, ignored: int) -> Pair:
    """The targets of a causal language model at the position before theirs; refuses to guess.

    Raises:
        InputError: targets are the inputs themselves and nothing was said. ShapeError: they are no sequences.
    """
    inputs, targets = pair
    if shift is None:
        tokens = inputs.get("input_ids") if isinstance(inputs, dict) else inputs
        if _whole(tokens) and _whole(targets) and tokens.shape == targets.shape and targets.dim() > 1:
            counted = targets != ignored
            if bool(counted.any()) and bool((tokens == targets)[counted].all()):
                raise InputError(
                    "the targets are the input tokens themselves, position by position: give shift=True where a causal "
                    "language model predicts the next token, shift=False where it says the present one."
                )
    if not shift:
        return pair
    if targets.dim() < 2 or targets.shape[1] < 2:
        raise ShapeError(
            f"shift=True needs targets (n, T) of at least two positions, got shape {tuple(targets.shape)}."
        )
    return inputs, targets[:, 1:]


def _whole(tokens: Any) -> TypeGuard[Tensor]:
    return isinstance(tokens, Tensor) and not tokens.is_floating_point()


def digest(nest: Any) -> str:
    """Of a sample's contents: samples with the same are the same."""
    found = hashlib.blake2b(digest_size=16)
    _feed(found, nest)
    return found.hexdigest()


def _feed(found: Any, nest: Any) -> None:
    if isinstance(nest, Mapping):
        for key, value in nest.items():
            found.update(repr(key).encode())
            _feed(found, value)
    elif isinstance(nest, (tuple, list)):
        found.update(b"(")
        for value in nest:
            _feed(found, value)
        found.update(b")")
    elif isinstance(nest, Tensor):
        found.update(f"{tuple(nest.shape)}{nest.dtype}".encode())
        flat = nest.detach().cpu().contiguous().reshape(-1)
        found.update(cast(Any, flat.view(torch.uint8).numpy()).data if flat.numel() else b"")
    elif isinstance(nest, np.ndarray):
        found.update(f"{nest.shape}{nest.dtype}".encode())
        found.update(np.ascontiguousarray(nest).tobytes())
    elif isinstance(nest, (str, bytes, bool, int, float, complex, type(None), np.generic)):
        found.update(repr(nest).encode())
    elif callable(getattr(nest, "tobytes", None)):  # images
        found.update(nest.tobytes())
    else:
        raise OutputTypeError(
            f"the samples hold {brief(nest)}, by which they cannot be told from others: let the dataset give tensors."
        )


def _places(name: str, nest: Any) -> Iterator[tuple[str, Any]]:
    """Whatever is in a nest, each with the expression that reaches it."""
    if isinstance(nest, dict):
        for key, value in nest.items():
            yield from _places(f"{name}[{key!r}]", value)
    elif isinstance(nest, (tuple, list)):
        for i, value in enumerate(nest):
            yield from _places(f"{name}[{i}]", value)
    else:
        yield name, nest
