"""The head without each sample, really refitted: outputs of all samples, from which a second stage would start.

Squared losses have a closed form. Others take Newton steps with the Hessian of the fit less the sample's own part (a
low-rank downdate), all copies together, until the outputs rest. Whoever does not come to rest like that, because its
Hessian is another one without the sample, takes Newton steps with its own.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ...losses.weighted import weighted
from .convex_head import Fit, HeadProblem

STEPS = 40
RESTING = 1e-9  # movement of the outputs in a step, relative to them
ENTRIES = 2**25  # outputs and weights of the copies that are held at once, at most


def without_each(problem: HeadProblem, fit: Fit) -> Tensor:
    """(n, n, …) in float64: in row i the outputs of all samples under the head fitted without sample i.

    The damping is that of the fit, and the others count as before (no renormalization).
    """
    return _ridge(problem, fit) if problem.loss.curvature is not None else _newton(problem, fit)


def outputs(problem: HeadProblem, fit: Fit) -> Tensor:
    """(n, …): with every sample."""
    u = problem.features @ fit.weight.T
    return (u if fit.bias is None else u + fit.bias).reshape(problem.shape)


def _ridge(problem: HeadProblem, fit: Fit) -> Tensor:
    """Linear in the targets: without sample i the outputs are those of a fit to its own left-out prediction."""
    n, beta = len(problem.features), float(problem.loss.curvature or 0.0)
    squares = beta * problem.sizes.square()
    hat = (problem.left * (squares / (squares + fit.damping))) @ problem.left.T + (1 / n if problem.bias else 0.0)
    u = outputs(problem, fit).reshape(n, -1)
    miss = (u - problem.loss.targets.double().reshape(n, -1)) / (1 - hat.diagonal()).clamp_min(1e-300)[:, None]
    return (u + hat.T[..., None] * miss[:, None]).reshape(n, *problem.shape)


def _newton(problem: HeadProblem, fit: Fit) -> Tensor:
    z, c, n = problem.rows, problem.classes, len(problem.features)
    free = z.new_full((z.shape[1],), fit.damping)
    if problem.bias:
        free[-1] = 0.0
    w = fit.weight @ problem.right.T
    if fit.bias is not None:
        w = torch.cat([w, (fit.bias + fit.weight @ problem.center)[:, None]], 1)
    bends = problem.bends(problem.outputs(z, w))
    inverse = torch.cholesky_inverse(problem.factor(z, bends, free))
    own = z.new_empty(n, c, c)  # X_i H⁻¹ X_iᵀ
    shaped = inverse.reshape(c, z.shape[1], c, z.shape[1])
    for i in range(c):
        for j in range(c):
            own[:, i, j] = ((z @ shaped[i, :, j]) * z).sum(1)
    # (H − X_iᵀ B_i X_i)⁻¹ g = H⁻¹ g + H⁻¹ X_iᵀ (I − B_i A_i)⁻¹ B_i X_i H⁻¹ g
    core = torch.linalg.solve(torch.eye(c, dtype=z.dtype, device=z.device) - bends @ own, bends)
    count = max(1, ENTRIES // (c * (n + z.shape[1])))
    blocks = [torch.arange(at, min(at + count, n), device=z.device) for at in range(0, n, count)]
    return torch.cat([_copies(problem, fit.damping, z, w, free, inverse, core, left) for left in blocks])


def _copies(
    problem: HeadProblem,
    damping: float,
    z: Tensor,
    w: Tensor,
    free: Tensor,
    inverse: Tensor,
    core: Tensor,
    left: Tensor,
) -> Tensor:
    """Outputs (g, n, …) without each of ``left`` (g,)."""
    g, n, c, loss = len(left), len(z), problem.classes, problem.loss
    present = z.new_ones(g, n)
    present[torch.arange(g), left] = 0.0
    mine = z[left]

    def read(w: Tensor) -> Tensor:
        return (w @ z.T).transpose(1, 2)  # (g, n, c)

    def total(w: Tensor, u: Tensor) -> Tensor:
        losses = loss.per_sample(u.reshape(g, *problem.shape))
        return (losses * present).sum(1) + 0.5 * (free * w.square()).sum((1, 2))

    w = w.expand(g, *w.shape).clone()
    u, resting = read(w), torch.zeros(g, dtype=torch.bool, device=z.device)
    value = total(w, u)
    for _ in range(STEPS):
        slopes = loss.grad(u.reshape(g, *problem.shape)).reshape(g, n, c) * present[..., None]
        slope = slopes.transpose(1, 2) @ z + free * w
        step = (slope.reshape(g, -1) @ inverse).reshape(w.shape)
        seen = (core[left] @ (step @ mine[..., None]))[..., 0]
        step = -(step + ((seen[..., None] * mine[:, None]).reshape(g, -1) @ inverse).reshape(w.shape))
        moved = read(step)
        resting |= moved.abs().amax((1, 2)) <= RESTING * (1 + u.abs().amax((1, 2)))
        if bool(resting.all()):
            break
        length = torch.where(resting, 0.0, 1.0).to(z)
        fall = -(slope * step).sum((1, 2))
        for _ in range(30):  # Newton's steps with another Hessian may go too far
            ahead = total(w + length[:, None, None] * step, u + length[:, None, None] * moved)
            short = ahead > value - 1e-4 * length * fall + 1e-13 * value.abs()
            if not bool(short.any()):
                break
            length = torch.where(short, 0.5 * length, length)
        w, u = w + length[:, None, None] * step, u + length[:, None, None] * moved
        value = total(w, u)
    u = u.reshape(g, *problem.shape)
    for k in (~resting).nonzero()[:, 0].tolist():
        alone = copy.copy(problem)
        alone.loss = weighted(loss, present[k], u[k])
        u[k] = problem.outputs(z, alone.newton_fit(damping, w[k])[1])
    return u
