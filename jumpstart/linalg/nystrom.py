"""Nyström approximations of a positive semidefinite matrix from products with it, as preconditioners.

Source: Frangella, Tropp & Udell, SIAM J. Matrix Anal. 44, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Nystrom:
    """K ≈ U diag(λ) Uᵀ with U (N, r) orthonormal, and the pairs it was made from."""

    vectors: Tensor
    values: Tensor

    @staticmethod
    def of(tests: Tensor, images: Tensor) -> Nystrom | None:
        """Y (SᵀY)⁺ Yᵀ from rows s of ``tests`` (r, N) and their images K s; None if nothing stands above rounding."""
        size = torch.linalg.vector_norm(tests, dim=1, keepdim=True).clamp_min(1e-300)
        tests, images = tests / size, images / size
        core = tests @ images.T
        if not bool(torch.isfinite(core).all()):
            return None
        values, v = torch.linalg.eigh(0.5 * (core + core.T))
        good = values > 1e-10 * values.max()
        if not bool(good.any()) or not bool(values.max() > 0):
            return None
        root = (v[:, good] / values[good].sqrt()).T @ images
        _, sigma, rows = torch.linalg.svd(root, full_matrices=False)
        return Nystrom(rows.T, sigma.square())

    def solve(self, b: Tensor, shift: float) -> Tensor:
        """(K + shift)⁻¹ b up to a factor; outside of the approximation K counts as its smallest value."""
        floor = self.values.min() + shift
        return b + self.vectors @ ((floor / (self.values + shift) - 1) * (self.vectors.T @ b))
