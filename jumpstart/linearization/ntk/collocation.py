"""The kernel K = JJᵀ of residuals at points, gathered layer by layer from outer products; the Jacobian is never held.

Row i of the Jacobian by a layer's weight is Σ_s δ_si ⊗ a_si over the derivative streams s, so that the layer's share of
the kernel is Σ_ss' (δ_s δ_s'ᵀ)∘(a_s a_s'ᵀ): in + out multiply-adds a pair of rows and streams instead of in·out. Where
a layer is narrow and the streams are many (a Laplacian in ten dimensions has twelve) its columns of the Jacobian cost
less, and are formed a few at a time.
Source: docs/theory.md, section 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...linalg.cholesky import lower_gram
from ...objectives.collocation import Points
from ...objectives.parts import Part
from ...utils.cost import ELEMENTS, PRODUCTS, rate
from ...utils.progress import track
from ..linearize import Linearization

CHUNK = 2**24  # entries of a layer's columns of the Jacobian at a time


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
    kernel = lin.u.new_zeros(start, start)  # half of K, so that K is it and its transpose
    for name in track(list(by_name), label="kernel: layers"):
        placed = by_name[name]
        if _explicit_pays(placed, start):
            _explicit(kernel, placed)
        else:
            _by_pairs(kernel, placed)
    return kernel.add_(kernel.T.clone())


def _by_pairs(kernel: Tensor, placed: Sequence[_Placed]) -> None:
    """A layer's share from products of its factors; of each pair of streams, one order is summed."""
    for i, a in enumerate(placed):
        for b in placed[i:]:
            block, share = a.left @ b.left.T, 0.5 if a is b else 1.0
            if a.right is not None and b.right is not None:
                kernel[a.rows, b.rows].addcmul_(block, a.right @ b.right.T, value=share)
            else:
                kernel[a.rows, b.rows].add_(block, alpha=share)


def _explicit(kernel: Tensor, placed: Sequence[_Placed]) -> None:
    """A layer's share from its columns of the Jacobian, a few outputs of the layer at a time."""
    n, (out, into) = len(kernel), _widths(placed[0])
    many = max(1, CHUNK // (n * into))
    for at in range(0, out, many):
        columns = kernel.new_zeros(min(many, out - at), into, n)
        for outer in placed:
            left = outer.left[:, at : at + many].T[:, None]
            columns[:, :, outer.rows] += left if outer.right is None else left * outer.right.T
        share = lower_gram(columns.view(-1, n)).tril_()
        share.diagonal().mul_(0.5)
        kernel.add_(share)


def _explicit_pays(placed: Sequence[_Placed], n: int) -> bool:
    """Whether a layer's columns of the Jacobian cost less than its factors pair by pair; counted."""
    device, (out, into) = placed[0].left.device, _widths(placed[0])
    counts = [len(outer.left) for outer in placed]
    pairs = sum(a * b for i, a in enumerate(counts) for b in counts[i:])
    by_pairs = pairs * (2.0 * (out + into) / rate(PRODUCTS, device) + 3.0 / rate(ELEMENTS, device))
    columns = sum(counts) * out * into * 2.0 + 2.0 * n * n * -(-out * into * n // CHUNK)
    return n * n * float(out * into) / rate(PRODUCTS, device) + columns / rate(ELEMENTS, device) < by_pairs


def _widths(outer: _Placed) -> tuple[int, int]:
    """Outputs and inputs of a layer; 1 for a bias."""
    return outer.left.shape[1], 1 if outer.right is None else outer.right.shape[1]
