"""Points from a function of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, NonFiniteError, ShapeError
from ..utils.brief import brief
from .domain import Domain
from .given import rows, whole

TRIED = 2  # points that a function is asked for when it is given: the least that shows how they are laid out


@dataclass(frozen=True)
class Sampler(Domain):
    """Points that a function draws: ``fn(count, generator)`` returns ``count`` of them, (count, dim).

    Args:
        fn: takes a number of points and a ``torch.Generator``, which it draws its random numbers with. A tensor or an
            array of any floating dtype, of which points are taken as float64.
        dim: coordinates of a point; found by asking for two points if left out.
        inside: ``inside(x) -> (n,)`` bool for points (n, dim), which all that are drawn must fulfil, and what
            ``contains`` asks.

    What the function draws from has no measure that is known: ``measure`` is NaN, and it cannot be composed.

    Raises:
        InputError: no function, one of other arguments, or one that does not draw with its generator.
        ShapeError, NonFiniteError: points of another shape, or not finite.
    """

    fn: Callable[[int, torch.Generator], Any]
    dim: Any = None
    inside: Callable[[Tensor], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("fn", "inside"):
            value = getattr(self, name)
            if not callable(value) and not (name == "inside" and value is None):
                raise InputError(f"Sampler: {name} must be a function, got {brief(value)}.")
        try:
            inspect.signature(self.fn).bind(TRIED, None)
        except TypeError:
            raise InputError(f"{self!r}: the function must take (count, generator), and those alone.") from None
        except ValueError:  # it has no signature that Python knows, as functions written in C
            pass
        if self.dim is not None:
            object.__setattr__(self, "dim", whole(self.dim, "Sampler: dim", 1))
        first, again = self._draw(TRIED, 0), self._draw(TRIED, 0)
        if self.dim is None:
            object.__setattr__(self, "dim", first.shape[1])
        if not torch.equal(first, again):
            raise InputError(
                f"{self!r}: two generators of the same seed gave other points, ({_point(first[0])}) and then "
                f"({_point(again[0])}), so that no run could be repeated. Draw with the generator that the function is "
                "given: torch.rand(count, dim, generator=generator)."
            )

    def __repr__(self) -> str:
        inside = "" if self.inside is None else f", inside={_name(self.inside)}"
        dim = "" if self.dim is None else f", dim={self.dim}"
        return f"Sampler({_name(self.fn)}{dim}{inside})"

    @property
    def intrinsic_dim(self) -> int:
        """Taken to be ``dim``: what the function draws from is not known."""
        return self.dim

    @property
    def measure(self) -> float:
        """Not known: NaN."""
        return float("nan")

    def points(self, count: int, seed: int = 0) -> Tensor:
        """``count`` points of the function, checked: (count, dim), float64, on the CPU; others for another ``seed``.

        Raises:
            InputError: points that are too many or few, of another shape, not finite, or outside.
        """
        return self._draw(whole(count, "points: count", 1), whole(seed, "points: seed", 0))

    def _draw(self, count: int, seed: int) -> Tensor:
        with torch.device("cpu"):  # where the generator is, whatever the user's default
            found = self.fn(count, torch.Generator().manual_seed(seed))
        x = torch.from_numpy(found) if isinstance(found, np.ndarray) and found.dtype.kind in "fiu" else found
        if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
            raise InputError(f"{self!r}: the function must return a tensor or an array, got {brief(found)}.")
        if x.dim() != 2 or len(x) != count or (self.dim and x.shape[1] != self.dim) or x.shape[1] == 0:
            wanted = f"({count}, {self.dim or 'dim'})"
            raise ShapeError(f"{self!r}: asked for {count} points, which are of shape {wanted}, got {brief(found)}.")
        x = x.detach().cpu().double().clone()
        bad = ~torch.isfinite(x).all(1)
        if bool(bad.any()):
            raise NonFiniteError(f"{self!r}: {_some(x, bad)} not finite.")
        if self.inside is not None:
            out = ~self._holds(x)
            if bool(out.any()):
                raise InputError(f"{self!r}: {_some(x, out)} outside, by {_name(self.inside)}.")
        return x

    def _holds(self, x: Tensor) -> Tensor:
        assert self.inside is not None
        found = self.inside(x)
        holds = torch.as_tensor(found) if isinstance(found, np.ndarray) else found
        if not isinstance(holds, Tensor) or holds.dtype != torch.bool or holds.shape != x.shape[:1]:
            raise ShapeError(
                f"{self!r}: inside, asked about points of shape {tuple(x.shape)}, must return {len(x)} bools, got "
                f"{brief(found)}."
            )
        return holds.cpu()

    def contains(self, x: Any) -> Tensor:
        """What ``inside`` says.

        Raises:
            InputError: there is no ``inside``.
        """
        if self.inside is None:
            raise InputError(
                f"{self!r}.contains: not known; give Sampler(fn, inside=…), a function of points (n, dim)."
            )
        given, _ = rows(x, self.dim, f"{self!r}.contains")
        found = self._holds(torch.from_numpy(given))
        return found.to(x.device) if isinstance(x, Tensor) else found

    def boundary(self) -> Domain:
        """Not known.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self!r}.boundary: not known; give a Sampler that draws from it.")


def as_domain(value: Any) -> Domain:
    """A domain ``value`` as it is; a function of (count, generator) as the :class:`Sampler` that it makes.

    Raises:
        InputError: anything else, or points of the function that cannot be used.
    """
    if isinstance(value, Domain):
        return value
    if isinstance(value, type) and issubclass(value, Domain):
        raise InputError(f"{value.__name__} is a kind of domain; give one, made with its numbers.")
    if callable(value):
        return Sampler(value)
    raise InputError(
        f"expected a domain (js.domains.Box, Disk, …) or a function of (count, generator) that draws points, got "
        f"{brief(value)}."
    )


def _name(fn: Any) -> str:
    name = getattr(fn, "__qualname__", "") or type(fn).__name__
    return name.removeprefix("<locals>.").split("<locals>.")[-1]


def _point(x: Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in x[:4].tolist()) + (", …" if len(x) > 4 else "")


def _some(x: Tensor, bad: Tensor) -> str:
    at = int(bad.nonzero()[0])
    count = int(bad.sum())
    return f"of {len(x)} points, {count} {'is' if count == 1 else 'are'} (the first is number {at}, ({_point(x[at])}))"
