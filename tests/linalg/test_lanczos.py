"""Lanczos against NumPy: counts, relations, orthogonality, breakdown, deflation, blocks, spectral density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jumpstart.errors import InputError
from jumpstart.linalg.lanczos import (
    LanczosOutcome,
    block_lanczos,
    independent_rows,
    lanczos,
    lanczos_dual,
    spectral_density,
)

from ..problems import generator, randn, relative

EYE = torch.eye


class Counted:
    """v ↦ A v, counted."""

    def __init__(self, a):
        self.a, self.calls = a, 0

    def __call__(self, v):
        self.calls += 1
        return self.a @ v


def symmetric(eigenvalues, seed=0):
    lam = torch.as_tensor(eigenvalues, dtype=torch.float64)
    q, _ = torch.linalg.qr(randn(seed, len(lam), len(lam)))
    return (q * lam) @ q.T


SPECTRA = {
    "well conditioned": torch.linspace(1, 2, 150),
    "ill conditioned": torch.logspace(-14, 4, 150),
    "indefinite": torch.linspace(-3, 5, 150),
    "clustered": torch.cat([torch.ones(75), 1 + torch.linspace(0, 1e-3, 75)]),
    "few large": torch.cat([torch.tensor([1e8, 1e7, 1e6]), torch.linspace(0, 1, 147)]),
}


@pytest.mark.parametrize("depth", [1, 2, 30, 100])
@pytest.mark.parametrize("name", SPECTRA)
def test_relation_orthogonality_and_count(name, depth):
    a = symmetric(SPECTRA[name], 3)
    product = Counted(a)
    run = lanczos(product, randn(8, 150), depth)
    v, k = run.vectors, run.depth
    assert product.calls == k
    ends = (name, depth) == ("clustered", 100)  # one eigenvalue 75 times: its space is used up before
    assert (k < depth) == (run.outcome is LanczosOutcome.BREAKDOWN) == ends
    assert float((v @ v.T - EYE(k, dtype=torch.float64)).abs().max()) < 1e-12
    assert float((v @ run.remainder).abs().max()) < 1e-12
    t = run.matrix()
    left = v @ a
    right = t @ v
    right[-1] += run.remainder_norm * run.remainder
    scale = float(a.abs().max()) * 150
    assert float((left - right).abs().max()) < 1e-14 * scale
    assert float((t - v @ a @ v.T).abs().max()) < 1e-14 * scale
    assert float(run.start_norm) == pytest.approx(float(randn(8, 150).norm()), rel=1e-14)
    assert relative(v[0], randn(8, 150) / run.start_norm) < 1e-14


@pytest.mark.parametrize("rank", [0, 1, 5, 20])
def test_breakdown_on_low_rank_is_an_outcome_and_exact(rank):
    a = symmetric(torch.cat([torch.linspace(1, 7, rank), torch.zeros(60 - rank)]), 1)
    start = randn(2, 60)
    product = Counted(a)
    run = lanczos(product, start, 50)
    assert run.outcome is LanczosOutcome.BREAKDOWN
    # The start's part in the kernel is one more direction; rounding divided by a small β may pass for another.
    assert rank <= run.depth <= rank + 2
    assert product.calls == run.depth
    assert float(run.remainder_norm) == 0
    assert not bool(run.remainder.any())
    # From an invariant space every function of A is exact: exp(−A) b, with f(0) = 1 on the kernel.
    lam, w = torch.linalg.eigh(run.matrix())
    found = run.vectors.T @ (w @ (torch.exp(-lam) * w[0])) * run.start_norm
    assert relative(found, torch.linalg.matrix_exp(-a) @ start) < 1e-12


def test_start_inside_an_invariant_space():
    a = symmetric(torch.linspace(1, 40, 40), 5)
    _, q = torch.linalg.eigh(a)
    run = lanczos(Counted(a), q[:, 3] + 2 * q[:, 17], 30)
    assert run.outcome is LanczosOutcome.BREAKDOWN
    assert run.depth == 2
    assert relative(torch.linalg.eigvalsh(run.matrix()), torch.tensor([4.0, 18.0])) < 1e-12


def test_deflation_stays_orthogonal_and_sees_the_rest():
    a = symmetric(torch.logspace(-3, 3, 50), 2)
    lam, q = torch.linalg.eigh(a)
    kept = q[:, -5:].T
    run = lanczos(Counted(a), randn(1, 50), 45, deflate=kept)
    assert float((run.vectors @ kept.T).abs().max()) < 1e-12
    # Deflated of an invariant space, the run finds the rest of the spectrum.
    assert relative(torch.linalg.eigvalsh(run.matrix()), lam[:-5]) < 1e-10
    # Deflated of any space at all, T is the compression of A.
    any_rows = torch.linalg.qr(randn(4, 50, 3))[0].T
    run = lanczos(Counted(a), randn(1, 50), 20, deflate=any_rows)
    assert float((run.vectors @ any_rows.T).abs().max()) < 1e-12
    assert float((run.matrix() - run.vectors @ a @ run.vectors.T).abs().max()) < 1e-10


@pytest.mark.parametrize("start", [torch.zeros(9), torch.full((9,), math.nan), torch.full((9,), math.inf)])
def test_hopeless_starts(start):
    with pytest.raises(InputError, match="start vector"):
        lanczos(Counted(torch.eye(9)), start, 3)


@pytest.mark.parametrize("run", [lanczos, lambda a, s, k: block_lanczos(a, s[None], k)])
def test_depth_must_be_positive(run):
    with pytest.raises(InputError, match="0"):
        run(Counted(torch.eye(9)), torch.ones(9), 0)


@pytest.mark.parametrize(("n", "p"), [(15, 40), (40, 15)])
@pytest.mark.parametrize("depth", [1, 6, 12])
def test_dual_spans_what_lanczos_spans(n, p, depth):
    """Aᵀs_j of the dual run are ±q_j of the run in the parameters' space."""
    a = randn(0, n, p)
    half = randn(1, n, n) / n**0.5
    b, g = half @ half.T, randn(2, n)
    kernel = Counted(a @ a.T)
    dual = lanczos_dual(kernel, lambda y: b @ y, g, depth)
    assert kernel.calls == depth
    plain = lanczos(Counted(a.T @ b @ a), a.T @ g, depth)
    rows = dual.cotangents @ a
    assert float((rows @ rows.T - EYE(depth, dtype=torch.float64)).abs().max()) < 1e-10
    overlap = rows @ plain.vectors.T
    assert float((overlap.abs() - EYE(depth, dtype=torch.float64)).abs().max()) < 1e-8
    assert relative(dual.images, rows @ a.T) < 1e-11
    assert float((dual.rest @ a).norm()) == pytest.approx(float(plain.remainder_norm), rel=1e-7)


def test_dual_breaks_down_on_low_rank_and_on_nothing():
    a = randn(0, 30, 4)
    dual = lanczos_dual(lambda s: a @ (a.T @ s), lambda y: 2 * y, randn(1, 30), 20)
    assert dual.outcome is LanczosOutcome.BREAKDOWN
    assert dual.cotangents.shape[0] == 4
    none = lanczos_dual(torch.zeros_like, lambda y: y, randn(1, 30), 5)
    assert none.cotangents.shape == (0, 30)
    with pytest.raises(InputError, match="nan"):
        lanczos_dual(lambda s: s * math.nan, lambda y: y, randn(1, 30), 5)


@pytest.mark.parametrize("width", [1, 3])
def test_block_lanczos(width):
    a = symmetric(torch.logspace(-2, 2, 80), 4)
    product = Counted(a)
    starts = randn(6, width, 80)
    run = block_lanczos(product, starts, 7)
    assert product.calls == 7 * width == run.vectors.shape[0]
    assert float((run.vectors @ run.vectors.T - EYE(7 * width, dtype=torch.float64)).abs().max()) < 1e-12
    assert float((run.matrix - run.vectors @ a @ run.vectors.T).abs().max()) < 1e-11
    # It spans the block Krylov space {starts, A starts, …}.
    power = torch.cat([starts @ torch.linalg.matrix_power(a / 100, j) for j in range(3)])
    inside = power @ run.vectors.T @ run.vectors
    assert relative(inside, power) < 1e-10


def test_block_lanczos_drops_dependent_directions_and_breaks_down():
    a = symmetric(torch.cat([torch.linspace(1, 2, 6, dtype=torch.float64), torch.zeros(34)]), 4)
    s = randn(1, 2, 40)
    run = block_lanczos(Counted(a), torch.cat([s, s[:1] + s[1:]]), 20)
    assert run.outcome is LanczosOutcome.BREAKDOWN
    assert run.vectors.shape[0] <= 8
    lam = torch.linalg.eigvalsh(run.matrix)
    assert relative(lam[lam > 0.5], torch.linspace(1, 2, 6, dtype=torch.float64)) < 1e-10


def test_independent_rows():
    rows = randn(0, 3, 10)
    found = independent_rows(torch.cat([rows, rows.sum(0, keepdim=True)]), rows.new_ones(()))
    assert found.shape == (3, 10)
    assert relative(rows @ found.T @ found, rows) < 1e-13
    assert independent_rows(rows[:0], rows.new_ones(())).shape == (0, 10)


def test_spectral_density_moments_and_extremes():
    lam = torch.linspace(0.1, 3, 200).double() ** 2
    a = symmetric(lam, 9)
    state = torch.get_rng_state()
    density = spectral_density(Counted(a), 200, 40, 60, lam)
    assert torch.equal(torch.get_rng_state(), state)
    assert float(density.weights.sum()) == pytest.approx(1, rel=1e-12)
    # The same ±1 probes by hand: Gauss quadrature reproduces vᵀAᵐv/n up to m = 2·40 − 1 exactly.
    g = torch.Generator().manual_seed(0)
    probes = torch.stack([torch.randint(0, 2, (200,), generator=g).double() * 2 - 1 for _ in range(60)])
    for m in (1, 2, 5):
        quadratic = ((probes @ torch.linalg.matrix_power(a, m)) * probes).sum() / 60 / 200
        assert float(density.moment(m)) == pytest.approx(float(quadratic), rel=1e-10)
        assert float(density.moment(m)) == pytest.approx(float((lam**m).mean()), rel=0.03)
    assert float(density.nodes.max()) == pytest.approx(float(lam.max()), rel=1e-3)
    assert not torch.equal(density.nodes, spectral_density(Counted(a), 200, 40, 60, lam, generator(1)).nodes)


def test_eigenvalues_converge_from_the_outside():
    a = symmetric(torch.cat([torch.linspace(0, 1, 97), torch.tensor([5.0, 10.0, 20.0])]), 7)
    run = lanczos(Counted(a), randn(3, 100), 25)
    top = np.sort(torch.linalg.eigvalsh(run.matrix()).numpy())[-3:]
    assert np.allclose(top, [5, 10, 20], rtol=1e-10)
