"""Residual objectives Φ = ½ Σ_terms weight · Σ_points |fn|²: PINNs, inverse problems, least squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import EmptyBatchError, InputError, NoParametersError, ShapeError
from ..losses.squared import Squares
from ..utils.autodiff import normal, pullback
from ..utils.brief import brief
from ..utils.guard import guarded
from .collocation import Points
from .objective import Objective
from .parameters import Select
from .parts import Opaque, Part, join, leaves, require_finite, taken, weight_scale


@dataclass(frozen=True)
class TermState:
    """One term at some weights.

    Attributes:
        rows: its residuals. loss: its part of Φ. share: that over Φ.
        rms, largest: of the residual itself, without its weight. where: the point of the largest, if it has points.
    """

    name: str
    rows: int
    loss: float
    share: float
    rms: float
    largest: float
    where: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """One weighted residual, given at ONE point: ``fn(net, x)`` with x (d,) returns a scalar or a vector.

    Derivatives inside ``fn`` are taken with ``torch.func`` (``grad``, ``jacrev``, ``hessian``, ``jvp``). Unknowns of
    the equation are parameters of the model, read as ``net.viscosity``. Numbers that ``fn`` reads from outside are
    noticed when they change, unless they hide deep inside objects.

    Args:
        points: (m, d), or any tensor whose rows are points; a NumPy array is taken in the dtype of the model.
        weight: factor of Σ |fn|² in Φ = ½ Σ_terms weight · Σ_points |fn|²; a tensor (m,) is one for each point.
        name: for diagnostics and resampling; the function's own by default.
    """

    fn: Callable[[Callable[..., Any], Tensor], Tensor]
    points: Tensor | NDArray[Any]
    weight: float | Tensor = 1.0
    name: str | None = None


class Residuals(Objective):
    """What :func:`residual` returns: an objective that knows its terms."""

    @guarded(lambda self, **_: self.model)
    def terms(self) -> list[TermState]:
        """What each part (each term of a residual objective) contributes to the loss at the present weights."""
        rows = self.by_part(self.theta())
        losses = self.loss.per_sample(join(rows)).split([len(u) for u in rows])
        total = float(sum(loss.sum() for loss in losses))
        found = []
        for i, (part, u, loss) in enumerate(zip(self.parts, rows, losses, strict=True)):
            plain = u.reshape(len(u), -1).abs().amax(1) / (part.by_row(len(u)) if isinstance(part, Points) else 1.0)
            worst = int(plain.argmax())
            found.append(
                TermState(
                    name=part.name or f"part {i}",
                    rows=len(u),
                    loss=float(loss.sum()),
                    share=float(loss.sum()) / total if total > 0 else 0.0,
                    rms=float(plain.square().mean().sqrt()),
                    largest=float(plain[worst]),
                    where=part.points[worst * len(part.points) // len(u)] if isinstance(part, Points) else None,
                )
            )
        return found

    def resampled(self, points: Mapping[str, Tensor] | Sequence[Tensor | None]) -> Residuals:
        """The same residual objective at other collocation points.

        Args:
            points: new points by the term's name, or one entry a term in order (None keeps the old ones). As many as
                before are cheap; a term with more or fewer is weighted so that its mean square counts as before.

        Raises:
            InputError: a name or an entry that belongs to no term with points.
        """
        given: list[Tensor | None] = [None] * len(self.parts)
        if isinstance(points, Tensor):
            raise InputError("resampled: give new points by the term's name, or a list with an entry a term.")
        if isinstance(points, Mapping):
            names = [part.name for part in self.parts]
            for name, value in points.items():
                if name not in names:
                    raise InputError(f"resampled: no term is named {name!r}; there are {names}.")
                given[names.index(name)] = value
        elif len(points) == len(self.parts):
            given = list(points)
        else:
            raise InputError(f"resampled: {len(points)} entries for {len(self.parts)} terms; give one each (or None).")
        parts: list[Part] = []
        for part, new in zip(self.parts, given, strict=True):
            if new is None:
                parts.append(part)
                continue
            if not isinstance(part, Points):
                raise InputError(f"resampled: {part.name or 'a term'!r} is a function of the network, without points.")
            new = _points(new, self.model)
            _check_points(new, part.points)
            parts.append(part.at(new))
        found = _build(self.model, parts, self.params, self.training)
        # The same functions of the same network: their derivatives need not be asked about again.
        found.consistent = self.consistent
        return found


def residual(
    model: nn.Module,
    *terms: Term | Callable[[Callable[..., Any]], Tensor],
    params: Select = None,
    training: bool | None = None,
) -> Residuals:
    """A residual objective Φ = ½ Σ_terms weight · Σ_points |fn|², for PINNs and least squares.

    Terms are :class:`Term` (a residual at one point; the library batches over points), or functions
    ``fn(net) -> (N,)`` of the whole network for coupled residuals. The outputs are the residuals times √weight,
    stacked in the order given.
    """
    if not terms:
        raise InputError("residual(model) needs at least one js.Term or function.")
    parts: list[Part] = []
    for term in terms:
        if isinstance(term, Term):
            points = _points(term.points, model)
            part: Part = Points(term.fn, points, weight_scale(term.weight, points))
            part.name = term.name or _name(term.fn, len(parts))
        elif callable(term):
            part = Opaque(term, flat=True)
            part.name = _name(term, len(parts))
        else:
            raise InputError(f"a term must be a js.Term or a function of the network, got {type(term).__name__}.")
        part.name = part.name if part.name not in [p.name for p in parts] else f"{part.name} ({len(parts)})"
        parts.append(part)
    found = _build(model, parts, params, training)
    _require_dependence(found)
    return found


def _build(model: nn.Module, parts: Sequence[Part], params: Select, training: bool | None) -> Residuals:
    found = Residuals.from_parts(model, parts, lambda u: Squares(torch.zeros_like(u), 1.0), params, training)
    assert isinstance(found, Residuals)
    return found


def _name(fn: Any, position: int) -> str:
    name = getattr(fn, "__name__", "")
    return f"term {position}" if not name or name == "<lambda>" else name


def _points(points: Any, model: Any) -> Tensor:
    """A term's points as a tensor, checked."""
    if isinstance(points, np.ndarray) and points.dtype.kind in "fiu":
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None) if _is_module(model) else None
        points = torch.as_tensor(points, dtype=own, device=next(model.parameters()).device if own else None)
    points = taken(points)
    _check_points(points)
    return points


def _is_module(model: Any) -> bool:
    return isinstance(model, nn.Module)


def _check_points(points: Any, like: Tensor | None = None) -> None:
    if not isinstance(points, Tensor) or points.dim() == 0:
        raise ShapeError(f"a term's points must be a tensor or an array with one row a point, got {brief(points)}.")
    if points.shape[0] == 0:
        raise EmptyBatchError(f"a term has no points (shape {tuple(points.shape)}).")
    if like is not None and (points.shape[1:] != like.shape[1:] or points.dtype != like.dtype):
        raise ShapeError(
            f"points of shape {tuple(points.shape)} and {points.dtype} for a term whose points were "
            f"{tuple(like.shape)} and {like.dtype}: only their number may change."
        )
    require_finite(leaves(points), "collocation points")


@guarded(lambda objective, **_: objective.model)
def _require_dependence(objective: Objective) -> None:
    """Raise for a term that no trainable parameter moves: its derivative along a random cotangent is exactly zero."""
    theta = objective.theta()
    generator = torch.Generator().manual_seed(0)
    near = theta + 0.01 * normal(theta.shape, generator).to(theta)
    for part in objective.parts:
        moves = False
        for at in (theta, near):  # a saddle may be stationary without being constant
            with part.translated(objective.model):
                u, pull = pullback(lambda th, part=part: part.outputs(objective.net.bind(th)), at)
                w = normal(u.shape, generator).to(u)
                moves = moves or bool((pull(w) != 0).any())
        if not moves:
            raise NoParametersError(
                f"the residual {part.name!r} depends on none of the trainable parameters "
                f"{list(objective.space.names)[:6]}: it is constant. Let it call ``net``, its first argument, and not "
                "a model from outside; look for detach() or frozen parameters; or leave the term out."
            )
