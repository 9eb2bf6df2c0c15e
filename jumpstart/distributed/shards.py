"""Outputs whose rows are computed by several processes, as the one tensor that everyone has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import EmptyBatchError, ShapeError
from ..utils.cost import Work
from .world import World


class Shards:
    """Which rows of the outputs u (N, …) each process computes.

    Products of the linearization are local rows, gathered, or local sums, added up: one agreement and one collective
    each. A vector of the outputs' size is whole on every process, one of the weights' size as well.

    Args:
        local: this process's rows (n_r, …), or None where it has none.
        places: the piece of the outputs that each of its parts belongs to, and the rows of each part; pieces follow one
            another in the outputs, and inside of a piece ranks do.
        kinds: names of the classes of its parts.

    Attributes:
        counts: rows by rank. shape: of all outputs. pieces: rows of each piece, over all processes. kinds: of the parts
            of all processes. chunked: whether one of them evaluates its rows in several parts.

    Raises:
        ShapeError: the outputs differ in more than their number between processes. EmptyBatchError: none has any.
    """

    def __init__(
        self, world: World, local: Tensor | None, places: Sequence[tuple[int, int]], kinds: Sequence[str], like: Tensor
    ) -> None:
        self.world = world
        own = None if local is None else (tuple(local.shape[1:]), str(local.dtype).removeprefix("torch."))
        told = world.exchanged("rows of the outputs", (own, list(places), sorted(set(kinds))))
        known = {entry for entry, _, _ in told if entry is not None}
        if not known or not sum(rows for _, parts, _ in told for _, rows in parts):
            raise EmptyBatchError("no process has a sample: there is nothing to train on.")
        if len(known) > 1:
            raise ShapeError(
                f"outputs differ between processes, {world._listed([entry for entry, _, _ in told])}: the same model "
                "must answer on all of them with rows of one shape and dtype."
            )
        rest, dtype = known.pop()
        self.kinds = frozenset(kind for _, _, some in told for kind in some)
        self.chunked = any(len(parts) > 1 for _, parts, _ in told)
        self.counts = tuple(sum(rows for _, rows in parts) for _, parts, _ in told)
        self.shape = torch.Size((sum(self.counts), *rest))
        self.empty = torch.zeros(0, *rest, dtype=getattr(torch, dtype), device=like.device)
        self.pieces, order = _ordered([parts for _, parts, _ in told])
        plain = torch.arange(len(order), device="cpu")
        self._order = None if torch.equal(order, plain) else order.to(like.device)
        back = torch.empty_like(order)
        back[order] = plain
        begin = sum(self.counts[: world.rank])
        self._own = back[begin : begin + self.counts[world.rank]].to(like.device)

    @property
    def most(self) -> int:
        """Rows of the process that has the most."""
        return max(self.counts)

    def mine(self, w: Tensor) -> Tensor:
        """This process's rows of a tensor (N, …)."""
        begin = sum(self.counts[: self.world.rank])
        return w[self._own] if self._order is not None else w[begin : begin + self.counts[self.world.rank]]

    def rows(self, what: str, compute: Callable[[], Sequence[Tensor]]) -> Tensor:
        """The rows (N, …) of all processes from this one's, part by part: one agreement, one all-gather."""

        def local() -> Tensor:
            parts = [part.detach() for part in compute()]
            found = torch.cat(parts) if parts else self.empty
            if found.shape != (self.counts[self.world.rank], *self.shape[1:]):
                raise ShapeError(
                    f"the outputs of this process have shape {tuple(found.shape)} after "
                    f"{(self.counts[self.world.rank], *self.shape[1:])}: their number must not change between calls."
                )
            return found

        return self.ordered(self.world.stacked(what, local, self.counts))

    def ordered(self, stacked: Tensor) -> Tensor:
        """Rows that stand rank by rank, in the order of the outputs."""
        return stacked if self._order is None else stacked[self._order]

    def total(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """The sum over processes: one agreement, one all-reduce."""
        return self.world.sum(what, compute)

    def work(self, work: Work) -> Work:
        """The most that a process does; three agreements."""
        most = self.world.most
        return Work(most("flops", work.flops), most("elements", work.elements), int(most("calls", work.calls)))


def _ordered(told: Sequence[Sequence[tuple[int, int]]]) -> tuple[list[int], Tensor]:
    """Rows of each piece, and where each row of the outputs stands among rows stacked rank by rank."""
    at, found = 0, {}
    for parts in told:
        for piece, rows in parts:
            found.setdefault(piece, []).append(torch.arange(at, at + rows, device="cpu"))
            at += rows
    blocks = [torch.cat(found[piece]) for piece in sorted(found)]
    return [len(block) for block in blocks], torch.cat(blocks)
