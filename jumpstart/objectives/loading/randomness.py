"""Somebody else's code on random numbers of its own: the global generators are lent to it, and given back."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from ...errors import InputError
from ...utils.fallback import described
from ...utils.interrupts import uninterrupted

RANDOM = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
State = tuple[Any, Any, list[tuple[torch.Generator, torch.Tensor]]]
T = TypeVar("T")


def derived(*numbers: int) -> int:
    """A seed of 63 bits from several numbers; near numbers give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


class Private:
    """The global generators of torch, NumPy and Python as a stream of its own, from ``seed`` on.

    Run after run the stream goes on; the callers' own is as it was, whatever happens meanwhile.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._own: State | None = None

    def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, run on the stream."""
        theirs = [_read()]
        try:
            with uninterrupted():
                self._begin()
            return work()
        finally:
            try:
                self._end(theirs)
            except BaseException:
                self._end(theirs)  # an interrupt on the way in; nothing is done twice
                raise

    def _begin(self) -> None:
        if self._own is not None:
            _write(self._own)
            return
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        for generator in _global():
            generator.manual_seed(self.seed)

    def _end(self, theirs: list[State]) -> None:
        with uninterrupted():
            if theirs:
                self._own = _read()
                _write(theirs.pop())


def _global() -> list[torch.Generator]:
    found = [torch.default_generator]
    if torch.cuda.is_initialized():
        found += torch.cuda.default_generators
    return found


def _read() -> State:
    return random.getstate(), np.random.get_state(), [(one, one.get_state()) for one in _global()]


def _write(state: State) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    for generator, its in state[2]:
        generator.set_state(its)


def twin_of(sampler: Any, shared: Any, seed: int, number: int) -> Any:
    """A copy of a sampler, its generators at a seed: the user's own goes on undisturbed.

    Args:
        shared: what the copy shares with it, a dataset. number: of the pass, for samplers that have ``set_epoch``.

    Raises:
        InputError: it cannot be copied.
    """
    kept = [shared, *_datasets(shared), *_datasets(sampler)]  # large, and only read
    memo: dict[int, Any] = {id(thing): thing for thing in kept}
    try:
        twin = copy.deepcopy(sampler, memo)
    except Exception as error:  # whatever its __deepcopy__ raises, it is not to be had
        raise InputError(
            f"the loader's {type(sampler).__name__} cannot be copied ({described(error)}), and drawing from it would "
            "take samples from your own loop: give the dataset itself, or a DataLoader with a sampler of its own."
        ) from error
    ours = {id(thing) for thing in kept} | {id(memo.get(id(memo)))}
    copies = [thing for thing in memo.values() if id(thing) not in ours]
    for at, thing in enumerate(thing for thing in copies if isinstance(thing, RANDOM)):
        _seed(thing, derived(seed, at))
    for thing in copies:
        if callable(getattr(thing, "set_epoch", None)):
            thing.set_epoch(number)
    return twin


def _datasets(thing: Any) -> list[Any]:
    """What a sampler or a dataset holds as a dataset, and what these hold."""
    found: list[Any] = []
    for name in ("data_source", "dataset", "sampler"):
        inner = vars(thing).get(name) if hasattr(thing, "__dict__") else None
        if inner is not None and inner is not thing:
            found += [] if name == "sampler" else [inner]
            found += _datasets(inner)
    return found


def _seed(thing: Any, seed: int) -> None:
    if isinstance(thing, torch.Generator):
        thing.manual_seed(seed)
    elif isinstance(thing, np.random.Generator):
        thing.bit_generator.state = type(thing.bit_generator)(seed).state
    elif isinstance(thing, np.random.RandomState):
        thing.seed(seed % 2**32)
    elif isinstance(thing, random.Random):
        thing.seed(seed)
