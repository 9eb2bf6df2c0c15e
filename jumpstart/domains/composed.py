"""Domains composed of others: products, unions, differences, intersections, and the boundaries of these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError, ShapeError
from .domain import EPS, Array, Domain, all_of, require_domain
from .drawing import shared_out


class Composable(Domain):
    """A domain that others can be made of."""

    _paired: ClassVar[bool] = False  # rows are two points

    def __mul__(self, other: Domain) -> Domain:
        factors = [_composable(factor, f"{self!r} * …") for factor in (self, other)]
        for factor in factors:
            if factor._paired:
                raise InputError(f"{factor!r} cannot be a factor: take a box with all axes, and its .periodic(axis).")
        return Product(tuple(part for f in factors for part in (f.factors if isinstance(f, Product) else (f,))))

    def __or__(self, other: Domain) -> Domain:
        parts = [_composable(part, f"{self!r} | …") for part in (self, other)]
        return Union(tuple(p for q in parts for p in (q.parts if isinstance(q, Union) and not q.name else (q,))))

    def __sub__(self, other: Domain) -> Domain:
        return Difference(self, _composable(other, f"{self!r} - …"))

    def __and__(self, other: Domain) -> Domain:
        return Intersection(self, _composable(other, f"{self!r} & …"))

    def _refused(self, other: Any) -> Composable:
        # asked only where what stands on the left has no such operator of its own
        return _composable(other, f"… with {self!r}")

    __rmul__ = __ror__ = __rsub__ = __rand__ = _refused

    def _pieces(self) -> list[Any]:
        """Pieces of the boundary that know which way is across (``_across``), for boundaries of composed sets."""
        raise InputError(f"the boundary of a union, difference or intersection with {self!r} is not known.")


def _composable(value: Any, what: str) -> Composable:
    value = require_domain(value, what)
    if not isinstance(value, Composable):
        raise InputError(f"{what}: {value!r} cannot be composed; let its function draw from the whole set.")
    return value


@dataclass(frozen=True, repr=False)
class Product(Composable):
    """Coordinates side by side: ``Disk((0, 0), 1) * Interval(0, 2)``.

    A product that ends with an Interval is one of space and time: :meth:`initial`, :meth:`final` and :meth:`slab` are
    there, and :meth:`boundary` is that of space, at all times.
    """

    factors: tuple[Composable, ...]

    def __repr__(self) -> str:
        return " * ".join(_inner(factor) for factor in self.factors)

    @property
    def dim(self) -> int:
        return sum(factor.dim for factor in self.factors)

    @property
    def intrinsic_dim(self) -> int:
        return sum(factor.intrinsic_dim for factor in self.factors)

    @property
    def _cube(self) -> int:
        return sum(factor._cube for factor in self.factors)

    @property
    def _envelope(self) -> float:
        return math.prod(factor._envelope for factor in self.factors)

    @property
    def measure(self) -> float:
        """The product of the factors' measures."""
        return math.prod(factor.measure for factor in self.factors)

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        found, accepted, at = [], all_of(u), 0
        for factor in self.factors:
            x, ok = factor._candidates(u[:, at : at + factor._cube])
            found.append(x)
            accepted, at = accepted & ok, at + factor._cube
        return np.concatenate(found, 1), accepted

    def _inside(self, x: Array, slack: float) -> Array:
        inside, at = np.ones(len(x), dtype=bool), 0
        for factor in self.factors:
            inside &= factor._inside(x[:, at : at + factor.dim], slack)
            at += factor.dim
        return inside

    def _at(self, name: str, *times: float) -> Product:
        """The product with its time replaced."""
        if not self.factors[-1]._interval:
            raise InputError(f"({self!r}).{name}: time is the last factor, which must be an Interval.")
        last = getattr(self.factors[-1], name)(*times)
        return Product((*self.factors[:-1], last))

    def initial(self) -> Product:
        """All of space at the first time."""
        return self._at("initial")

    def final(self) -> Product:
        """All of space at the last time."""
        return self._at("final")

    def slab(self, start: float, end: float) -> Product:
        """The part between two times."""
        return self._at("slab", start, end)

    def boundary(self) -> Domain:
        """Of space and time: the boundary of space at all times. Otherwise the whole boundary."""
        count = len(self.factors) - (1 if self.factors[-1]._interval else 0)
        sides = tuple(
            Product((*self.factors[:i], _boundary(factor), *self.factors[i + 1 :]))
            for i, factor in enumerate(self.factors[:count])
        )
        return Union(sides, name=f"({self!r}).boundary()", disjoint=True)

    def _pieces(self) -> list[Any]:
        raise InputError(
            f"the boundary of a set composed of the product {self!r} is not known: compose the factors first, as in "
            "(a - b) * Interval(0, 1), and take the boundary of that."
        )


@dataclass(frozen=True, repr=False)
class Union(Composable):
    """What is in any of the parts, which have the same dimension: points in proportion to measure."""

    parts: tuple[Composable, ...]
    name: str = ""  # how it is written, where it is not as a union
    disjoint: bool = False  # up to sets of measure zero, so that no point can come twice

    def __post_init__(self) -> None:
        first = self.parts[0]
        for part in self.parts[1:]:
            _require_same_space(first, part, "|")
            if part.intrinsic_dim != first.intrinsic_dim:
                raise InputError(
                    f"{first!r} | {part!r}: sets of dimension {first.intrinsic_dim} and {part.intrinsic_dim}: in "
                    "what proportion points would be drawn is not defined. Give each a js.Term of its own."
                )

    def __repr__(self) -> str:
        return self.name or " | ".join(_inner(part) for part in self.parts)

    @property
    def dim(self) -> int:
        return self.parts[0].dim

    @property
    def intrinsic_dim(self) -> int:
        return self.parts[0].intrinsic_dim

    @property
    def _cube(self) -> int:
        return max(1, *(part._cube for part in self.parts))

    @property
    def _envelope(self) -> float:
        return sum(part._envelope for part in self.parts)

    @property
    def measure(self) -> float:
        """The sum of the parts' where they do not overlap, else as for any domain."""
        return sum(part.measure for part in self.parts) if self.disjoint else self._envelope * self._share

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        # the first coordinate is shared out in proportion to what each part draws from, and stretched again
        which, first = shared_out([part._envelope for part in self.parts], u[:, 0])
        x, accepted = np.empty((len(u), self.dim)), np.zeros(len(u), dtype=bool)
        for i, part in enumerate(self.parts):
            here = which == i
            if not here.any():
                continue
            own = np.concatenate([first[here, None], u[here, 1:]], 1)[:, : part._cube]
            x[here], accepted[here] = part._candidates(own)
            if not self.disjoint:  # what is in an earlier part is drawn there
                for other in self.parts[:i]:
                    accepted[here] &= ~other._inside(x[here], EPS)
        return x, accepted

    def _inside(self, x: Array, slack: float) -> Array:
        return np.any([part._inside(x, slack) for part in self.parts], 0)

    def boundary(self) -> Domain:
        """The parts of all boundaries that have the set on one side alone."""
        return outline(self)

    def _pieces(self) -> list[Any]:
        return [piece for part in self.parts for piece in part._pieces()]


class Carved(Composable):
    """The points of a set that a predicate keeps."""

    @property
    def _base(self) -> Composable:
        raise NotImplementedError

    def _keeps(self, x: Array) -> Array:
        raise NotImplementedError

    @property
    def dim(self) -> int:
        return self._base.dim

    @property
    def intrinsic_dim(self) -> int:
        return self._base.intrinsic_dim

    @property
    def _cube(self) -> int:
        return self._base._cube

    @property
    def _envelope(self) -> float:
        return self._base._envelope

    def _candidates(self, u: Array) -> tuple[Array, Array]:
        x, accepted = self._base._candidates(u)
        return x, accepted & self._keeps(x)


@dataclass(frozen=True, repr=False)
class Difference(Carved):
    """What is in the first set and not inside the second, which has full dimension."""

    first: Composable
    second: Composable

    def __post_init__(self) -> None:
        _require_same_space(self.first, self.second, "-")
        if self.second.intrinsic_dim < self.second.dim:
            raise InputError(
                f"{self!r}: {self.second!r} has no volume, so that nothing would be taken away. Take away a set of "
                "full dimension, such as a Box around it."
            )

    def __repr__(self) -> str:
        return f"{_inner(self.first)} - {_inner(self.second)}"

    @property
    def _base(self) -> Composable:
        return self.first

    def _keeps(self, x: Array) -> Array:
        return ~self.second._inside(x, self._edge(EPS))

    def _inside(self, x: Array, slack: float) -> Array:
        return self.first._inside(x, slack) & ~self.second._inside(x, self._edge(slack))

    def _edge(self, slack: float) -> float:
        # of a region the new boundary belongs to the set; of a face nothing that touches the second does
        return -slack if self.first.intrinsic_dim == self.first.dim else slack

    def boundary(self) -> Domain:
        """The parts of both boundaries that have the set on one side alone."""
        return outline(self)

    def _pieces(self) -> list[Any]:
        return [*self.first._pieces(), *self.second._pieces()]


@dataclass(frozen=True, repr=False)
class Intersection(Carved):
    """What is in both sets, of which one at least has full dimension; points come from the smaller."""

    first: Composable
    second: Composable

    def __post_init__(self) -> None:
        _require_same_space(self.first, self.second, "&")
        if all(part.intrinsic_dim < part.dim for part in (self.first, self.second)):
            raise InputError(
                f"{self!r}: two sets without volume; where they meet, no points can be drawn. Cut one with a set of "
                "full dimension, such as a Box."
            )

    def __repr__(self) -> str:
        return f"{_inner(self.first)} & {_inner(self.second)}"

    @property
    def _base(self) -> Composable:
        return min(self.first, self.second, key=lambda part: (part.intrinsic_dim, part._envelope))

    def _keeps(self, x: Array) -> Array:
        return (self.second if self._base is self.first else self.first)._inside(x, EPS)

    def _inside(self, x: Array, slack: float) -> Array:
        return self.first._inside(x, slack) & self.second._inside(x, slack)

    def boundary(self) -> Domain:
        """The parts of both boundaries that have the set on one side alone."""
        return outline(self)

    def _pieces(self) -> list[Any]:
        return [*self.first._pieces(), *self.second._pieces()]


@dataclass(frozen=True, repr=False)
class Outline(Carved):
    """What of a piece of boundary has a set on one side alone.

    Gaps and slivers thinner than 1e-7 of a piece, as where a circle touches a line, are taken to be closed, or empty.
    """

    piece: Any
    whole: Composable

    def __repr__(self) -> str:
        return f"({self.whole!r}).boundary()"

    @property
    def _base(self) -> Composable:
        return self.piece

    def _keeps(self, x: Array) -> Array:
        return self._divides(x, EPS)

    def _divides(self, x: Array, slack: float) -> Array:
        across, inside = self.piece._across(x, slack), self.whole._inside
        # and on it: beside a place where two boundaries touch, a step across may end in what x is not on the edge of
        return (inside(x + across, 0.0) != inside(x - across, 0.0)) & inside(x, slack) & ~inside(x, -slack)

    def _inside(self, x: Array, slack: float) -> Array:
        found = self.piece._inside(x, slack)
        found[found] = self._divides(x[found], abs(slack))
        return found


def outline(whole: Composable) -> Domain:
    """The boundary of a composed set of full dimension, from the boundaries of what it is composed of."""
    if whole.intrinsic_dim < whole.dim:
        raise InputError(f"({whole!r}).boundary: it has no volume, and so no boundary to draw from.")
    parts = tuple(Outline(piece, whole) for piece in whole._pieces())
    return Union(parts, name=f"({whole!r}).boundary()")


def _boundary(factor: Domain) -> Composable:
    found = factor.boundary()
    assert isinstance(found, Composable)
    return found


def _require_same_space(a: Domain, b: Domain, sign: str) -> None:
    if a.dim != b.dim:
        raise ShapeError(f"{a!r} {sign} {b!r}: points of {a.dim} and of {b.dim} coordinates; they must have as many.")


def _inner(domain: Domain) -> str:
    """A domain as it is written inside another."""
    composed = isinstance(domain, (Product, Difference, Intersection)) or (
        isinstance(domain, Union) and not domain.name
    )
    return f"({domain!r})" if composed else repr(domain)
