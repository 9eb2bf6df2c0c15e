"""Residuals given at one point, over many points: by derivative streams where these are exact, else by transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from ..domains import Domain
from ..errors import InputError
from ..utils.autodiff import normal, pullback
from ..utils.fallback import Fallback, NotFollowed, fallback
from ..utils.progress import track
from .diagnosis import TERM
from .parts import JACOBIAN_BYTES, Part, by_outputs, pulls_back, require_tensor
from .pure import Bound, Net, tensors_of
from .taylor import Local, Outer, fingerprint, of_model, trace_residual

FORMED = 2**24  # entries up to which the explicit Jacobian is checked as well
AGREEMENT = 0.6  # both ways agree to the power of the machine precision ε that this is
DIFFERS = ", so the network or the residual does what a trace does not show (hooks, random numbers, state)"
CHECKS = 16  # the fast way is held against the general one at preparations 1, 2, 4, …, then every so many


class Points(Part):
    """Rows scale·fn(net, x) for x in ``points`` (m, d), with one scale for all or one for each point (m,).

    The general way is ``vmap`` over ``fn``. Where the network is a chain of known layers that ``fn`` asks for values
    and derivatives at places, ``prepare`` finds the same rows as batched operations (``taylor``), checks them and
    their Jacobian against the general way, and uses them from then on.

    Attributes:
        local: the fast way, or None. domain: what the points are drawn from, or None where they are given.
        base: the scale before points were weighed, None where the user gave each its own. weights: of ``weighed``.
        fallback: why the general way is taken, for people; None where the fast one is, and before ``prepare``.
    """

    kind = TERM

    def __init__(
        self, fn: Callable[[Callable[..., Any], Tensor], Tensor], points: Tensor, scale: float | Tensor
    ) -> None:
        self.fn, self.points = fn, points
        self.scale = scale if isinstance(scale, Tensor) else float(scale)
        self.base = None if isinstance(self.scale, Tensor) else self.scale
        self.weights: Tensor | None = None
        self.local: Local | None = None
        self.domain: Domain | None = None
        self.fallback: str | None = None
        self._read: Any = None  # fingerprint of what fn reads, at the time that ``local`` was made
        self._model: nn.Module | None = None  # whose layers ``local`` goes through
        self._asked = 0

    def __getstate__(self) -> dict[str, Any]:
        # traced graphs do not travel
        return {**self.__dict__, "local": None, "fallback": None, "_read": None, "_model": None, "_asked": 0}

    def given(self) -> str:
        return f"a point of shape {tuple(self.points.shape[1:])}, {self.points.dtype}"

    def _row(self, net: Callable[..., Any], x: Tensor, scale: float | Tensor) -> Tensor:
        return scale * require_tensor(self.fn(net, x), "a residual function").reshape(-1)

    def _general(self, net: Callable[..., Any]) -> Tensor:
        each = None if isinstance(self.scale, float) else 0
        return vmap(lambda x, s: self._row(net, x, s), (0, each))(self.points, self.scale).reshape(-1)

    def by_row(self, rows: int) -> float | Tensor:
        """The scale of each of ``rows`` rows, the rows of a point side by side."""
        if isinstance(self.scale, Tensor):
            return self.scale.repeat_interleave(rows // len(self.points))
        return self.scale

    def _scaled(self, rows: Tensor) -> Tensor:
        """Rows (N,) or (N, P) of the residual itself, times its scale."""
        by_row = self.by_row(len(rows))
        return (by_row.view(-1, *[1] * (rows.dim() - 1)) if isinstance(by_row, Tensor) else by_row) * rows

    def outputs(self, net: Callable[..., Any]) -> Tensor:
        if self.local is not None and self._knows(net):
            return self._scaled(self.local.rows(tensors_of(net)).reshape(-1))
        return self._general(net)

    def _knows(self, net: Any) -> bool:
        """Whether the fast way was found for this network; a loop of the user's own may not have prepared it."""
        if isinstance(net, Bound):
            return net.model is self._model
        return net is self._model and self._read is not None and self._read[:2] == _reading(self.fn, net)

    def jacobian(self, net: Net, theta: Tensor) -> tuple[Tensor, float]:
        if self.local is not None:
            return self._by_streams(net, theta)
        scales = torch.as_tensor(self.scale, dtype=self.points.dtype, device=self.points.device).expand(
            len(self.points)
        )
        rows = vmap(jacrev(lambda th, x, s: self._row(net.bind(th), x, s)), (None, 0, 0))
        chunk = max(1, int(JACOBIAN_BYTES // ((theta.numel() + 1024) * theta.element_size())))
        pieces = track(list(zip(self.points.split(chunk), scales.split(chunk), strict=True)), label="Jacobian: points")
        found = torch.cat([rows(theta, x, s).reshape(-1, theta.numel()) for x, s in pieces])
        u, pull = pullback(lambda th: self._general(net.bind(th)), theta)
        if not pulls_back(found, u, pull):  # a batching rule of torch's that is wrong
            return by_outputs(u, pull, theta), float(u.numel())
        return found, found.shape[0] / self.points.shape[0]

    def write_jacobian(self, net: Net, theta: Tensor, out: Tensor) -> float:
        if self.local is None:
            return super().write_jacobian(net, theta, out)
        return self._streams_into(net, theta, out)

    def _by_streams(self, net: Net, theta: Tensor) -> tuple[Tensor, float]:
        assert self.local is not None
        found = theta.new_empty(self.local.width * len(self.points), theta.numel())
        return found, self._streams_into(net, theta, found)

    def _streams_into(self, net: Net, theta: Tensor, out: Tensor) -> float:
        assert self.local is not None
        at, columns = 0, {}
        for name, size in _sizes(net):
            columns[name] = at
            at += size
        one = self.scale if isinstance(self.scale, float) else 1.0
        passes = float(self.local.jacobian(net.bind(theta).tensors(), columns, out, one))
        if isinstance(self.scale, Tensor):
            out *= self.by_row(len(out))[:, None]  # type: ignore[index]
        return passes

    def outer_products(self, net: Net, theta: Tensor) -> list[Outer] | None:
        """The Jacobian as outer products (``taylor``), or None where it is not to be had like that."""
        if self.local is None:
            return None
        one = self.scale if isinstance(self.scale, float) else 1.0
        found = self.local.outer_products(net.bind(theta).tensors(), set(net.space.names), one)
        if isinstance(self.scale, float):
            return found
        by_row = self.by_row(self.local.width * len(self.points))
        assert isinstance(by_row, Tensor)
        return [replace(outer, left=by_row[outer.rows, None] * outer.left) for outer in found]

    def pulls(self, u: Tensor) -> float:
        return u.numel() / self.points.shape[0]

    def place(self, row: int, count: int) -> str:
        return f"point {self.points[row * len(self.points) // count].tolist()}"

    def notes(self) -> list[str]:
        return [] if self.fallback is None else [self.fallback]

    def data(self) -> dict[str, Tensor]:
        return {"points": self.points, **({"weights": self.scale} if isinstance(self.scale, Tensor) else {})}

    def at(self, points: Tensor) -> Points:
        """The same residual at other points; as many of them need no new trace."""
        if self.base is None:
            raise InputError(
                f"the term {self.name!r} has a weight for each of its points, which others do not have: make the "
                "objective anew, with weights for the new points."
            )
        other = Points(self.fn, points, self.base * (len(self.points) / len(points)) ** 0.5)
        other.name, other.domain = self.name, self.domain
        other.local = None if self.local is None else self.local.moved(points)
        if other.local is not None:
            other._read, other._model = self._read, self._model  # and is checked at its first linearization
        return other

    def share(self, own: slice) -> Points:
        """The same rows at some of the points, which keep their weights."""
        scale = self.scale[own] if isinstance(self.scale, Tensor) else self.scale
        other = Points(self.fn, self.points[own], scale)
        other.name = self.name
        return other

    def weighed(self, weights: Tensor | None) -> Points:
        """The same residual at the same points, each with a weight (m,) on its square beside the term's; None: none."""
        assert self.base is not None
        scale = self.base if weights is None else self.base * weights.sqrt()
        other = Points(self.fn, self.points, scale)
        vars(other).update({**vars(self), "scale": scale, "weights": weights})
        return other

    def prepare(self, net: Net, theta: Tensor) -> None:
        """Find the fast way, or make sure that it still is the residual: ``fn`` may read numbers that have changed."""
        self._asked += 1
        read = (*_reading(self.fn, net.model), net.space.names)
        asked = self._asked
        if read == self._read and asked & (asked - 1) and asked % CHECKS:
            return
        every = asked == 1  # at points that are new, all rows; later a few
        if read == self._read and (self.local is None or self._same_rows(net, theta, every)):
            return
        self._read, self._model = None, net.model
        failed = self._find(net, theta)
        self._read, self._asked = read, 1  # last: after an interrupt it is looked for again
        self.fallback = None if failed is None else f"general way: {failed.reason}"
        if failed is not None and failed.unexpected:
            with torch.no_grad():
                self._general(net.bind(theta))  # where this fails as well, its error is the one to tell
            failed.warn(f"the residual {_name(self.fn)}")

    def _find(self, net: Net, theta: Tensor) -> Fallback | None:
        """Set ``local``, checked; or leave it at None and say why."""
        self.local = None
        try:
            own = {dtype for dtype in net.space.dtypes if dtype != self.points.dtype}
            if own:
                raise NotFollowed(f"the points are {self.points.dtype}, parameters {', '.join(sorted(map(str, own)))}")
            tensors = net.bind(theta).tensors()
            self.local = trace_residual(self.fn, self.points, net.model, tensors, net.space.names)
            self._require_same_derivatives(net, theta)
        except BaseException as error:
            self.local = None
            if not isinstance(error, Exception):  # an interrupt
                raise
            return fallback(error)  # whatever it is, the general way remains
        return None

    def _off(self, theta: Tensor) -> Iterator[Tensor]:
        """Weights to compare at, off the present ones: near a solution residuals are what is left of large terms."""
        noise = normal(theta.shape, self._asked).to(theta)
        for size in (0.1, 1e-3, 0.0):  # smaller where the residual is not finite there
            yield theta + size * noise * theta.abs().clamp_min(0.1)

    def _same_rows(self, net: Net, theta: Tensor, every: bool) -> bool:
        """Whether both ways give the same rows, at a few points or at every one."""
        assert self.local is not None
        n = len(self.points)
        count = n if every else min(8, n)
        few = torch.linspace(0, n - 1, count, dtype=torch.float64, device="cpu").round().long().unique()
        at = few.to(self.points.device)
        scale = self.scale[at] if isinstance(self.scale, Tensor) else self.scale
        some = self if every else Points(self.fn, self.points[few], scale)
        for near in self._off(theta):
            exact = some._general(net.bind(near))
            if bool(torch.isfinite(exact).all()):
                rows = self.local.rows(net.bind(near).tensors()).reshape(n, -1)[at]
                return _close(some._scaled(rows.reshape(-1)), exact, torch.finfo(theta.dtype).eps ** AGREEMENT)
        return False

    def _require_same_derivatives(self, net: Net, theta: Tensor) -> None:
        """Hold rows and the derivative along a random cotangent, by vjp and by outer products, against the general way.

        Raises:
            NotFollowed: something differs, or nothing is finite near θ to be compared.
        """
        tolerance = torch.finfo(theta.dtype).eps ** AGREEMENT
        for near in self._off(theta):
            exact, pull = pullback(lambda th: self._general(net.bind(th)), near)
            if not bool(torch.isfinite(exact).all()):
                continue
            rows, fast = pullback(lambda th: self.outputs(net.bind(th)), near)
            w = normal(exact.shape, 0).to(exact)
            truth = pull(w).detach()
            if not _close(rows.detach(), exact.detach(), tolerance):
                raise NotFollowed(f"derivative streams give other residuals{DIFFERS}")
            found = [fast(w).detach(), self._contracted(net, near, w)]
            if w.numel() * near.numel() <= FORMED:
                found.append(w @ self._by_streams(net, near)[0])
            if not all(_close(products, truth, tolerance) for products in found):
                raise NotFollowed(f"derivative streams give the same residuals but another Jacobian{DIFFERS}")
            return
        raise NotFollowed("no residuals are finite near the present weights, so that nothing can be checked")

    def _contracted(self, net: Net, theta: Tensor, w: Tensor) -> Tensor:
        """Jᵀw from the outer products, without the Jacobian."""
        total = {name: torch.zeros(size, dtype=w.dtype, device=w.device) for name, size in _sizes(net)}
        for outer in self.outer_products(net, theta) or ():
            part = w[outer.rows]
            found = part @ outer.left if outer.right is None else (part[:, None] * outer.left).T @ outer.right
            total[outer.name] += found.reshape(-1)
        return torch.cat(list(total.values()))


def _sizes(net: Net) -> list[tuple[str, int]]:
    return list(zip(net.space.names, net.space.sizes, strict=True))


def _reading(fn: Any, model: nn.Module) -> tuple[Any, Any]:
    return fingerprint(fn), of_model(model)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Relative agreement, written so that NaN is none; two zeros agree."""
    scale = torch.maximum(torch.linalg.vector_norm(a), torch.linalg.vector_norm(b))
    return a.shape == b.shape and bool(torch.linalg.vector_norm(a - b) <= tolerance * scale)


def _name(fn: Any) -> str:
    return getattr(fn, "__qualname__", repr(fn))
