"""Residuals given at one point, over many points: by derivative streams where these are exact, else by transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from .autodiff import pullback
from .errors import NondeterministicError
from .parameters import Net, tensors_of
from .parts import JACOBIAN_BYTES, Part, require_tensor
from .progress import track
from .streams import Local, Outer, factor, fingerprint, of_model

CHECKS = 16  # the fast way is held against the general one at linearizations 1, 2, 4, …, and then every so many


class Points(Part):
    """Rows scale·fn(net, x) for x in ``points`` (m, d).

    The general way is ``vmap`` over ``fn``. Where the network is a chain of known layers that ``fn`` asks for values
    and derivatives at places, ``prepare`` finds the same rows as batched operations (``streams``), checks them and
    their Jacobian against the general way, and uses them from then on.
    """

    def __init__(self, fn: Callable[[Callable[..., Any], Tensor], Tensor], points: Tensor, scale: float) -> None:
        self.fn, self.points, self.scale = fn, points, scale
        self.local: Local | None = None
        self._read: Any = None  # fingerprint of what fn reads, at the time that ``local`` was made
        self._asked = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "local": None, "_read": None, "_asked": 0}  # traced graphs do not travel

    def _row(self, net: Callable[..., Any], x: Tensor) -> Tensor:
        return self.scale * require_tensor(self.fn(net, x), "a residual function").reshape(-1)

    def _general(self, net: Callable[..., Any]) -> Tensor:
        try:
            return vmap(lambda x: self._row(net, x))(self.points).reshape(-1)
        except RuntimeError as error:
            if "random operation" not in str(error):
                raise
            raise NondeterministicError(
                f"the residual {_name(self.fn)} draws random numbers: draw them before, and pass new points "
                "(objective.resampled, or fit(resample=…)) instead."
            ) from error

    def outputs(self, net: Callable[..., Any]) -> Tensor:
        if self.local is not None and (tensors := tensors_of(net)):
            return self.scale * self.local.rows(tensors).reshape(-1)
        return self._general(net)

    def jacobian(self, net: Net, theta: Tensor) -> tuple[Tensor, float]:
        if self.local is not None:
            return self._by_streams(net, theta)
        rows = vmap(jacrev(lambda th, x: self._row(net.bind(th), x)), (None, 0))
        chunk = max(1, int(JACOBIAN_BYTES // ((theta.numel() + 1024) * theta.element_size())))
        pieces = track(self.points.split(chunk), label="Jacobian: points")
        found = torch.cat([rows(theta, x).reshape(-1, theta.numel()) for x in pieces])
        return found, found.shape[0] / self.points.shape[0]

    def _by_streams(self, net: Net, theta: Tensor) -> tuple[Tensor, float]:
        assert self.local is not None
        space, at, columns = net.space, 0, {}
        for name, size in zip(space.names, space.sizes, strict=True):
            columns[name] = at
            at += size
        found = theta.new_empty(self.local.width * len(self.points), theta.numel())
        return found, float(self.local.jacobian(net.bind(theta).tensors(), columns, found, self.scale))

    def factors(self, net: Net, theta: Tensor) -> list[Outer] | None:
        """The Jacobian as outer products (``streams``), or None where it is not to be had like that."""
        if self.local is None:
            return None
        return self.local.factors(net.bind(theta).tensors(), set(net.space.names), self.scale)

    def pulls(self, u: Tensor) -> float:
        return u.numel() / self.points.shape[0]

    def place(self, row: int, count: int) -> str:
        return f"point {self.points[row * len(self.points) // count].tolist()}"

    def at(self, points: Tensor) -> Points:
        """The same residual at other points; as many of them need no new trace."""
        other = Points(self.fn, points, self.scale * (len(self.points) / len(points)) ** 0.5)
        other.name = self.name
        other.local = None if self.local is None else self.local.moved(points)
        if other.local is not None:
            other._read = self._read  # and is checked at its first linearization
        return other

    def prepare(self, net: Net, theta: Tensor) -> None:
        """Find the fast way, or make sure that it still is the residual: ``fn`` may read numbers that have changed."""
        self._asked += 1
        read = fingerprint(self.fn), of_model(net.model), net.space.names
        asked = self._asked
        if read == self._read and asked & (asked - 1) and asked % CHECKS:
            return
        if read != self._read or (self.local is not None and not self._agrees(net, theta)):
            self.local, self._read, bound = None, read, net.bind(theta)
            self._asked = 1
            if all(dtype == self.points.dtype for dtype in net.space.dtypes):
                self.local = factor(self.fn, self.points, net.model, bound.tensors(), set(net.space.names))
            if self.local is not None and not self._agrees(net, theta, jacobian=True):
                self.local = None

    def _agrees(self, net: Net, theta: Tensor, jacobian: bool = False) -> bool:
        """Whether both ways give the same rows, and the same derivative along a random cotangent."""
        assert self.local is not None
        tolerance = torch.finfo(theta.dtype).eps ** 0.6
        # Off the present weights: near a solution residuals are what is left of terms that cancel.
        generator = torch.Generator().manual_seed(self._asked)
        noise = torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(theta)
        theta = theta + 0.1 * noise * theta.abs().clamp_min(0.1)
        if not jacobian:
            few = torch.linspace(0, len(self.points) - 1, min(8, len(self.points))).round().long().unique()
            rows = self.local.rows(net.bind(theta).tensors()).reshape(len(self.points), -1)
            some = Points(self.fn, self.points[few], self.scale)
            return _close(self.scale * rows[few].reshape(-1), some._general(net.bind(theta)), tolerance)
        exact, pull = pullback(lambda th: self._general(net.bind(th)), theta)
        if not bool(torch.isfinite(exact).all()):
            return False
        rows, fast = pullback(lambda th: self.outputs(net.bind(th)), theta)
        w = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(exact)
        truth = pull(w).detach()
        return (
            _close(rows.detach(), exact.detach(), tolerance)
            and _close(fast(w).detach(), truth, tolerance)
            and _close(w @ self._by_streams(net, theta)[0], truth, tolerance)
        )


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Relative agreement, written so that NaN is none; two zeros agree."""
    scale = torch.maximum(torch.linalg.vector_norm(a), torch.linalg.vector_norm(b))
    return a.shape == b.shape and bool(torch.linalg.vector_norm(a - b) <= tolerance * scale)


def _name(fn: Any) -> str:
    return getattr(fn, "__qualname__", repr(fn))
