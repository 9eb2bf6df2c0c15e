"""The network's outputs linearized at θ₀: u, J·v, Jᵀ·w, f''[v, v], f''[v, ·]ᵀ·w, and the explicit Jacobian.

Source: docs/theory.md, equations 1 to 3. Products are counted in a :class:`jumpstart.utils.cost.Ledger`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import NondeterministicError
from ..objectives.objective import Objective, require_finite_outputs
from ..objectives.parts import Part, join
from ..objectives.pure import Net
from ..objectives.snapshot import Witness
from ..utils.autodiff import Function, pullback, push, push_by_reverse, push_symmetric
from ..utils.cost import Counting, Ledger, Work
from ..utils.guard import guarded


class Linearization:
    """Outputs u(θ) of some parts of a network around weights θ₀.

    The backward graph is kept where there is a single part, so that each Jᵀw costs a backward pass alone; with
    several parts (chunks) it is rebuilt part by part, to bound memory.

    Args:
        net: the model as a pure function.
        parts: what the outputs are made of.
        theta: θ₀ (P,).
        ledger: where products are counted; a fresh one by default.
    """

    @guarded(lambda _, net, *__, **___: net.model)
    def __init__(self, net: Net, parts: Sequence[Part], theta: Tensor, ledger: Ledger | None = None) -> None:
        self.net, self.parts, self.theta = net, tuple(parts), theta
        self.ledger = ledger if ledger is not None else Ledger()
        self._functions = [self._function(part) for part in self.parts]
        self._pull: Function | None = None
        self._reverse_only = False
        self.work = Work()  # of a forward pass; filled in by ``linearize``
        self.witness: Witness | None = None  # where answers are given later (``problem.kept``)
        if len(self.parts) == 1:
            u, self._pull = pullback(self._functions[0], theta)
            pieces = [u.detach()]
        else:
            pieces = self._pieces(theta)
        self.u: Tensor = join(pieces)
        ends = list(itertools.accumulate(piece.shape[0] for piece in pieces))
        self.counts = [piece.shape[0] for piece in pieces]  # rows of each part
        self._offsets = [slice(end - len(piece), end) for end, piece in zip(ends, pieces, strict=True)]
        self.ledger.forwards += 1

    def _function(self, part: Part) -> Function:
        return lambda theta: part.outputs(self.net.bind(theta))

    @torch.no_grad()
    def _pieces(self, theta: Tensor) -> list[Tensor]:
        return [f(theta) for f in self._functions]

    def require_unchanged(self) -> None:
        """Raise where the network, or what it reads, is no longer what was linearized, as far as that is watched.

        Raises:
            InputError: names what has changed.
        """
        if self.witness is not None:
            self.ledger.forwards += self.witness.u.numel() / max(1, self.u.numel())
            self.witness.require_unchanged()

    @guarded(lambda self, *_, **__: self.net.model)
    def outputs(self, theta: Tensor) -> Tensor:
        """The true (not linearized) outputs at other weights θ (P,); one forward pass."""
        self.ledger.forwards += 1
        return join(self._pieces(theta))

    @guarded(lambda self, *_, **__: self.net.model)
    def jvp(self, v: Tensor) -> Tensor:
        """J v, shaped like u, for v (P,)."""
        self.ledger.pushes += 1
        return join([self._push(f, self.theta, v) for f in self._functions]).detach()

    @guarded(lambda self, *_, **__: self.net.model)
    def vjp(self, w: Tensor) -> Tensor:
        """Jᵀ w (P,), for w shaped like u."""
        self.ledger.pulls += 1
        if self._pull is not None:
            return self._pull(w).detach()
        self.ledger.forwards += 1
        total = torch.zeros_like(self.theta)
        for f, rows in zip(self._functions, self._offsets, strict=True):
            total += pullback(f, self.theta)[1](w[rows]).detach()
        return total

    @guarded(lambda self, *_, **__: self.net.model)
    def second(self, v: Tensor) -> Tensor:
        """f''[v, v], the second directional derivative of the outputs along v (P,), shaped like u."""
        self.ledger.seconds += 1
        return join([self._push(lambda th, f=f: self._push(f, th, v), self.theta, v) for f in self._functions]).detach()

    @guarded(lambda self, *_, **__: self.net.model)
    def second_pull(self, v: Tensor, w: Tensor) -> Tensor:
        """f''[v, ·]ᵀ w (P,), the derivative of J(θ)ᵀ w along v (P,), for w shaped like u."""
        self.ledger.second_pulls += 1
        total = torch.zeros_like(self.theta)
        for f, rows in zip(self._functions, self._offsets, strict=True):
            # The gradient of ⟨w, u⟩: where forward mode fails, its Hessian is symmetric and a backward pass will do.
            total += self._push(
                lambda th, f=f, w=w[rows]: pullback(f, th)[1](w), self.theta, v, reverse=push_symmetric
            ).detach()
        return total

    @guarded(lambda self, **_: self.net.model)
    def jacobian(self) -> Tensor:
        """The explicit J (N, P), rows in the order of u flattened."""
        found = []
        for part, rows in zip(self.parts, self._offsets, strict=True):
            j, pulls = part.jacobian(self.net, self.theta)
            share = len(self.u[rows]) / len(self.u)
            self.ledger.forwards += share
            self.ledger.pulls += share * pulls
            found.append(j.detach())
        return torch.cat(found)

    def jacobian_pulls(self) -> float:
        """Backward passes over all outputs that ``jacobian`` is expected to take."""
        rows = [self.u[rows] for rows in self._offsets]
        return sum(len(u) / len(self.u) * part.pulls(u) for part, u in zip(self.parts, rows, strict=True))

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


@guarded(lambda objective, *_, **__: objective.model)
def linearize(objective: Objective, theta: Tensor | None = None, ledger: Ledger | None = None) -> Linearization:
    """Linearize an objective's outputs at θ (P,), the model's present weights by default.

    Raises:
        NonFiniteError: weights or outputs are not finite.
        NondeterministicError: the model answers differently when asked twice.
    """
    objective.require_current()
    theta = objective.theta() if theta is None else theta
    objective.prepare(theta)
    lin = Linearization(objective.net, objective.parts, theta, ledger)
    require_finite_outputs(lin.u)
    # Asked once, and again whenever a module has changed its mode since.
    modes = tuple(module.training for module in objective.model.modules())
    if objective.checked != modes:
        objective.work = require_deterministic(lin)
        objective.checked = modes
    lin.work = objective.work
    return lin


def require_deterministic(lin: Linearization) -> Work:
    """Ask the network twice and compare. Returns the work of a forward pass.

    Raises:
        NondeterministicError: the answers differ by more than rounding.
    """
    with Counting() as counted:
        again = lin.outputs(lin.theta)
    lin.net.learn(counted, again)
    scale = torch.linalg.vector_norm(lin.u).clamp_min(torch.finfo(lin.u.dtype).tiny)
    difference = float(torch.linalg.vector_norm(again - lin.u) / scale)
    if difference > torch.finfo(lin.u.dtype).eps ** 0.75:
        noisy = [
            name or type(module).__name__
            for name, module in lin.net.model.named_modules()
            if module.training and "Dropout" in type(module).__name__
        ]
        who = f" ({', '.join(noisy[:4])} in train mode)" if noisy else ""
        raise NondeterministicError(
            f"the model answered twice with outputs {difference:.1e} apart (relative){who}: there is no one "
            "function to linearize. Call model.eval(), or pass training=False to the objective to evaluate in eval "
            "mode and keep the loop in train mode; fix any other noise with a seed inside the model."
        )
    return counted.work


def at_query(lin: Linearization, part: Part) -> Linearization:
    """The same network and weights, linearized on other inputs."""
    query = Linearization(lin.net, [part], lin.theta, lin.ledger)
    require_finite_outputs(query.u)
    return query


def rounding_error(lin: Linearization) -> float:
    """A generous estimate of what rounding in the network's own precision does to the outputs, in their units."""
    return 1e4 * torch.finfo(lin.u.dtype).eps * float(torch.linalg.vector_norm(lin.u) + 1e-300)
