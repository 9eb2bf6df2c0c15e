"""An optimizer of parameters in shards, and its *twin* over the whole ones: what jumps read of it and write to it.

Between jumps the twin is empty. In a *stretch* (``current``) it has the optimizer's state and the loop's gradients,
gathered, and at its end what has become of them is written back: to shards in place, numbers as they are.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..utils.interrupts import uninterrupted
from .layout import cut, gather, is_sharded, local, scatter
from .sharded import Sharded, found_for

Optimizer = torch.optim.Optimizer
LINK = "_jumpstart_home"  # the attribute of a twin that leads to its ``Home``


class Home:
    """The optimizer that a twin is of.

    Args:
        optimizer: holds parameters in shards.

    Attributes:
        twin: the same class, settings and groups, over whole parameters.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        kind = type(optimizer)
        if "param_groups" not in vars(optimizer) or "state" not in vars(optimizer):
            raise InputError(
                f"{kind.__name__} keeps its parameter groups somewhere else (it wraps another optimizer), and its "
                "parameters are in shards: give the optimizer inside it."
            )
        self.optimizer, self.depth = optimizer, 0
        self.twin: Optimizer = object.__new__(kind)
        vars(self.twin).update({key: value for key, value in vars(optimizer).items() if _own(key)})
        Optimizer.__setstate__(self.twin, {})
        self.twin.param_groups, self.twin.state = [], defaultdict(dict)
        vars(self.twin)[LINK] = self
        self.regroup()

    def __deepcopy__(self, memo: Any) -> None:
        return None  # a copy of the twin is nobody's

    def __reduce__(self) -> Any:
        raise InputError("an optimizer of parameters in shards cannot be pickled with its jumps: make it anew.")

    def regroup(self) -> dict[Any, tuple[Sharded, Tensor]]:
        """The twin's groups as the optimizer's are now; whole parameters by those in shards."""
        found: dict[Any, tuple[Sharded, Tensor]] = {}
        groups = self.twin.param_groups
        del groups[len(self.optimizer.param_groups) :]
        for at, group in enumerate(self.optimizer.param_groups):
            own = []
            for p in group["params"]:
                known = found_for(p) if is_sharded(p) else None
                if known is not None:
                    found[p] = known
                own.append(p if known is None else known[1])
            if at == len(groups):
                groups.append({})
            groups[at].clear()
            groups[at].update({**group, "params": own})
        return found

    # ---- a stretch ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Weights, gradients and state, whole; every process calls it."""
        self.pairs = self.regroup()
        self.models = list(dict.fromkeys(sharded for sharded, _ in self.pairs.values()))
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
                elif isinstance(value, Tensor):
                    if value.dim() and value.shape != p.shape and value.shape == local(p).shape:
                        raise InputError(
                            f"{type(self.optimizer).__name__} keeps {key!r} of parameter {at} as a plain tensor of its "
                            "shard, which no other process can know of: it must be a DTensor, as zeros_like makes it."
                        )
                    own[key] = value.detach().clone()
                else:
                    own[key] = copy.deepcopy(value)
        return found

    def end(self) -> None:
        """Write back what differs, and let go; nothing is exchanged."""
        with uninterrupted():
            try:
                self._settle()
            finally:
                self.twin.state.clear()
                for _, whole in self.pairs.values():
                    whole.grad = None
                for sharded in self.models:
                    sharded.fresh = False
                self.pairs, self.models = {}, []

    def _settle(self) -> None:
        for p, (sharded, whole) in self.pairs.items():
            if whole not in self.twin.state:
                continue
            own, theirs = self.twin.state[whole], self.optimizer.state[p]
            for key in theirs.keys() - own.keys():
                del theirs[key]
            for key, value in own.items():
                self._write(sharded, p, theirs, key, value)
        for own, theirs in zip(self.twin.param_groups, self.optimizer.param_groups, strict=True):
            for key, value in own.items():
                if key != "params" and theirs.get(key) is not value:
                    theirs[key] = value
        here = vars(self.optimizer)
        for key, value in vars(self.twin).items():
            if _own(key) and here.get(key) is not value:
                here[key] = value

    @torch.no_grad()
    def _write(self, sharded: Sharded, p: Any, table: dict[str, Any], key: str, value: Any) -> None:
        present = table.get(key)
        if is_sharded(present) and isinstance(value, Tensor):
            scatter(sharded.world, repr(key), value, present)
        elif isinstance(value, Tensor) and isinstance(present, Tensor) and present.shape == value.shape:
            if not torch.equal(present, value):
                present.copy_(value)
        elif isinstance(value, Tensor) and value.dim() and value.shape == p.shape:  # of a first step
            table[key] = cut(sharded.world, repr(key), value, p)
        elif present is None or isinstance(value, Tensor) or present != value:
            table[key] = value


def _own(key: str) -> bool:
    """Whether an attribute is an optimizer's own: no table, no hooks, not ``step`` as schedulers replace it."""
    return key not in ("param_groups", "state", "step", LINK) and not key.endswith("_hooks")


def whole(optimizer: Optimizer) -> Optimizer:
    """The twin of an optimizer whose parameters are in shards of models that objectives know; any other as it is.

    Raises:
        InputError: it wraps another one, which has them.
    """
    if vars(optimizer).get(LINK) is not None:
        return optimizer
    held = (p for group in optimizer.param_groups for p in group["params"])
    return Home(optimizer).twin if any(is_sharded(p) and found_for(p) for p in held) else optimizer


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
