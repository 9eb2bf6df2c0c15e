"""Tensors that the processes of a mesh keep in shards (``DTensor``): made whole on each, and written back.

A shard is what ``torch.chunk`` gives along one dimension, so that the first processes have more and the last ones
perhaps nothing. Whole tensors come by an all-gather of the world's own; writing back is each process's own affair.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError, MemoryLimitError
from ..utils.kinds import is_named
from ..utils.memory import FREE, allowance
from .world import World

BUCKET = 2**26  # bytes of whole tensors that are gathered at once: what comes by a collective is held twice


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor."""
    return is_named(tensor, "DTensor")


def local(tensor: Any) -> Tensor:
    """This process's shard: what the DTensor itself holds, so that a write to it is one to the DTensor."""
    with torch.no_grad():
        return tensor.to_local()


def require_room(what: str, tensors: Sequence[Any]) -> None:
    """Raise where this process has no room for so many sharded tensors whole.

    Raises:
        MemoryLimitError: says how much they take.
    """
    if not tensors:
        return
    size, limit = sum(t.numel() * t.element_size() for t in tensors), allowance(local(tensors[0]).device)
    if size > limit:
        raise MemoryLimitError(
            f"{what} take {size:.3g} bytes whole, on each process, and {FREE} is {limit:.3g}: jumps need them whole. "
            "Run fewer processes on a machine, or leave this model without jumps."
        )


@dataclass(frozen=True)
class Layout:
    """Where the shards of a DTensor lie.

    Attributes:
        shape, dtype: of the whole. dim: that is cut; 0 where none is. spans: (start, length) by process, None for one
            whose shard another holds as well.
        own: (start, length) of this process.
    """

    shape: torch.Size
    dtype: torch.dtype
    dim: int
    spans: tuple[tuple[int, int] | None, ...]
    own: tuple[int, int]

    @classmethod
    def of(cls, name: str, tensor: Any, world: World) -> Layout:
        """Of a DTensor over the processes of a world.

        Raises:
            InputError: it is cut along several dimensions or in another way than ``torch.chunk``'s, it is a partial
                sum, or lies on other processes.
        """
        ranks = dist.get_process_group_ranks(world.group)
        found = _layout(
            name, torch.Size(tensor.shape), tensor.dtype, tensor.device_mesh, tuple(tensor.placements), tuple(ranks),
            world.rank,
        )  # fmt: skip
        expected = [found.own[1] if i == found.dim else n for i, n in enumerate(found.shape)]
        if found.own[1] and list(local(tensor).shape) != expected:
            raise InputError(
                f"{name}, of shape {tuple(tensor.shape)}, has a shard of shape {tuple(local(tensor).shape)} here, not "
                f"{tuple(expected)}: shards must be those of torch.chunk."
            )
        return found

    def count(self, rank: int) -> int:
        """Numbers that a process gives."""
        span = self.spans[rank]
        return 0 if span is None else self._rest * span[1]

    @property
    def _rest(self) -> int:
        return int(torch.Size([n for i, n in enumerate(self.shape) if i != self.dim]).numel())

    def part(self, whole: Tensor, span: tuple[int, int]) -> Tensor:
        """What of a whole tensor belongs to a span."""
        return whole.narrow(self.dim, *span) if self.shape else whole


@functools.lru_cache(maxsize=1024)
def _layout(
    name: str, shape: torch.Size, dtype: torch.dtype, mesh_: Any, placements: tuple[Any, ...], ranks: tuple[int, ...],
    own: int,
) -> Layout:  # fmt: skip
    mesh = mesh_.mesh
    if sorted(mesh.reshape(-1).tolist()) != sorted(ranks):
        raise InputError(
            f"{name} lies on the processes {sorted(mesh.reshape(-1).tolist())}, and the objective's group is "
            f"{sorted(ranks)}: give as group= the processes that it is sharded over."
        )
    cuts = [axis for axis, placement in enumerate(placements) if not placement.is_replicate()]
    plain = all(type(placements[axis]).__name__ == "Shard" for axis in cuts)
    if len(cuts) > 1 or not plain:
        raise InputError(
            f"{name} is a DTensor with placements {placements}: known are those of fully_shard on a "
            "mesh of data-parallel processes, one Shard and else Replicate (no tensor parallelism, no partial "
            "sums)."
        )
    if not cuts:
        dim, size, parts, axis = 0, shape[0] if shape else 1, 1, None
    else:
        axis = cuts[0]
        dim = placements[axis].dim
        size, parts = shape[dim], mesh.shape[axis]
    most = -(-size // parts)
    spans: list[tuple[int, int]] = []
    first: list[bool] = []
    for rank in ranks:
        place = (mesh == rank).nonzero()[0].tolist()
        start = min(size, most * (0 if axis is None else place[axis]))
        spans.append((start, min(size, start + most) - start))
        first.append(all(at == 0 for i, at in enumerate(place) if i != axis))
    chosen = tuple(span if once else None for span, once in zip(spans, first, strict=True))
    return Layout(shape, dtype, dim, chosen, spans[own])


Taken = Sequence[tuple[str, Any, Tensor]]  # a name for people, a DTensor, the whole tensor that is written to


def gather(world: World, what: str, take: Callable[[], Taken]) -> None:
    """Fill whole tensors from shards; one agreement and one all-gather for each so many bytes and each dtype.

    Args:
        take: called first, for what is to be gathered; calls no collective.

    Raises:
        InputError: see ``Layout``. RankError, GroupError: as for every collective.
    """

    def found() -> tuple[Taken, list[Layout]]:
        taken = take()
        return taken, [Layout.of(name, tensor, world) for name, tensor, _ in taken]

    pairs, layouts = world.attempt(what, found)
    kinds = [(tuple(layout.shape), str(layout.dtype), layout.dim) for layout in layouts]
    what = f"{what} ({zlib.crc32(repr(kinds).encode()):08x})"  # tensors of other kinds are told apart by their place
    for chosen in _buckets(layouts):
        _gather(world, what, [(layouts[i], pairs[i][1], pairs[i][2]) for i in chosen])


def _buckets(layouts: Sequence[Layout]) -> Iterator[list[int]]:
    open_: dict[torch.dtype, tuple[list[int], int]] = {}
    for i, layout in enumerate(layouts):
        chosen, size = open_.pop(layout.dtype, ([], 0))
        size += layout.shape.numel() * layout.dtype.itemsize
        chosen.append(i)
        if size >= BUCKET:
            yield chosen
        else:
            open_[layout.dtype] = chosen, size
    for chosen, _ in open_.values():
        yield chosen


@torch.no_grad()
def _gather(world: World, what: str, pairs: Sequence[tuple[Layout, Any, Tensor]]) -> None:
    counts = [sum(layout.count(rank) for layout, _, _ in pairs) for rank in range(world.size)]
    if not sum(counts):
        return

    def own() -> Tensor:
        found = [local(tensor).reshape(-1) for layout, tensor, _ in pairs if layout.count(world.rank)]
        return torch.cat(found) if found else local(pairs[0][1]).new_zeros(0)

    flat, at = world.stacked(what, own, counts), 0
    for rank in range(world.size):
        for layout, _, whole in pairs:
            span, count = layout.spans[rank], layout.count(rank)
            if span is None or not count:
                continue
            part = layout.part(whole, span)
            part.copy_(flat[at : at + count].view(part.shape))
            at += count


@torch.no_grad()
def scatter(world: World, name: str, whole: Tensor, tensor: Any) -> None:
    """Write this process's part of a whole tensor into its shard, in place, if it is another one; no collective."""
    layout = Layout.of(name, tensor, world)
    if layout.own[1]:
        part, shard = layout.part(whole.detach(), layout.own), local(tensor)
        if not torch.equal(shard, part):
            shard.copy_(part)


def cut(world: World, name: str, whole: Tensor, like: Any) -> Any:
    """A whole tensor as a DTensor in the shards of another one of its shape."""
    layout = Layout.of(name, like, world)
    part = layout.part(whole.detach(), layout.own).clone() if layout.own[1] else local(like).to(whole.dtype).clone()
    kind: Any = type(like.detach())
    return kind.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
