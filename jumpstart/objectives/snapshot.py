"""What an answer is about, kept as it was: data, buffers, weights that do not move, and every module's mode.

A solution is asked long after it was made, when the model has trained on and arrays have been written over. What is
small is copied; what is large is watched, by versions and by contents (``.data`` leaves versions alone); what cannot be
seen (a function's own data, a module's attributes) is found out by asking the network again for a few outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..losses.base import Loss
from ..utils.fallback import described
from ..utils.memory import allowance
from .objective import Objective
from .parts import Batch, Part, join, take
from .pure import Net

SMALL = 2**28  # bytes that are copied in any case
SHARE = 0.25  # of the memory allowance that copies may take beyond that
FEW = 8  # samples that the network is asked for again


@dataclass(frozen=True)
class Watched:
    """A tensor too large to copy, as it was."""

    name: str
    tensor: Tensor
    version: int
    contents: tuple[int, int]

    @property
    def changed(self) -> bool:
        return _version(self.tensor) != self.version or contents(self.tensor) != self.contents


class Snapshot:
    """What a network reads besides the weights that move.

    Args:
        moving: names of the weights that move. keep: copies a tensor, or watches it and returns it as it is.
    """

    def __init__(self, model: nn.Module, moving: tuple[str, ...], keep: Callable[[str, Tensor], Tensor]) -> None:
        self.modules = tuple(model.named_modules())
        self.modes = tuple((module, module.training) for _, module in self.modules)
        self.parameters = tuple(name for name, _ in model.named_parameters())
        self.buffers = {name: keep(f"buffer {name!r}", buffer) for name, buffer in model.named_buffers()}
        self.still = {
            name: keep(f"parameter {name!r}", p).detach()
            for name, p in model.named_parameters()
            if name not in moving
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """Buffers (copies, so that none is written to) and weights that do not move, by name."""
        return {**{name: buffer.clone() for name, buffer in self.buffers.items()}, **self.still}

    def difference(self, model: nn.Module) -> str | None:
        """Which submodule or parameter is another one now, in a few words; None where none is."""
        now, then = dict(model.named_modules()), dict(self.modules)
        other = [name or type(now[name]).__name__ for name in now if then.get(name) is not now[name]]
        if other := other + [name for name in then if name not in now]:
            return f"submodules {other[:5]} have been replaced, added or removed"
        present = {name for name, _ in model.named_parameters()}
        if gone := sorted(present.symmetric_difference(self.parameters)):
            return f"parameters {gone[:5]} have been added or removed"
        return None


class Witness:
    """Finds out whether a network still is what it was at θ₀: asked again for a few samples (all, of other parts).

    Args:
        watched: tensors that were not copied. theta: θ₀ (P,).
    """

    def __init__(self, net: Net, parts: tuple[Part, ...], theta: Tensor, watched: list[Watched]) -> None:
        self.net, self.theta, self.watched = net, theta, watched
        batches = [part for part in parts if isinstance(part, Batch)]
        self.parts = [part for part in parts if not isinstance(part, Batch)]
        if batches:
            self.parts.append(_few(batches[0], net, theta))
        self.u = self._outputs()

    def _outputs(self) -> Tensor:
        with torch.no_grad():
            bound = self.net.bind(self.theta)
            rows = [part.outputs(bound).reshape(-1) for part in self.parts]
            return join(rows) if rows else self.theta.new_zeros(0)  # of several processes one may have no sample

    def require_unchanged(self) -> None:
        """Raise where the network would answer for another problem than the one that was solved.

        Raises:
            InputError: names what has changed.
        """
        found = [one.name for one in self.watched if one.changed]
        if found:
            raise _changed(f"{', '.join(found[:5])} (too large to be copied then) has been written to")
        assert self.net.snapshot is not None
        if message := self.net.snapshot.difference(self.net.model):
            raise _changed(message)
        try:
            again = self._outputs()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the user's code raises now, it did not then
            raise _changed(f"the model or the outputs function now raises {described(error)}") from error
        if again.shape == self.u.shape and again.dtype == self.u.dtype:
            size = torch.linalg.vector_norm(self.u).clamp_min(torch.finfo(self.u.dtype).tiny)
            apart = float(torch.linalg.vector_norm(again - self.u) / size)
            if apart <= torch.finfo(self.u.dtype).eps ** 0.75:
                return
            how = f"outputs {apart:.1e} apart (relative)"
        else:
            how = f"outputs of {again.numel()} numbers in {again.dtype}, not {self.u.numel()} in {self.u.dtype}"
        raise _changed(
            f"asked again at the weights of that time, the network gives {how}; an attribute of a module, or data that "
            "the outputs function or the residual reads, has been changed"
        )


def _changed(what: str) -> InputError:
    return InputError(f"the problem has changed since it was solved: {what}. Put it back, or solve again.")


def _few(batch: Batch, net: Net, theta: Tensor) -> Batch:
    """The first samples of a batch; the whole where the model cannot take so few."""
    if batch.size <= FEW:
        return batch
    few = copy.copy(batch)
    few.inputs, few.size = take(batch.inputs, slice(0, FEW)), FEW
    try:
        with torch.no_grad():
            few.outputs(net.bind(theta))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # the model wants the batch that it was given: ask for that
        return batch
    return few


class Keeper:
    """Copies tensors as far as a memory allowance goes, the small ones first, and watches the rest.

    Args:
        tensors: all there are to keep, by a name for people.
        memory_limit: the memory allowance in bytes; None for half of what is free.
    """

    def __init__(self, tensors: dict[str, Tensor], device: torch.device, memory_limit: float | None = None) -> None:
        sizes = {id(t): t.numel() * t.element_size() for t in tensors.values()}
        left = float(SMALL)
        if sum(sizes.values()) > SMALL:
            left = max(left, SHARE * allowance(device, memory_limit))
        self.tensors, self.copies = tensors, {}
        self.watched: dict[int, Watched] = {}
        for t in sorted(tensors.values(), key=lambda t: sizes[id(t)]):
            if id(t) not in self.copies and sizes[id(t)] <= left:
                left -= sizes[id(t)]
                self.copies[id(t)] = t.detach().clone().requires_grad_(t.requires_grad)

    def keep(self, name: str, t: Tensor) -> Tensor:
        """The copy of a tensor, or the tensor itself, watched."""
        whole = self.tensors.get(name, t)
        if id(whole) in self.copies:
            return self.copies[id(whole)]
        if id(whole) not in self.watched:
            self.watched[id(whole)] = Watched(name, whole, _version(whole), contents(whole))
        return whole


def hold(net: Net) -> list[Watched]:
    """Let a network read copies of its buffers and of the weights that do not move; returns what was too large."""
    keeper = Keeper(dict(_constants(net.model, net.space.names)), net.space.device)
    net.snapshot = Snapshot(net.model, net.space.names, keeper.keep)
    return list(keeper.watched.values())


def held(objective: Objective, memory_limit: float | None = None) -> tuple[Objective, list[Watched]]:
    """The same objective reading copies of all that it reads, and what was too large to copy.

    Parts that are functions of the network stay as they are; a ``Witness`` finds out when what they read changes.

    Args:
        memory_limit: the memory allowance in bytes; None for half of what is free.
    """
    keeper = Keeper(dict(_reads(objective)), objective.space.device, memory_limit)
    keep = keeper.keep
    twin, net = copy.copy(objective), copy.copy(objective.net)
    net.snapshot = Snapshot(objective.model, objective.space.names, keep)
    twin.net, parts = net, []
    for i, part in enumerate(objective.parts):
        mine = part
        if isinstance(part, Batch):
            mine = copy.copy(part)
            mine.inputs = _mapped(part.inputs, _inputs_of(objective, i), keep)
            net.routes[mine] = objective.net.routes.setdefault(part, {})  # what was found of one holds for the other
        parts.append(mine)
    twin.parts = tuple(parts)
    twin.loss = _own(objective.loss, keep)
    return twin, list(keeper.watched.values())


def _reads(objective: Objective) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that an objective reads and that can be seen, by a name for people."""
    yield from _constants(objective.model, objective.space.names)
    for i, part in enumerate(objective.parts):
        if isinstance(part, Batch):
            yield from _seen(lambda note, i=i, part=part: _mapped(part.inputs, _inputs_of(objective, i), note))
    yield from _seen(lambda note: _own(objective.loss, note))


def _inputs_of(objective: Objective, i: int) -> str:
    return f"inputs of part {i}" if len(objective.parts) > 1 else "inputs"


def _constants(model: nn.Module, moving: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    for name, p in model.named_parameters():
        if name not in moving:
            yield f"parameter {name!r}", p
    for name, buffer in model.named_buffers():
        yield f"buffer {name!r}", buffer


def _seen(walk: Callable[[Callable[[str, Tensor], Tensor]], object]) -> list[tuple[str, Tensor]]:
    """The tensors that a walk which may change them comes by, with their names; none is changed."""
    found: list[tuple[str, Tensor]] = []

    def note(where: str, t: Tensor) -> Tensor:
        found.append((where, t))
        return t

    walk(note)
    return found


def _mapped(nest: Any, name: str, change: Callable[[str, Tensor], Tensor]) -> Any:
    """The same nest of dicts, lists and tuples with ``change`` applied to every tensor in it."""
    if isinstance(nest, Tensor):
        return change(name, nest)
    if isinstance(nest, dict):
        twin = copy.copy(nest)
        for key, value in nest.items():
            twin[key] = _mapped(value, f"{name}[{key!r}]", change)
        return twin
    if isinstance(nest, (list, tuple)):
        items = [_mapped(value, f"{name}[{i}]", change) for i, value in enumerate(nest)]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    return nest


def owned(nest: Any) -> Any:
    """The same nest with copies of its tensors."""
    return _mapped(nest, "", lambda _, t: t.detach().clone().requires_grad_(t.requires_grad))


def same(kept: Any, nest: Any) -> bool:
    """Whether a nest still is the one that was copied: kinds, keys, and contents of its tensors."""
    if isinstance(nest, Tensor):
        alike = isinstance(kept, Tensor) and (kept.dtype, kept.device) == (nest.dtype, nest.device)
        return alike and torch.equal(kept, nest)
    if isinstance(nest, dict):
        return isinstance(kept, dict) and kept.keys() == nest.keys() and all(same(kept[k], v) for k, v in nest.items())
    if isinstance(nest, (list, tuple)):
        alike = isinstance(kept, (list, tuple)) and len(kept) == len(nest)
        return alike and all(same(a, b) for a, b in zip(kept, nest, strict=True))
    return kept is nest


def _own(loss: Loss, change: Callable[[str, Tensor], Tensor], name: str = "the loss's") -> Loss:
    """A copy of a loss, with ``change`` applied to every tensor that it holds."""
    twin = copy.copy(loss)
    for key, value in vars(loss).items():
        if isinstance(value, Loss):
            setattr(twin, key, _own(value, change, f"{name} {key}'s"))
        elif isinstance(value, (Tensor, dict, list, tuple)):
            setattr(twin, key, _mapped(value, f"{name} {key}", change))
    return twin


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def contents(t: Tensor) -> tuple[int, int]:
    """Two sums over the bits of a tensor, one weighted by the place: what is written over changes them."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = t.detach().reshape(-1)
    flat = torch.view_as_real(flat.resolve_conj()).reshape(-1) if flat.is_complex() else flat
    plain, placed = 0, 0
    for at in range(0, flat.numel(), 2**22):
        bits = flat[at : at + 2**22].contiguous().view(kinds[flat.element_size()]).long()
        place = torch.arange(1, bits.numel() + 1, device=bits.device)
        plain += int(bits.sum())
        placed += int((bits * place).sum()) * (at + 1)
    return plain, placed
