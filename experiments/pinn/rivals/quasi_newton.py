"""Self-scaled quasi-Newton methods (Urbán, Stefanou & Pons 2025, arXiv:2405.04230), after Adam.

``scimba`` runs the torch optimizer of the package of that name. ``self_scaled`` is our own writing of the same
formulas: it updates H in place, evaluates no point twice, and begins again where a line search fails, which makes a
step three to four times as fast at 2,000 parameters. The steps are the same, but for the length at which a line search
gives up (scimba's 1e-9 ends a run that is not over).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lbfgs import _strong_wolfe  # pyright: ignore[reportPrivateUsage]

from jumpstart.comparison.contenders import Contender, Progress
from jumpstart.objectives.objective import Objective

from .peers import peer
from .sampled import Renewal, Rows, renew, trained

# The authors' Adam phase (their repository's *_hparams.py: Burgers, Allen-Cahn, Helmholtz).
STEPS, RATE, BETAS, EPS = 5000, 5e-3, (0.99, 0.999), 1e-20
SLOWER, PERIOD = 0.98, 1000  # the rate's factor every so many steps
EVERY = 500  # steps between the authors' draws by residual, in both phases
Value = Callable[[], tuple[float, Tensor]]  # loss and gradient (P,) at the model's weights


def self_scaled(
    problem: Rows, method: str = "ssbroyden", adam: float | None = None, renewal: Renewal | None = None
) -> Contender:
    """SSBroyden or SS-BFGS ("ssbfgs"), our own writing.

    As its authors run it: 5,000 steps of Adam at 5e-3 (times 0.98 every 1,000; β = 0.99, 0.999), then quasi-Newton from
    H = 1; where points are renewed (theirs: every 500 steps by residual), H is kept if it is positive definite.
    Line search: torch's strong Wolfe, as scimba's; the authors' is SciPy's, with the same constants 1e-4 and 0.9.

    Args:
        adam: seconds after which Adam makes way even before its 5,000 steps; None for the steps alone.
    """

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        value = _Value(problem, model)
        for step in _adam(value, adam):
            _moved(problem, model, renewal, step)
            yield {"gradient_evaluations": value.calls}
        inverse, step, fresh = _identity(value), 0, True
        loss, gradient = value()
        while True:
            if _moved(problem, model, renewal, step):
                inverse, fresh = _definite(inverse)
                loss, gradient = value()
            found = _searched(value, loss, gradient, inverse @ -gradient)
            if found is not None:
                after, slope, moved, length = found
                update(inverse, moved, slope - gradient, gradient, length, method)
                loss, gradient, fresh = after, slope, False
            elif not fresh:
                inverse, fresh = _identity(value), True
            elif renewal is None:
                return  # not even the steepest descent falls
            else:
                renew(problem, model, renewal, step)
                loss, gradient = value()
            step += 1
            yield {"gradient_evaluations": value.calls}

    return run


def update(inverse: Tensor, moved: Tensor, change: Tensor, gradient: Tensor, length: float, method: str) -> bool:
    """H (P, P) for the next step, in place: formulas 11 and 13 to 23 of the paper.

    Args:
        moved: s, the step taken. change: y, of the gradient along it. gradient: before it. length: α in s = −α H g.

    Returns:
        Whether H was updated: not where y·s ≤ 0 or a coefficient is not a number.
    """
    applied = inverse @ change
    curved, crossed = float(change @ applied), float(change @ moved)  # y·Hy and y·s
    if not (crossed > 0 and curved > 0):
        return False
    b = -length * float(moved @ gradient) / crossed
    scale, share = min(1.0, 1 / b), 1.0  # τ and φ of SS-BFGS (Al-Baali)
    if method == "ssbroyden":
        scale, share = _broyden(b, curved / crossed, scale, len(moved))
    elif method != "ssbfgs":
        raise ValueError(f"method={method!r}: give 'ssbroyden' or 'ssbfgs'.")
    if not (math.isfinite(scale) and math.isfinite(share) and scale > 0):
        return False
    other = math.sqrt(curved) * (moved / crossed - applied / curved)
    left = torch.stack([applied, other, moved], 1)
    factors = torch.tensor([-1 / (curved * scale), share / scale, 1 / crossed], dtype=left.dtype)
    torch.addmm(inverse, left * factors, left.T, beta=1 / scale, out=inverse)
    return True


def _broyden(b: float, h: float, scale: float, count: int) -> tuple[float, float]:
    """τ and φ of SSBroyden, from b = −α s·g / y·s, h = y·Hy / y·s and SS-BFGS's τ."""
    a = b * h - 1
    if a <= 0:  # by rounding; the update is then SS-BFGS's
        return scale, 1.0
    lowest = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
    theta = max((lowest - 1) / a, min(1 / lowest, (1 - b) / b))
    sigma = 1 + a * theta
    power = sigma ** (1 / (1 - count))
    scale = scale * min(power, 1 / theta) if theta > 0 else min(scale * power, sigma)
    return scale, (1 - theta) / sigma


def scimba(problem: Rows, method: str = "ssbroyden", adam: float | None = None) -> Contender:
    """SSBroyden or SS-BFGS of scimba 1.4.1, after Adam as in :func:`self_scaled`, on fixed points."""
    package = peer("scimba_torch.optimizers.ssbroyden", "scimba==1.4.1")

    def run(model: nn.Module, objective: Objective) -> Iterator[Progress]:
        value = _Value(problem, model)
        for _ in _adam(value, adam):
            yield {"gradient_evaluations": value.calls}
        kind = torch.get_default_dtype()
        torch.set_default_dtype(value.parameters[0].dtype)  # it makes H in torch's default
        try:
            optimizer = package.SSBroyden(value.parameters, method=method, tolerance_grad=1e-300)
        finally:
            torch.set_default_dtype(kind)

        def closure() -> float:
            loss, gradient = value()
            value.spread(gradient)
            return loss

        while True:
            optimizer.step(closure)
            yield {"gradient_evaluations": value.calls}

    return run


class _Value:
    """Loss and gradient at the model's weights; the weights as a vector."""

    def __init__(self, problem: Rows, model: nn.Module) -> None:
        self.problem, self.model, self.calls = problem, model, 0
        self.parameters = trained(model)
        self.sizes = [parameter.numel() for parameter in self.parameters]

    @torch.enable_grad()
    def __call__(self) -> tuple[float, Tensor]:
        self.calls += 1
        rows = self.problem.residuals(self.model)
        loss = 0.5 * rows.dot(rows)
        gradients = torch.autograd.grad(loss, self.parameters)
        return float(loss.detach()), torch.cat([gradient.reshape(-1) for gradient in gradients])

    def spread(self, gradient: Tensor) -> None:
        """Gives every parameter its part of a gradient (P,)."""
        for parameter, part in zip(self.parameters, gradient.split(self.sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    @torch.no_grad()
    def theta(self) -> Tensor:
        return torch.cat([parameter.reshape(-1) for parameter in self.parameters])

    @torch.no_grad()
    def write(self, theta: Tensor) -> None:
        for parameter, part in zip(self.parameters, theta.split(self.sizes), strict=True):
            parameter.copy_(part.view_as(parameter))


def _adam(value: _Value, seconds: float | None) -> Iterator[int]:
    """The authors' Adam phase: yields the number of each step taken."""
    optimizer = torch.optim.Adam(value.parameters, lr=RATE, betas=BETAS, eps=EPS, fused=True)
    spent = 0.0
    for step in range(1, STEPS + 1):
        begun = time.perf_counter()
        value.spread(value()[1])
        optimizer.param_groups[0]["lr"] = RATE * SLOWER ** (step / PERIOD)
        optimizer.step()
        spent += time.perf_counter() - begun
        yield step
        if seconds is not None and spent >= seconds:
            return


def _searched(
    value: _Value, loss: float, gradient: Tensor, direction: Tensor
) -> tuple[float, Tensor, Tensor, float] | None:
    """Loss, gradient and step s after a strong Wolfe search, and its length; None where it found nothing lower."""
    slope = float(gradient @ direction)
    if not slope < 0:
        return None
    theta = value.theta()

    def at(x: Tensor, t: Any, d: Tensor) -> tuple[float, Tensor]:
        value.write(x + float(t) * d)
        return value()

    # tolerance_change is of a length: steps near the end are shorter than torch's 1e-9.
    after, following, length, _ = _strong_wolfe(
        at, theta, 1.0, direction, loss, gradient, gradient @ direction, tolerance_change=1e-20
    )
    if not (float(length) > 0 and after < loss and bool(torch.isfinite(following).all())):
        value.write(theta)
        return None
    moved = float(length) * direction
    value.write(theta + moved)
    return after, following, moved, float(length)


def _moved(problem: Rows, model: nn.Module, renewal: Renewal | None, step: int) -> bool:
    """Whether the points were drawn anew."""
    if renewal is None or not renewal.due(step):
        return False
    renew(problem, model, renewal, step)
    return True


def _identity(value: _Value) -> Tensor:
    return torch.eye(sum(value.sizes), dtype=value.parameters[0].dtype)


def _definite(inverse: Tensor) -> tuple[Tensor, bool]:
    """H made symmetric, or 1 where it is not positive definite; and which."""
    inverse = (inverse + inverse.T) / 2
    failed = bool(torch.linalg.cholesky_ex(inverse).info)
    return (torch.eye(len(inverse), dtype=inverse.dtype) if failed else inverse), failed
