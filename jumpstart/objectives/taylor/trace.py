"""A residual given at one point, factored through the network's derivatives there: r = F(x, jet of the network).

A residual that knows the network only through its values and derivatives at some places is the same for the network
and for its Taylor polynomials there. ``trace_residual`` finds the places, finds which derivatives matter, and traces F
once into plain batched operations; what it returns is exact for such residuals and is checked by the caller, who keeps
the general way for all others. Source: docs/theory.md, section 8.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ...utils.autodiff import normal
from ...utils.fallback import NotFollowed, ours, theirs
from .factored import Local, Place, Rows
from .jets import Index, Laplace, closed, indices, multiplicity
from .network import trace_network
from .program import Program
from .simplify import simplify

ORDER = 4  # highest derivative looked for
ASKED = 300  # derivatives at a point that are asked about, to find those that matter
STREAMS = 64  # and no more streams than this at a point for these
ALIKE = 0.75  # of the rounding's exponent: answers that differ by no more are one
MANY = "the residual calls the network at more than one place at once"

Fn = Callable[[Any, Tensor], Tensor]


def trace_residual(
    fn: Fn, points: Tensor, model: nn.Module, tensors: Mapping[str, Tensor], moving: Collection[str]
) -> Local:
    """F for a residual and a model.

    Args:
        points: (n, d).
        tensors: all parameters and buffers by name.
        moving: names of the parameters that will be differentiated by.

    Raises:
        NotFollowed: the model is no known chain of layers, or the residual asks about it in a way that its derivatives
            at a place do not answer. What ``fn`` raises by itself when run with stand-ins comes through as it is.
    """
    program = trace_network(model)
    outside = sorted(program.other.intersection(moving))
    if outside:
        raise NotFollowed(f"the network uses its parameter {outside[0]!r} outside of linear layers")
    if not points.is_floating_point():
        raise NotFollowed(f"points of {points.dtype} are no floating-point numbers")
    # Elsewhere, and at both signs: what holds at the points by chance does not hold there.
    elsewhere = _elsewhere(points)
    here, there = (_recorded(fn, at, program, tensors) for at in (points, elsewhere))
    direct = _direct(here, there, program)
    asked = _places(here, there)
    width = program.run(tensors, {(): asked.places[0].points}, [()])[()].shape[1]
    given = [tensors[name] for name in direct]
    centres = [place.points for place in asked.places]
    settings = [(points, centres, given), (elsewhere, asked.elsewhere, None)] * 2
    places, rows = _pruned(_rows(fn, asked.places, asked.calls, direct), asked.places, settings, given, width)
    graph = _graph(_rows(fn, places, asked.calls, direct), points, places, given, width)
    return Local(program, points, places, direct, graph, rows)


def _direct(here: _RecordingNet, there: _RecordingNet, program: Program) -> tuple[str, ...]:
    """Names of the parameters that the residual reads itself."""
    if here.depth > ORDER:
        raise NotFollowed(f"the residual takes derivatives of order {here.depth}; streams are for at most {ORDER}")
    layers = sorted(program.linear.intersection(here.read))
    if layers:
        raise NotFollowed(f"the residual reads {layers[0]!r}, which a linear layer of the network uses as well")
    if (there.read, there.depth) != (here.read, here.depth):
        raise NotFollowed("the residual asks the network about other things at other points")
    return tuple(here.read)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Where a residual asks the network: the places, the same for points elsewhere, and which one each call is at."""

    places: tuple[Place, ...]
    elsewhere: tuple[Tensor, ...]
    calls: tuple[int, ...]


def _places(here: _RecordingNet, there: _RecordingNet) -> _Asked:
    places: list[Place] = []
    abroad: list[Tensor] = []
    calls: list[int] = []
    asked, moved = here.asked(), there.asked()
    if len(asked) != len(moved):
        raise NotFollowed("the residual asks the network more or less often at other points")
    for at, elsewhere in zip(asked, moved, strict=True):
        k = next((k for k, place in enumerate(places) if torch.equal(place.points, at)), len(places))
        if k == len(places):
            own = _columns(at, here.points)
            own = own if own is not None and torch.equal(elsewhere, there.points[:, slice(*own)]) else None
            places.append(Place(at, own, tuple(indices(at.shape[1], here.depth))))
            abroad.append(elsewhere)
        elif not torch.equal(abroad[k], elsewhere):
            raise NotFollowed("the residual asks the network at two places that are one at these points alone")
        calls.append(k)
    if not places:
        raise NotFollowed("the residual never calls the network")
    streams = sum(len(place.wanted) for place in places)
    if streams > ASKED:
        raise NotFollowed(f"the residual may need {streams} derivatives of the network at a point, more than {ASKED}")
    return _Asked(tuple(places), tuple(abroad), tuple(calls))


def _graph(rows: Rows, points: Tensor, places: Sequence[Place], given: Sequence[Tensor], width: int) -> Rows:
    """``rows`` as plain batched operations, without what is known to vanish."""
    jets = [[points.new_zeros(len(points), width) for _ in place.wanted] for place in places]
    wide = [t.detach().expand(len(points), *t.shape).clone() for t in given]
    graph = make_fx(rows)(jets, points, [place.points for place in places], wide)
    at = sum(len(place.wanted) for place in places)  # jets come first among the inputs, then points and places
    own = {at + 1 + k: place.columns == (0, points.shape[-1]) for k, place in enumerate(places)}
    return simplify(graph, at, own)


class _RecordingNet:
    """Stands in for the network, and writes down where it is asked and which parameters are read."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], points: Tensor) -> None:
        self.program, self.tensors, self.points = program, tensors, points
        self.raw: list[tuple[Tensor, int | None]] = []
        self.depth = 0
        self.read: list[str] = []

    def __call__(self, z: Tensor) -> Tensor:
        with ours():
            if not isinstance(z, Tensor) or z.dim() != 1:
                kind = f"a tensor of {z.dim()} dimensions" if isinstance(z, Tensor) else type(z).__name__
                raise NotFollowed(f"the residual calls the network on {kind}, not at one place (d,)")
            plain, batch, depth = _unwrapped(z)
            self.raw.append((plain, batch))
            self.depth = max(self.depth, depth)
            return self.program.run(self.tensors, {(): z[None]}, [()])[()][0]

    def asked(self) -> list[Tensor]:
        """(n, d) for every call; to be called once all transforms have ended, which would wrap what is made inside."""
        n = len(self.points)
        found = [z.expand(n, *z.shape) if dim is None else z.movedim(dim, 0) for z, dim in self.raw]
        if any(z.dim() != 2 for z in found):
            raise NotFollowed(MANY)
        return [z.detach().clone() for z in found]

    def __getattr__(self, name: str) -> Tensor:
        return self[name]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise AttributeError(f"the network has no parameter or buffer {name!r}, and a stand-in has nothing else")
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
                raise NotFollowed(MANY)
            batch = inner.maybe_get_bdim(z)
        else:
            depth += 1
        z = inner.get_unwrapped(z)
    return z, batch, depth


def _recorded(fn: Fn, points: Tensor, program: Program, tensors: Mapping[str, Tensor]) -> _RecordingNet:
    net = _RecordingNet(program, tensors, points)

    def one(x: Tensor) -> Tensor:
        with theirs("the residual does not run with a stand-in for the network"):
            return fn(net, x).reshape(-1)

    vmap(one)(points)
    return net


class _Polynomial:
    """Stands in for the network: its Taylor polynomial at the place that each call was recorded at."""

    def __init__(self, calls: Sequence[int], jets: Any, centres: Any, places: Any, direct: dict[str, Tensor]):
        self.calls, self.jets, self.centres, self.places, self.direct = iter(calls), jets, centres, places, direct

    def __call__(self, z: Tensor) -> Tensor:
        with ours():
            k = next(self.calls, None)
            if k is None:
                raise NotFollowed("the residual calls the network more often when it is run again")
            return self._at(z, k)

    def _at(self, z: Tensor, k: int) -> Tensor:
        step, total = z - self.centres[k], None
        for index, value in zip(self.places[k].wanted, self.jets[k], strict=True):
            if isinstance(index, Laplace):  # any second derivatives with this sum
                share = value / (2 * len(index.axes))
                for i in index.axes:
                    term = share * step[i] * step[i]
                    total = term if total is None else total + term
                continue
            term = value
            for i in index:
                term = term * step[i]
            divisor = multiplicity(index)
            term = term if divisor == 1 else term / divisor
            total = term if total is None else total + term
        assert total is not None
        return total

    def __getattr__(self, name: str) -> Tensor:
        if name not in self.direct:
            raise AttributeError(name)
        return self.direct[name]

    def __getitem__(self, name: str) -> Tensor:
        return self.direct[name]


def _rows(fn: Fn, places: Sequence[Place], calls: Sequence[int], direct: tuple[str, ...]) -> Rows:
    """F as a function of (jets by place, points, places, direct parameters), each with a leading dimension n."""

    def rows(jets: Any, x: Tensor, centres: Any, given: Any) -> Tensor:
        def one(jets: Any, x: Tensor, centres: Any, given: Any) -> Tensor:
            net = _Polynomial(calls, jets, centres, places, dict(zip(direct, given, strict=True)))
            with theirs("the residual does not run on Taylor polynomials in the network's place"):
                return fn(net, x).reshape(-1)

        return vmap(one)(jets, x, centres, given)

    return rows


def _pruned(
    rows: Rows,
    places: Sequence[Place],
    settings: Sequence[tuple[Tensor, list[Tensor], Sequence[Tensor] | None]],
    given: Sequence[Tensor],
    width: int,
) -> tuple[tuple[Place, ...], int]:
    """Places with the derivatives that F answers to, for random jets; and how many rows a point has.

    Second derivatives that F answers to alike, whatever the jets, it knows by their sum alone: they are one.

    Args:
        settings: points, places and direct parameters to try, None for random ones: a coefficient may vanish at some.
    """
    generator = torch.Generator().manual_seed(0)
    matter: list[set[Index]] = [set() for _ in places]
    alike = [_pairs(place.wanted) for place in places]
    count = 0
    for k, setting in enumerate(settings):
        size = 1.0 if k < 2 else 100.0  # a term may be switched on by large values alone
        answers, count = _answers(rows, places, setting, given, (size, width), generator)
        for answer, kept, pairs in zip(answers, matter, alike, strict=True):
            kept.update(answer)
            pairs.intersection_update([pair for pair in pairs if _same(*(answer.get(index) for index in pair))])
    kept_places = [
        replace(place, wanted=_joined([index for index in place.wanted if index in kept], pairs) or ((),))
        for place, kept, pairs in zip(places, matter, alike, strict=True)
    ]
    streams = sum(len(closed(place.wanted)) for place in kept_places)
    if streams > STREAMS:
        raise NotFollowed(f"the residual needs {streams} derivatives of the network at a point, more than {STREAMS}")
    return tuple(kept_places), count


def _answers(
    rows: Rows,
    places: Sequence[Place],
    setting: tuple[Tensor, list[Tensor], Sequence[Tensor] | None],
    given: Sequence[Tensor],
    shape: tuple[float, int],
    generator: torch.Generator,
) -> tuple[list[dict[Index, Tensor]], int]:
    """By place, how a random combination of F's rows answers to each derivative that it answers to, for random jets;
    and how many rows a point has.

    Args:
        shape: of jets: how large, and how wide.
    """
    where, centres, direct = setting
    n, (size, width) = len(where), shape

    def random(shape: Any) -> Tensor:
        return normal(shape, generator).to(where)

    jets = [[(size * random((n, width))).requires_grad_() for _ in place.wanted] for place in places]
    wide = [random((n, *t.shape)) if direct is None else t.detach().expand(n, *t.shape) for t in given]
    with torch.enable_grad():
        found = rows(jets, where, centres, wide)
        if not found.requires_grad:
            raise NotFollowed("the residual does not depend on the network")
        flat = [value for jet in jets for value in jet]
        with theirs("the residual cannot be differentiated by the network's derivatives"):
            grads = iter(torch.autograd.grad((found * random(found.shape)).sum(), flat, allow_unused=True))
    answers = [
        {index: g for index in place.wanted if (g := next(grads)) is not None and bool((g != 0).any())}
        for place in places
    ]
    return answers, found.shape[1]


Pair = tuple[Index, Index]


def _pairs(wanted: Sequence[Index]) -> set[Pair]:
    """Second derivatives along an axis, two by two."""
    pure = [index for index in wanted if isinstance(index, tuple) and len(index) == 2 and index[0] == index[1]]
    return set(itertools.combinations(pure, 2))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether F answers to both alike, and at all."""
    if a is None or b is None:
        return False
    limit = torch.finfo(a.dtype).eps ** ALIKE * torch.maximum(a.abs().max(), b.abs().max())
    return bool((a - b).abs().max() <= limit)


def _joined(wanted: Sequence[Index], alike: set[Pair]) -> tuple[Index, ...]:
    """With the first second derivative and all that are like it as one; no others, so that no axis is in two."""
    group = next((pair[0] for pair in sorted(alike, key=str) if pair[0] in wanted), None)
    axes = [group, *(b for a, b in sorted(alike, key=str) if a == group)] if group is not None else []
    axes = [index for index in axes if index in wanted]
    if len(axes) < 2:
        return tuple(wanted)
    rest = tuple(index for index in wanted if index not in axes)
    return (*rest, Laplace(tuple(index[0] for index in axes if isinstance(index, tuple))))


def _columns(asked: Tensor, points: Tensor) -> tuple[int, int] | None:
    """Which columns of the points (n, d) a place is, if it is some in a row."""
    if points.dim() != 2:
        return None
    width = asked.shape[1]
    starts = range(points.shape[1] - width + 1)
    return next(((a, a + width) for a in starts if torch.equal(asked, points[:, a : a + width])), None)


def _elsewhere(points: Tensor) -> Tensor:
    """As many random points, spread several times as wide and on both sides of zero."""
    return 3 * normal(points.shape, 1).to(points) * points.abs().amax(0).clamp_min(1e-6)
