"""The kernel K = JJᵀ of residuals at points, gathered layer by layer from outer products; the Jacobian is never formed.

Row i of the Jacobian by a layer's weight is Σ_s δ_si ⊗ a_si over the derivative streams s, so that the layer's share of
the kernel is Σ_ss' (δ_s δ_s'ᵀ)∘(a_s a_s'ᵀ): in + out multiply-adds a pair of rows and streams instead of in·out.
Source: docs/theory.md, section 8.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...objectives.collocation import Points
from ...objectives.parts import Part
from ...utils.progress import track
from ..linearize import Linearization


@dataclass(frozen=True)
class _Placed:
    rows: slice
    left: Tensor
    right: Tensor | None


def gatherable(part: Part) -> bool:
    """Whether a part of the outputs gives its Jacobian as outer products."""
    return isinstance(part, Points) and part.local is not None


def gathered_kernel(lin: Linearization) -> Tensor | None:
    """K (N, N), or None where a part of the outputs gives no outer products."""
    by_name: dict[str, list[_Placed]] = {}
    start = 0
    for part, count in zip(lin.parts, lin.counts, strict=True):
        if not isinstance(part, Points):
            return None
        found = part.outer_products(lin.net, lin.theta)
        if found is None:
            return None
        for outer in found:
            rows = slice(start + (outer.rows.start or 0), start + count, outer.rows.step)
            by_name.setdefault(outer.name, []).append(_Placed(rows, outer.left, outer.right))
        lin.ledger.forwards += count / lin.u.shape[0]
        lin.ledger.pulls += count / len(part.points) * count / lin.u.shape[0]
        start += count
    kernel = lin.u.new_zeros(start, start)
    for name in track(list(by_name), label="kernel: layers"):
        placed = by_name[name]
        for i, a in enumerate(placed):
            for b in placed[i:]:
                block, share = a.left @ b.left.T, 0.5 if a is b else 1.0
                if a.right is not None and b.right is not None:
                    kernel[a.rows, b.rows].addcmul_(block, a.right @ b.right.T, value=share)
                else:
                    kernel[a.rows, b.rows].add_(block, alpha=share)
    return kernel.add_(kernel.T.clone())  # of each pair of layers, one order was summed
