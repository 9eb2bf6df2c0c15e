"""The network's outputs linearized at θ₀: u, J·v, Jᵀ·w, f''[v, v], and the explicit Jacobian.

Source: docs/theory.md, equations 1 to 3. Products are counted in a :class:`jumpstart.cost.Ledger`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp, vjp

from .cost import Ledger
from .errors import NondeterministicError
from .objective import Objective, require_finite_outputs
from .parameters import Net
from .parts import Part


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

    def __init__(self, net: Net, parts: Sequence[Part], theta: Tensor, ledger: Ledger | None = None) -> None:
        self.net, self.parts, self.theta = net, tuple(parts), theta
        self.ledger = ledger if ledger is not None else Ledger()
        self._functions = [self._function(part) for part in self.parts]
        self._pull: Callable[[Tensor], tuple[Tensor]] | None = None
        self._reverse_only = False
        if len(self.parts) == 1:
            u, self._pull = vjp(self._functions[0], theta)
            self.u: Tensor = u.detach()
        else:
            self.u = self.outputs(theta, count=False)
        self._offsets = self._sizes()
        self.ledger.forwards += 1

    def _function(self, part: Part) -> Callable[[Tensor], Tensor]:
        return lambda theta: part.outputs(self.net.bind(theta))

    def _sizes(self) -> list[slice]:
        """The rows of u that belong to each part."""
        if len(self.parts) == 1:
            return [slice(0, self.u.shape[0])]
        with torch.no_grad():
            counts = [f(self.theta).shape[0] for f in self._functions]
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]

    @torch.no_grad()
    def outputs(self, theta: Tensor, count: bool = True) -> Tensor:
        """The true (not linearized) outputs at other weights θ (P,); one forward pass."""
        if count:
            self.ledger.forwards += 1
        found = [f(theta) for f in self._functions]
        return found[0] if len(found) == 1 else torch.cat(found)

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shaped like u, for v (P,)."""
        self.ledger.pushes += 1
        found = [self._push(f, self.theta, v) for f in self._functions]
        return (found[0] if len(found) == 1 else torch.cat(found)).detach()

    def vjp(self, w: Tensor) -> Tensor:
        """Jᵀ w (P,), for w shaped like u."""
        self.ledger.pulls += 1
        if self._pull is not None:
            return self._pull(w)[0].detach()
        self.ledger.forwards += 1
        total = torch.zeros_like(self.theta)
        for f, rows in zip(self._functions, self._offsets, strict=True):
            total += vjp(f, self.theta)[1](w[rows])[0].detach()
        return total

    def second(self, v: Tensor) -> Tensor:
        """f''[v, v], the second directional derivative of the outputs along v (P,), shaped like u."""
        self.ledger.seconds += 1
        found = [
            self._push(lambda th, f=f: self._push(f, th, v), self.theta, v).detach() for f in self._functions
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def jacobian(self) -> Tensor:
        """The explicit J (N, P), rows in the order of u flattened."""
        self.ledger.pulls += max(1, self.u.numel() // max(1, self.u.shape[0]))
        return torch.cat([part.jacobian(self.net, self.theta).detach() for part in self.parts])

    def _push(self, f: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor) -> Tensor:
        if not self._reverse_only:
            try:
                return jvp(f, (theta,), (v,))[1]
            except (NotImplementedError, RuntimeError) as error:
                if "forward" not in str(error).lower():
                    raise
                self._reverse_only = True  # an operation without a forward rule: transpose the backward pass
        u, pull = vjp(f, theta)
        return vjp(lambda w: pull(w)[0], torch.zeros_like(u))[1](v)[0]


def linearize(objective: Objective, theta: Tensor | None = None, ledger: Ledger | None = None) -> Linearization:
    """Linearize an objective's outputs at θ (P,), the model's present weights by default.

    Raises:
        NonFiniteError: weights or outputs are not finite.
        NondeterministicError: the model answers differently when asked twice.
    """
    theta = objective.theta() if theta is None else theta
    lin = Linearization(objective.net, objective.parts, theta, ledger)
    require_finite_outputs(lin.u)
    require_deterministic(lin)
    return lin


def require_deterministic(lin: Linearization) -> None:
    """Ask the network twice and compare; the random state is put back.

    Raises:
        NondeterministicError: the answers differ by more than rounding.
    """
    devices = [lin.theta.device] if lin.theta.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        again = lin.outputs(lin.theta)
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


def at_query(lin: Linearization, part: Part) -> Linearization:
    """The same network and weights, linearized on other inputs."""
    query = Linearization(lin.net, [part], lin.theta, lin.ledger)
    require_finite_outputs(query.u)
    return query
