"""Residual objectives Φ = ½ Σ_terms weight · Σ_points |fn|²: PINNs, inverse problems, least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..distributed.world import World
from ..distributed.wrapped import entry, joined
from ..domains import Domain, as_domain
from ..errors import InputError, NoParametersError
from ..losses.squared import Squares
from ..utils.autodiff import normal, pullback
from ..utils.brief import brief
from ..utils.guard import guarded
from ..weighting import Rule, weighed
from . import drawn
from .collocation import Points
from .objective import Objective
from .parameters import Select
from .parts import Opaque, Part, join, weight_scale
from .points import as_points, check_points
from .pure import Bound
from .spread import of_all, shares, spread_rows


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
class ResidualMap:
    """Where a term is large, at some weights: |residual| without its weight.

    Attributes:
        points: (m, d). values: (m,); of several residuals a point, the largest.
    """

    name: str
    points: Tensor
    values: Tensor

    def row(self, who: str = "", most: int = 1500) -> dict[str, Any]:
        """Plain numbers for a report: who, term, ``of`` how many points, points by coordinates, values; thinned."""
        keep = torch.linspace(0, len(self.values) - 1, min(most, len(self.values))).round().long()
        points, values = self.points.detach().cpu()[keep].double(), self.values.detach().cpu()[keep].double()
        return {
            "who": who, "term": self.name, "of": len(self.values), "points": points.T.tolist(),
            "values": values.tolist(),
        }  # fmt: skip


@dataclass(frozen=True)
class Term:
    """One weighted residual, given at ONE point: ``fn(net, x)`` with x (d,) returns a scalar or a vector.

    Points are given, or drawn from a domain (:mod:`jumpstart.domains`). Where they are drawn, :func:`jumpstart.fit`
    measures the residual at others that it does not train on, and moves and adds points where it is large.

    Derivatives inside ``fn`` are taken with ``torch.func`` (``grad``, ``jacrev``, ``hessian``, ``jvp``). Unknowns of
    the equation are parameters of the model, read as ``net.viscosity``. Numbers that ``fn`` reads from outside are
    noticed when they change, unless they hide deep inside objects.

    Args:
        points: (m, d), or any tensor whose rows are points; a NumPy array is taken in the dtype of the model. Or a
            domain, such as ``js.domains.Box((-1, 0), (1, 1))``, or a function of (count, generator) that draws points.
        weight: of given points the factor of Σ |fn|² in Φ = ½ Σ_terms weight · Σ_points |fn|², and a tensor (m,) is one
            for each point; of a domain the factor of the *mean* of |fn|², so that it says the same for any number.
        name: for diagnostics and resampling; the function's own by default.
        count: how many points are drawn of a domain at first; 1,000, of faces and curves 200. seed: of the draw.
    """

    fn: Callable[[Callable[..., Any], Tensor], Tensor]
    points: Tensor | NDArray[Any] | Domain | Callable[[int, torch.Generator], Any]
    weight: float | Tensor = 1.0
    name: str | None = None
    count: int | None = None
    seed: int = 0


class Residuals(Objective):
    """What :func:`residual` returns: an objective that knows its terms."""

    @guarded(lambda self, **_: self.model)
    def terms(self) -> list[TermState]:
        """What each part (each term of a residual objective) contributes to the loss at the present weights."""
        rows = self.by_part(self.theta())
        losses = self.loss.per_sample(join(rows)).split([len(u) for u in rows])
        total = float(sum(loss.sum() for loss in losses))
        found = []
        for i, (part, u, loss) in enumerate(zip(self.whole, rows, losses, strict=True)):
            plain = _plain(part, u)
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

    @guarded(lambda self, **_: self.model)
    def maps(self) -> list[ResidualMap]:
        """Each term that has points: how large its residual is at them, at the present weights; one forward pass."""
        found = []
        for i, (part, u) in enumerate(zip(self.whole, self.by_part(self.theta()), strict=True)):
            if isinstance(part, Points) and len(u) % len(part.points) == 0:
                count = len(part.points)
                values = _plain(part, u).reshape(count, -1).amax(1)
                found.append(ResidualMap(part.name or f"part {i}", part.points.reshape(count, -1), values))
        return found

    def resampled(self, points: Mapping[str, Tensor] | Sequence[Tensor | None]) -> Residuals:
        """The same residual objective at other collocation points.

        Args:
            points: new points by the term's name, or one entry a term in order (None keeps the old ones). As many as
                before are cheap; a term with more or fewer is weighted so that its mean square counts as before.

        Raises:
            InputError: a name or an entry that belongs to no term with points.
        """
        given: list[Tensor | None] = [None] * len(self.whole)
        if isinstance(points, Tensor):
            raise InputError("resampled: give new points by the term's name, or a list with an entry a term.")
        if isinstance(points, Mapping):
            names = [part.name for part in self.whole]
            for name, value in points.items():
                if name not in names:
                    raise InputError(f"resampled: no term is named {name!r}; there are {names}.")
                given[names.index(name)] = value
        elif len(points) == len(self.whole):
            given = list(points)
        else:
            raise InputError(f"resampled: {len(points)} entries for {len(self.whole)} terms; give one each (or None).")
        parts: list[Part] = []
        for part, new in zip(self.whole, given, strict=True):
            if new is None:
                parts.append(part)
                continue
            if not isinstance(part, Points):
                raise InputError(f"resampled: {part.name or 'a term'!r} is a function of the network, without points.")
            new = as_points(new, self.model)
            check_points(new, part.points)
            parts.append(part.at(new))
        return self._of(parts)

    def _of(self, parts: Sequence[Part]) -> Residuals:
        """The same network's residuals in other parts, of the same functions."""
        found = _build(self.model, parts, self.params, self.training, self.world)
        # Their derivatives need not be asked about again.
        found.consistent = self.consistent
        return found

    @property
    def drawn(self) -> list[Points]:
        """The terms whose points are drawn from a domain."""
        return [part for part in self.whole if isinstance(part, Points) and part.domain is not None]

    def unseen(self, seed: int) -> Residuals | None:
        """The terms that have a domain, at twice as many other points of it, 500 at least; None where no term has.

        Args:
            seed: of the draw, apart from the terms' own.
        """
        parts = [drawn.unseen(part, seed) for part in self.drawn]
        return self._of(parts) if parts else None

    def drawn_loss(self, theta: Tensor, seed: int | None = None) -> float:
        """The part of Φ that comes from terms with a domain, at weights θ (P,), every point alike; one forward pass.

        Args:
            seed: of other points, as ``unseen`` draws them, in the place of the terms' own.
        """
        return self._loss_of(
            lambda: [part.weighed(None) if seed is None else drawn.unseen(part, seed) for part in self.drawn], theta
        )

    def between(self, theta: Tensor) -> tuple[float, float] | None:
        """Φ halfway between neighbours, and at the points themselves, of terms at given points, at weights θ (P,).

        None where that says nothing of any of them; see ``drawn.between``. ∞ for residuals that are not finite.
        """
        given = [part for part in self.whole if isinstance(part, Points) and part.domain is None]
        pairs = [(other, part) for part in given if (other := drawn.between(part)) is not None]
        if not pairs:
            return None
        others, own = ([pair[i] for pair in pairs] for i in range(2))
        return self._loss_of(lambda: others, theta), self._loss_of(lambda: own, theta)

    @guarded(lambda self, *_, **__: self.model)
    @torch.no_grad()
    def _loss_of(self, parts: Callable[[], Sequence[Points]], theta: Tensor) -> float:
        """½ Σ |rows|² of some parts, which may be made of the objective's own."""
        self.prepare(theta)  # numbers that residuals read may have changed
        net, total = self.net.bind(theta), 0.0
        for part in parts():
            with part.translated(self.model):
                total += 0.5 * float(self.rows(part, net).double().square().sum())
        return total if math.isfinite(total) else math.inf

    def rows(self, part: Points, net: Bound) -> Tensor:
        """A part's rows, of its own or of other points; over several processes each evaluates its share of them."""
        if self.world is None:
            return part.outputs(net)
        return spread_rows(self.world, part, self.parts, net)

    @guarded(lambda self, *_, **__: self.model)
    def weighed(self, theta: Tensor, rule: Rule) -> Residuals:
        """The same objective with the points of each domain weighed by a rule of the residuals at weights θ (P,).

        Raises:
            InputError: the rule gives something else than weights.
        """
        net = self.net.bind(theta)
        found = {}
        for part in self.drawn:
            sizes = drawn.magnitudes(part, net, self.rows)
            before = torch.ones_like(sizes) if part.weights is None else part.weights.to(sizes)
            found[part.name] = weighed(rule, part.points, sizes, before, part.name).to(part.points)
        return self.with_weights(found)

    def with_weights(self, weights: Mapping[str, Tensor]) -> Residuals:
        """The same objective with a weight (m,) for each point of the terms that are named."""
        return self._of([
            part.weighed(weights[part.name]) if isinstance(part, Points) and part.name in weights else part
            for part in self.whole
        ])  # fmt: skip

    @guarded(lambda self, *_, **__: self.model)
    def refined(self, theta: Tensor, seed: int, growth: float = 1.0, through: Residuals | None = None) -> Residuals:
        """The same objective with points drawn anew where residuals at weights θ are large; see ``objectives/drawn``.

        Args:
            growth: how many times as many points. through: what ``unseen`` gave, whose fast ways are gone through.

        Raises:
            NonFiniteError: the residual is NaN or infinite at points of the domain; names one.
        """
        net, probes = self.net.bind(theta), {part.name: part for part in (through or self).drawn}
        return self._of([
            drawn.by_residual(part, probes[part.name], net, seed + i, growth, self.rows)
            if isinstance(part, Points) and part.domain is not None else part
            for i, part in enumerate(self.whole)
        ])  # fmt: skip


def residual(
    model: nn.Module,
    *terms: Term | Callable[[Callable[..., Any]], Tensor],
    params: Select = None,
    training: bool | None = None,
    group: Any = None,
) -> Residuals:
    """A residual objective Φ = ½ Σ_terms weight · Σ_points |fn|², for PINNs and least squares.

    Terms are :class:`Term` (a residual at one point; the library batches over points), or functions
    ``fn(net) -> (N,)`` of the whole network for coupled residuals. The outputs are the residuals times √weight,
    stacked in the order given.

    Args:
        model: any module. terms: one or more. params: which of the model's parameters move, by names, patterns or a
            function; None for all that require a gradient. training: the mode to evaluate in; None leaves it alone.
        group: a process group of torch.distributed, over which points are spread: given points are those of this
            process, and all are trained on; points of a domain are drawn alike, and each process takes its share. Terms
            that are functions of the whole network are refused. See docs/distributed.md.

    Raises:
        InputError and its kinds: no term, points that cannot be used, a term that no parameter moves; quotes it.
        UntraceableError: a term does what ``torch.func`` cannot take; says what to write.
    """
    model, world = joined(model, group)
    with entry(world, "js.residual"):
        if not terms:
            raise InputError("residual(model) needs at least one js.Term or function.")
        given: Sequence[Any] = terms if world is None else of_all(world, model, terms, {"training": training})
        parts: list[Part] = []
        for term in given:
            if isinstance(term, Term):
                part: Part = _part(term, model)
                part.name = term.name or _name(term.fn, len(parts))
            elif callable(term):
                part = Opaque(cast(Any, term), flat=True)
                part.name = _name(term, len(parts))
            else:
                raise InputError(f"a term must be a js.Term or a function of the network, got {type(term).__name__}.")
            part.name = part.name if part.name not in [p.name for p in parts] else f"{part.name} ({len(parts)})"
            parts.append(part)
        found = _build(model, parts, params, training, world)
        _require_dependence(found)
        return found


def _plain(part: Part, u: Tensor) -> Tensor:
    """|rows| (m,) of a part without its weight; of several numbers a row, the largest."""
    return u.reshape(len(u), -1).abs().amax(1) / (part.by_row(len(u)) if isinstance(part, Points) else 1.0)


def _part(term: Term, model: nn.Module) -> Points:
    """A term's points as they are given, or drawn from its domain."""
    if isinstance(term.points, (Domain, type)) or callable(term.points):
        return drawn.part(term.fn, as_domain(term.points), term.weight, term.count, term.seed, model)
    if term.count is not None or term.seed != 0:
        raise InputError(
            f"a term has count={term.count!r} and seed={term.seed!r}, which are of points that are drawn, but is given "
            f"{brief(term.points)}: leave them out, or give a domain such as js.domains.Box(low, high)."
        )
    points = as_points(term.points, model)
    return Points(term.fn, points, weight_scale(term.weight, points))


def _build(
    model: nn.Module, parts: Sequence[Part], params: Select, training: bool | None, world: World | None = None
) -> Residuals:
    def loss(u: Tensor) -> Squares:
        return Squares(torch.zeros_like(u), 1.0)

    with entry(world, "a residual objective"):
        if world is None:
            found = Residuals.from_parts(model, parts, loss, params, training)
        else:
            own = shares(world, parts)
            found = Residuals.from_parts(model, own, loss, params, training, world=world, whole=parts)
    assert isinstance(found, Residuals)
    return found


def _name(fn: Any, position: int) -> str:
    name = getattr(fn, "__name__", "")
    return f"term {position}" if not name or name == "<lambda>" else name


@guarded(lambda objective, **_: objective.model)
def _require_dependence(objective: Objective) -> None:
    """Raise for a term that no trainable parameter moves: its derivative along a random cotangent is exactly zero."""
    theta = objective.theta()
    generator = torch.Generator().manual_seed(0)
    near = theta + 0.01 * normal(theta.shape, generator).to(theta)
    world, moving = objective.world, set()
    for part in objective.parts:
        for at in (theta, near):  # a saddle may be stationary without being constant
            with part.translated(objective.model):
                u, pull = pullback(lambda th, part=part: part.outputs(objective.net.bind(th)), at)
                w = normal(u.shape, generator).to(u)
                moving.update({part.name} if bool((pull(w) != 0).any()) else ())
    for part in objective.whole:
        moves = part.name in moving
        if not (moves if world is None else world.any(f"whether {part.name!r} moves", moves)):
            raise NoParametersError(
                f"the residual {part.name!r} depends on none of the trainable parameters "
                f"{list(objective.space.names)[:6]}: it is constant. Let it call ``net``, its first argument, and not "
                "a model from outside; look for detach() or frozen parameters; or leave the term out."
            )
