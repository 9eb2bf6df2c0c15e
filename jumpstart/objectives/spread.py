"""Residual terms over several processes: every one knows all points, which are small, and evaluates its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed.world import World
from ..distributed.wrapped import gathered, require_same_program
from ..domains import Domain, as_domain
from ..errors import InputError, ShapeError
from ..utils.brief import brief
from .collocation import Points
from .parts import Part, empty
from .points import as_points
from .pure import Bound


def of_all(world: World, model: nn.Module, terms: Sequence[Any], told: dict[str, Any]) -> list[Any]:
    """Terms with the points, and the weights for each, of all processes.

    Raises:
        InputError: the processes have other terms; a term is a function of the whole network.
    """
    require_same_program(world, model, {"the terms": [_described(term) for term in terms], **told})
    found = []
    for i, term in enumerate(terms):
        if not hasattr(term, "points"):
            raise InputError(
                f"term {i}, {brief(term)}, is a function of the whole network, which cannot be spread over processes: "
                "give a js.Term with points, or js.Objective(group=…) with outputs of this process's rows."
            )
        points = term.points
        if isinstance(points, (Domain, type)) or callable(points):
            found.append(term)
            continue
        if not empty(points):
            points = world.attempt("points of a term", lambda points=points: as_points(points, model))
        else:
            world.agree("points of a term")
            points = torch.as_tensor(points)
        weight = term.weight
        if not isinstance(weight, (int, float)):
            weight = torch.as_tensor(weight, dtype=points.dtype, device=points.device).reshape(-1)
            if len(weight) != len(points):
                raise ShapeError(f"{len(weight)} weights for the {len(points)} points of term {i}: one each.")
            weight = gathered(weight, world)
        found.append(replace(term, points=gathered(points, world), weight=weight))
    return found


def _described(term: Any) -> Any:
    """What of a term must be the same on every process; its points and their weights need not be."""
    fn = getattr(term, "fn", term)
    code = getattr(fn, "__code__", None)
    told = [getattr(fn, "__qualname__", type(fn).__name__), None if code is None else code.co_code.hex()[:64]]
    if not hasattr(term, "points"):
        return told
    drawn = isinstance(term.points, (Domain, type)) or callable(term.points)
    where = repr(as_domain(term.points)) if isinstance(term.points, Domain) else "drawn" if drawn else "given"
    weight = term.weight if isinstance(term.weight, (int, float)) else "one for each point"
    return [*told, where, weight, term.name, term.count, term.seed]


def shares(world: World, parts: Sequence[Part]) -> list[Part]:
    """The parts of this process: its points of each term, if there are as many."""
    found = []
    for part in parts:
        assert isinstance(part, Points)
        own = _own(world, len(part.points))
        if own.start < own.stop:
            found.append(part.share(own))
    return found


def _own(world: World, count: int, rank: int | None = None) -> slice:
    rank = world.rank if rank is None else rank
    return slice(rank * count // world.size, (rank + 1) * count // world.size)


def spread_rows(world: World, part: Points, own: Sequence[Part], net: Bound) -> Tensor:
    """The rows of a term at points that every process knows, each evaluating its share: one all-gather.

    Args:
        own: the parts of this process's objective, whose fast way is gone through.
    """
    count = len(part.points)
    mine = part.share(_own(world, count))
    known = next((other for other in own if isinstance(other, Points) and other.fn is part.fn), None)
    if known is not None and known.local is not None and len(mine.points):
        mine.local, mine._model, mine._read = known.local.moved(mine.points), known._model, known._read
    sizes = [_own(world, count, rank) for rank in range(world.size)]
    counts = [size.stop - size.start for size in sizes]
    rows = world.attempt("rows of a term", lambda: mine.outputs(net) if len(mine.points) else None)
    width = int(world.most("rows of a point", 0 if rows is None else len(rows) // len(mine.points)))
    flat = part.points.new_zeros(0, width) if rows is None else rows.reshape(-1, width)
    return world.stacked("rows of a term", flat.contiguous, counts).reshape(-1)
