"""A residual given at one point, factored through the network's derivatives there: r = F(x, jet of the network).

A residual that knows the network only through its values and derivatives at some places is the same for the network
and for its Taylor polynomials there. ``factor`` finds the places, finds which derivatives matter, and traces F once
into plain batched operations; what it returns is exact for such residuals and is checked by the caller, who keeps the
general way for all others. Source: docs/theory.md, section 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from .jet import Index, closed, indices, multiplicity, variable
from .program import Program, Use, trace
from .simplify import simplify

ORDER = 4  # highest derivative looked for
STREAMS = 40  # and no more streams than this at one place

Fn = Callable[[Any, Tensor], Tensor]
Rows = Callable[[Any, Tensor, Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Place:
    """Where the network is asked: points (n, d), whether they are the residual's own, and which derivatives matter."""

    points: Tensor
    own: bool
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
            for use, deltas in layers:
                _outer(use, deltas, columns, view[:, r], seen)
            for name, values in direct.items():
                _put(values, name, columns, view[:, r], seen)
            for name in columns.keys() - seen:
                view[:, r, columns[name] : columns[name] + tensors[name].numel()] = 0
        return self.width

    def factors(self, tensors: Mapping[str, Tensor], moving: Collection[str], scale: float) -> list[Outer]:
        """The Jacobian as a sum of outer products, without forming them: what its kernel is made of."""
        found = []
        for r, layers, direct in self._backward(tensors, moving, scale):
            rows = slice(r, None, self.width)
            for use, deltas in layers:
                if use.weight in moving:
                    found += [Outer(use.weight, rows, d, use.before[index].detach()) for index, d in deltas.items()]
                if use.bias is not None and use.bias in moving and () in deltas:
                    found.append(Outer(use.bias, rows, deltas[()], None))
            found += [Outer(name, rows, values, None) for name, values in direct.items()]
        return found

    def _backward(
        self, tensors: Mapping[str, Tensor], moving: Collection[str], scale: float
    ) -> Iterator[tuple[int, list[tuple[Use, dict[Index, Tensor]]], dict[str, Tensor]]]:
        """For each row of a point: scale·∂row/∂(outputs of every linear layer, by stream), and by direct parameters."""
        n = len(self.points)
        with torch.enable_grad():
            tensors = {name: t.detach() for name, t in tensors.items()}
            uses: list[list[Use]] = [[] for _ in self.places]
            jets = [self._jet(place, tensors, found) for place, found in zip(self.places, uses, strict=True)]
            direct = [
                tensors[name].expand(n, *tensors[name].shape).clone().requires_grad_(name in moving)
                for name in self.direct
            ]
            rows = self._apply(jets, direct)
            totals = [scale * rows[:, r].sum() for r in range(self.width)]
        flat = [use for found in uses for use in found]
        wanted = [value for use in flat for value in use.after.values()] + [t for t in direct if t.requires_grad]
        named = [name for name in self.direct if name in moving]
        for r, total in enumerate(totals):
            grads = iter(torch.autograd.grad(total, wanted, retain_graph=r + 1 < self.width, allow_unused=True))
            layers = [(use, {k: d for k in use.after if (d := next(grads)) is not None}) for use in flat]
            yield r, layers, {name: d.reshape(n, -1) for name in named if (d := next(grads)) is not None}

    def moved(self, points: Tensor) -> Local | None:
        """The same residual at as many other points, without tracing it again; None where a place depends on them."""
        if points.shape != self.points.shape or not all(place.own for place in self.places):
            return None
        return replace(self, points=points, places=tuple(replace(p, points=points) for p in self.places))

    def _jet(self, place: Place, tensors: Mapping[str, Tensor], uses: list[Use] | None = None) -> list[Tensor]:
        wanted = closed(place.wanted)
        jet = self.program.run(tensors, variable(place.points, wanted), wanted, uses)
        zero = torch.zeros_like(jet[()])
        return [jet.get(index, zero) for index in place.wanted]

    def _apply(self, jets: list[list[Tensor]], direct: list[Tensor]) -> Tensor:
        return self.graph(jets, self.points, [place.points for place in self.places], direct)


def _outer(use: Use, deltas: dict[Index, Tensor], columns: Mapping[str, int], view: Tensor, seen: set[str]) -> None:
    """Add Σ_streams δ ⊗ a of one layer to its columns of (n, P); the first to write a column overwrites."""
    if not deltas:
        return
    if use.weight in columns:
        left = torch.stack(list(deltas.values()), 2)  # (n, out, streams)
        right = torch.stack([use.before[index].detach() for index in deltas], 1)  # (n, streams, in)
        at, shape = columns[use.weight], (left.shape[1], right.shape[2])
        block = view[:, at : at + math.prod(shape)].unflatten(1, shape)
        if use.weight in seen:
            block.baddbmm_(left, right)
        else:
            torch.bmm(left, right, out=block)
        seen.add(use.weight)
    if use.bias is not None and use.bias in columns and () in deltas:
        _put(deltas[()], use.bias, columns, view, seen)


def _put(values: Tensor, name: str, columns: Mapping[str, int], view: Tensor, seen: set[str]) -> None:
    block = view[:, columns[name] : columns[name] + values.shape[1]]
    if name in seen:
        block += values
    else:
        block.copy_(values)
    seen.add(name)


def factor(fn: Fn, points: Tensor, model: nn.Module, tensors: Mapping[str, Tensor], moving: set[str]) -> Local | None:
    """F for a residual and a model, or None where there is none: the model is no known chain of layers, or the residual
    asks about it in a way that its derivatives at a place do not answer.

    Args:
        points: (n, d).
        tensors: all parameters and buffers by name.
        moving: names of the parameters that will be differentiated by.
    """
    program = trace(model)
    if program is None or program.other & moving or points.dim() < 1 or not points.is_floating_point():
        return None
    try:
        recorder = _recorded(fn, points, program, tensors)
        direct, order = tuple(recorder.read), recorder.depth
        if order > ORDER or set(direct) & program.linear:
            return None
        places: list[Place] = []
        calls: list[int] = []
        for asked in recorder.asked():
            k = next((k for k, place in enumerate(places) if torch.equal(place.points, asked)), len(places))
            if k == len(places):
                wanted = indices(asked.shape[1], order)
                places.append(Place(asked, torch.equal(asked, points), tuple(wanted)))
            calls.append(k)
        if not places or sum(len(place.wanted) for place in places) > STREAMS:
            return None
        width = program.run(tensors, {(): places[0].points}, [()])[()].shape[1]
        whole = _rows(fn, places, calls, direct)
        kept, r = _pruned(whole, points, places, [tensors[name] for name in direct], width)
        jets = [[points.new_zeros(len(points), width) for _ in place.wanted] for place in kept]
        given = [tensors[name].detach().expand(len(points), *tensors[name].shape).clone() for name in direct]
        graph = make_fx(_rows(fn, kept, calls, direct))(jets, points, [place.points for place in kept], given)
        at = sum(len(place.wanted) for place in kept)
        graph = simplify(graph, at, {at + 1 + k: place.own for k, place in enumerate(kept)})
        return Local(program, points, kept, direct, graph, r)
    except Exception:  # torch's private or experimental ways not being there or not fitting: the general way remains
        return None


class _Recorder:
    """Stands in for the network, and writes down where it is asked and which parameters are read."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], n: int) -> None:
        self.program, self.tensors, self.n = program, tensors, n
        self.raw: list[tuple[Tensor, int | None]] = []
        self.depth = 0
        self.read: list[str] = []

    def __call__(self, z: Tensor) -> Tensor:
        plain, batch, depth = _unwrapped(z)
        self.raw.append((plain, batch))
        self.depth = max(self.depth, depth)
        return self.program.run(self.tensors, {(): z[None]}, [()])[()][0]

    def asked(self) -> list[Tensor]:
        """(n, d) for every call; to be called once all transforms have ended, which would wrap what is made inside."""
        found = [z.expand(self.n, *z.shape) if dim is None else z.movedim(dim, 0) for z, dim in self.raw]
        if any(z.dim() != 2 for z in found):
            raise ValueError("asked at more than one place at once")
        return [z.detach().clone() for z in found]

    def __getattr__(self, name: str) -> Tensor:
        return self[name]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise AttributeError(name)
        if name not in self.read:
            self.read.append(name)
        return self.tensors[name]


def _unwrapped(z: Tensor) -> tuple[Tensor, int | None, int]:
    """The numbers behind a tensor that vmap and derivatives have wrapped, their batch dimension, and the number of
    derivatives that are being taken."""
    inner: Any = torch._C._functorch  # type: ignore[attr-defined]  # torch has no public way to see behind a wrapper
    batch, depth = None, 0
    while inner.is_functorch_wrapped_tensor(z):
        if inner.is_batchedtensor(z):
            if batch is not None:
                raise ValueError("asked at more than one place at once")
            batch = inner.maybe_get_bdim(z)
        else:
            depth += 1
        z = inner.get_unwrapped(z)
    return z, batch, depth


def _recorded(fn: Fn, points: Tensor, program: Program, tensors: Mapping[str, Tensor]) -> _Recorder:
    recorder = _Recorder(program, tensors, len(points))
    vmap(lambda x: fn(recorder, x).reshape(-1))(points)
    return recorder


class _Polynomial:
    """Stands in for the network: its Taylor polynomial at the place that each call was recorded at."""

    def __init__(self, which: Callable[[], int], jets: Any, centres: Any, places: Any, direct: dict[str, Tensor]):
        self.which, self.jets, self.centres, self.places, self.direct = which, jets, centres, places, direct

    def __call__(self, z: Tensor) -> Tensor:
        k = self.which()
        step, total = z - self.centres[k], None
        for index, value in zip(self.places[k].wanted, self.jets[k], strict=True):
            term = value
            for i in index:
                term = term * step[i]
            factor = multiplicity(index)
            term = term if factor == 1 else term / factor
            total = term if total is None else total + term
        assert total is not None
        return total

    def __getattr__(self, name: str) -> Tensor:
        return self[name]

    def __getitem__(self, name: str) -> Tensor:
        return self.direct[name]


def _rows(fn: Fn, places: Sequence[Place], calls: list[int], direct: tuple[str, ...]) -> Rows:
    """F as a function of (jets by place, points, places, direct parameters), each with a leading dimension n."""

    def rows(jets: Any, x: Tensor, centres: Any, given: Any) -> Tensor:
        def one(jets: Any, x: Tensor, centres: Any, given: Any) -> Tensor:
            order = iter(calls)
            named = dict(zip(direct, given, strict=True))
            return fn(_Polynomial(lambda: next(order), jets, centres, places, named), x).reshape(-1)

        return vmap(one)(jets, x, centres, given)

    return rows


def _pruned(
    rows: Rows, points: Tensor, places: Sequence[Place], given: Sequence[Tensor], width: int
) -> tuple[tuple[Place, ...], int]:
    """Places with the derivatives that F answers to, for random jets at all points; and how many rows a point has."""
    generator = torch.Generator().manual_seed(0)

    def random(shape: Any) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(points)

    n = len(points)
    jets = [[random((n, width)).requires_grad_() for _ in place.wanted] for place in places]
    with torch.enable_grad():
        found = rows(jets, points, [place.points for place in places], [t.detach().expand(n, *t.shape) for t in given])
        if not found.requires_grad:
            raise ValueError("does not depend on the network")
        flat = [value for jet in jets for value in jet]
        grads = iter(torch.autograd.grad((found * random(found.shape)).sum(), flat, allow_unused=True))
    kept = []
    for place in places:
        matter = [index for index in place.wanted if (g := next(grads)) is not None and bool((g != 0).any())]
        kept.append(replace(place, wanted=tuple(matter) or ((),)))
    return tuple(kept), found.shape[1]
