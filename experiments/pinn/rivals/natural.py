"""Natural gradients and their kin, our own writing of the papers, with the Jacobian that jumps use.

Each step takes J (N, P) and the residuals r of the present points, finds a direction, and a length on it. With d the
direction, the next weights are θ − length · d. All have fixed points; with a ``renewal`` they go on at others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jumpstart.comparison.contenders import Contender, Progress
from jumpstart.linearization.products import Linearization
from jumpstart.objectives.objective import Objective
from jumpstart.utils.cost import FORWARD

from .sampled import Renewal, Rows, at_points, linearized, renew, trained
from .sketch import Sketched

GRID = tuple(0.5**k for k in range(31))  # step lengths of the line searches
RCOND = 1e-13  # eigenvalues of JᵀJ below this share of the largest are taken as zero
SLOPE = 0.1  # of Armijo's rule: what share of the predicted fall is asked for
BENT = 0.75  # a geodesic acceleration is taken where it is at most this share of the step (Transtrum & Sethna 2012)
Direction = Callable[[Linearization, Tensor, float], Tensor]  # linearization, J and loss to d (P,)
Length = Callable[["_Trials", Tensor, Tensor, float], bool]  # trials, d, gradient and loss; whether it moved


def natural_gradient(problem: Rows, rcond: float = RCOND, renewal: Renewal | None = None) -> Contender:
    """Energy natural gradient descent (Müller and Zeinhofer 2023, arXiv 2302.13163), our own writing.

    The displacement is (JᵀJ)⁺Jᵀr, by eigenvalues on the smaller side; its length, the best of 0.5^0 to 0.5^30.
    """

    def direction(lin: Linearization, jacobian: Tensor, _: float) -> Tensor:
        return _pseudoinverse(jacobian, lin.u, rcond)

    return _descending(problem, lambda: direction, _best, renewal)


def anagram(problem: Rows, cutoff: float | None = None, renewal: Renewal | None = None) -> Contender:
    """ANaGRAM (Schwencke and Furtlehner 2024, arXiv 2412.10782), our own writing.

    The displacement is J⁺r by the singular values of the whole feature matrix; its length, the best of 0.5^0 to 0.5^30
    as in the authors' code. Rows are weighted as in the loss (theirs have no weights). Their default,
    5e-7 of the largest at 1,000 parameters, never left the start on Burgers' equation, where 1e-4 did.

    Args:
        cutoff: singular values below this share of the largest are taken as zero; None for the authors' default √(P ε).
            They tune it for each problem.
    """

    def direction(lin: Linearization, jacobian: Tensor, _: float) -> Tensor:
        left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
        share = math.sqrt(jacobian.shape[1] * torch.finfo(jacobian.dtype).eps) if cutoff is None else cutoff
        inverse = torch.where(values >= share * values[0], 1 / values, 0.0)
        return right.T @ (inverse * (left.T @ lin.u))

    return _descending(problem, lambda: direction, _best, renewal)


def spring(
    problem: Rows, damping: float = 1e-8, momentum: float = 0.9, renewal: Renewal | None = None
) -> Contender:  # fmt: skip
    """SPRING for PINNs (Guzmán-Cordero, Dangel, Goldshlager and Zeinhofer 2025, arXiv 2505.12149), our own writing.

    φ ← μ φ + Jᵀ(JJᵀ + λ)⁻¹(r − μ J φ), taken over √(1 − μ^2k) at step k (their code's correction of the bias), at the
    best length of 0.5^0 to 0.5^30. The inverse is of whichever side is smaller. Momentum 0 is their ENGD-W. The authors
    search λ (1e-10 to 1e-3) and μ (0 to 0.999) at random for each problem, and draw new points at every step.
    """

    def made() -> Direction:
        phi, steps = torch.zeros((), dtype=torch.float64), 0

        def direction(lin: Linearization, jacobian: Tensor, _: float) -> Tensor:
            nonlocal phi, steps
            phi, steps = phi.expand_as(lin.theta), steps + 1
            phi = momentum * phi + damped(jacobian, lin.u - momentum * (jacobian @ phi), damping)
            return phi / math.sqrt(1 - momentum ** (2 * steps))

        return direction

    return _descending(problem, made, _best, renewal)


def dual(problem: Rows, damping: float = 1e-8, renewal: Renewal | None = None) -> Contender:
    """Dual natural gradient descent, D-NGD (Jnini and Vella 2025, arXiv 2505.21404), our own writing.

    v = Jᵀ(JJᵀ + λ)⁻¹ r by the dense solver (they have an iterative one for large N), and the geodesic acceleration
    a = ½ Jᵀ(JJᵀ + λ)⁻¹ r_vv where 2‖a‖ ≤ 0.75‖v‖; the best length of 0.5^0 to 0.5^30. They set λ for each problem.
    """

    def direction(lin: Linearization, jacobian: Tensor, _: float) -> Tensor:
        step = damped(jacobian, lin.u, damping)
        bend = 0.5 * damped(jacobian, lin.second(step), damping)
        return step + bend if 2 * float(bend.norm()) <= BENT * float(step.norm()) else step

    return _descending(problem, lambda: direction, _best, renewal)


def nystrom(
    problem: Rows, factor: float = 10.0, floor: float = 1e-4, most: int = 500, renewal: Renewal | None = None
) -> Contender:  # fmt: skip
    """Natural gradient by Nyström-preconditioned conjugate gradients (Bioli, Marcati and Sangalli 2025, arXiv
    2505.11638), our own writing of what their package ``randngd`` 0.1.1 does by default.

    (JᵀJ + μ) d = Jᵀr by 20 iterations; μ = max(factor · ε · λ₁, floor · Φ²), which they set for each problem; a
    Gaussian sketch of 20 to ``most`` columns, as many as eigenvalues are above 10 μ; Armijo's rule (0.1, halving).
    """

    def made() -> Direction:
        sketched = Sketched(factor, floor, most)
        return lambda lin, jacobian, loss: sketched.solved(jacobian, jacobian.T @ lin.u, loss)

    return _descending(problem, made, _armijo, renewal)


def damped(jacobian: Tensor, rows: Tensor, damping: float) -> Tensor:
    """Jᵀ(JJᵀ + λ)⁻¹ r (P,), for r (N,), by Cholesky's factors of the smaller side."""
    wide = jacobian.shape[0] < jacobian.shape[1]
    gram = jacobian @ jacobian.T if wide else jacobian.T @ jacobian
    right = rows if wide else jacobian.T @ rows
    least = torch.finfo(gram.dtype).eps * float(gram.diagonal().max())
    gram.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(gram)
    while int(failed):  # rounding asks for more than λ
        more = max(9 * damping, least)
        gram.diagonal().add_(more)
        damping += more
        factor, failed = torch.linalg.cholesky_ex(gram)
    found = torch.cholesky_solve(right[:, None], factor)[:, 0]
    return jacobian.T @ found if wide else found


def _pseudoinverse(jacobian: Tensor, rows: Tensor, rcond: float) -> Tensor:
    """(JᵀJ)⁺Jᵀr (P,) for J (N, P), r (N,)."""
    wide = jacobian.shape[0] < jacobian.shape[1]
    values, vectors = torch.linalg.eigh(jacobian @ jacobian.T if wide else jacobian.T @ jacobian)
    inverse = torch.where(values > rcond * values[-1], 1 / values, 0.0)
    right = rows if wide else jacobian.T @ rows
    found = vectors @ (inverse * (vectors.T @ right))
    return jacobian.T @ found if wide else found


def _descending(
    problem: Rows, made: Callable[[], Direction], length: Length, renewal: Renewal | None
) -> Contender:  # fmt: skip
    """``made`` gives each run a direction of its own, which may remember the steps before."""

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        direction, trials, step, present = made(), _Trials(problem, model, objective), 0, objective
        while True:
            if renewal is not None and renewal.due(step):
                renew(problem, model, renewal, step)
                present = at_points(objective, problem.points)  # type: ignore[attr-defined]
            trials.begin()
            lin, jacobian = linearized(present, trials.theta)
            loss = 0.5 * float(lin.u.dot(lin.u))
            found = direction(lin, jacobian, loss)
            if not length(trials, found, jacobian.T @ lin.u, loss) and renewal is None:
                return
            step += 1
            trials.cost += lin.ledger.gradient_evaluations
            yield {"gradient_evaluations": trials.cost}

    return run


@dataclass
class _Trials:
    """Weights tried along a direction, and what that cost."""

    problem: Rows
    model: nn.Module
    objective: Objective
    theta: Tensor = field(default_factory=lambda: torch.empty(0))
    cost: float = 0.0

    def begin(self) -> None:
        self.theta = self.objective.theta()

    def move(self, displacement: Tensor) -> None:
        self.objective.space.write(self.model, self.theta - displacement)

    def loss(self, displacement: Tensor) -> float:
        """Φ at θ − displacement, ∞ where it is none."""
        self.move(displacement)
        self.cost += FORWARD
        rows = self.problem.residuals(self.model).detach()
        found = 0.5 * float(rows.dot(rows))
        return found if math.isfinite(found) else math.inf

    def losses(self, displacements: Iterator[Tensor]) -> list[float]:
        parameters = trained(self.model)
        for parameter in parameters:
            parameter.requires_grad_(False)  # trials need no graph to the weights
        try:
            return [self.loss(displacement) for displacement in displacements]
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)


def _best(trials: _Trials, direction: Tensor, _: Tensor, __: float) -> bool:
    """The best length of the grid, lower than the present loss or not."""
    losses = trials.losses(length * direction for length in GRID)
    best = min(range(len(GRID)), key=lambda k: losses[k])
    moves = math.isfinite(losses[best])
    trials.move((GRID[best] if moves else 0.0) * torch.nan_to_num(direction, posinf=0.0, neginf=0.0))
    return moves


def _armijo(trials: _Trials, direction: Tensor, gradient: Tensor, loss: float) -> bool:
    """The first of 1, ½, ¼, … whose loss is lower than a tenth of the gradient's slope promises."""
    slope = float(gradient @ direction)
    for length in GRID if slope > 0 else ():
        if trials.losses(iter([length * direction]))[0] <= loss - SLOPE * length * slope:
            return True
    trials.move(torch.zeros_like(direction))
    return False
