"""Where minibatch runs wander once they rest: stationary fluctuations, the action of a deviation, times of escape.

Around weights where full-batch descent rests, outputs of the linearized network follow z ← S z + noise. Their
stationary law is a normal one; the least action of a path that leads from rest to a deviation, and the time until it is
met, follow from its covariance (Freidlin & Wentzell, Random Perturbations of Dynamical Systems, ch. 4; docs/theory.md,
section 11).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import scipy.integrate
import scipy.linalg
import scipy.special
import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from ..linearization.linearize import at_query, linearize
from ..objectives.objective import Objective, require_objective
from ..utils.brief import brief
from ..utils.values import require_count
from ..utils.warn import warn
from .follower import asked

TOLERANCE = 1e-10  # of the largest eigenvalue of the kernel: below it nothing moves
OVERSHOOT = -float(scipy.special.zeta(0.5)) / math.sqrt(2 * math.pi)  # steps find the way out later than a flow would
LONG = 10**6  # steps that are looked ahead
RESTING = 0.5  # deviations that full-batch descent may still go while a run is expected to stay


@dataclass(frozen=True)
class Escape:
    """When runs that rest come to leave.

    Attributes:
        steps: expected, until |direction · (u − rest)| exceeds the distance for the first time; infinite beyond what
            floating point holds. action: ½ (distance / deviation)²; the steps grow as its exponential.
        deviation: standard deviation of the direction at rest. relaxation: share of a deviation that a step takes back.
    """

    steps: float
    action: float
    deviation: float
    relaxation: float


class Diffusion:
    """Fluctuations of minibatch gradient descent, θ ← θ − lr · (mean gradient of a batch), around where it rests.

    Everything is of the network linearized here: right as far as runs stay where that holds.

    Args:
        objective: with its whole data, at weights where its gradient vanishes. Its loss is a mean of samples' losses:
            a batch's gradient is n/batch times the sum of its samples' own.
        lr: of the steps. batch: samples in each, drawn independently of earlier ones. replacement: whether a sample may
            come twice in a batch.
        queries: inputs at which fluctuations are asked for as well.

    Attributes:
        covariance: (N, N) of the outputs at rest. seen: (m, m) of the query outputs, (0, 0) without queries.

    Raises:
        InputError and its kinds: quoting what is no number; steps of this rate do not rest, or batches have no noise.
    """

    def __init__(
        self, objective: Objective, lr: float, batch: int, *, queries: Any = None, replacement: bool = True
    ) -> None:
        require_objective(objective, "Diffusion")
        objective.require_alone("Diffusion")
        if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
            raise InputError(f"Diffusion: lr={brief(lr)} must be positive and finite.")
        require_count("Diffusion", "batch", batch)
        n = objective.shape[0]
        if not replacement and batch >= n:
            raise InputError(f"Diffusion: batch={batch} of {n} samples without replacement is no minibatch: no noise.")
        lin = linearize(objective)
        jacobian, gradient = lin.jacobian(), objective.loss.grad(lin.u).reshape(-1)
        left, sizes, right = torch.linalg.svd(jacobian, full_matrices=False)
        kept = sizes.square() > TOLERANCE * sizes[0].square()
        self._left, sizes, right = left[:, kept], sizes[kept], right[kept]
        k, u = len(sizes), lin.u
        # modes z = Uᵀ(u − rest): a gradient g of the outputs moves them by −lr Λ Uᵀ g
        pulls = sizes.square()[:, None] * self._left.T
        bent = objective.loss.hvp(u, self._left.T.reshape(k, *u.shape)).reshape(k, -1).T  # B U (N, k)
        self._step = torch.eye(k).to(pulls) - lr * pulls @ bent
        each = (pulls.reshape(k, n, -1) * gradient.reshape(n, -1)).sum(-1) * n  # (k, n), of each sample
        each = each - each.mean(1, keepdim=True)
        share = 1.0 if replacement else (n - batch) / (n - 1)
        self._noise = lr**2 * share / batch * each @ each.T / n
        self._modes = self._stationary()
        self._shown = self._left.new_zeros(0, k)
        if queries is not None:
            self._shown = at_query(lin, asked(queries)).jacobian() @ (right / sizes[:, None]).T
        self.covariance = self._left @ self._modes @ self._left.T
        self.seen = self._shown @ self._modes @ self._shown.T
        eye = torch.eye(k).to(pulls)
        self._away = torch.linalg.solve(eye - self._step, -lr * (pulls @ gradient))  # to where full batches would rest

    def _stationary(self) -> Tensor:
        """C = S C Sᵀ + noise (k, k)."""
        radius = float(torch.linalg.eigvals(self._step).abs().max())
        if not radius < 1:
            remedy = (
                "Take a lower lr."
                if radius > 1 + 1e-9
                else "The loss does not bend along some direction (Huber's tails, a constant added to logits), in "
                "which runs wander without end."
            )
            raise InputError(
                f"Diffusion: steps of this rate do not rest: they multiply a deviation by up to {radius:.4g}. {remedy}"
            )
        if not bool((self._noise.diagonal() > 0).any()):
            raise InputError("Diffusion: every sample has the same gradient here: batches have no noise.")
        found = scipy.linalg.solve_discrete_lyapunov(
            self._step.double().cpu().numpy(), self._noise.double().cpu().numpy()
        )
        found = torch.from_numpy(found).to(self._noise)
        return (found + found.T) / 2

    def _action(self, z: Tensor) -> float:
        return 0.5 * float(z @ torch.linalg.lstsq(self._modes, z[:, None], driver=_driver(z)).solution[:, 0])

    def _inside(self, deviation: Tensor) -> Tensor:
        """Modes (k,) of a deviation of the outputs (N,)."""
        n = len(self._left)
        flat = deviation.reshape(-1).to(self._left)
        if len(flat) != n:
            raise ShapeError(f"Diffusion: a deviation of shape {tuple(deviation.shape)}, where there are {n} outputs.")
        return self._left.T @ flat

    def action(self, deviation: Tensor) -> float:
        """The least action of a path from rest to a deviation of the outputs (N,): ½ vᵀ C† v. Runs are found there with
        a density that falls as its exponential; what of the deviation no weights reach is left out."""
        return self._action(self._inside(deviation))

    def path(self, deviation: Tensor, steps: int) -> Tensor:
        """The way (steps + 1, N) on which runs that come to a deviation most likely came there, which it ends in.

        C (Sᵀ)ʲ C† v, j steps before: of all paths from rest the one of the least action.
        """
        require_count("Diffusion.path", "steps", steps)
        pull = torch.linalg.lstsq(self._modes, self._inside(deviation)[:, None], driver=_driver(self._modes)).solution
        found = []
        for _ in range(steps + 1):
            found.append(self._left @ (self._modes @ pull)[:, 0])
            pull = self._step.T @ pull
        return torch.stack(found[::-1])

    def escape(self, direction: Tensor, distance: float, *, queries: bool = False) -> Escape:
        """Expected steps until |direction · (u − rest)| exceeds a distance.

        Of a single mode in small steps this is exact; of several it is so for long times, which depend on how the
        correlation begins to fall alone (Pickands 1969, doi:10.1090/S0002-9947-1969-0250367-X). Steps overshoot, and
        leave as a flow would through a wall 0.58 of their own deviation further out (Broadie, Glasserman & Kou 1997).

        Args:
            direction: (N,), or with ``queries`` (m,) of the query outputs. distance: positive, in their units.

        Raises:
            InputError: the distance is none; no weights move the direction.
            ShapeError: the direction is of another number of outputs.
        """
        if isinstance(distance, bool) or not isinstance(distance, (int, float)) or not 0 < distance < math.inf:
            raise InputError(f"escape(distance={brief(distance)}): give a positive, finite distance.")
        z = self._along(direction, queries)
        deviation = self.deviation(direction, queries=queries)
        rate, far = 1 - float(z @ self._step @ self._modes @ z) / deviation**2, distance / deviation
        steps = exit_time(far + OVERSHOOT * math.sqrt(2 * rate)) / rate
        self._require_rest(z, deviation, steps)
        return Escape(steps, far**2 / 2, deviation, rate)

    def deviation(self, direction: Tensor, *, queries: bool = False) -> float:
        """Standard deviation at rest of a direction (N,) of the outputs, or with ``queries`` (m,) of the query outputs.

        Raises:
            InputError: no weights move it.
            ShapeError: it is of another number of outputs.
        """
        z = self._along(direction, queries)
        variance = float(z @ self._modes @ z)
        if not variance > 0:
            raise InputError(f"Diffusion: direction {brief(direction)} does not fluctuate: no weights move it.")
        return math.sqrt(variance)

    def _along(self, direction: Tensor, queries: bool) -> Tensor:
        """Modes (k,) that a direction of the outputs, or of the query outputs, weighs."""
        if not queries:
            return self._inside(direction)
        flat = direction.reshape(-1).to(self._shown)
        if len(flat) != len(self._shown):
            raise ShapeError(
                f"Diffusion: a direction of {len(flat)} numbers, where there are {len(self._shown)} query outputs."
            )
        return self._shown.T @ flat

    def _require_rest(self, z: Tensor, deviation: float, steps: float) -> None:
        """Warn where the direction drifts, meanwhile, by a good part of what it wanders."""
        meanwhile = torch.linalg.matrix_power(self._step, int(min(steps, LONG)) + 1)
        drift = abs(float(z @ (self._away - meanwhile @ self._away)))
        if drift > RESTING * deviation:
            warn(
                f"Diffusion: this direction does not rest: in {min(steps, LONG):.3g} steps full-batch descent moves it "
                f"by {drift:.3g}, where it wanders by {deviation:.3g}. Train longer first (js.fit, js.Jumper).",
                RuntimeWarning,
            )


def exit_time(z: float) -> float:
    """Mean time until an Ornstein–Uhlenbeck process of unit variance and rate leaves (−z, z), from its middle."""
    # ∫₀ᶻ e^{x²/2} √(π/2) erf(x/√2) dx, less its largest exponential
    value, _ = scipy.integrate.quad(
        lambda x: math.exp((x - z) * (x + z) / 2) * math.sqrt(math.pi / 2) * math.erf(x / math.sqrt(2)), 0, z, limit=200
    )
    power = z * z / 2 + math.log(value)
    return math.exp(power) if power < 700 else math.inf


def _driver(tensor: Tensor) -> str | None:
    """Of least squares that may lack rank; a GPU has none."""
    return "gelsd" if tensor.device.type == "cpu" else None
