"""Jets: a function's value and partial derivatives at many points, carried through layers side by side.

A jet maps an index (0, 0, 1), meaning ∂³/∂x₀²∂x₁, to a tensor (n, width); an index that is missing is zero. A sum of
second derivatives is an index of its own (``Laplace``). Linear maps act on every stream alone, elementwise functions by
Faà di Bruno's formula. Source: docs/theory.md, section 8.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor
from torch.func import jvp

Partial = tuple[int, ...]


@dataclass(frozen=True)
class Laplace:
    """Σ ∂²/∂x_i² over some axes: one stream in the place of one an axis (Li et al. 2023, arXiv:2307.08214)."""

    axes: tuple[int, ...]

    def __len__(self) -> int:
        """The order."""
        return 2


Index = Union[Partial, Laplace]  # noqa: UP007 (an alias that is evaluated)
Jet = dict[Index, Tensor]


def indices(dimension: int, order: int) -> list[Partial]:
    """All indices up to an order, lower ones first: () is the value."""
    return [index for k in range(order + 1) for index in itertools.combinations_with_replacement(range(dimension), k)]


def closed(wanted: Iterable[Index]) -> list[Index]:
    """The indices that ``wanted`` ones need on the way: every part of each."""
    found: set[Index] = {()}
    for index in wanted:
        if isinstance(index, Laplace):
            found.add(index)
            found.update((i,) for i in index.axes)
            continue
        for k in range(1, len(index) + 1):
            found.update(itertools.combinations(index, k))
    return sorted(found, key=_order)


def _order(index: Index) -> tuple[int, bool, Partial]:
    summed = isinstance(index, Laplace)
    return len(index), summed, index.axes if isinstance(index, Laplace) else index


def multiplicity(index: Partial) -> int:
    """α! of a multi-index α: the factor between a derivative and its Taylor coefficient."""
    return math.prod(math.factorial(count) for count in Counter(index).values())


@functools.cache
def partitions(index: Partial) -> tuple[tuple[tuple[Partial, ...], int], ...]:
    """Faà di Bruno: the ways to split an index into blocks, and how often each occurs."""
    found: Counter[tuple[Partial, ...]] = Counter()
    for blocks in _set_partitions(list(range(len(index)))):
        found[tuple(sorted(tuple(index[i] for i in block) for block in blocks))] += 1
    return tuple(found.items())


def _set_partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for smaller in _set_partitions(rest):
        yield [[first], *smaller]
        for i, block in enumerate(smaller):
            yield [*smaller[:i], [first, *block], *smaller[i + 1 :]]


def variable(points: Tensor, wanted: Iterable[Index]) -> Jet:
    """The jet of x itself at points (n, d): its first derivatives are unit vectors."""
    jet: Jet = {(): points}
    eye = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    jet |= {(i,): eye[i].expand_as(points) for i in range(points.shape[1]) if (i,) in wanted}
    return jet


def elementwise(tower: Tower, jet: Jet, wanted: Iterable[Index]) -> Jet:
    """σ(jet): ``tower`` gives σ, σ′, … of a tensor up to an order."""
    wanted = list(wanted)
    sigma = tower(jet[()], max(len(index) for index in wanted))
    out: Jet = {(): sigma[0]}
    for index in wanted[1:]:
        total: Tensor | None = None
        if isinstance(index, Laplace):
            total = sigma[1] * jet[index] if index in jet else None
            if (squares := _contracted(jet, jet, index)) is not None:
                total = _plus(total, sigma[2] * squares)
            if total is not None:
                out[index] = total
            continue
        for blocks, count in partitions(index):
            if any(block not in jet for block in blocks):
                continue
            term = sigma[len(blocks)] * jet[blocks[0]]
            for block in blocks[1:]:
                term = term * jet[block]
            total = _plus(total, term if count == 1 else count * term)
        if total is not None:
            out[index] = total
    return out


def product(left: Jet, right: Jet, wanted: Iterable[Index]) -> Jet:
    """left·right by Leibniz's rule."""
    out: Jet = {}
    for index in wanted:
        total: Tensor | None = None
        if isinstance(index, Laplace):
            for a, b in (((), index), (index, ())):
                if a in left and b in right:
                    total = _plus(total, left[a] * right[b])
            if (crossed := _contracted(left, right, index)) is not None:
                total = _plus(total, 2 * crossed)
            if total is not None:
                out[index] = total
            continue
        for picks in itertools.product((True, False), repeat=len(index)):
            a = tuple(i for i, pick in zip(index, picks, strict=True) if pick)
            b = tuple(i for i, pick in zip(index, picks, strict=True) if not pick)
            if a in left and b in right:
                total = _plus(total, left[a] * right[b])
        if total is not None:
            out[index] = total
    return out


def _contracted(left: Jet, right: Jet, index: Laplace) -> Tensor | None:
    """Σ ∂_i left · ∂_i right over its axes; None for zero."""
    total: Tensor | None = None
    for i in index.axes:
        if (i,) in left and (i,) in right:
            total = _plus(total, left[(i,)] * right[(i,)])
    return total


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


def summed(left: Jet, right: Jet, sign: float = 1.0) -> Jet:
    """left + sign·right."""
    out = dict(left)
    for index, value in right.items():
        value = value if sign == 1.0 else sign * value
        out[index] = out[index] + value if index in out else value
    return out


def mapped(change: Callable[[Tensor], Tensor], jet: Jet) -> Jet:
    """A linear map without a constant, stream by stream."""
    return {index: change(value) for index, value in jet.items()}


# Derivatives of elementwise functions: σ, σ′, …, up to an order.
Tower = Callable[[Tensor, int], list[Tensor]]


def _polynomial(value: Callable[[Tensor], Tensor], first: tuple[float, ...]) -> Tower:
    """A function whose derivative is a polynomial p of itself: σ⁽ᵏ⁺¹⁾ = p·dσ⁽ᵏ⁾/dσ, as tanh and the sigmoid."""

    @functools.cache
    def cofactor(k: int) -> tuple[float, ...]:
        """q with σ⁽ᵏ⁾ = p·q: q₁ = 1 and q′ = p′q + p·dq, lowest power first."""
        if k == 1:
            return (1.0,)
        q, total = cofactor(k - 1), [0.0] * (len(cofactor(k - 1)) + len(first))
        for i, a in enumerate(first):
            for j, b in enumerate(q):
                if i + j > 0:
                    total[i + j - 1] += (i + j) * a * b
        while len(total) > 1 and total[-1] == 0:
            total.pop()
        return tuple(total)

    def tower(x: Tensor, order: int) -> list[Tensor]:
        s = value(x)
        out = [s]
        if order:
            p = _horner(first, s)
            out.append(p)
            out += [_horner(cofactor(k), s) * p for k in range(2, order + 1)]
        return out

    return tower


def _horner(coefficients: tuple[float, ...], s: Tensor) -> Tensor:
    if not any(coefficients[:-1]) and len(coefficients) == 2:
        return coefficients[1] * s
    if len(coefficients) == 3 and coefficients[1] == 0:  # even: tanh's first and third derivative
        return coefficients[0] + coefficients[2] * (s * s)
    total = torch.full_like(s, coefficients[-1])
    for a in reversed(coefficients[:-1]):
        total = total * s + a
    return total


def _sine(phase: int) -> Tower:
    def tower(x: Tensor, order: int) -> list[Tensor]:
        s, c = torch.sin(x), torch.cos(x)
        cycle = (s, c, -s, -c)
        return [cycle[(k + phase) % 4] for k in range(order + 1)]

    return tower


def _exponential(x: Tensor, order: int) -> list[Tensor]:
    return [torch.exp(x)] * (order + 1)


def power(k: float) -> Tower:
    """x ↦ xᵏ. A whole k is exact where x is negative or zero, and its derivatives of higher order are zero."""

    def tower(x: Tensor, order: int) -> list[Tensor]:
        found = []
        for j in range(order + 1):
            factor = math.prod(k - i for i in range(j))
            found.append(factor * x ** (k - j) if factor else torch.zeros_like(x))
        return found

    return tower


def _logarithm(x: Tensor, order: int) -> list[Tensor]:
    return [torch.log(x), *power(-1)(x, order - 1)] if order else [torch.log(x)]


def differentiated(fn: Callable[[Tensor], Tensor]) -> Tower:
    """The tower of any elementwise function, by nested forward mode."""

    def tower(x: Tensor, order: int) -> list[Tensor]:
        one, found, f = torch.ones_like(x), [fn(x)], fn
        for _ in range(order):
            f = functools.partial(lambda z, g: jvp(g, (z,), (one,))[1], g=f)
            found.append(f(x))
        return found

    return tower


TANH: Tower = _polynomial(torch.tanh, (1.0, 0.0, -1.0))
SIGMOID: Tower = _polynomial(torch.sigmoid, (0.0, 1.0, -1.0))
SIN, COS = _sine(0), _sine(1)
EXP: Tower = _exponential
LOG: Tower = _logarithm
