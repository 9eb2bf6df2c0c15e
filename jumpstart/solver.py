"""``solve``: where training would end, on train and new points, at any horizon, without moving a weight."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from . import bounds, gate, metric
from .basis import Basis
from .choose import BasisLike, Plan, build
from .cost import Ledger
from .errors import HorizonError, InputError, NonFiniteError, ShapeError
from .flow import ReducedFlow
from .horizon import Horizon, Parsed, Steps, parse
from .kernel import assemble
from .linearize import Linearization, at_query, linearize
from .metric import MetricLike
from .objective import Objective
from .parameters import Select
from .parts import Batch, Opaque, leaves, require_finite
from .proposal import Proposal


class Solution:
    """The linearized training run from the present weights, solved: ask it for any horizon.

    Built by :func:`solve`; the model is left alone. Times are flow times (learning rate × steps), ``math.inf``, a
    1-D tensor of them (answers then have a leading axis T), or ``js.steps(count, lr)``.
    """

    def __init__(
        self, objective: Objective, lin: Linearization, basis: Basis, flow: ReducedFlow, plan: Plan | None
    ) -> None:
        self.objective, self.lin, self.basis, self.flow, self.plan = objective, lin, basis, flow, plan
        self._last: tuple[Parsed, Tensor] | None = None
        self._query: tuple[Any, list[int], Linearization, Tensor | None] | None = None

    def _coefficients(self, horizon: Parsed) -> Tensor:
        """c (T, k); kept for the next question about the same horizon, since integration is the dear part."""
        if self._last is None or self._last[0] != horizon:
            self._last = (horizon, self.flow.at(horizon))
        return self._last[1]

    # -- training outputs --------------------------------------------------------------------------------------

    def outputs(self, t: Horizon) -> Tensor:
        """Linearized training outputs u(t): (n, …), or (T, n, …) for many horizons (equation 5)."""
        horizon = parse(t)
        return self._shaped(self.flow.outputs(self._coefficients(horizon)).to(self.lin.u.dtype), horizon)

    def loss(self, t: Horizon) -> float | Tensor:
        """Φ of the linearized outputs, without the weight decay's penalty: a number, or (T,)."""
        horizon = parse(t)
        values = self.flow.predicted(self._coefficients(horizon))
        return float(values[0]) if _single(horizon) else values

    @property
    def spectrum(self) -> Tensor:
        """Rates λ (k,) of the modes in units of 1/flow time, largest first; a mode relaxes as e^{−λt}."""
        return self.flow.start.rates.sort(descending=True).values

    def error_bound(self, t: Horizon) -> float:
        """Bound on ‖u_k(t) − u(t)‖₂ that restricting to the basis causes; rounding for a dense basis.

        It says nothing about the error of linearizing the network.
        """
        horizon = parse(t)
        if isinstance(horizon, Steps):
            return bounds.steps_bound(self.flow, self.lin, horizon)
        if not horizon.scalar:
            raise HorizonError("error_bound takes one horizon at a time.")
        return bounds.error_bound(self.flow, self.lin, horizon.values[0])

    # -- weights and query points ------------------------------------------------------------------------------

    def parameters(self, t: Horizon, *, second_order: bool = False) -> dict[str, Tensor]:
        """The weights at horizon t by name, each with a leading axis T for many horizons (equation 5).

        Args:
            second_order: add the correction that lands the real network on the predicted outputs (equation 11), where
                it is no longer than half of the first-order displacement; two more gradient evaluations.
        """
        horizon = parse(t)
        thetas = [self.lin.theta + d for d in self._displacements(horizon, second_order)]
        tables = [self.objective.space.unflatten(theta) for theta in thetas]
        return {name: self._shaped(torch.stack([table[name] for table in tables]), horizon) for name in tables[0]}

    def predict(self, x: Any, t: Horizon) -> Tensor:
        """Linearized outputs of the model on query points x at horizon t: (m, …) or (T, m, …) (equation 5).

        Costs one vjp and one jvp a horizon, or one kernel between query and training points for all horizons,
        whichever is less.

        Args:
            x: whatever the model takes: a tensor, a tuple or a dict; or a function of the network as a pure callable,
                such as ``lambda net: net(x).logits``.
        """
        horizon = parse(t)
        c = self._coefficients(horizon)
        query, images = self._at(x, many=c.shape[0])
        if images is not None:
            shift = torch.tensordot(c, images, dims=1)
        else:
            shift = torch.stack([query.jvp(self.basis.displacement(row)) for row in c])
        return self._shaped((query.u.to(shift.dtype) + shift).to(query.u.dtype), horizon)

    def _at(self, x: Any, many: int) -> tuple[Linearization, Tensor | None]:
        """The query's linearization, and the images of the basis there once enough horizons are asked for."""
        stamp = [leaf._version for leaf in leaves(x) if not leaf.is_inference()]  # written to since?
        if self._query is None or self._query[0] is not x or self._query[1] != stamp:
            require_finite(x, "query points")
            part = Opaque(cast(Any, x)) if callable(x) else Batch(x)
            try:
                query = at_query(self.lin, part)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ShapeError(f"the model cannot be evaluated on the query points: {error}") from error
            self._query = (x, stamp, query, None)
        _, _, query, images = self._query
        modes = self.basis.cotangents.shape[0] if self.basis.cotangents is not None else 0
        outputs = max(1, query.u.numel() // query.u.shape[0])
        # The kernel costs a backward pass an output on both sides; without it a horizon costs a vjp and a jvp.
        layered = assemble.layered(self.lin) and assemble.layered(query)
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
        self._query = (x, stamp, query, images)
        return query, images

    def _displacements(self, horizon: Parsed, second_order: bool) -> list[Tensor]:
        rows = self._coefficients(horizon)
        if not second_order:
            return [self.basis.displacement(row) for row in rows]
        if isinstance(horizon, Steps):
            raise HorizonError("second_order needs a flow time; js.steps has no continuous response.")
        proposal = Proposal(self.lin, self.objective.loss, self.basis, self.flow, True, exact=True)
        return [proposal.candidate(row, value).displacement for row, value in zip(rows, horizon.values, strict=True)]

    # -- for people --------------------------------------------------------------------------------------------

    def explain(self) -> str:
        """What was chosen and why, predicted and measured cost, and the spectrum in a line."""
        rates = self.spectrum
        lines = [self.plan.explain() if self.plan is not None else f"basis: {self.basis.kind} (given)"]
        lines.append(f"  so far   {self.lin.ledger.gradient_evaluations:9.1f} gradient evaluations spent")
        lines.append(
            f"  {self.basis.size} modes ({self.basis.kind}"
            + (f", {self.basis.route}" if self.basis.route else "")
            + f"), relaxation times {1 / float(rates[0]) if len(rates) and rates[0] > 0 else math.inf:.3g} to "
            + (f"{1 / float(rates[rates > 0].min()):.3g}" if bool((rates > 0).any()) else "∞")
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Solution(outputs={tuple(self.lin.u.shape)}, basis={self.basis.kind!r}, modes={self.basis.size})"

    def _shaped(self, answers: Tensor, horizon: Parsed) -> Tensor:
        return answers[0] if _single(horizon) else answers


def _single(horizon: Parsed) -> bool:
    return isinstance(horizon, Steps) or horizon.scalar


def solve(
    objective: Objective,
    basis: BasisLike = "auto",
    metric: MetricLike = None,
    params: Select = None,
    memory_limit: float | None = None,
    *,
    depth: int | None = None,
    weight_decay: float | None = None,
    gate: str | None = None,
    tolerance: float | None = None,
) -> Solution:
    """Solve the training run from the present weights, linearized there; nothing is changed.

    Args:
        basis: "auto", "dense" (every mode, exact), "krylov" (``depth`` modes, with an error bound), or a function
            (linearization, loss, metric) -> Basis made of ``jumpstart.bases``, for instance
            ``lambda lin, loss, metric: js.bases.span(lin, metric, updates)`` for a trajectory prefix.
        metric: None for plain gradient flow; a torch optimizer (its state gives D, and its weight decay is taken
            along), a (P,) tensor, or tensors by parameter name.
        params: restrict what moves, by names, patterns or a function.
        memory_limit: bytes for the solve; None for half of what is free.
        weight_decay: decoupled decay rate w, θ̇ = … − wθ.
        gate: None, "hard", "soft" or "snr": damp modes whose per-sample contributions do not agree.

    Raises:
        InputError and its kinds (``jumpstart.errors``), quoting what was given.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> from jumpstart import supervised
        >>> solution = solve(supervised(model, torch.randn(8, 3), torch.randn(8, 1)))
        >>> solution.outputs(float("inf")).shape
        torch.Size([8, 1])
    """
    if not isinstance(objective, Objective):
        raise InputError(f"solve needs a js.Objective (see js.supervised), got {type(objective).__name__}.")
    objective = objective if params is None else objective.subset(params)
    lin = linearize(objective, ledger=Ledger())
    chosen = metric_of(metric, objective, weight_decay)
    built, plan = build(lin, objective.loss, chosen, basis, depth, memory_limit)
    flow = ReducedFlow(built, objective.loss, lin.u, *([] if tolerance is None else [tolerance]))
    set_gate(flow, gate)
    return Solution(objective, lin, built, flow, plan)


def metric_of(source: MetricLike, objective: Objective, weight_decay: float | None = None) -> metric.Metric:
    """A checked metric for an objective's parameters."""
    return metric.make(source, objective.model, objective.space, weight_decay)


def set_gate(flow: ReducedFlow, rule: str | None, **options: float) -> None:
    """Gate a flow's modes by what the samples say at its start (docs/theory.md, section 6)."""
    if not bool(torch.isfinite(flow.slope).all()):
        raise NonFiniteError("the gradient holds NaN or infinity at the present weights, though the outputs do not.")
    if rule is not None:
        flow.gates = gate.apply(rule, *gate.moments(flow.scores()), **options)
