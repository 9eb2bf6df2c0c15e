"""A residual that knows the network through its derivatives at places: r = F(x, jets), in plain batched operations.

``trace`` makes one of a residual at a point; here is what it answers: rows, the explicit Jacobian, and the outer
products that this is made of. Source: docs/theory.md, section 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .jets import Index, closed, variable
from .program import LinearPass, Program

Rows = Callable[[Any, Tensor, Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Place:
    """Where the network is asked: points (n, d), which columns of the residual's own these are, if any, and the
    derivatives that matter."""

    points: Tensor
    columns: tuple[int, int] | None
    wanted: tuple[Index, ...] = ()


@dataclass(frozen=True, eq=False)
class Outer:
    """Rows ``rows`` of the Jacobian by parameter ``name`` hold the outer products left_i ⊗ right_i, or left_i alone."""

    name: str
    rows: slice
    left: Tensor
    right: Tensor | None


@dataclass(frozen=True, eq=False)
class Local:
    """F, traced, and what it is asked about.

    Attributes:
        program: the network's layers.
        places: where the network is asked.
        direct: names of parameters that the residual reads itself (unknowns of the equation).
        graph: (jets by place, points, places, direct) -> rows (n, r). width: r.
    """

    program: Program
    points: Tensor
    places: tuple[Place, ...]
    direct: tuple[str, ...]
    graph: Rows
    width: int

    def rows(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Residuals (n, r) for parameters and buffers by name; plain batched operations, differentiable in any way."""
        jets = [self._jet(place, tensors) for place in self.places]
        return self._apply(jets, [tensors[name].expand(len(self.points), *tensors[name].shape) for name in self.direct])

    def jacobian(self, tensors: Mapping[str, Tensor], columns: Mapping[str, int], out: Tensor, scale: float) -> int:
        """Write scale·∂rows/∂parameters into all of ``out`` (n·r, P): one backward pass for each row of a point.

        Args:
            columns: where each parameter begins in a row of ``out``.

        Returns:
            how many backward passes it took.
        """
        view = out.view(len(self.points), self.width, -1)
        for r, layers, direct in self._backward(tensors, columns, scale):
            seen: set[str] = set()
            for layer, deltas in layers:
                _outer(layer, deltas, columns, view[:, r], seen)
            for name, values in direct.items():
                _put(values, name, columns, view[:, r], seen)
            for name in columns.keys() - seen:
                view[:, r, columns[name] : columns[name] + tensors[name].numel()] = 0
        return self.width

    def outer_products(self, tensors: Mapping[str, Tensor], moving: Collection[str], scale: float) -> list[Outer]:
        """The Jacobian as a sum of outer products, without forming them: what its kernel is made of."""
        found = []
        for r, layers, direct in self._backward(tensors, moving, scale):
            rows = slice(r, None, self.width)
            for layer, deltas in layers:
                if layer.weight in moving:
                    found += [Outer(layer.weight, rows, d, layer.before[index].detach()) for index, d in deltas.items()]
                if layer.bias is not None and layer.bias in moving and () in deltas:
                    found.append(Outer(layer.bias, rows, deltas[()], None))
            found += [Outer(name, rows, values, None) for name, values in direct.items()]
        return found

    def _backward(
        self, tensors: Mapping[str, Tensor], moving: Collection[str], scale: float
    ) -> Iterator[tuple[int, list[tuple[LinearPass, dict[Index, Tensor]]], dict[str, Tensor]]]:
        """For each row of a point: scale·∂row/∂(outputs of every linear layer, by stream), and by direct parameters."""
        n = len(self.points)
        with torch.enable_grad():
            tensors = {name: t.detach() for name, t in tensors.items()}
            passed: list[list[LinearPass]] = [[] for _ in self.places]
            jets = [self._jet(place, tensors, found) for place, found in zip(self.places, passed, strict=True)]
            direct = [
                tensors[name].expand(n, *tensors[name].shape).clone().requires_grad_(name in moving)
                for name in self.direct
            ]
            rows = self._apply(jets, direct)
            totals = [scale * rows[:, r].sum() for r in range(self.width)]
        flat = [layer for found in passed for layer in found]
        wanted = [value for layer in flat for value in layer.after.values()] + [t for t in direct if t.requires_grad]
        named = [name for name in self.direct if name in moving]
        for r, total in enumerate(totals):
            grads = iter(torch.autograd.grad(total, wanted, retain_graph=r + 1 < self.width, allow_unused=True))
            layers = [(layer, {k: d for k in layer.after if (d := next(grads)) is not None}) for layer in flat]
            yield r, layers, {name: d.reshape(n, -1) for name in named if (d := next(grads)) is not None}

    def moved(self, points: Tensor) -> Local | None:
        """The same residual at as many other points, without tracing it again; None where a place depends on them."""
        if points.shape != self.points.shape:
            return None
        places = [replace(p, points=points[:, slice(*p.columns)]) for p in self.places if p.columns is not None]
        return replace(self, points=points, places=tuple(places)) if len(places) == len(self.places) else None

    def _jet(self, place: Place, tensors: Mapping[str, Tensor], passed: list[LinearPass] | None = None) -> list[Tensor]:
        wanted = closed(place.wanted)
        jet = self.program.run(tensors, variable(place.points, wanted), wanted, passed)
        zero = torch.zeros_like(jet[()])
        return [jet.get(index, zero) for index in place.wanted]

    def _apply(self, jets: list[list[Tensor]], direct: list[Tensor]) -> Tensor:
        return self.graph(jets, self.points, [place.points for place in self.places], direct)


def _outer(
    layer: LinearPass, deltas: dict[Index, Tensor], columns: Mapping[str, int], view: Tensor, seen: set[str]
) -> None:
    """Add Σ_streams δ ⊗ a of one layer to its columns of (n, P); the first to write a column overwrites."""
    if not deltas:
        return
    if layer.weight in columns:
        left = torch.stack(list(deltas.values()), 2)  # (n, out, streams)
        right = torch.stack([layer.before[index].detach() for index in deltas], 1)  # (n, streams, in)
        at, shape = columns[layer.weight], (left.shape[1], right.shape[2])
        block = view[:, at : at + math.prod(shape)].unflatten(1, shape)
        if layer.weight in seen:
            block.baddbmm_(left, right)
        else:
            torch.bmm(left, right, out=block)
        seen.add(layer.weight)
    if layer.bias is not None and layer.bias in columns and () in deltas:
        _put(deltas[()], layer.bias, columns, view, seen)


def _put(values: Tensor, name: str, columns: Mapping[str, int], view: Tensor, seen: set[str]) -> None:
    block = view[:, columns[name] : columns[name] + values.shape[1]]
    if name in seen:
        block += values
    else:
        block.copy_(values)
    seen.add(name)
