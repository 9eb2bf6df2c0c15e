"""Conjugate gradients on (JᵀJ + μ) d = g, preconditioned by a randomized Nyström approximation of JᵀJ.

Frangella, Tropp and Udell 2023 (arXiv 2110.02820), as Bioli, Marcati and Sangalli 2025 (arXiv 2505.11638) use it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]  # (P,) to (P,)
ITERATIONS = 20  # of conjugate gradients
FIRST = 20  # columns of the first sketch, and those by which it grows
NEAR = 10.0  # a sketch is wide enough where its eigenvalues reach this many times μ


class Sketched:
    """Solves at one step after another, the sketch's width following what the last one saw.

    Args:
        factor: of ε λ₁, and floor: of Φ², whose larger is μ. most: columns of a sketch.
    """

    def __init__(self, factor: float, floor: float, most: int, seed: int = 0) -> None:
        self.factor, self.floor, self.most, self.width = factor, floor, most, min(FIRST, most)
        self.generator = torch.Generator().manual_seed(seed)

    def solved(self, jacobian: Tensor, gradient: Tensor, loss: float) -> Tensor:
        """d (P,) for g (P,), at J (N, P) and Φ."""
        vectors, values = self._approximated(jacobian)
        mu = max(self.factor * torch.finfo(jacobian.dtype).eps * float(values[0]), self.floor * loss**2)
        scaling = (values - values[-1]) / (values + mu)
        found = conjugate(
            lambda v: jacobian.T @ (jacobian @ v) + mu * v,
            gradient,
            lambda v: v - vectors @ (scaling * (vectors.T @ v)),
        )
        below = (values < NEAR * mu).nonzero()
        self.width = int(below[0]) + 1 if len(below) else min(self.width + FIRST, self.most)
        return found

    def _approximated(self, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvectors (P, width) and eigenvalues, falling, of a Nyström approximation of JᵀJ."""
        count = jacobian.shape[1]
        drawn = torch.randn(count, min(self.width, count), generator=self.generator, dtype=jacobian.dtype)
        basis = torch.linalg.qr(drawn).Q
        image = jacobian.T @ (jacobian @ basis)
        shift = torch.finfo(jacobian.dtype).eps * float(image.norm())
        while True:
            moved = image + shift * basis
            core = basis.T @ moved
            factor, code = torch.linalg.cholesky_ex((core + core.T) / 2)
            if not int(code):
                break
            shift *= 10  # rounding asks for more
        half = torch.linalg.solve_triangular(factor, moved.T, upper=False).T
        vectors, roots, _ = torch.linalg.svd(half, full_matrices=False)
        return vectors, (roots.square() - shift).clamp_min(0)


def conjugate(apply: Map, right: Tensor, precondition: Map) -> Tensor:
    """x with A x ≈ b after ``ITERATIONS`` preconditioned conjugate gradients."""
    x, r = torch.zeros_like(right), right.clone()
    z = precondition(r)
    p, rz = z.clone(), float(r @ z)
    for _ in range(ITERATIONS):
        if not rz > 0:
            break  # solved to rounding
        image = apply(p)
        curvature = float(p @ image)
        if not curvature > 0:
            break
        x += rz / curvature * p
        r -= rz / curvature * image
        z = precondition(r)
        after = float(r @ z)
        p = z + after / rz * p
        rz = after
    return x
