"""A residual given at one point, factored through the network's derivatives there: r = F(x, jet of the network).

A residual that knows the network only through its values and derivatives at some places is the same for the network
and for its Taylor polynomials there. ``factor`` finds the places, finds which derivatives matter, and traces F once
into plain batched operations; what it returns is exact for such residuals and is checked by the caller, who keeps the
general way for all others. Source: docs/theory.md, section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ...utils.autodiff import normal
from .factored import Local, Place, Rows
from .jets import indices, multiplicity
from .network import Program, trace
from .simplify import simplify

ORDER = 4  # highest derivative looked for
STREAMS = 40  # and no more streams than this at one place

Fn = Callable[[Any, Tensor], Tensor]


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
        # Elsewhere, and at both signs: what holds at the points by chance does not hold there.
        elsewhere = _elsewhere(points)
        other = _recorded(fn, elsewhere, program, tensors)
        direct, order = tuple(recorder.read), recorder.depth
        if order > ORDER or set(direct) & program.linear or (tuple(other.read), other.depth) != (direct, order):
            return None
        places: list[Place] = []
        abroad: list[Tensor] = []
        calls: list[int] = []
        for asked, there in zip(recorder.asked(), other.asked(), strict=True):
            k = next((k for k, p in enumerate(places) if torch.equal(p.points, asked)), len(places))
            if k == len(places):
                own = _columns(asked, points)
                own = own if own is not None and torch.equal(there, elsewhere[:, slice(*own)]) else None
                places.append(Place(asked, own, tuple(indices(asked.shape[1], order))))
                abroad.append(there)
            elif not torch.equal(abroad[k], there):
                return None  # two places that are one at these points alone
            calls.append(k)
        if not places or sum(len(place.wanted) for place in places) > STREAMS:
            return None
        width = program.run(tensors, {(): places[0].points}, [()])[()].shape[1]
        whole = _rows(fn, places, calls, direct)
        given = [tensors[name] for name in direct]
        here = [place.points for place in places]
        kept, r = _pruned(whole, places, [(points, here, given), (elsewhere, abroad, None)] * 2, given, width)
        jets = [[points.new_zeros(len(points), width) for _ in place.wanted] for place in kept]
        wide = [t.detach().expand(len(points), *t.shape).clone() for t in given]
        graph = make_fx(_rows(fn, kept, calls, direct))(jets, points, [place.points for place in kept], wide)
        at = sum(len(place.wanted) for place in kept)
        graph = simplify(
            graph, at, {at + 1 + k: place.columns == (0, points.shape[-1]) for k, place in enumerate(kept)}
        )
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
        if name not in self.direct:
            raise AttributeError(name)
        return self.direct[name]

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
    rows: Rows,
    places: Sequence[Place],
    settings: Sequence[tuple[Tensor, list[Tensor], Sequence[Tensor] | None]],
    given: Sequence[Tensor],
    width: int,
) -> tuple[tuple[Place, ...], int]:
    """Places with the derivatives that F answers to, for random jets; and how many rows a point has.

    Args:
        settings: points, places and direct parameters to try, None for random ones: a coefficient may vanish at some.
    """
    points = settings[0][0]
    generator = torch.Generator().manual_seed(0)

    def random(shape: Any) -> Tensor:
        return normal(shape, generator).to(points)

    n, matter, count = len(points), [set() for _ in places], 0
    for k, (where, centres, values) in enumerate(settings):
        size = 1.0 if k < 2 else 100.0  # a term may be switched on by large values alone
        jets = [[(size * random((n, width))).requires_grad_() for _ in place.wanted] for place in places]
        wide = [random((n, *t.shape)) if values is None else t.detach().expand(n, *t.shape) for t in given]
        with torch.enable_grad():
            found = rows(jets, where, centres, wide)
            if not found.requires_grad:
                raise ValueError("does not depend on the network")
            flat = [value for jet in jets for value in jet]
            grads = iter(torch.autograd.grad((found * random(found.shape)).sum(), flat, allow_unused=True))
        for place, kept in zip(places, matter, strict=True):
            kept.update(index for index in place.wanted if (g := next(grads)) is not None and bool((g != 0).any()))
        count = found.shape[1]
    kept_places = [
        replace(place, wanted=tuple(index for index in place.wanted if index in kept) or ((),))
        for place, kept in zip(places, matter, strict=True)
    ]
    return tuple(kept_places), count


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
