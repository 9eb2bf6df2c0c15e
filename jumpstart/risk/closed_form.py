"""Squared loss with samples left out, in closed form: a Laplace transform, a low-rank identity, and a contour.

Source: docs/theory.md, section 7, equations 17 to 19.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow.horizon import Times
from ..flow.reduced_flow import ReducedFlow
from .integrated import Masks, own

NODES = 15  # of the contour: relative error 10⁻¹³ or so at every horizon (Weideman & Trefethen 2007)
END = 1e4  # relaxation times of the slowest mode that stand for t = ∞ where the limit is not taken
LIMIT = 1e-20  # z, in units of the slowest rate, that stands for the limit z → 0
ENTRIES = 2**25  # numbers in one block of work, at most


def closed(flow: ReducedFlow, horizon: Times, masks: Masks, shifts: Tensor | None = None) -> Tensor:
    """(T, G, m, …): the outputs of each group's samples from the run without that group, at each flow time.

    Args:
        shifts: (G, n, …) of the runs' starts: a gradient of its own at the start of each.
    """
    times = torch.tensor(horizon.values, dtype=torch.float64, device=flow.u.device)
    unit = Unit.of(flow)
    # Equation 18 keeps its digits in short runs, equation 19 in long ones.
    long = times > flow.timescale() if unit is not None else torch.zeros_like(times, dtype=torch.bool)
    out = flow.u.new_zeros(len(times), masks.groups, masks.size, *flow.u.shape[1:])
    for chosen, way in ((~long, None), (long, unit)):
        if bool(chosen.any()):
            out[chosen] = _at(flow, times[chosen], masks, way, shifts)
    return out


def _at(flow: ReducedFlow, times: Tensor, masks: Masks, unit: Unit | None, shifts: Tensor | None) -> Tensor:
    n, shape = flow.u.shape[0], flow.u.shape[1:]
    c = flow.u.numel() // n
    d = masks.size * c
    z, weight = _nodes(times, flow.start.rates, limit=unit is not None)
    g0 = flow.loss.grad(flow.u).reshape(n, c)
    out = flow.u.new_zeros(len(times), masks.groups, d)
    block = max(1, ENTRIES // max(1, d * d * max(flow.size, 2 * z.numel())))
    for at in range(0, masks.groups, block):
        some = masks.block(at, block)
        moved = None if shifts is None else flow.loss.grad(flow.u + shifts[at : at + block]).reshape(-1, n, c)
        g = g0[some.rows] if moved is None else own(moved, some)
        g = (g * some.keep[..., None]).reshape(some.groups, d)
        pulls = None if moved is None else moved.reshape(len(moved), -1)
        solved = _general(flow, some, g, z, pulls) if unit is None else unit.solve(some, g, z, pulls)
        shift = -(weight[..., None, None] * solved).sum(1).imag  # 1/z is part of the weights
        out[:, at : at + block] = torch.where((times > 0)[:, None, None], shift, torch.zeros_like(shift))
    start = flow.u[masks.rows] if shifts is None else flow.u[masks.rows] + own(shifts, masks)
    start = start.reshape(masks.groups, d)
    return (start + out).reshape(len(times), masks.groups, masks.size, *shape)


@dataclass(frozen=True)
class Unit:
    """Equation 19: for B = βI and orthogonal images. With unit images û no digits are lost however long the run.

    Attributes:
        u: (k, n, c) unit images. rates: (k,). beta: β. damping: ρ, part of every rate. gradient: (k,) Ûᵀ g₀.
        drift: (k,) what weight decay adds to the slope, times the images' lengths. noise: rounding of û.
    """

    u: Tensor
    rates: Tensor
    beta: float
    damping: float
    gradient: Tensor
    drift: Tensor
    noise: float

    @staticmethod
    def of(flow: ReducedFlow) -> Unit | None:
        """None where the equation does not hold: gates, sample weights, bases without orthogonal images."""
        basis, beta = flow.basis, flow.loss.curvature
        gated = not bool((flow.gates == 1).all())
        if gated or beta is None or flow.start.vectors is not None or basis.squares is None:
            return None
        sigma = basis.squares.double().clamp_min(0).sqrt()[:, None]
        unit = torch.where(sigma > 0, flow.images / sigma.clamp_min(1e-300), torch.zeros_like(flow.images))
        exact = 0 if basis.cotangents is None else len(basis.cotangents)
        if basis.cotangents is not None:  # kept in double precision, whatever the network's
            unit[:exact] = basis.cotangents.double().flatten(1) * sigma[:exact]
        whole = exact >= int((sigma > 0).sum())
        eps = torch.finfo(torch.float64 if whole else basis.images.dtype).eps
        damping = 0.0 if basis.decay is None else float(basis.decay[0, 0])
        drift = torch.zeros_like(sigma[:, 0]) if basis.decay_force is None else basis.decay_force * sigma[:, 0]
        g = flow.loss.grad(flow.u).reshape(-1)
        shaped = unit.reshape(flow.size, flow.u.shape[0], -1)
        return Unit(shaped, flow.start.rates, beta, damping, unit @ g, drift, 64 * eps * math.sqrt(flow.size))

    def solve(self, masks: Masks, g: Tensor, z: Tensor, pulls: Tensor | None) -> Tensor:
        """(T, Z, G, d): z times the transform of the groups' displacement, for their own gradients g (G, d).

        Args:
            pulls: (G, N) each run's gradient at its start, None where all start together.
        """
        gradient = self.gradient if pulls is None else pulls @ self.u.reshape(len(self.u), -1).T
        groups, d = g.shape
        f = (self.u[:, masks.rows] * masks.keep[..., None]).reshape(len(self.u), groups, d).permute(1, 2, 0)
        leverage = f @ f.transpose(1, 2)
        free, axes = torch.linalg.eigh(torch.eye(d, dtype=g.dtype, device=g.device) - leverage)
        bound = free <= self.noise  # directions that these samples alone decide: exactly 0 but for rounding
        free = torch.where(bound, torch.zeros_like(free), free)
        f = axes.transpose(1, 2) @ f  # everything in the axes of I − P_gg from here on
        g = (axes.transpose(1, 2) @ g[..., None])[..., 0]
        towards = f @ gradient if pulls is None else (f @ gradient[..., None])[..., 0]
        others = torch.where(bound, torch.zeros_like(g), towards - (1 - free) * g)
        resolvent, ahead = 1 / (z[..., None] + self.rates), (z + self.damping)[..., None, None]
        inner = against(resolvent, f, f)
        moved = _pulled(resolvent, f, gradient) - (inner @ g[..., None].to(z))[..., 0]
        # Bound rows are divided by z + ρ, which they are proportional to.
        scale = torch.where(bound, 1 / ahead, torch.ones_like(ahead))
        right = others * scale - ahead * scale * moved + self.beta * scale * against(resolvent, f, self.drift)
        left = torch.diag_embed(free.to(z)) * scale[..., None] + (ahead * scale)[..., None] * inner
        solved = torch.linalg.solve(left, right[..., None])
        return (axes.to(z) @ solved)[..., 0] / self.beta


def _general(flow: ReducedFlow, masks: Masks, g: Tensor, z: Tensor, pulls: Tensor | None) -> Tensor:
    """(T, Z, G, d): equation 18 as it stands, for any modes, weights and gates; pulls as in :meth:`Unit.solve`."""
    groups, d = g.shape
    n = flow.u.shape[0]
    modal = flow.start.into(flow.images.T).T.reshape(flow.size, n, -1)  # F = E V
    f = (modal[:, masks.rows] * masks.keep[..., None]).reshape(flow.size, groups, d).permute(1, 2, 0)
    pull = flow.initial_gradient if pulls is None else pulls @ flow.images.T
    b, resolvent = flow.start.into(pull), 1 / (z[..., None] + flow.start.rates)
    curve = _curvature(flow, masks)  # (G, d, d)
    inner = against(resolvent, f, f)  # R: (T, Z, G, d, d)
    q = _pulled(resolvent, f, b) - (inner @ g[..., None].to(z))[..., 0]
    eye = torch.eye(d, dtype=z.dtype, device=z.device)
    solved = torch.linalg.solve(eye - inner @ curve.to(z), q[..., None])
    if bool((flow.gates == 1).all()):
        return solved[..., 0]
    # D b_g + D Fᵀ B (I − R B)⁻¹ q, read with gated rows F Γ.
    left, bent = f * flow.gates, curve.to(z) @ solved - g[..., None].to(z)
    return _pulled(resolvent, left, b) + (against(resolvent, left, f) @ bent)[..., 0]


def against(resolvent: Tensor, left: Tensor, right: Tensor) -> Tensor:
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


def _pulled(resolvent: Tensor, left: Tensor, b: Tensor) -> Tensor:
    """The same for gradients b, one (k,) for all groups or one for each (G, k): (T, Z, G, d)."""
    return against(resolvent, left, b) if b.dim() == 1 else against(resolvent, left, b[:, None])[..., 0]


def _curvature(flow: ReducedFlow, masks: Masks) -> Tensor:
    """B between the outputs of each group, (G, d, d); samples do not interact, and B is constant."""
    n, size = flow.u.shape[0], masks.size
    c = flow.u.numel() // n
    probes = torch.eye(c, dtype=flow.u.dtype, device=flow.u.device).reshape(c, 1, *flow.u.shape[1:])
    b = flow.loss.hvp(flow.u, probes.expand(c, *flow.u.shape)).reshape(c, n, c).permute(1, 2, 0)
    chosen = b[masks.rows] * masks.keep[..., None, None]  # (G, m, c, c)
    full = chosen.new_zeros(masks.groups, size, c, size, c)
    for j in range(size):
        full[:, j, :, j] = chosen[:, j]
    return full.reshape(masks.groups, size * c, size * c)


def _nodes(times: Tensor, rates: Tensor, *, limit: bool) -> tuple[Tensor, Tensor]:
    """Nodes z (T, Z) and weights for Im Σ weight·F(z), the inverse Laplace transform of F(z)/z at each time.

    Weideman & Trefethen, Math. Comp. 76 (2007): the hyperbola with h, μ and α of their section 4.

    Args:
        limit: take t = ∞ as the limit z → 0, rather than as a long time.
    """
    moving = rates[rates > 0]
    slowest = float(moving.min()) if moving.numel() else 1.0
    finite = torch.where(times.isinf(), torch.full_like(times, END / slowest), times).clamp_min(1e-300)
    h, mu, alpha = 1.081792140 / NODES, 4.492075287 * NODES, 1.172104229
    theta = (torch.arange(NODES, dtype=times.dtype, device=times.device) + 0.5) * h
    angle = torch.complex(torch.full_like(theta, -alpha), theta)
    s = mu * (1 + torch.sin(angle))
    # ∫ e^{zt} F(z)/z dz / 2πi with z = s/t; dz/z = ds/s.
    weight = ((h / math.pi) * torch.exp(s) * mu * 1j * torch.cos(angle) / s).expand(len(times), -1)
    z = s / finite[:, None]
    if limit:
        endless = times.isinf()[:, None]
        z = torch.where(endless, torch.full_like(z, LIMIT * slowest), z)
        weight = torch.where(endless, torch.full_like(weight, 1j / NODES), weight)
    return z, weight
