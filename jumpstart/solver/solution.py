"""``Solution``: one solved training run; ask it for any horizon, on any points, under changed data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import HorizonError, InputError, TrustWarning
from ..flow import truncation_bounds as bounds
from ..flow.basis import Basis
from ..flow.horizon import Horizon, Parsed, Steps, Times, parse
from ..flow.kernel_drift import Drift
from ..flow.reduced_flow import ReducedFlow
from ..gating import Gate
from ..jumping.candidates import AlongFlow
from ..linearization.linearize import Linearization
from ..losses.weighted import Weighted
from ..objectives.objective import Objective
from ..risk import criteria as risks
from ..risk import leave_out as holdout
from ..risk.criteria import LeftOut
from ..risk.starts import Starts
from ..surrogate.select import Plan, explain
from ..utils.brief import brief
from ..utils.guard import guarded
from ..utils.warn import warn
from . import archive
from .query import Queries
from .sweep import Sweep
from .truncation import Truncation
from .tune import Tuned, tuned
from .validity import Check, examine

_entry = guarded(lambda self, *_, **__: self.objective.model)


class Solution:
    """The linearized training run from the present weights, solved: ask it for any horizon.

    Built by :func:`solve`; the model is left alone, and what becomes of it and of the data later plays no part. Times
    are flow times (learning rate × steps), ``math.inf``, a 1-D tensor of them (answers then have a leading axis T), or
    ``js.steps(count, lr)``. Equations are those of docs/theory.md.

    Attributes:
        objective: what was solved. flow: the run inside its basis. plan: how the basis was chosen; None where it was
            given. seconds: for linearization and basis. own: made by :func:`solve`, not from another.

    Raises:
        HorizonError: a time that is negative, NaN or of an unknown kind. InputError and its kinds: other options that
            cannot be used, quoted; a model that has become another one since.
    """

    def __init__(
        self, objective: Objective, flow: ReducedFlow, plan: Plan | None, seconds: float = 0.0, *, own: bool = True
    ) -> None:
        self.objective, self.flow, self.plan = objective, flow, plan
        by_default = plan is not None and plan.by_default
        self.truncation = Truncation(flow, own) if by_default else None
        self.checked: Check | None = None
        self._failed: float | None = None  # flow time beyond which a check has failed
        self.seconds = seconds  # of linearization and basis; 0 where they were not measured
        self.queries = Queries(flow.basis)
        self._last: tuple[Parsed, Tensor] | None = None
        self._drift: Drift | None = None

    @property
    def lin(self) -> Linearization:
        """The network linearized at the weights of that time."""
        return self.flow.problem.lin

    @property
    def basis(self) -> Basis:
        """The subspace that the run is restricted to."""
        return self.flow.basis

    def _coefficients(self, horizon: Parsed) -> Tensor:
        """c (T, k); kept for the next question about the same horizon, since integration is the dear part."""
        if self._last is None or self._last[0] != horizon:
            self._last = (horizon, self.flow.coefficients(horizon))
        return self._last[1]

    # -- training outputs --------------------------------------------------------------------------------------

    @_entry
    def outputs(self, t: Horizon, *, order: int = 1) -> Tensor:
        """Predicted training outputs u(t): (n, …), or (T, n, …) for many horizons (equation 5).

        Args:
            order: 1 freezes the kernel; 2 follows its drift to first order (equation 16), so that errors fall as t³
                instead of t², for some 6 gradient evaluations a quadrature node.
        """
        horizon = self._asked(t)
        if self._second(order):
            found = self._drifted().outputs(_times(horizon))
        else:
            found = self.flow.outputs(self._coefficients(horizon))
        return self._shaped(found.to(self.lin.u.dtype), horizon)

    @_entry
    def loss(self, t: Horizon, *, order: int = 1) -> float | Tensor:
        """Φ of the predicted outputs at t, without weight decay's penalty: a number, or (T,); ``order`` as above."""
        horizon = self._asked(t)
        if self._second(order):
            values = self.flow.loss.value(self._drifted().outputs(_times(horizon)))
        else:
            values = self.flow.predicted_loss(self._coefficients(horizon))
        return float(values[0]) if horizon.scalar else values

    @property
    def spectrum(self) -> Tensor:
        """Rates λ (k,) of the modes in units of 1/flow time, largest first; a mode relaxes as e^{−λt}."""
        return self.flow.start.rates.sort(descending=True).values

    @_entry
    def error_bound(self, t: Horizon) -> float:
        """Bound on ‖u_k(t) − u(t)‖₂ that restricting to the basis causes; rounding for a dense basis.

        It says nothing about the error of linearizing the network.
        """
        horizon = parse(t)
        self.lin.require_unchanged()
        if isinstance(horizon, Steps):
            return bounds.steps_bound(self.flow, horizon)
        if not horizon.scalar:
            raise HorizonError("error_bound takes one horizon at a time.")
        return bounds.error_bound(self.flow, horizon.values[0])

    # -- weights and query points ------------------------------------------------------------------------------

    @_entry
    def parameters(self, t: Horizon, *, order: int = 1, land: bool = False) -> dict[str, Tensor]:
        """The weights at horizon t by name, each with a leading axis T for many horizons (equation 5).

        Args:
            order: 2 predicts where training really leads one order further (as in ``outputs``).
            land: add geodesic acceleration, which lands the real network on the predicted outputs (equation 11), where
                it is no longer than half of the first-order displacement; two more gradient evaluations.
        """
        horizon = self._asked(t)
        if self._second(order):
            if land:
                raise InputError(
                    "parameters: order=2 predicts the true run, land=True lands on the linear one: ask for one."
                )
            moves = list(self._drifted().displacements(_times(horizon)))
        else:
            moves = self._displacements(horizon, land)
        thetas = [self.lin.theta + d for d in moves]
        tables = [self.objective.space.unflatten(theta) for theta in thetas]
        return {name: self._shaped(torch.stack([table[name] for table in tables]), horizon) for name in tables[0]}

    @_entry
    def predict(self, x: Any, t: Horizon, *, order: int = 1) -> Tensor:
        """Predicted outputs of the model on query points x at horizon t: (m, …) or (T, m, …) (equation 5).

        Costs one vjp and one jvp a horizon, or one kernel between query and training points for all horizons,
        whichever is less.

        Args:
            x: whatever the model takes: a tensor, a tuple or a dict; or a function of the network as a pure callable,
                such as ``lambda net: net(x).logits``.
            order: 2 follows the kernel's drift, as in ``outputs``.
        """
        horizon = self._asked(t)
        if self._second(order):
            query, _ = self.queries.at(x, many=0)
            return self._shaped(self._drifted().predict(query, _times(horizon)).to(query.u.dtype), horizon)
        return self._shaped(self.queries.shifted(x, self._coefficients(horizon)), horizon)

    def _displacements(self, horizon: Parsed, land: bool) -> list[Tensor]:
        self.lin.require_unchanged()
        rows = self._coefficients(horizon)
        if not land:
            return [self.basis.displacement(row) for row in rows]
        if isinstance(horizon, Steps):
            raise HorizonError("land=True needs a flow time; js.steps has no continuous response.")
        descent = AlongFlow(self.flow, geodesic=True, exact=True)
        return [descent.candidate(row, value).displacement for row, value in zip(rows, horizon.values, strict=True)]

    def _second(self, order: int) -> bool:
        if order not in (1, 2) or isinstance(order, bool):
            raise InputError(f"order={brief(order)}: 1 freezes the kernel, 2 follows its drift.")
        return order == 2

    def _drifted(self) -> Drift:
        self.lin.require_unchanged()
        if self._drift is None:
            self._drift = Drift(self.flow)
        return self._drift

    # -- what if -----------------------------------------------------------------------------------------------

    def _with(self, flow: ReducedFlow) -> Solution:
        """The same kernel under another flow."""
        return Solution(self.objective, flow, self.plan, own=False)

    @_entry
    def with_targets(self, targets: Tensor) -> Solution | Sweep[Solution]:
        """The run towards other targets, on the kernel that is there already.

        Args:
            targets: like those of the objective, or with a leading axis r for many at once (a :class:`Sweep`).
        """
        mine = self.flow.problem.loss.targets
        kind = isinstance(targets, Tensor) and targets.is_floating_point() == mine.is_floating_point()
        if kind and targets.dim() == mine.dim() + 1 and targets.shape[1:] == mine.shape:
            look = None if self.truncation is None else lambda flow, t: Truncation(flow, False).look(t)
            return Sweep(self.flow, targets.to(mine.device, copy=True), self.queries, self._with, look)
        return self._with(self.flow.with_targets(targets.clone() if isinstance(targets, Tensor) else targets))

    @_entry
    def reweighted(self, weights: Tensor) -> Solution:
        """The run in which sample i counts w_i times, weights (n,) ≥ 0; for Krylov bases within the same subspace."""
        return self._with(self.flow.reweighted(weights.clone() if isinstance(weights, Tensor) else weights))

    @_entry
    def without(self, samples: Tensor | list[int] | int) -> Solution:
        """The run without some samples, by index; the others count as before (no renormalization)."""
        return self._with(self.flow.without(holdout.indices(samples, self.lin.u.shape[0])))

    @_entry
    def damped(self, rate: float) -> Solution:
        """The run with a pull ``rate``·(θ − θ₀)/D back to the present weights: ridge regression at t = ∞."""
        if isinstance(rate, bool) or not (isinstance(rate, (int, float)) and 0 <= rate < math.inf):
            raise InputError(f"damped({brief(rate)}): the rate is a number in units of 1/flow time, 0 or more.")
        return self._with(self.flow.damped(float(rate)))

    @_entry
    def gated(self, rule: str | None, **options: float) -> Solution:
        """The run with its modes gated by what the samples agree on (equation 14).

        Args:
            rule: "hard", "soft" or "snr"; None for no gate. options: of the rule (``alpha``, ``lam``).
        """
        if rule is None and options:
            raise InputError(f"gated(None, …): no gate takes {sorted(options)}; leave them out.")
        return self._with(self.flow.gated(None if rule is None else Gate(rule, options)))

    # -- trust and risk ----------------------------------------------------------------------------------------

    @_entry
    def check(
        self, t: Horizon, x: Any = None, y: Tensor | None = None, *, tolerance: float = 0.1, order: int = 1
    ) -> Check:
        """Move a copy of the weights to ``parameters(t)`` and compare the real network with the linearized one.

        Also finds the longest flow time at which the training outputs agree within ``tolerance`` (relative to how far
        they have moved), for one forward pass a trial. It is kept as ``trust_horizon``, and answers beyond it
        warn where that is less than ``t``.

        Args:
            x, y: query points and their targets, to be compared too.
            order: 2 also asks how far the kernel drifts along the run, which moving the weights along the linearized
                run does not show, and trusts no further than where that is ``tolerance`` of the movement; some tens of
                gradient evaluations.
        """
        horizon = parse(t)
        if not horizon.scalar:
            raise HorizonError("check takes one horizon at a time.")
        if not isinstance(tolerance, (int, float)) or isinstance(tolerance, bool) or not tolerance > 0:
            raise InputError(f"check(tolerance={brief(tolerance)}): give a relative error above 0.")
        if x is None and y is not None:
            raise InputError("check(t, y=…): targets without query points; the training targets are known already.")
        self.lin.require_unchanged()
        drift = self._drifted() if self._second(order) else None
        found = self.checked = examine(self.flow, self.queries, horizon, (x, y), tolerance, drift)
        if not found.agrees:
            self._failed = found.trust_horizon
        elif self._failed is not None and found.time > self._failed:
            self._failed = None
        return found

    @_entry
    def leave_out(
        self, t: Horizon, *, groups=None, samples=None, tolerance: float = 1e-5, start: Starts | None = None
    ) -> LeftOut:
        """The run to t without each sample, or each group of them, and what it predicts there (``risk.leave_out``).

        Exact for the linearized run; of a gated one the gates stay those of the run with every sample.

        Args:
            groups: lists of indices of samples that are left out together (folds, duplicates, users).
            samples: leave out only so many samples, or these, one by one.
            tolerance: local error of the integration, for losses that are not quadratic.
            start: ``js.fit_head(objective).without_each()``, where the run goes on from a head that was fitted on
                these samples: each starts from the head without its own; the kernel is that at the head of all.
        """
        horizon = self._asked(t, truncated=False)
        return risks.leave_out(self.flow, horizon, groups=groups, samples=samples, tolerance=tolerance, start=start)

    @_entry
    def risk(self, t: Horizon, criterion: str = "loo", **options) -> float | Tensor:
        """Estimated loss on new data at horizon t, without validation data: a number, or (T,).

        It is about the linearized run; believe it as far as ``check`` finds the real network to agree.

        Args:
            criterion: "loo", the exact leave-one-out of the whole run (options ``groups``, ``samples``,
                ``tolerance``, ``start`` as in ``leave_out``); "gcv" (squared loss); "population", the paper's unbiased
                decrease.
        """
        horizon = self._asked(t, truncated=False)
        values = risks.estimate(self.flow, horizon, criterion, **options)
        return float(values[0]) if horizon.scalar else values

    @_entry
    def best_horizon(
        self,
        criterion: str = "loo",
        *,
        horizons: Tensor | None = None,
        limit: float | str = "trust",
        trust: float = 0.1,
        **options,
    ) -> float:
        """The flow time at which to stop: lowest estimated risk, no further than the linearization is trusted.

        Args:
            criterion, options: as in ``risk``.
            horizons: (T,) flow times to choose from; None for a geometric grid, refined around its minimum.
            limit: "trust" checks up to where the real network agrees within ``trust`` (some forward passes);
                a number, or ``math.inf``, is used as it is.
        """
        times = None if horizons is None else risks.times(horizons)
        end = self._limit(limit, trust, None if times is None else float(times.max()))
        return risks.best(self.flow, criterion, times, end, **options)

    @_entry
    def tuned(
        self,
        over: Sequence[str] = ("damping",),
        *,
        limit: float | str = "trust",
        trust: float = 0.1,
        **options,
    ) -> Tuned[Solution]:
        """Choose damping, gate or sample weights together with the horizon by leave-one-out risk; no network pass.

        Args:
            over: families to choose from, of "damping" (``damped``), "gate" (``gated``) and "weights" (``without`` the
                samples that the others contradict most). The last two look at every sample before it is left out, which
                flatters them: on the data sets of docs/results/endpoint/risk they hurt more often than they helped.
            limit, trust, options: as in ``best_horizon``.

        Returns:
            a :class:`jumpstart.solver.tune.Tuned`: ask its ``solution`` at its ``horizon``.
        """
        return tuned(self.flow, over, self._limit(limit, trust, None), self._with, **options)

    def _limit(self, limit: float | str, trust: float, end: float | None) -> float:
        """How far a search over horizons may go: a number, or what ``check`` finds."""
        if limit != "trust":
            if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not limit > 0:
                raise InputError(f"limit={brief(limit)}: give 'trust', a flow time above 0, or math.inf.")
            return float(limit)
        end = end if end is not None else float(risks.grid(self.flow)[-1])
        known = self.checked
        if known is None or known.tolerance != trust or (known.agrees and known.time < end):
            self.check(end, tolerance=trust)
        return self.trust_horizon or 1e-3 * self.flow.timescale()

    @property
    def trust_horizon(self) -> float | None:
        """What the last ``check`` found; None before."""
        return None if self.checked is None else self.checked.trust_horizon

    def _asked(self, t: Horizon, *, truncated: bool = True) -> Parsed:
        """A checked horizon, with a warning where it lies past what ``check`` has found to hold and no further."""
        horizon = parse(t)
        if truncated and self.truncation is not None:
            self.truncation.look(horizon)
        asked = horizon.time
        if self._failed is not None and asked > self._failed * (1 + 1e-9):
            warn(
                f"horizon {asked:.3g} is past {self._failed:.3g}, up to which the real network was found to "
                "follow the linearized one (Solution.check): believe the answer less the further it goes.",
                TrustWarning,
            )
        return horizon

    # -- for people --------------------------------------------------------------------------------------------

    @_entry
    def save(self, path: str | Path) -> Path:
        """Write the solved run to a file (no pickle) that ``js.load(path, objective)`` reads without a kernel."""
        if isinstance(self.flow.loss, Weighted):
            raise InputError("save: sample weights are not stored; save the plain solution and weigh it after loading.")
        return archive.save(path, self.flow)

    def explain(self) -> str:
        """What was chosen and why, predicted and measured cost, and the spectrum in a line."""
        return explain(self.flow, self.plan, self.seconds, self.objective.notes())

    def __repr__(self) -> str:
        return f"Solution(outputs={tuple(self.lin.u.shape)}, basis={self.basis.kind!r}, modes={self.basis.size})"

    def _shaped(self, answers: Tensor, horizon: Parsed) -> Tensor:
        return answers[0] if horizon.scalar else answers


def _times(horizon: Parsed) -> Times:
    if isinstance(horizon, Steps):
        raise HorizonError("order=2 follows the gradient flow: give a flow time (lr × steps) instead of js.steps.")
    return horizon
