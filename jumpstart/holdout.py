"""The linearized run with samples left out: what it would have predicted for them, without touching the network.

Leaving samples out sets their rows of the gradient to zero: a masked copy of the reduced flow. For squared loss the
copies are read off from one Laplace transform and a low-rank identity (equations 17 and 18); for other losses they are
integrated together (``masked``). Source: docs/theory.md, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InputError
from .flow import ReducedFlow
from .horizon import Parsed, Steps, Times
from .masked import Masks, descend, integrate

NODES = 15  # of the contour: relative error 10⁻¹³ or so at every horizon (Weideman & Trefethen 2007)
END = 1e4  # relaxation times of the slowest mode that stand for t = ∞
ENTRIES = 2**25  # numbers in one block of work, at most

Groups = Tensor | Sequence[Tensor] | None


def left_out(flow: ReducedFlow, horizon: Parsed, groups: Sequence[Tensor], tolerance: float = 1e-5) -> list[Tensor]:
    """Outputs of each group of samples from the run without that group: (T, m_g, …) for group g.

    Args:
        groups: index tensors; each group is left out by itself.
        tolerance: local error of the integration, for losses that are not quadratic.
    """
    masks = Masks.of(groups, flow.u.shape[0], flow.u.device)
    if flow.k == 0:  # the gradient vanishes everywhere: no run moves
        count = len(horizon.values) if isinstance(horizon, Times) else 1
        return [flow.u[group].expand(count, *flow.u[group].shape).clone() for group in groups]
    if not flow._loss.quadratic:
        pieces = integrate(flow, horizon, masks, tolerance) if isinstance(horizon, Times) else None
        found = descend(flow, horizon, masks) if isinstance(horizon, Steps) else pieces
    elif isinstance(horizon, Steps):
        found = descend(flow, horizon, masks)
    else:
        found = _closed(flow, horizon, masks)
    assert found is not None
    return [found[:, g, : len(group)] for g, group in enumerate(groups)]


def as_groups(groups: Groups, samples: int | Tensor | None, n: int) -> list[Tensor]:
    """Checked groups: given ones, or each sample alone, or each of some samples alone.

    Args:
        groups: (n,) labels (samples of one label are left out together), or index tensors; None for one by one.
        samples: how many samples to leave out in turn (spread evenly), or their indices; None for all.
    """
    if groups is not None and samples is not None:
        raise InputError("give groups (left out together) or samples (left out one by one), not both.")
    if isinstance(groups, Tensor):
        if groups.shape != (n,):
            raise InputError(f"groups of shape {tuple(groups.shape)}: give one label for each of {n} samples.")
        return [(groups == label).nonzero()[:, 0] for label in groups.unique()]
    if groups is not None:
        return [indices(torch.as_tensor(group), n) for group in groups]
    if isinstance(samples, int):
        if samples < 1:
            raise InputError(f"samples={samples!r}: leave out at least one.")
        samples = torch.linspace(0, n - 1, min(samples, n)).round().long()
    chosen = torch.arange(n) if samples is None else indices(torch.as_tensor(samples), n)
    return list(chosen[:, None])


def indices(given: Tensor, n: int) -> Tensor:
    if given.dtype.is_floating_point or given.dtype == torch.bool or given.dim() != 1 or given.numel() == 0:
        raise InputError(f"samples to leave out: give whole indices below {n}, got {given}.")
    if int(given.min()) < 0 or int(given.max()) >= n or given.unique().numel() != given.numel():
        raise InputError(f"samples to leave out must be different indices from 0 to {n - 1}, got {given.tolist()}.")
    return given


def _closed(flow: ReducedFlow, horizon: Times, masks: Masks) -> Tensor:
    """(T, G, m, …): equation 18 on a hyperbolic contour around the rates, one group after another in blocks."""
    shape = flow.u.shape[1:]
    modal = flow.start.into(flow.images.T).T.reshape(flow.k, flow.u.shape[0], -1)  # (k, n, c): F = E V
    c = modal.shape[-1]
    d = masks.size * c
    b, rates = flow.start.into(flow.slope), flow.start.rates
    times = torch.tensor([_finite(t, rates) for t in horizon.values], dtype=rates.dtype, device=rates.device)
    z, weight = _contour(times.clamp_min(1e-300))  # (T, Z)
    resolvent = 1 / (z[..., None] + rates)  # (T, Z, k)
    gated = not bool((flow.gates == 1).all())
    g0 = flow._loss.grad(flow.u).reshape(flow.u.shape[0], c)
    out = flow.u.new_zeros(len(times), masks.groups, d)
    block = max(1, ENTRIES // max(1, d * d * max(flow.k, 2 * z.numel())))
    for at in range(0, masks.groups, block):
        rows, keep = masks.rows[at : at + block], masks.keep[at : at + block]
        f = (modal[:, rows] * keep[..., None]).reshape(flow.k, len(rows), d).permute(1, 2, 0)  # (G, d, k)
        g = (g0[rows] * keep[..., None]).reshape(len(rows), d)
        curve = _curvature(flow, rows, keep)  # (G, d, d)
        inner = _against(resolvent, f, f)  # R: (T, Z, G, d, d)
        q = _against(resolvent, f, b) - (inner @ g[..., None].to(z))[..., 0]
        eye = torch.eye(d, dtype=z.dtype, device=z.device)
        solved = torch.linalg.solve(eye - inner @ curve.to(z), q[..., None])
        if gated:
            # D b_g + D Fᵀ B (I − R B)⁻¹ q, read with gated rows F Γ.
            left = f * flow.gates
            bent = curve.to(z) @ solved - g[..., None].to(z)
            solved = _against(resolvent, left, b)[..., None] + _against(resolvent, left, f) @ bent
        shift = -(weight[..., None, None] * solved[..., 0]).sum(1).imag  # 1/z is part of the weights
        out[:, at : at + block] = torch.where((times > 0)[:, None, None], shift, torch.zeros_like(shift))
    start = flow.u.reshape(flow.u.shape[0], c)[masks.rows].reshape(masks.groups, d)
    return (start + out).reshape(len(times), masks.groups, masks.size, *shape)


def _against(resolvent: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """left (G, d, k) diag(resolvent) rightᵀ for right (G, e, k) or (k,): (T, Z, G, d, e), or (T, Z, G, d)."""
    lead = resolvent.shape[:2]
    r = torch.view_as_real(resolvent).permute(0, 1, 3, 2).reshape(-1, resolvent.shape[2])  # real GEMMs, twice as fast
    if right.dim() == 1:
        products = (left * right).reshape(-1, left.shape[-1])
        shape = (*lead, 2, *left.shape[:2])
    else:
        products = (left[:, :, None] * right[:, None]).reshape(-1, left.shape[-1])
        shape = (*lead, 2, left.shape[0], left.shape[1], right.shape[1])
    found = (r @ products.T).reshape(shape)
    return torch.complex(found[:, :, 0].contiguous(), found[:, :, 1].contiguous())


def _curvature(flow: ReducedFlow, rows: Tensor, keep: Tensor) -> Tensor:
    """B between the outputs of each group, (G, d, d); samples do not interact, and B is constant."""
    n, size = flow.u.shape[0], rows.shape[1]
    c = flow.u.numel() // n
    if flow._loss.curvature is not None:
        b = flow._loss.curvature * torch.eye(c, dtype=flow.u.dtype, device=flow.u.device).expand(n, c, c)
    else:
        probes = torch.eye(c, dtype=flow.u.dtype, device=flow.u.device).reshape(c, 1, *flow.u.shape[1:])
        b = flow._loss.hvp(flow.u, probes.expand(c, *flow.u.shape)).reshape(c, n, c).permute(1, 2, 0)
    chosen = b[rows] * keep[..., None, None]  # (G, m, c, c)
    full = chosen.new_zeros(len(rows), size, c, size, c)
    for j in range(size):
        full[:, j, :, j] = chosen[:, j]
    return full.reshape(len(rows), size * c, size * c)


def _contour(times: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes z (T, Z) and weights for Im Σ weight·F(z), the inverse Laplace transform of F(z)/z at each time.

    Weideman & Trefethen, Math. Comp. 76 (2007): the hyperbola with h, μ and α of their section 4.
    """
    h, mu, alpha = 1.081792140 / NODES, 4.492075287 * NODES, 1.172104229
    theta = (torch.arange(NODES, dtype=times.dtype, device=times.device) + 0.5) * h
    s = mu * (1 + torch.sin(torch.complex(torch.full_like(theta, -alpha), theta)))
    ds = mu * 1j * torch.cos(torch.complex(torch.full_like(theta, -alpha), theta))
    # ∫ e^{zt} F(z)/z dz / 2πi with z = s/t; dz/z = ds/s.
    weight = (h / math.pi) * torch.exp(s) * ds / s
    return s / times[:, None], weight.expand(len(times), -1)


def _finite(t: float, rates: Tensor) -> float:
    """t itself, or for ∞ a time at which every mode that relaxes at all has done so."""
    if math.isfinite(t):
        return t
    moving = rates[rates > 0]
    return END / float(moving.min()) if moving.numel() else 1.0
