"""Lanczos: from products with a symmetric operator to a small tridiagonal matrix that stands for it.

Everything runs in torch on any device. Source: docs/theory.md, section 4.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..utils.brief import brief
from ..utils.progress import track

Product = Callable[[Tensor], Tensor]


class LanczosOutcome(enum.Enum):
    """How a Lanczos run ended; the value is a sentence for people."""

    COMPLETE = "The asked-for depth was reached."
    BREAKDOWN = "The Krylov space is exhausted: it is invariant, and answers from it are exact."


@dataclass(frozen=True)
class Krylov:
    """A V = V T + β_k q eᵀ_k, with V's rows orthonormal.

    Attributes:
        vectors: (k, d) orthonormal rows v_1 … v_k.
        alphas: (k,) diagonal of T. betas: (k − 1,) off-diagonal.
        remainder: (d,) next direction v_{k+1}, a unit vector, or zero after a breakdown.
        remainder_norm: β_k, as a 0-d tensor; zero after a breakdown.
        start_norm: norm of the start vector.
    """

    vectors: Tensor
    alphas: Tensor
    betas: Tensor
    remainder: Tensor
    remainder_norm: Tensor
    start_norm: Tensor
    outcome: LanczosOutcome

    @property
    def depth(self) -> int:
        return self.alphas.numel()

    def matrix(self) -> Tensor:
        """T (k, k)."""
        return torch.diag(self.alphas) + torch.diag(self.betas, 1) + torch.diag(self.betas, -1)


def orthogonalize(w: Tensor, basis: Tensor, passes: int = 2) -> Tensor:
    """Take the components along orthonormal rows of ``basis`` (j, d) off w (d,), twice is enough (Kahan)."""
    for _ in range(passes if basis.shape[0] else 0):
        w = w - basis.T @ (basis @ w)
    return w


def lanczos(product: Product, start: Tensor, depth: int, deflate: Tensor | None = None) -> Krylov:
    """Lanczos with full reorthogonalization: exactly ``depth`` products, or fewer after a breakdown.

    Args:
        product: v (d,) -> A v (d,), A symmetric.
        start: (d,), not zero.
        deflate: (r, d) orthonormal rows; the run then stays orthogonal to them.

    Raises:
        InputError: depth < 1 or a start vector that is zero or not finite.
    """
    _check(depth)
    dimension = start.numel()
    deflated = start.new_zeros(0, dimension) if deflate is None else deflate
    depth = min(depth, dimension - deflated.shape[0])
    first = orthogonalize(start, deflated)
    norm = torch.linalg.vector_norm(first)
    if not bool(torch.isfinite(norm)) or not bool(norm > 0) or depth < 1:
        raise InputError(f"Lanczos needs a finite start vector other than zero, got norm {float(norm):.3g}.")
    vectors = start.new_zeros(depth, dimension)
    alphas, betas = [], [norm]
    q, scale = first / norm, norm.new_zeros(())
    eps = torch.finfo(start.dtype).eps
    outcome = LanczosOutcome.COMPLETE
    for j in track(range(depth), label="Lanczos"):
        vectors[j] = q
        w = product(q)
        alphas.append(torch.dot(q, w))
        w = orthogonalize(w, vectors[: j + 1])
        w = orthogonalize(w, deflated)
        beta = torch.linalg.vector_norm(w)
        scale = torch.maximum(scale, torch.maximum(alphas[-1].abs(), betas[j] if j else norm.new_zeros(())))
        exhausted = beta <= 100 * eps * scale
        betas.append(torch.where(exhausted, torch.zeros_like(beta), beta))
        q = torch.where(exhausted, torch.zeros_like(w), w / beta.clamp_min(torch.finfo(w.dtype).tiny))
        # Reading the flag is free on a CPU; a GPU runs on with zero vectors, which change nothing, and never waits.
        if start.device.type == "cpu" and bool(exhausted):
            break
    used = len(alphas)
    lengths = torch.stack(betas[1:])
    dead = (lengths == 0).nonzero()
    if dead.numel():
        used, outcome = int(dead[0]) + 1, LanczosOutcome.BREAKDOWN
    return Krylov(
        vectors[:used],
        torch.stack(alphas[:used]),
        lengths[: used - 1],
        q if used == len(alphas) else torch.zeros_like(q),
        lengths[used - 1],
        norm,
        outcome,
    )


@dataclass(frozen=True)
class DualKrylov:
    """Lanczos on AᵀBA run on the output side: cotangents s_j stand for q_j = Aᵀ s_j, which are orthonormal.

    Attributes:
        cotangents: (k, N) rows s_j. images: (k, N) rows A q_j = K s_j.
        rest: (N,) cotangent of β_k q_{k+1}, zero after a breakdown; β_k² = restᵀ K rest takes one more product.
    """

    cotangents: Tensor
    images: Tensor
    rest: Tensor
    outcome: LanczosOutcome


def lanczos_dual(kernel: Product, curvature: Product, start: Tensor, depth: int) -> DualKrylov:
    """The Krylov space of AᵀBA from Aᵀg, kept as vectors of the outputs' size: exactly ``depth`` kernel products.

    Inner products of the q_j are K-inner products of the s_j, and K s_j is at hand, so that no square root of the
    curvature B and no vector of the parameters' size is needed.

    Args:
        kernel: s (N,) -> K s, K = A Aᵀ. curvature: y (N,) -> B y. start: g (N,).
    """
    _check(depth)
    depth = min(depth, start.numel())
    s, y = start, kernel(start)
    length = torch.dot(s, y).clamp_min(0).sqrt()
    if not bool(torch.isfinite(length)):
        raise InputError(f"Lanczos needs a finite gradient, got norm {float(length):.3g}.")
    if not bool(length > 0):
        none = start.new_zeros(0, start.numel())
        return DualKrylov(none, none, torch.zeros_like(start), LanczosOutcome.BREAKDOWN)
    cotangents, images = start.new_zeros(depth, start.numel()), start.new_zeros(depth, start.numel())
    eps, scale, outcome, used = torch.finfo(start.dtype).eps, length.new_zeros(()), LanczosOutcome.COMPLETE, 0
    for j in track(range(depth), label="Lanczos"):
        cotangents[j], images[j] = s / length, y / length
        used = j + 1
        bent = s = curvature(images[j])
        for _ in range(2):
            s = s - cotangents[:used].T @ (images[:used] @ s)
        if used == depth:
            break
        y = kernel(s)
        length = torch.dot(s, y).clamp_min(0).sqrt()
        scale = torch.maximum(scale, torch.dot(images[j], bent))
        if not bool(length > 1e3 * eps * scale):
            s, outcome = torch.zeros_like(s), LanczosOutcome.BREAKDOWN
            break
    return DualKrylov(cotangents[:used], images[:used], s, outcome)


@dataclass(frozen=True)
class BlockKrylov:
    """Block Lanczos: rows of ``vectors`` (m, d) are orthonormal and ``matrix`` (m, m) = V A Vᵀ."""

    vectors: Tensor
    matrix: Tensor
    outcome: LanczosOutcome


def block_lanczos(product: Product, starts: Tensor, depth: int) -> BlockKrylov:
    """Block Lanczos with full reorthogonalization from ``starts`` (b, d): depth products a start vector.

    Directions that become dependent are dropped from the block; it breaks down when none is left.
    """
    _check(depth)
    d = starts.shape[1]
    vectors, images = starts.new_zeros(0, d), starts.new_zeros(0, d)
    block, outcome = starts, LanczosOutcome.COMPLETE
    reference = torch.linalg.vector_norm(starts, dim=1).max()
    for _ in track(range(depth), label="block Lanczos"):
        for _ in range(2):
            block = block - (block @ vectors.T) @ vectors
        block = independent_rows(block, reference)
        if block.shape[0] == 0 or vectors.shape[0] >= d:
            outcome = LanczosOutcome.BREAKDOWN
            break
        image = torch.stack([product(v) for v in block])
        reference = torch.linalg.matrix_norm(image, ord=2) if image.numel() else reference
        vectors, images = torch.cat([vectors, block]), torch.cat([images, image])
        block = image
    matrix = vectors @ images.T
    return BlockKrylov(vectors, 0.5 * (matrix + matrix.T), outcome)


def independent_rows(rows: Tensor, reference: Tensor, tolerance: float | None = None) -> Tensor:
    """Orthonormal rows spanning ``rows`` (b, d), without directions below tolerance × reference."""
    if rows.shape[0] == 0:
        return rows
    cut = (1e3 * torch.finfo(rows.dtype).eps if tolerance is None else tolerance) * reference
    _, sigma, vh = torch.linalg.svd(rows, full_matrices=False)
    return vh[sigma > cut]


@dataclass(frozen=True)
class Density:
    """A spectral density as weighted points: Σ weights = 1."""

    nodes: Tensor
    weights: Tensor

    def moment(self, power: int) -> Tensor:
        """∫ λ^power dρ(λ); power 1 estimates trace / dimension."""
        return (self.weights * self.nodes**power).sum()


def spectral_density(
    product: Product, dimension: int, depth: int, probes: int, like: Tensor, generator: torch.Generator | None = None
) -> Density:
    """Spectral density of a symmetric operator by stochastic Lanczos quadrature (Golub & Meurant).

    Args:
        like: a tensor whose dtype and device the probes take.
        generator: for the Rademacher probes, on the CPU; the global generator is never touched without one either.
    """
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    nodes, weights = [], []
    for _ in range(probes):
        sign = torch.randint(0, 2, (dimension,), generator=generator, device="cpu").to(like.device, like.dtype) * 2 - 1
        run = lanczos(product, sign, depth)
        lam, vectors = torch.linalg.eigh(run.matrix())
        nodes.append(lam)
        weights.append(vectors[0].square() / probes)
    return Density(torch.cat(nodes), torch.cat(weights))


def _check(depth: int) -> None:
    if depth < 1:
        raise InputError(f"Lanczos depth must be at least 1, got {brief(depth)}.")
