"""The network's outputs linearized at θ₀: u, J·v, Jᵀ·w, f''[v, v], f''[v, ·]ᵀ·w, and the explicit Jacobian.

Source: docs/theory.md, equations 1 to 3. Products are counted in a :class:`jumpstart.utils.cost.Ledger`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..distributed.shards import Shards
from ..distributed.wrapped import entry
from ..errors import MemoryLimitError
from ..objectives.diagnosis import underivable
from ..objectives.parts import Batch, Part, join
from ..objectives.pure import Net
from ..objectives.snapshot import Witness
from ..utils.autodiff import Function, pullback, push, push_by_reverse, push_symmetric
from ..utils.cost import Ledger, Work
from ..utils.guard import guarded
from ..utils.memory import allowance, available_memory


class Linearization:
    """Outputs u(θ) of some parts of a network around weights θ₀.

    The backward graph is kept where there is a single part, so that each Jᵀw costs a backward pass alone; with
    several parts (chunks) it is rebuilt part by part, to bound memory.

    Args:
        net: the model as a pure function.
        parts: what the outputs are made of.
        theta: θ₀ (P,).
        ledger: where products are counted; a fresh one by default.
        shards: which rows of the outputs each process computes, the parts being this one's; None where all are.
    """

    @guarded(lambda _, net, *__, **___: net.model)
    def __init__(
        self,
        net: Net,
        parts: Sequence[Part],
        theta: Tensor,
        ledger: Ledger | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.net, self.parts, self.theta, self.shards = net, tuple(parts), theta, shards
        self.ledger = ledger if ledger is not None else Ledger()
        self._functions = [self._function(part) for part in self.parts]
        self._pull: Function | None = None
        self._reverse_only = False
        self._explicit: dict[int, Tensor] = {}  # Jacobians of parts that know no other way to J v
        self.work = Work()  # of a forward pass; filled in by ``linearize``
        self.still_responds = False  # see ``consistency``; filled in by ``linearize``
        self.witness: Witness | None = None  # where answers are given later (``problem.kept``)
        self.arithmetic: torch.dtype = theta.dtype  # the coarsest that the network computes in, as far as is known
        pieces: list[Tensor] = []

        def start() -> list[Tensor]:
            if len(self.parts) == 1:
                with self.parts[0].translated(net.model):
                    u, self._pull = pullback(self._functions[0], theta)
                pieces.append(u.detach())
            else:
                pieces.extend(self._pieces(theta))
            return pieces

        self.u: Tensor = self._rows("outputs", start)
        ends = list(itertools.accumulate(piece.shape[0] for piece in pieces))
        self.counts = [piece.shape[0] for piece in pieces]  # rows of each part
        self._offsets = [slice(end - len(piece), end) for end, piece in zip(ends, pieces, strict=True)]
        self.ledger.forwards += 1

    def _rows(self, what: str, compute: Callable[[], Sequence[Tensor]]) -> Tensor:
        """Rows shaped like u from those of the parts."""
        return join(compute()) if self.shards is None else self.shards.rows(what, compute)

    def total(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """A sum over samples from that over the parts."""
        return compute() if self.shards is None else self.shards.total(what, compute)

    def mine(self, w: Tensor) -> Tensor:
        """Of a tensor shaped like u, the rows of the parts."""
        return w if self.shards is None else self.shards.mine(w)

    def _function(self, part: Part) -> Function:
        net = self.net  # not the linearization, whose graph would then live until the garbage collector comes
        return lambda theta: part.outputs(net.bind(theta))

    @torch.no_grad()
    def _pieces(self, theta: Tensor) -> list[Tensor]:
        found = []
        for part, f in zip(self.parts, self._functions, strict=True):
            with part.translated(self.net.model):
                found.append(f(theta))
        return found

    def require_unchanged(self) -> None:
        """Raise where the network, or what it reads, is no longer what was linearized, as far as that is watched.

        Raises:
            InputError: names what has changed.
        """
        with entry(None if self.shards is None else self.shards.world, "asking again"):
            self._require_unchanged()

    def _require_unchanged(self) -> None:
        if self.witness is not None:
            self.ledger.forwards += self.witness.u.numel() / max(1, self.u.numel())
            self.witness.require_unchanged()

    @guarded(lambda self, *_, **__: self.net.model)
    def outputs(self, theta: Tensor) -> Tensor:
        """The true (not linearized) outputs at other weights θ (P,); one forward pass."""
        self.ledger.forwards += 1
        return self._rows("outputs", lambda: self._pieces(theta))

    @guarded(lambda self, *_, **__: self.net.model)
    def jvp(self, v: Tensor) -> Tensor:
        """J v, shaped like u, for v (P,)."""
        self.ledger.pushes += 1
        return self._rows("J v", lambda: self.jvp_rows(v)).detach()

    def jvp_rows(self, v: Tensor) -> list[Tensor]:
        """J v of each part, not booked."""
        found = []
        for i, part in enumerate(self.parts):
            with part.translated(self.net.model):
                found.append(self._along(i, v))
        return found

    @guarded(lambda self, *_, **__: self.net.model)
    def vjp(self, w: Tensor) -> Tensor:
        """Jᵀ w (P,), for w shaped like u."""
        self.ledger.pulls += 1
        if self.shards is not None:
            return self.shards.total("J^T w", lambda: self._pulled(self.mine(w)))
        self.ledger.forwards += self._pull is None
        return self._pulled(w)

    def _pulled(self, w: Tensor) -> Tensor:
        """Jᵀ w for the rows of the parts."""
        if self._pull is not None:
            with self.parts[0].translated(self.net.model):
                return self._pull(w).detach()
        total = torch.zeros_like(self.theta)
        for part, f, rows in self._each():
            with part.translated(self.net.model):
                total += pullback(f, self.theta)[1](w[rows]).detach()
        return total

    @guarded(lambda self, *_, **__: self.net.model)
    def second(self, v: Tensor) -> Tensor:
        """f''[v, v], the second directional derivative of the outputs along v (P,), shaped like u.

        Raises:
            NoSecondDerivativeError: torch knows no derivative of the derivative of some operation.
        """
        self.ledger.seconds += 1

        def local() -> list[Tensor]:
            found = []
            for part, f, _ in self._each():
                with part.translated(self.net.model):
                    found.append(self._push(lambda th, f=f: self._push(f, th, v), self.theta, v))
            return found

        return self._rows("f''[v, v]", local).detach()

    @guarded(lambda self, *_, **__: self.net.model)
    def second_pull(self, v: Tensor, w: Tensor) -> Tensor:
        """f''[v, ·]ᵀ w (P,), the derivative of J(θ)ᵀ w along v (P,), for w shaped like u.

        Raises:
            NoSecondDerivativeError: as for ``second``.
        """
        self.ledger.second_pulls += 1
        own = self.mine(w)

        def local() -> Tensor:
            total = torch.zeros_like(self.theta)
            for part, f, rows in self._each():
                # The gradient of ⟨w, u⟩: where forward mode fails a backward pass will do, its Hessian is symmetric.
                with part.translated(self.net.model):
                    total += self._push(
                        lambda th, f=f, w=own[rows]: pullback(f, th)[1](w), self.theta, v, reverse=push_symmetric
                    ).detach()
            return total

        return self.total("f''[v, .]^T w", local)

    def _each(self) -> Iterator[tuple[Part, Function, slice]]:
        return zip(self.parts, self._functions, self._offsets, strict=True)

    def _along(self, i: int, v: Tensor) -> Tensor:
        """J v of one part: by forward mode, by the transposed backward pass, or by J itself where neither is known."""
        if i not in self._explicit:
            try:
                return self._push(self._functions[i], self.theta, v)
            except (NotImplementedError, RuntimeError) as error:
                if not underivable(error):
                    raise
                self._explicit[i] = self._matrix(i)
        u = self.mine(self.u)[self._offsets[i]]
        return (self._explicit[i] @ v.to(self._explicit[i].dtype)).view(u.shape).to(u.dtype)

    def _matrix(self, i: int) -> Tensor:
        n, p = self.mine(self.u)[self._offsets[i]].numel(), self.theta.numel()
        needed = n * p * self.theta.element_size()
        if needed > available_memory(self.theta.device):
            raise MemoryLimitError(
                f"an operation of the model has a derivative that has none, so that J v takes J itself, {needed:.2g} "
                "bytes: give fewer samples at a time, or replace the operation (EmbeddingBag by Embedding and a mean, "
                "cdist by differences)."
            )
        return self._of_part(i)

    def _of_part(self, i: int) -> Tensor:
        """The explicit J of one part, booked."""
        j, pulls = self.parts[i].jacobian(self.net, self.theta)
        self._book(i, pulls)
        return j.detach()

    def _book(self, i: int, pulls: float) -> None:
        if self.shards is not None:
            return  # what processes book must be the same: see ``rows``
        share = self.counts[i] / len(self.u)
        self.ledger.forwards += share
        self.ledger.pulls += share * pulls

    @guarded(lambda self, *_, **__: self.net.model)
    def jacobian(self) -> Tensor:
        """The explicit J (N, P), rows in the order of u flattened; over several processes each has all of it."""
        if self.shards is not None:
            c, p = self.u[0].numel(), self.theta.numel()
            shards, own = self.shards, self.rows()
            stacked = shards.world.stacked("J", lambda: own.view(-1, c * p), shards.counts)
            return shards.ordered(stacked).view(-1, p)
        return self._formed()

    @guarded(lambda self, *_, **__: self.net.model)
    def rows(self) -> Tensor:
        """The rows of the explicit J (n, P) that the parts of this process have."""
        if self.shards is None:
            return self._formed()
        self.ledger.forwards += 1
        self.ledger.pulls += self.jacobian_pulls()
        return self.shards.world.attempt("rows of J", self._formed)

    def _formed(self) -> Tensor:
        if not self.parts:
            return self.theta.new_zeros(0, self.theta.numel())
        if len(self.parts) == 1 or self.u.dtype != self.theta.dtype:
            found = []
            for i, part in enumerate(self.parts):
                with part.translated(self.net.model):
                    found.append(self._of_part(i))
            return torch.cat(found)
        # side by side at once: a copy of J costs as much as a tenth of it
        u = self.mine(self.u)
        out, at = self.theta.new_empty(u.numel(), self.theta.numel()), 0
        for i, (part, rows) in enumerate(zip(self.parts, self._offsets, strict=True)):
            end = at + u[rows].numel()
            with part.translated(self.net.model), torch.no_grad():
                self._book(i, part.write_jacobian(self.net, self.theta, out[at:end]))
            at = end
        return out

    def jacobian_pulls(self) -> float:
        """Backward passes over all outputs that ``jacobian`` is expected to take."""
        own = self.mine(self.u)
        rows = [own[rows] for rows in self._offsets]
        found = sum(len(u) / max(1, len(own)) * part.pulls(u) for part, u in zip(self.parts, rows, strict=True))
        return found if self.shards is None else self.shards.world.most("backward passes", found)

    @property
    def layered(self) -> bool:
        """Whether every part, on every process, is a batch through the model."""
        kinds = {type(part).__name__ for part in self.parts} if self.shards is None else self.shards.kinds
        return kinds <= {Batch.__name__}

    def allowance(self, limit: float | None) -> float:
        """The bytes that may be taken, the same on every process: the least of what they have."""
        found = allowance(self.theta.device, limit)
        return found if self.shards is None else self.shards.world.least("memory", found)

    def _push(
        self,
        f: Function,
        theta: Tensor,
        v: Tensor,
        reverse: Callable[[Function, Tensor, Tensor], Tensor] = push_by_reverse,
    ) -> Tensor:
        if not self._reverse_only:
            try:
                return push(f, theta, v)
            except (NotImplementedError, RuntimeError) as error:
                if "forward" not in str(error).lower():
                    raise
                self._reverse_only = True  # an operation without a forward rule: transpose the backward pass
        return reverse(f, theta, v)
