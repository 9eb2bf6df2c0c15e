"""One order beyond the linearization: the kernel's drift along the run, and what it does to outputs and weights.

With δ = δ₁ + δ₂ + …, δ₁ the linearized run's displacement, u₁ and g₁ = ∇Φ(u₁) its outputs and gradient, the next term
of the true flow θ̇ = −D J(θ)ᵀ∇Φ(f(θ)) − wθ obeys, with b = ½ f''[δ₁, δ₁] and s = −D^{½} f''[δ₁, ·]ᵀ g₁,

    δ₂ = D^{½}(Q c₂ + p₂),   ċ₂ = −Eᵀ B(u₁)(E c₂ + b) − w c₂ + Qᵀ s,   ṗ₂ = (1 − Q Qᵀ) s − w p₂,

and the outputs are u₀ + E(c₁ + c₂) + A p₂ + b. Both b and s are linear in a product of two vectors that the reduced
flow knows at any time, c₁ ⊗ c₁ and c₁ ⊗ g₁. The network is therefore asked at a few nodes only; at other times the
product is made up from those of the nodes by least squares, and b and s follow with the same weights. Nodes stand
where that fit is worst. Source: docs/theory.md, equations 1 to 3 and 8, expanded once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import HorizonError, InputError
from ..linalg.etdrk4 import FlowPoint, Integrator, Modes
from ..linearization.linearize import Linearization
from ..utils.brief import brief
from .horizon import Horizon, Steps, Times, parse
from .reduced_flow import ReducedFlow

NODES = 12  # at most; short horizons need three to five
PRECISION = 1e-4  # relative misfit of b and s at which no further node is spent
DRIFT_TOLERANCE = 1e-6  # local error of the integration, relative
GRID = 16  # times a decade among which nodes are chosen and at which the integration stops
LEFT = 0.01  # share of the drift that a gradient at the end may add before t = ∞ has no answer
END = 40.0  # e^{−40} is below rounding: where the slowest mode has come to rest

Force = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # (c₂, c₁) -> (ċ₂, weights for s, ċ₁)


class ProductFit:
    """x ⊗ y made up from x_j ⊗ y_j at nodes, by least squares; rows of ``left`` and ``right`` (m, …) are x_j, y_j."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right
        self.factor = torch.linalg.cholesky((left @ left.T) * (right @ right.T))

    def weights(self, x: Tensor, y: Tensor) -> Tensor:
        """(m,) weights of the nodes, from the inner products (m,) of x and y with theirs."""
        return torch.cholesky_solve((x * y)[:, None], self.factor)[:, 0]


@dataclass(frozen=True)
class Nodes:
    """What the network was asked, at unit vectors along c₁ and g₁.

    Attributes:
        bends: (m, N) b. pulls: (r, P) s; inside: (r, k) Qᵀ s; images: (r, N) A s, None if p₂ moves no outputs.
    """

    bend: ProductFit
    pull: ProductFit
    bends: Tensor
    pulls: Tensor
    inside: Tensor
    images: Tensor | None


@dataclass(frozen=True)
class Expansion:
    """The run at T horizons: c₁, c₂ (T, k), p₂ = shares (T, r) @ (1 − QQᵀ)pulls, and b (T, N)."""

    horizon: Times
    c1: Tensor
    c2: Tensor
    shares: Tensor
    bends: Tensor
    nodes: Nodes | None  # None where nothing moves


class Drift:
    """The true gradient flow to second order in the displacement; the linearized run is its first.

    A new set of horizons costs 4 to 6 gradient evaluations a node, however many horizons there are. In a truncated
    basis p₂ lacks the damping of the directions left out: trust it as far as the basis itself.

    Args:
        flow: the reduced flow, without gates.
        nodes: how many times the network may be asked at most, and once more for each further horizon.

    Raises:
        InputError: the flow is gated, its weight decay differs between parameters, or ``nodes`` is no count.
    """

    def __init__(self, flow: ReducedFlow, *, nodes: int = NODES) -> None:
        if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 2:
            raise InputError(f"nodes={brief(nodes)}: give a whole number of at least 2.")
        if not bool((flow.gates == 1).all()):
            raise InputError(
                "second order of a gated run is not defined: solve with gate=None, or ask for first order."
            )
        decay = flow.basis.decay
        self._rate = float(decay[0, 0]) if decay is not None and flow.size else 0.0
        uneven = decay is not None and not torch.equal(decay, self._rate * torch.eye(flow.size, device="cpu").to(decay))
        if uneven or isinstance(flow.basis.metric.decay, Tensor):
            raise InputError(
                "second order needs one rate of weight decay for all parameters, and this metric's differ: pass "
                "weight_decay=… to solve, or ask for first order."
            )
        self.lin, self.flow, self.nodes = flow.problem.lin, flow, nodes
        self._last: Expansion | None = None

    # -- answers -----------------------------------------------------------------------------------------------

    def displacements(self, horizon: Horizon | Times) -> Tensor:
        """δ₁ + δ₂ (T, P) at each horizon."""
        run = self._expanded(horizon)
        return torch.stack([self._displacement(run, i) for i in range(len(run.c1))])

    def outputs(self, horizon: Horizon | Times) -> Tensor:
        """Training outputs (T, *outputs) to second order, in float64; no network evaluation besides the nodes'."""
        run = self._expanded(horizon)
        c, beyond = run.c1 + run.c2, run.bends
        if run.nodes is not None and run.nodes.images is not None:
            c, beyond = c - run.shares @ run.nodes.inside, beyond + run.shares @ run.nodes.images
        return self.flow.outputs(c) + beyond.reshape(-1, *self.flow.shape)

    def predict(self, query: Linearization, horizon: Horizon | Times) -> Tensor:
        """u_Q + J_Q(δ₁ + δ₂) + ½ f_Q''[δ₁, δ₁] (T, *query outputs): a jvp and a second derivative a horizon.

        Args:
            query: the same network at the same weights on other inputs (``linearize.at_query``).
        """
        run, rows = self._expanded(horizon), []
        for i, c in enumerate(run.c1):
            bend = 0.5 * query.second(self.flow.basis.displacement(c))
            rows.append(query.u + query.jvp(self._displacement(run, i)) + bend)
        return torch.stack(rows)

    def _displacement(self, run: Expansion, i: int) -> Tensor:
        c, share, basis = run.c1[i] + run.c2[i], run.shares[i], self.flow.basis
        if run.nodes is None:
            return basis.displacement(c)
        pulls = run.nodes.pulls
        return basis.displacement(c - share @ run.nodes.inside) + basis.metric.scale(share.to(pulls) @ pulls)

    # -- the run to second order -------------------------------------------------------------------------------

    def _expanded(self, given: Horizon | Times) -> Expansion:
        """Kept for the next question about the same horizons."""
        flow, horizon = self.flow, self._checked(given)
        if self._last is not None and self._last.horizon == horizon:
            return self._last
        c1 = flow.coefficients(horizon)
        c2, bends = torch.zeros_like(c1), flow.u.new_zeros(len(c1), flow.u.numel())
        shares, nodes = c1.new_zeros(len(c1), 0), None
        ends = sorted({t for t, c in zip(horizon.values, c1, strict=True) if bool((c != 0).any())})
        if ends:
            times = self._grid(ends)
            nodes = self._ask(*self._choose(times, ends))
            integrator, state = self._integrator(nodes)
            shares = c1.new_zeros(len(c1), len(nodes.inside))
            for t in times:  # the integrator's error estimate does not see how s and b vary in time: the grid does
                state = integrator.advance(state, t)
                for i in [i for i, value in enumerate(horizon.values) if value == t]:
                    c2[i] = state.rows[0, : flow.size]
                    if flow.size < self.lin.theta.numel():  # else nothing lies outside the span
                        shares[i] = state.rows[1, flow.size :]
                    along = nodes.bend.left @ c1[i]
                    bends[i] = nodes.bend.weights(along, along) @ nodes.bends
        self._last = Expansion(horizon, c1, c2, shares, bends, nodes)
        return self._last

    def _grid(self, ends: list[float]) -> list[float]:
        """Times from well below the first relaxation on, evenly in the logarithm, and all horizons."""
        top = float(self.flow.start.rates.max())
        low = math.log10(min(ends[0], 1 / top if top > 0 else math.inf)) - 2
        high = math.log10(ends[-1])
        grid = torch.logspace(low, high, min(math.ceil(GRID * (high - low)), 400), dtype=torch.float64, device="cpu")
        return sorted({*grid[:-1].tolist(), *ends})

    def _choose(self, times: list[float], ends: list[float]) -> tuple[Tensor, Tensor, list[int], list[int]]:
        """Unit vectors c₁ and g₁ (n, …) along the run, and the rows at which to ask the network for b and for s.

        Pivoted Cholesky on the Gram matrices of c₁ ⊗ c₁ and c₁ ⊗ g₁: the next node is where those so far fit worst,
        weighted by what a misfit there means at the next horizon.
        """
        flow, tiny = self.flow, torch.finfo(torch.float64).tiny
        c = flow.coefficients(Times(tuple(times), False))
        g = flow.loss.grad(flow.outputs(c)).flatten(1)
        at, end = (torch.tensor(t, dtype=c.dtype, device=c.device) / times[-1] for t in (times, [*ends]))
        length, force = torch.linalg.vector_norm(c, dim=1), torch.linalg.vector_norm(g, dim=1)
        c, g = c / length.clamp_min(tiny)[:, None], g / force.clamp_min(tiny)[:, None]
        # b acts at its own time; s is integrated, over the logarithm of time with a factor t.
        size = torch.stack([(length / length.max()).square(), at * length / length.max() * force / force.max()])
        most = torch.stack([size[0], size[1].cummax(0).values])[:, torch.searchsorted(at, end)]
        weight = (size / most[:, torch.searchsorted(end, at)].clamp_min(tiny)).clamp_max(1)
        gram = (c @ c.T) * torch.stack([c @ c.T, g @ g.T])
        misfit = weight * gram.diagonal(dim1=1, dim2=2).sqrt()
        picks, chosen = [len(times) - 1, int(misfit[1].argmax())], ([], [])
        for _ in range(self.nodes + len(ends) - 1):
            for matrix, rows, i in zip(gram, chosen, picks, strict=True):
                if i >= 0:
                    rows.append(i)
                    matrix -= torch.outer(matrix[:, i], matrix[i]) / matrix[i, i].clone()
            misfit = weight * gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
            worst = int(misfit.max(0).values.argmax())
            if float(misfit[:, worst].max()) <= PRECISION:
                break
            # What is known here already would spoil the conditioning of its fit by one more row.
            picks = [worst if here > 0.1 * PRECISION else -1 for here in misfit[:, worst].tolist()]
        return c, g, *chosen

    def _ask(self, c: Tensor, g: Tensor, for_bends: list[int], for_pulls: list[int]) -> Nodes:
        """b and s at the nodes: the only network evaluations of the run."""
        lin, basis, bends, pulls, inside, images = self.lin, self.flow.basis, {}, {}, [], []
        for i in sorted({*for_bends, *for_pulls}):
            delta = basis.displacement(c[i])
            if i in for_bends:
                bends[i] = 0.5 * lin.second(delta).double().reshape(-1)
            if i in for_pulls:
                pulls[i] = -basis.metric.scale(lin.second_pull(delta, g[i].reshape(lin.u.shape).to(lin.u)))
        for i in for_pulls:
            within = []
            if basis.cotangents is not None or not basis.complete:  # Qᵀs = S A s: one jvp for all cotangents
                images.append(lin.jvp(basis.metric.scale(pulls[i])).double().reshape(-1))
            if basis.cotangents is not None:
                within.append(basis.cotangents.flatten(1).double() @ images[-1])
            if basis.vectors is not None:
                within.append(basis.vectors.double() @ pulls[i].double())
            inside.append(torch.cat(within))
        return Nodes(
            ProductFit(c[for_bends], c[for_bends]),
            ProductFit(c[for_pulls], g[for_pulls]),
            torch.stack([bends[i] for i in for_bends]),
            torch.stack([pulls[i] for i in for_pulls]),
            torch.stack(inside),
            None if basis.complete else torch.stack(images),
        )

    # -- integration in the reduced problem: no network evaluation ---------------------------------------------

    def _integrator(self, nodes: Nodes) -> tuple[Integrator, FlowPoint]:
        """For rows (c₂, shares, c₁) in k + r coordinates, the first k for c's and the last r for shares."""
        flow, k, r = self.flow, self.flow.size, len(nodes.inside)
        forces = self._quadratic(nodes) if flow.loss.quadratic else self._general(nodes)

        def force(rows: Tensor) -> Tensor:
            found = torch.zeros_like(rows)
            found[0, :k], weights, found[2, :k] = forces(rows[0, :k], rows[2, :k])
            found[1, k:] = weights - self._rate * rows[1, k:]
            return found

        def modes(c: Tensor) -> Modes:
            here = flow.start if flow.loss.quadratic else flow.modes_at(flow.outputs(c[:k]))
            eye = torch.eye(r, device="cpu").to(here.rates)
            vectors = None if here.vectors is None else torch.block_diag(here.vectors, eye)
            return Modes(torch.cat([here.rates, here.rates.new_full((r,), self._rate)]), vectors)

        moved = flow.integrator(force, DRIFT_TOLERANCE, 0.0).curvature
        fixed = flow.loss.quadratic
        integrator = Integrator(
            force, modes, lambda c: flow.initial_gradient if fixed else moved(c[:k]), DRIFT_TOLERANCE, 0.0
        )
        return integrator, FlowPoint(0.0, flow.initial_gradient.new_zeros(3, k + r), flow.origin().step)

    def _quadratic(self, nodes: Nodes) -> Force:
        """B is constant: everything is projected once, and forces cost k numbers a node."""
        flow, bend, pull = self.flow, nodes.bend, nodes.pull
        g0 = pull.right @ flow.loss.grad(flow.u).reshape(-1)
        rise = pull.right @ flow.hvp(flow.u, flow.images.reshape(-1, *flow.shape)).flatten(1).T
        bent = flow.hvp(flow.u, nodes.bends.reshape(-1, *flow.shape)).flatten(1) @ flow.images.T

        # A direction whose rate is below rounding has noise for a slope, which a long run would add up.
        slope = flow.start.out(flow.start.into(flow.initial_gradient) * (flow.start.rates > 0))

        def relax(c: Tensor) -> Tensor:
            return flow.start.out(flow.start.rates * flow.start.into(c))

        def forces(c2: Tensor, c1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            along = bend.left @ c1
            for_s = pull.weights(pull.left @ c1, g0 + rise @ c1)
            return for_s @ nodes.inside - bend.weights(along, along) @ bent - relax(c2), for_s, -slope - relax(c1)

        return forces

    def _general(self, nodes: Nodes) -> Force:
        flow, bend, pull = self.flow, nodes.bend, nodes.pull
        drift = 0.0 if flow.basis.decay_force is None else flow.basis.decay_force

        def forces(c2: Tensor, c1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            shift1, shift2 = torch.stack([c1, c2]) @ flow.images
            u, along = flow.u + shift1.reshape(flow.shape), bend.left @ c1
            g = flow.loss.grad(u).reshape(-1)
            curved = flow.hvp(u, (shift2 + bend.weights(along, along) @ nodes.bends).reshape(flow.shape)).reshape(-1)
            pulled1, pulled2 = torch.stack([g, curved]) @ flow.images.T
            for_s = pull.weights(pull.left @ c1, pull.right @ g)
            second = for_s @ nodes.inside - pulled2 - self._rate * c2
            return second, for_s, -pulled1 - self._rate * c1 - drift

        return forces

    # -- horizons ----------------------------------------------------------------------------------------------

    def _checked(self, given: Horizon | Times) -> Times:
        horizon = parse(given)
        if isinstance(horizon, Steps):
            raise HorizonError(
                f"second order needs a flow time: ask for t = {horizon.time:.6g} (learning rate × steps) in the place "
                "of js.steps, or for first order."
            )
        if any(math.isnan(t) or t < 0 for t in horizon.values):
            raise HorizonError(f"horizons {horizon.values}: flow times must be 0 or more.")
        if math.inf not in horizon.values:
            return horizon
        end = self._end()
        return Times(tuple(end if math.isinf(t) else t for t in horizon.values), horizon.scalar)

    def _end(self) -> float:
        """A time at which the run has ended to second order too.

        Raises:
            HorizonError: it does not end.
        """
        flow, rates = self.flow, self.flow.start.rates
        if not flow.loss.quadratic:
            raise HorizonError("second order at t = inf is known for squared losses alone: ask for a finite time.")
        moving = [rate for rate in [*rates.tolist(), self._rate] if rate > 0]
        end = END / min(moving) if moving else 1.0
        if self._rate == 0 and moving and not (flow.size == self.lin.theta.numel() == len(moving)):
            # A gradient that is left when the run has ended bends the network on, for ever.
            c = flow.coefficients(Times.at(math.inf))[0]
            left, first = (torch.linalg.vector_norm(flow.loss.grad(flow.outputs(x))) for x in (c, 0 * c))
            if bool(
                left * end * torch.linalg.vector_norm(flow.initial_gradient)
                > LEFT * first * torch.linalg.vector_norm(c)
            ):
                raise HorizonError(
                    f"second order at t = inf: {float(left / first):.1e} of the outputs' gradient outlives the linear "
                    "run and bends the network for ever. Ask for a finite time, or add weight decay."
                )
        return end
