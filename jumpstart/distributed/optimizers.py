"""Optimizers whose state no process has all of, and the *twin* that has: what jumps read of it and write to it.

Of parameters in shards (FSDP2) the state is in shards, too; of ``ZeroRedundancyOptimizer`` each process has that of
some parameters. Between jumps a twin is empty. In a *stretch* (``current``) it has the state, gathered, and at its end
what has become of it is written back: tensors in place, numbers as they are.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..utils.interrupts import uninterrupted
from ..utils.kinds import is_named
from .layout import cut, gather, is_sharded, local, require_room, scatter
from .sharded import Sharded, found_for
from .world import World

Optimizer = torch.optim.Optimizer
LINK = "_jumpstart_home"  # the attribute of a twin that leads to its ``Home``


class Home(ABC):
    """The optimizer that a twin is of.

    Args:
        optimizer: the loop's. source: whose class, settings and state the twin has; the same, or one inside it.

    Attributes:
        twin: the same class, settings and groups; its state is that of all processes, in a stretch.
    """

    def __init__(self, optimizer: Optimizer, source: Optimizer) -> None:
        self.optimizer, self.source, self.depth = optimizer, source, 0
        self.twin: Optimizer = object.__new__(type(source))
        vars(self.twin).update({key: value for key, value in vars(source).items() if _own(key)})
        Optimizer.__setstate__(self.twin, {})
        self.twin.param_groups, self.twin.state = [], defaultdict(dict)
        vars(self.twin)[LINK] = self
        self.regroup()

    def __deepcopy__(self, memo: Any) -> None:
        return None  # a copy of the twin is nobody's

    def __reduce__(self) -> Any:
        raise InputError("a JumpOptimizer over several processes cannot be pickled: save its state_dict().")

    def regroup(self) -> None:
        """Make the twin's groups what the optimizer's are now."""
        groups = self.twin.param_groups
        del groups[len(self.optimizer.param_groups) :]
        for at, group in enumerate(self.optimizer.param_groups):
            if at == len(groups):
                groups.append({})
            groups[at].clear()
            groups[at].update({**group, "params": [self.whole(p) for p in group["params"]]})

    def whole(self, p: Tensor) -> Tensor:
        """The twin's parameter for one of the optimizer's."""
        return p

    @abstractmethod
    def take(self) -> None:
        """Give the twin the state of all processes; every process calls it."""

    @abstractmethod
    def give(self) -> None:
        """Write back what differs of the state; nothing is exchanged."""

    def let_go(self) -> None:
        """Nothing of what was gathered is held any longer."""
        self.twin.state.clear()

    def begin(self) -> None:
        self.regroup()
        try:
            self.take()
        except BaseException:
            self.let_go()
            raise

    def end(self) -> None:
        with uninterrupted():
            try:
                self.give()
                for own, theirs in zip(self.twin.param_groups, self.optimizer.param_groups, strict=True):
                    _assign(theirs, {key: value for key, value in own.items() if key != "params"})
                _assign(vars(self.source), {key: value for key, value in vars(self.twin).items() if _own(key)})
            finally:
                self.let_go()


class InShards(Home):
    """Of parameters in shards: the twin is over the whole ones, and has the loop's gradients as well."""

    def __init__(self, optimizer: Optimizer) -> None:
        if "param_groups" not in vars(optimizer) or "state" not in vars(optimizer):
            raise InputError(
                f"{type(optimizer).__name__} keeps its parameter groups somewhere else (it wraps another optimizer), "
                "and its parameters are in shards: give the optimizer inside it."
            )
        self.pairs: dict[Any, tuple[Sharded, Tensor]] = {}
        self.models: list[Sharded] = []
        super().__init__(optimizer, optimizer)

    def regroup(self) -> None:
        self.pairs = {}
        super().regroup()
        self.models = list(dict.fromkeys(sharded for sharded, _ in self.pairs.values()))

    def whole(self, p: Tensor) -> Tensor:
        known = found_for(p) if is_sharded(p) else None
        if known is None:
            return p
        self.pairs[p] = known
        return known[1]

    def take(self) -> None:
        for sharded in self.models:
            sharded.refresh()
        for world in dict.fromkeys(sharded.world for sharded in self.models):
            mine = {p: whole for p, (sharded, whole) in self.pairs.items() if sharded.world is world}
            gather(world, "an optimizer's state and gradients", lambda mine=mine: self._taken(mine))
        for p in (p for group in self.optimizer.param_groups for p in group["params"]):
            if p not in self.pairs and p in self.optimizer.state:
                self.twin.state[p] = self.optimizer.state[p]
        for sharded in self.models:
            sharded.fresh = True

    def _taken(self, pairs: dict[Any, Tensor]) -> list[tuple[str, Any, Tensor]]:
        """What is to be gathered: names, tensors in shards, and whole ones that the twin holds already."""
        held = [t for p in pairs for t in (p.grad, *self.optimizer.state.get(p, {}).values()) if is_sharded(t)]
        require_room(f"the gradients and the state of {type(self.optimizer).__name__}", held)
        found: list[tuple[str, Any, Tensor]] = []
        for at, (p, whole) in enumerate(pairs.items()):
            whole.grad = None
            if p.grad is not None:
                whole.grad = torch.zeros_like(whole)
                found.append((f"the gradient of parameter {at}", p.grad, whole.grad))
            if p not in self.optimizer.state:
                continue
            own = self.twin.state[whole] = {}
            for key, value in self.optimizer.state[p].items():
                if is_sharded(value):
                    own[key] = torch.zeros(value.shape, dtype=value.dtype, device=local(value).device)
                    found.append((f"{key!r} of parameter {at}", value, own[key]))
                    continue
                if isinstance(value, Tensor) and value.dim() and value.shape == local(p).shape != p.shape:
                    raise InputError(
                        f"{type(self.optimizer).__name__} keeps {key!r} of parameter {at} as a plain tensor of its "
                        "shard, which no other process can know of: it must be a DTensor, as zeros_like makes it."
                    )
                own[key] = copy.deepcopy(value)
        return found

    def give(self) -> None:
        for p, (sharded, whole) in self.pairs.items():
            if whole not in self.twin.state:
                continue
            own, theirs = self.twin.state[whole], self.optimizer.state[p]
            for key in theirs.keys() - own.keys():
                del theirs[key]
            plain = {}
            for key, value in own.items():
                if is_sharded(theirs.get(key)) and isinstance(value, Tensor):
                    scatter(sharded.world, repr(key), value, theirs[key])
                elif key not in theirs and isinstance(value, Tensor) and value.dim() and value.shape == p.shape:
                    theirs[key] = cut(sharded.world, repr(key), value, p)  # of a first step
                else:
                    plain[key] = value
            _assign(theirs, plain)

    def let_go(self) -> None:
        super().let_go()
        for _, whole in self.pairs.values():
            whole.grad = None
        for sharded in self.models:
            sharded.fresh = False


class Spread(Home):
    """Of a ``ZeroRedundancyOptimizer``: parameters are whole, and each process steps some of them."""

    def __init__(self, optimizer: Any, world: World) -> None:
        if optimizer._overlap_with_ddp:
            raise InputError(
                "ZeroRedundancyOptimizer(overlap_with_ddp=True) steps within the backward pass, where nothing can "
                "follow a step: leave overlap_with_ddp out."
            )
        self.world = world
        super().__init__(optimizer, optimizer.optim)

    def take(self) -> None:
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        places = {p: at for at, p in enumerate(held)}

        def own() -> dict[int, dict[str, Any]]:
            mine = {places[p]: state for p, state in self.source.state.items() if p in places and state}
            return {at: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in s.items()} for at, s in mine.items()}

        told = self.world.exchanged("an optimizer's state", self.world.attempt("an optimizer's state", own))
        for at, state in (pair for one in told for pair in one.items()):
            p = held[at]
            mine = self.source.state.get(p, {})
            for key, value in state.items():
                device = p.device if isinstance(value, Tensor) and value.dim() else None
                device = mine[key].device if isinstance(mine.get(key), Tensor) else device
                self.twin.state[p][key] = copy.deepcopy(value) if device is None else value.to(device, copy=True)

    def give(self) -> None:
        mine = {p for group in self.source.param_groups for p in group["params"]}
        for p in self.twin.state.keys() & mine:
            theirs = self.source.state[p]
            for key in theirs.keys() - self.twin.state[p].keys():
                del theirs[key]
            _assign(theirs, self.twin.state[p])


@torch.no_grad()
def _assign(table: dict[str, Any], values: dict[str, Any]) -> None:
    """Make entries of a table these values, where they differ: tensors in place."""
    for key, value in values.items():
        present = table.get(key)
        if present is value and key in table:
            continue
        if isinstance(value, Tensor) and isinstance(present, Tensor) and present.shape == value.shape:
            if not torch.equal(present, value):
                present.copy_(value)
        else:
            table[key] = value


def _own(key: str) -> bool:
    """Whether an attribute is an optimizer's own: no table, no hooks, not ``step`` as schedulers replace it."""
    return key not in ("param_groups", "state", "step", LINK) and not key.endswith("_hooks")


def is_spread(optimizer: Any) -> bool:
    """Whether an optimizer is a ``ZeroRedundancyOptimizer``."""
    return is_named(optimizer, "ZeroRedundancyOptimizer")


def in_shards(optimizer: Optimizer) -> bool:
    """Whether parameters of an optimizer are in shards of models that objectives know."""
    return any(is_sharded(p) and found_for(p) for group in optimizer.param_groups for p in group["params"])


def original(optimizer: Optimizer) -> Optimizer:
    """The optimizer that a twin is of; any other as it is."""
    home: Home | None = vars(optimizer).get(LINK)
    return optimizer if home is None else home.optimizer


@contextlib.contextmanager
def current(optimizer: Any) -> Iterator[None]:
    """A stretch in which a twin is what its optimizer is; nothing for any other. Every process goes through it."""
    home: Home | None = vars(optimizer).get(LINK) if isinstance(optimizer, Optimizer) else None
    if home is None or home.depth:
        yield
        return
    home.begin()
    home.depth = 1
    try:
        yield
    finally:
        home.depth = 0
        home.end()


def written(optimizer: Optimizer) -> list[int]:
    """How often each parameter was written to, which torch counts; those in shards by themselves and by their shard."""
    held = [p for group in original(optimizer).param_groups for p in group["params"]]
    return [p._version + (local(p)._version if is_sharded(p) else 0) for p in held]
