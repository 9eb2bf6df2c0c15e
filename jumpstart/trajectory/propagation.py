"""What a gradient becomes along the steps that were taken, and what it does on the way: every column at once.

The gradient g(s) that a record begins with is written in k directions, g(s) = Σ a_i v_i. Every later gradient, move of
the weights and move of the outputs is linear in these, as long as the optimizer's step is (``rules``); what weight
decay adds is a row of its own, the last. All sums are carried from step to step, so that memory does not grow with the
run. docs/theory.md, section 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..linearization.linearize import Linearization
from ..losses.base import Loss
from .rules import Rule


@dataclass(frozen=True)
class Quadrature:
    """How the integral over one step is taken from tangents along the way.

    Attributes:
        share: of each tangent. upto: likewise in the integral up to each tangent. begin: where the step begins,
            between the first tangent (0) and the last (1).
    """

    share: tuple[float, ...]
    upto: tuple[tuple[float, ...], ...]
    begin: float = 0.0


TRAPEZOID = Quadrature((0.5, 0.5), ((0.0, 0.0), (0.5, 0.5)))
SIMPSON = Quadrature((1 / 6, 4 / 6, 1 / 6), ((0.0, 0.0, 0.0), (5 / 24, 8 / 24, -1 / 24), (1 / 6, 4 / 6, 1 / 6)))


def within(begin: float, end: float) -> Quadrature:
    """A short step on a longer way between two tangents, which are interpolated at its middle."""
    late = 0.5 * (begin + end)
    share = (1 - late, late)
    half = (0.5 * share[0], 0.5 * share[1])
    return Quadrature(share, (half, half), begin)


@dataclass(frozen=True)
class Tangent:
    """Outputs on the samples, and at query points, linearized at one point of the run.

    Attributes:
        lin: on the samples. queries: at query points, if there are any. jacobian (N, P), query_jacobian (m, P): where
            they fit into memory; products are taken one by one otherwise.
    """

    lin: Linearization
    loss: Loss
    jacobian: Tensor | None = None
    queries: Linearization | None = None
    query_jacobian: Tensor | None = None

    def push(self, moves: Tensor) -> Tensor:
        """Moves of the outputs (k, N) for moves of the weights (k, P)."""
        return _pushed(self.lin, self.jacobian, moves)

    def shown(self, moves: Tensor) -> Tensor:
        """Moves of the query outputs (k, m); (k, 0) where there are none."""
        if self.queries is None:
            return moves.new_zeros(len(moves), 0)
        return _pushed(self.queries, self.query_jacobian, moves)

    def pull(self, gradients: Tensor, shares: Tensor | None) -> Tensor:
        """Gradients in the weights (k, P) of gradients in the outputs (k, N); ``shares`` (n,) or (k, n) weigh
        samples."""
        u = self.lin.u
        if shares is not None:
            gradients = (gradients.reshape(-1, len(u), u.numel() // len(u)) * shares[..., None]).reshape(
                gradients.shape
            )
        if self.jacobian is not None:
            return gradients @ self.jacobian
        return torch.stack([self.lin.vjp(row.reshape(u.shape)) for row in gradients])

    def bent(self, moves: Tensor) -> Tensor:
        """B (moves of the outputs) (k, N): what they do to the gradient."""
        u = self.lin.u
        return self.loss.hvp(u, moves.reshape(-1, *u.shape)).reshape(moves.shape)


def _pushed(lin: Linearization, jacobian: Tensor | None, moves: Tensor) -> Tensor:
    if jacobian is not None:
        return moves @ jacobian.T
    return torch.stack([lin.jvp(row).reshape(-1) for row in moves])


@dataclass(frozen=True)
class Columns:
    """Rows are the k directions of the start, and last what does not come from them.

    Attributes:
        gradients: (k + 1, N), what the start's gradient is by now. moved: (k + 1, P), the weights' move so far.
        weighs: (k + 1,), 1 for rows that hold the weights themselves, which decay acts on: the last one.
        buffer: (k + 1, P), the optimizer's average of gradients; None at rest.
        displaced: (k + 1, N), shown: (k + 1, m): moves of the outputs, on samples and at query points.
        dissipated: (k + 1, k + 1): the fall of the loss as a quadratic form. action: (k + 1, k + 1): Σ δᵀ D⁻¹ δ / rate.
        reach: Σ rate · ‖J_Q D^½‖²; NaN where J_Q is not at hand. time: flow time. steps: taken.
    """

    gradients: Tensor
    moved: Tensor
    weighs: Tensor
    buffer: Tensor | None
    displaced: Tensor
    shown: Tensor
    dissipated: Tensor
    action: Tensor
    reach: float = 0.0
    time: float = 0.0
    steps: int = 0

    @staticmethod
    def begun(directions: Tensor, rest: Tensor, parameters: int, queries: int, buffer: Tensor | None) -> Columns:
        """From directions (k, N), and what they leave of the gradient (N,); ``buffer`` (P,) is the optimizer's."""
        k, n = directions.shape
        zeros = directions.new_zeros
        held = None if buffer is None else torch.cat([zeros(k, parameters), buffer[None].to(directions)])
        return Columns(
            torch.cat([directions, rest[None]]), zeros(k + 1, parameters), zeros(k + 1), held, zeros(k + 1, n),
            zeros(k + 1, queries), zeros(k + 1, k + 1), zeros(k + 1, k + 1),
        ).whole([k])  # fmt: skip

    def whole(self, rows: Sequence[int]) -> Columns:
        """The same, with rows that hold the weights themselves."""
        weighs = self.weighs.clone()
        weighs[list(rows)] = 1.0
        return replace(self, weighs=weighs)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that there are, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def advanced(
    columns: Columns, rule: Rule, nodes: Sequence[Tangent], quadrature: Quadrature, start: Tensor, shares: Tensor | None
) -> tuple[Columns, Tensor]:
    """The columns after one step, and its moves (k + 1, P).

    Args:
        nodes: tangents along the way. start: θ(s) (P,), which decay acts on.
        shares: of the samples in the step's gradient (n,), or for each row (k + 1, n); None for one each.
    """
    gradients = _at(quadrature.begin, nodes, columns.gradients, shares)
    weights = columns.moved + columns.weighs[:, None] * start if rule.decays else None
    moves, buffer = rule.moved(gradients, columns.buffer, weights)
    pushed = [node.push(moves) for node in nodes]
    bent = [node.bent(moved) for node, moved in zip(nodes, pushed, strict=True)]
    seen = [node.shown(moves) for node in nodes]
    fall = columns.dissipated
    for i, moved in enumerate(pushed):
        product = (columns.gradients + _weighed(quadrature.upto[i], bent)) @ moved.T
        fall = fall - 0.5 * quadrature.share[i] * (product + product.T)
    acting = rule.action(moves)
    return replace(
        columns, gradients=columns.gradients + _weighed(quadrature.share, bent), moved=columns.moved + moves,
        buffer=buffer, displaced=columns.displaced + _weighed(quadrature.share, pushed),
        shown=columns.shown + _weighed(quadrature.share, seen), dissipated=fall,
        action=columns.action + acting @ acting.T, reach=columns.reach + _reach(rule, nodes, quadrature.share),
        time=columns.time + rule.time, steps=columns.steps + 1,
    ), moves  # fmt: skip


def _at(place: float, nodes: Sequence[Tangent], gradients: Tensor, shares: Tensor | None) -> Tensor:
    """Gradients in the weights, by the Jacobian at a place between the ends."""
    first = nodes[0].pull(gradients, shares)
    return first if place == 0 else (1 - place) * first + place * nodes[-1].pull(gradients, shares)


def _weighed(weights: Sequence[float], rows: Sequence[Tensor]) -> Tensor:
    total = weights[0] * rows[0]
    for weight, row in zip(weights[1:], rows[1:], strict=True):
        total = total + weight * row
    return total


def _reach(rule: Rule, nodes: Sequence[Tangent], weights: Sequence[float]) -> float:
    """rate · ‖J_Q D^½‖² of the mean Jacobian of a step."""
    if nodes[0].queries is None:
        return 0.0
    found = [node.query_jacobian for node in nodes]
    if any(j is None for j in found):
        return float("nan")
    scale = rule.rate if rule.root is None else rule.rate * rule.root.square()
    return float((_weighed(weights, [j for j in found if j is not None]).square() * scale).sum())
