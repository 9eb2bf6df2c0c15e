"""Query points: the network linearized on other inputs, and how a basis moves the outputs there."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..distributed.world import World
from ..distributed.wrapped import entry
from ..flow.basis import Basis
from ..linearization.linearize import Linearization, at_query
from ..linearization.ntk import assemble
from ..objectives.parts import Batch, Opaque, require_finite
from ..objectives.snapshot import owned, same


class Queries:
    """Keeps the last query points' linearization, and the basis's images there once enough horizons are asked for."""

    def __init__(self, basis: Basis) -> None:
        self.lin, self.basis = basis.lin, basis
        self._last: tuple[Any, Linearization, Tensor | None] | None = None  # a copy of the points

    def shifted(self, x: Any, c: Tensor) -> Tensor:
        """Linearized outputs on query points x after moving by coefficients c (T, k): (T, m, …)."""
        query, images = self.at(x, many=c.shape[0])
        if images is not None:
            shift = torch.tensordot(c, images, dims=1)
        else:
            shift = torch.stack([query.jvp(self.basis.displacement(row)) for row in c])
        return (query.u.to(shift.dtype) + shift).to(query.u.dtype)

    def at(self, x: Any, many: int) -> tuple[Linearization, Tensor | None]:
        """The query's linearization, and the images of the basis there once enough horizons are asked for."""
        self.lin.require_unchanged()
        world = None if self.lin.shards is None else self.lin.shards.world
        with entry(world, "query points"):
            return self._at(x, many, world)

    def _at(self, x: Any, many: int, world: World | None) -> tuple[Linearization, Tensor | None]:
        # Compared by contents, as arrays are written over in ways that no version tells; a function may read anything.
        new = self._last is None or callable(x) or not same(self._last[0], x)
        if new if world is None else world.any("new query points", new):  # each process may ask for other points
            require_finite(x, "query points")
            points = None if callable(x) else owned(x)
            part = Opaque(cast(Any, x)) if callable(x) else Batch(points, "query points")
            query = at_query(self.lin, part)
            self._last = (points, query, None)
        assert self._last is not None
        points, query, images = self._last
        modes = self.basis.cotangents.shape[0] if self.basis.cotangents is not None else 0
        outputs = max(1, query.u.numel() // query.u.shape[0])
        # The kernel costs a backward pass an output on both sides; without it a horizon costs a vjp and a jvp.
        layered = self.lin.layered and query.layered
        if images is None and many > 2 * outputs + 2 and modes == self.basis.size and layered:
            part = query.parts[0]
            assert isinstance(part, Batch) and self.basis.cotangents is not None
            k_qs = assemble.query_kernel(self.lin, part, self.basis.metric).double()
            images = (self.basis.cotangents.flatten(1).double() @ k_qs.T).reshape(-1, *query.u.shape)
        elif images is None and modes == 0 and 0 < self.basis.size < many:
            rows = self.basis.rows()
            images = torch.stack(
                [query.jvp(self.basis.metric.scale(v.to(self.lin.theta.dtype))) for v in rows]
            ).double()
        self._last = (points, query, images)
        return query, images
