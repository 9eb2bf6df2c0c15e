"""What people write in a forward method, and what it gives back."""

# ruff: noqa: E501, E731  (tables: one case a line)
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Case, D, Fn, batch, floats

Forward = Callable[..., Any]


def forward(name: str, f: Forward, shape: tuple[int, ...] = (3,), good: bool = False, **kw: Any) -> Case:
    """A hidden layer ``a`` of width 4, something written by hand, and an output layer ``b``."""
    width = kw.pop("width", 4)
    build = lambda: Fn(f, nn.Linear(shape[-1], 4), nn.Linear(width, 2)).double()
    return Case(name, build, kw.pop("data", None) or batch(*shape), answers=good, **kw)


def between(f: Callable[[Tensor], Tensor], width: int = 4) -> Forward:
    return lambda s, x: s.b(f(s.a(x)))


def in_place(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 0] = 2 * h[:, 1]
    h.mul_(0.5).add_(1)
    h[:, 2] += h[:, 3]
    return h


def spd(h: Tensor) -> Tensor:
    m = h.reshape(-1, 2, 2)
    return m @ m.mT + torch.eye(2, dtype=h.dtype)


def newton(h: Tensor) -> Tensor:
    z = torch.zeros_like(h)
    for _ in range(30):
        z = torch.tanh(0.5 * z + h)
    return z


def until(h: Tensor) -> Tensor:
    z = h
    while float(z.detach().norm()) > 0.5:
        z = 0.5 * z
    return z


def energy(s: Any, x: Tensor) -> Tensor:
    """Forces as the gradient of an energy."""
    with torch.enable_grad():
        x = x.requires_grad_()
        e = s.b(torch.tanh(s.a(x))).sum()
        return torch.autograd.grad(e, x, create_graph=True)[0]


def energy_func(s: Any, x: Tensor) -> Tensor:
    return torch.func.grad(lambda z: s.b(torch.tanh(s.a(z))).sum())(x)


def python() -> Iterator[Case]:
    graph = torch.eye(5, dtype=D).roll(1, 0)
    good = (
        ("in-place indexing", between(in_place)),
        ("where", between(lambda h: torch.where(h > 0, h, 0.1 * h))),
        ("sort", between(lambda h: h.sort(1).values)),
        ("topk", lambda s, x: s.b(s.a(x).topk(4, 1).values)),
        ("median", between(lambda h: h - h.median(1, keepdim=True).values)),
        ("max", between(lambda h: h - h.max(1, keepdim=True).values)),
        ("cumsum", between(lambda h: h.cumsum(1))),
        ("cumprod", between(lambda h: h.cumprod(1))),
        ("cummax", between(lambda h: h.cummax(1).values)),
        ("logsumexp", between(lambda h: h - h.logsumexp(1, keepdim=True))),
        ("logcumsumexp", between(lambda h: h.logcumsumexp(1))),
        ("prod", between(lambda h: h * h.prod(1, keepdim=True))),
        ("var", between(lambda h: h / (1 + h.var(1, keepdim=True)))),
        ("einsum", between(lambda h: torch.einsum("ni,nj->nij", h, h).sum(2))),
        ("roll and flip", between(lambda h: h.roll(1, 1) * h.flip(1))),
        ("gather", between(lambda h: h.gather(1, torch.tensor([[3, 2, 1, 0]]).expand(h.shape[0], -1)))),
        ("scatter_add", between(lambda h: torch.zeros_like(h).scatter_add(1, torch.zeros(h.shape, dtype=torch.long), h))),
        ("index_select", between(lambda h: h.index_select(1, torch.tensor([0, 0, 2, 3])))),
        ("masked_fill", between(lambda h: h.masked_fill(h.detach() < -0.5, 0.3))),
        ("split and cat", between(lambda h: torch.cat([p.sin() for p in h.split(2, 1)], 1))),
        ("unbind and stack", between(lambda h: torch.stack([v * i for i, v in enumerate(h.unbind(1))], 1))),
        ("expand", between(lambda h: h.mean(1, keepdim=True).expand(-1, 4))),
        ("fft", between(lambda h: torch.fft.fft(h).abs())),
        ("rfft and back", between(lambda h: torch.fft.irfft(torch.fft.rfft(h) * 1j, n=4))),
        ("view_as_complex", between(lambda h: torch.view_as_real(torch.view_as_complex(h.reshape(-1, 2, 2)).exp()).flatten(1))),
        ("solve", between(lambda h: torch.linalg.solve(spd(h), h.reshape(-1, 2, 2)).flatten(1))),
        ("inv", between(lambda h: torch.linalg.inv(spd(h)).flatten(1))),
        ("cholesky", between(lambda h: torch.linalg.cholesky(spd(h)).flatten(1))),
        ("eigvalsh", lambda s, x: s.b(torch.linalg.eigvalsh(spd(s.a(x))).repeat(1, 2))),
        ("svdvals", lambda s, x: s.b(torch.linalg.svdvals(spd(s.a(x))).repeat(1, 2))),
        ("qr", between(lambda h: torch.linalg.qr(spd(h)).R.flatten(1))),
        ("det", between(lambda h: h * torch.linalg.det(spd(h))[:, None])),
        ("slogdet", between(lambda h: h * torch.linalg.slogdet(spd(h)).logabsdet[:, None])),
        ("matrix_exp", between(lambda h: torch.linalg.matrix_exp(0.1 * h.reshape(-1, 2, 2)).flatten(1))),
        ("pinv", between(lambda h: torch.linalg.pinv(spd(h)).flatten(1))),
        ("fixed point", between(newton)),
        ("grid_sample", between(lambda h: F.grid_sample(h.reshape(-1, 1, 2, 2), torch.tanh(h).reshape(-1, 1, 2, 2), align_corners=False).flatten(1).repeat(1, 2))),
        ("interpolate", between(lambda h: F.interpolate(h[:, None], scale_factor=2, mode="linear")[:, 0, ::2])),
        ("erf lgamma", between(lambda h: torch.erf(h) + torch.lgamma(h.abs() + 1))),
        ("polygamma", between(lambda h: torch.digamma(h.abs() + 1))),
        ("atan2", between(lambda h: torch.atan2(h, h.roll(1, 1)))),
        ("log1p expm1", between(lambda h: torch.log1p(h.abs()) + torch.expm1(h))),
        ("xlogy", between(lambda h: torch.special.xlogy(h.abs(), h.abs() + 1))),
        ("clamp", between(lambda h: h.clamp(-0.3, 0.3))),
        ("fmod", between(lambda h: h.fmod(0.7))),
        ("vmap inside", between(lambda h: torch.vmap(lambda r: r * r.sum())(h))),
        ("func.grad inside", between(lambda h: torch.vmap(torch.func.grad(lambda r: r.sin().sum() ** 2))(h))),
        ("jacfwd inside", between(lambda h: torch.vmap(torch.func.jacfwd(lambda r: r.sin() * r.sum()))(h).sum(1))),
        ("batch mean", between(lambda h: h - h.mean(0))),
        ("batch attention", between(lambda h: (h @ h.T).softmax(1) @ h)),
        ("graph matmul", lambda s, x: s.b(torch.tanh(graph[: x.shape[0], : x.shape[0]] @ s.a(x)))),
        ("broadcast to 3-d", lambda s, x: s.b((s.a(x)[:, None] * torch.arange(3.0, dtype=D)[:, None]).tanh().mean(1))),
        ("torch.no_grad constants", between(lambda h: h * torch.ones(4, dtype=D).cumsum(0))),
        ("unused x", lambda s, x: s.b(s.a(torch.ones_like(x)))),
    )  # fmt: skip
    for name, f in good:
        yield forward(f"python/{name}", f, good=True)
    odd = (
        ("if on a tensor", lambda s, x: s.b(s.a(x) if s.a(x).sum() > 0 else -s.a(x))),
        ("if on the data", lambda s, x: s.b(s.a(x) if x.sum() > 0 else -s.a(x))),
        ("assert finite", lambda s, x: s.b(checked(s.a(x)))),
        ("item", between(lambda h: h * h.max().item())),
        ("float of the data", lambda s, x: s.b(s.a(x) * float(x.max()))),
        ("while on a tensor", between(until)),
        ("boolean indexing", lambda s, x: s.b(s.a(x)).index_put((x[:, 0] > 0,), torch.zeros((), dtype=D))),
        ("nonzero", lambda s, x: s.b(s.a(x)[(x[:, 0] > -9).nonzero()[:, 0]])),
        ("unique", lambda s, x: s.b(s.a(x)) * len(x[:, 0].unique())),
        ("NumPy on the data", lambda s, x: s.b(s.a(torch.from_numpy(np.sin(x.numpy()))))),
        ("NumPy in the middle", between(lambda h: h + torch.from_numpy(np.sin(h.detach().numpy())))),
        ("NumPy ufunc", between(lambda h: torch.as_tensor(np.tanh(h.detach().cpu())))),
        ("tolist", lambda s, x: s.b(s.a(x)) + sum(x[:, 0].tolist())),
        ("autograd.grad inside", energy),
        ("func.grad of itself", energy_func),
        ("a loop over samples", lambda s, x: torch.stack([s.b(torch.tanh(s.a(r))) for r in x])),
        ("a loop over range(len)", lambda s, x: torch.cat([s.b(torch.tanh(s.a(x[i : i + 1]))) for i in range(len(x))])),
        ("zip of samples", lambda s, x: torch.stack([s.b(s.a(r)) * i for i, r in enumerate(x.unbind(0))])),
        ("in place on the input", lambda s, x: s.b(s.a(x.mul_(2)))),
        ("in place on relu", lambda s, x: s.b(F.relu_(s.a(x)))),
        ("out=", lambda s, x: s.b(torch.tanh(s.a(x), out=torch.empty(0, dtype=D)) if not torch.is_grad_enabled() else s.a(x).tanh())),
        ("grad mode decides", lambda s, x: s.b(s.a(x).tanh() if torch.is_grad_enabled() else s.a(x).sin())),
        ("requires_grad decides", lambda s, x: s.b(s.a(x).tanh()) if s.a.weight.requires_grad else s.b(s.a(x).sin())),
        ("try except", lambda s, x: s.b(attempt(s.a, x))),
        ("raises ValueError", lambda s, x: fail(ValueError("the user's own words"))),
        ("raises KeyError", lambda s, x: {}["missing"]),
        ("raises an odd exception", lambda s, x: fail(type("Odd", (Exception,), {})("odd"))),
        ("raises StopIteration", lambda s, x: next(iter(()))),
        ("wrong shapes inside", lambda s, x: s.b(s.a(x)[:, :3])),
        ("sparse mm", lambda s, x: torch.sparse.mm(torch.eye(x.shape[0], dtype=D).to_sparse(), s.b(s.a(x)))),
        ("nested tensor", lambda s, x: s.b(torch.nested.to_padded_tensor(torch.nested.nested_tensor(list(s.a(x).unbind(0))), 0.0))),
        ("index_add", lambda s, x: s.b(torch.zeros(x.shape[0], 4, dtype=D).index_add(0, torch.arange(x.shape[0]) // 2, s.a(x)))),
        ("scatter_reduce amax", lambda s, x: s.b(torch.zeros(x.shape[0], 4, dtype=D).scatter_reduce(0, (torch.arange(x.shape[0]) // 2)[:, None].expand(-1, 4), s.a(x), "amax"))),
        ("cdist", lambda s, x: s.b(torch.cdist(s.a(x), floats(4, 4, seed=8)))),
        ("cdist p=1", lambda s, x: s.b(torch.cdist(s.a(x), floats(4, 4, seed=8), p=1))),
        ("cdist with itself", lambda s, x: s.b(torch.cdist(s.a(x), s.a(x)).sum(1, keepdim=True).expand(-1, 4))),
        ("pdist", lambda s, x: s.b(s.a(x)) * F.pdist(s.a(x)).sum()),
        ("renorm", between(lambda h: h.renorm(2, 0, 0.5))),
        ("ctc-like gather", between(lambda h: h.log_softmax(1)[:, [0, 1, 1, 2]])),
        ("histc", lambda s, x: s.b(s.a(x)) * torch.histc(x, 2).max()),
        ("bincount", lambda s, x: s.b(s.a(x)) * torch.bincount((x[:, 0] > 0).long()).max()),
        ("as_strided", between(lambda h: h.contiguous().as_strided((h.shape[0], 4), (4, 1)))),
        ("multi_head in float", between(lambda h: F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])[:, 0])),
        ("enable_grad inside", lambda s, x: enabled(lambda: s.b(s.a(x).tanh()))),
        ("inference_mode part", lambda s, x: s.b(s.a(x)) + inferred(lambda: s.a(x).sum(1, keepdim=True))),
        ("backward inside", lambda s, x: backwards(s, x)),
        ("another module's cache", lambda s, x: s.b(s.a(x)) + memo(len(x))),
        ("deepcopy inside", lambda s, x: s.b(deep(s.a)(x))),
        ("functional_call inside", lambda s, x: s.b(torch.func.functional_call(s.a, {k: 2 * v for k, v in s.a.named_parameters()}, (x,)))),
    )  # fmt: skip
    for name, f in odd:
        yield forward(f"python/{name}", f)


def checked(h: Tensor) -> Tensor:
    assert torch.isfinite(h).all()
    return h


def attempt(f: Any, x: Tensor) -> Tensor:
    try:
        return f(x).tanh()
    except RuntimeError:
        return torch.zeros(len(x), 4, dtype=D)


def fail(error: Exception) -> Any:
    raise error


def enabled(f: Any) -> Tensor:
    with torch.enable_grad():
        return f()


def inferred(f: Any) -> Tensor:
    with torch.inference_mode():
        found = f()
    return found.clone()


def backwards(s: Any, x: Tensor) -> Tensor:
    u = s.b(s.a(x))
    if u.requires_grad:
        u.sum().backward(retain_graph=True)
    return u


def memo(n: int) -> Tensor:
    return torch.ones(n, 1, dtype=D)


def deep(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module)


def cases() -> Iterator[Case]:
    yield from python()
