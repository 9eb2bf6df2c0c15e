# ruff: noqa: E731  (tables: one case a line)
"""Targets of every shape, type and range, and losses as functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js

from .case import Case, D, Data, Fn, floats, mlp
from .data import X, Y, on, put


def targets() -> Iterator[Case]:
    ok = {"answers": True}
    one = lambda: mlp(c=1).double()
    for name, y, kw in (
        ("integers", lambda: torch.ones(5, 2, dtype=torch.long), {}),
        ("booleans", lambda: Y() > 0, {}),
        ("float32", lambda: Y().float(), {}),
        ("float16", lambda: Y().half(), {}),
        ("complex", lambda: torch.complex(Y(), Y()), {}),
        ("NaN", lambda: put(Y(), math.nan), {}),
        ("infinite", lambda: put(Y(), math.inf), {}),
        ("too few", lambda: Y(4), {}),
        ("too many", lambda: Y(6), {}),
        ("other width", lambda: Y(5, 3), {}),
        ("one column", lambda: Y(5, 1), {}),
        ("one row", lambda: Y(1, 2), {}),
        ("flat", lambda: floats(10), {}),
        ("(n,)", lambda: floats(5), {}),
        ("(n,) for (n, 1)", lambda: floats(5), {"model": one}),
        ("(n, 1)", lambda: floats(5, 1), {"model": one, **ok}),
        ("(1, n) for (n, 1)", lambda: floats(1, 5), {"model": one}),
        ("0-d", lambda: floats(), {}),
        ("None", lambda: None, {}),
        ("a float", lambda: 1.0, {}),
        ("a list", lambda: Y().tolist(), {}),
        ("NumPy", lambda: Y().numpy(), {"plain": lambda: Data(X(), Y())}),
        ("expanded", lambda: Y(1).expand(5, 2), ok),
        ("transposed", lambda: floats(2, 5).T, ok),
        ("requires_grad", lambda: Y().requires_grad_(), {}),
        ("with a graph", lambda: (Y().requires_grad_() * 2), {}),
        ("huge", lambda: 1e8 * Y(), ok),
        ("tiny", lambda: 1e-30 * Y(), ok),
        ("equal to the inputs' storage", lambda: X()[:, :2], ok),
        ("empty", lambda: Y(0), {}),
        ("a dict", lambda: {"y": Y()}, {}),
        ("a tuple", lambda: (Y(),), {}),
        ("sparse", lambda: Y().to_sparse(), {}),
    ):  # fmt: skip
        yield on(f"targets/{name}", y=y, **kw)
    yield on("targets/n = 1, flat", lambda: X(1), lambda: floats(2))
    sub = lambda: Fn(lambda s, x: s.a(x)[:, 0], mlp()).double()
    yield on("targets/(n, 1) for (n,)", y=lambda: floats(5, 1), model=sub)
    yield on("targets/(n,) for (n,)", y=lambda: floats(5), model=sub, **ok)
    low = lambda: Fn(lambda s, x: s.a(x), mlp()).float()
    yield on("targets/float64 for float32 outputs", lambda: X().float(), model=low, coarse=torch.float32)


def classes() -> Iterator[Case]:
    def c(name: str, y: Callable[[], Any], **kw: Any) -> Case:
        kw.setdefault("model", lambda: mlp(c=3).double())
        kw.setdefault("loss", "cross_entropy")
        return on(f"classes/{name}", y=y, **kw)

    k = lambda: torch.tensor([0, 1, 2, 1, 0])
    soft = lambda: floats(5, 3).softmax(1)
    probs = {"phi": lambda u, y: F.cross_entropy(u, y)}
    yield c("int64", k, answers=True)
    yield c("int32", lambda: k().int(), phi=lambda u, y: F.cross_entropy(u, y.long()))
    yield c("uint8", lambda: k().byte(), phi=lambda u, y: F.cross_entropy(u, y.long()))
    yield c("bool", lambda: k() > 0)
    yield c("floats", lambda: k().double())
    yield c("column", lambda: k()[:, None])
    yield c("one class", lambda: torch.zeros(5, dtype=torch.long), answers=True)
    yield c("too large", lambda: put(k(), 3, 1))
    yield c("negative", lambda: put(k(), -1, 1))
    yield c("ignored", lambda: put(k(), -100, 1), answers=True)
    yield c("all ignored", lambda: torch.full((5,), -100))
    yield c("too few", lambda: k()[:4])
    yield c("one-hot integers", lambda: F.one_hot(k(), 3))
    yield c("one-hot floats", lambda: F.one_hot(k(), 3).double(), answers=True, **probs)
    yield c("probabilities", soft, answers=True, **probs)
    yield c(
        "probabilities float32",
        lambda: soft().float(),
        phi=lambda u, y: F.cross_entropy(u, y.double()),
        coarse=torch.float32,
    )
    yield c("not probabilities", lambda: 2 * soft(), **probs)
    yield c("negative probabilities", lambda: soft() - 0.5, **probs)
    yield c("NaN probabilities", lambda: put(soft(), math.nan), **probs)
    yield c("NumPy", lambda: k().numpy(), plain=lambda: Data(X(), k()))
    yield c("a list", lambda: k().tolist())
    yield c("outputs (n,)", k, model=lambda: Fn(lambda s, x: s.a(x)[:, 0], mlp()).double())
    yield c("one output", lambda: torch.zeros(5, dtype=torch.long), model=lambda: mlp(c=1).double())
    pixels = lambda: Fn(lambda s, x: s.a(x).reshape(-1, 2, 3), mlp(c=6)).double()
    yield c("of sequences", lambda: torch.tensor([[0, 1], [2, 0], [1, 1], [2, 2], [0, 0]]), model=pixels, answers=True)
    torchs = lambda: Fn(lambda s, x: s.a(x).reshape(-1, 3, 2), mlp(c=6)).double()
    yield c(
        "in torch's layout (n, C, d)",
        lambda: torch.tensor([[0, 1], [2, 0], [1, 1], [2, 2], [0, 0]]),
        model=torchs,
        phi=lambda u, y: F.cross_entropy(u, y),
    )
    huge = lambda: Fn(lambda s, x: 1e3 * s.a(x), mlp(c=3)).double()
    yield c("saturated", k, model=huge)
    for name, y, good in (
        ("0 and 1", lambda: (Y() > 0).double(), True),
        ("booleans", lambda: Y() > 0, False),
        ("integers", lambda: (Y() > 0).long(), False),
        ("soft", lambda: Y().sigmoid(), True),
        ("−1 and 1", lambda: Y().sign(), False),
        ("above 1", lambda: Y().sigmoid() * 1.5, False),
        ("(n,)", lambda: (Y()[:, 0] > 0).double(), False),
        ("NaN", lambda: put((Y() > 0).double(), math.nan), False),
    ):
        phi = lambda u, y: F.binary_cross_entropy_with_logits(u, y.to(u.dtype))
        yield on(f"classes/logistic, {name}", y=y, loss="logistic", phi=phi, answers=good)


def losses() -> Iterator[Case]:
    """Losses as functions of one sample, right and wrong."""
    squares = lambda u, y: (u - y).square().sum()
    w = torch.tensor([1.0, 3.0], dtype=D)
    mean = lambda f: lambda u, y: torch.stack([f(a, b) for a, b in zip(u, y, strict=True)]).mean()
    for name, f, kw in (
        ("squares", squares, {"answers": True}),
        ("weighted squares", lambda u, y: (w * (u - y).square()).sum(), {"answers": True}),
        ("quartic", lambda u, y: (u - y).pow(4).sum(), {}),
        ("log cosh", lambda u, y: torch.log(torch.cosh(u - y)).sum(), {"answers": True}),
        ("pseudo-Huber", lambda u, y: ((1 + (u - y).square()).sqrt() - 1).sum(), {"answers": True}),
        ("Poisson", lambda u, y: (u.exp() - y.abs() * u).sum(), {"answers": True}),
        ("F.mse_loss", F.mse_loss, {"answers": True}),
        ("exp", lambda u, y: (-u * y.sign()).exp().sum(), {"answers": True}),
        ("a coupled square", lambda u, y: (u - y).sum().square(), {}),
        ("Huber", lambda u, y: F.huber_loss(u, y), {}),
        ("smooth L1", lambda u, y: F.smooth_l1_loss(u, y), {}),
        ("L1", lambda u, y: (u - y).abs().sum(), {}),
        ("hinge", lambda u, y: (1 - u * y.sign()).relu().sum(), {}),
        ("quantile", lambda u, y: torch.maximum(0.9 * (y - u), -0.1 * (y - u)).sum(), {}),
        ("linear", lambda u, y: (u * y).sum(), {}),
        ("concave", lambda u, y: -(u - y).square().sum(), {}),
        ("sine", lambda u, y: torch.sin(3 * u - y).sum(), {}),
        ("constant", lambda u, y: (0 * u).sum(), {}),
        ("NaN", lambda u, y: (u - y).log().sum(), {}),
        ("vector", lambda u, y: u - y, {}),
        ("a float", lambda u, y: float((u - y).sum()), {}),
        ("None", lambda u, y: None, {}),
        ("item", lambda u, y: ((u - y) * (u - y).sum().item()).sum(), {}),
        ("if", lambda u, y: squares(u, y) if u.sum() > 0 else 2 * squares(u, y), {}),
        ("NumPy", lambda u, y: torch.as_tensor(np.square(u.detach().numpy() - y.numpy()).sum()), {}),
        ("raises", lambda u, y: {}["missing"], {}),
        ("one argument", lambda u: u.sum(), {}),
        ("in place", lambda u, y: u.sub_(y).square().sum(), {}),
        ("detached", lambda u, y: squares(u.detach(), y), {}),
        ("half detached", lambda u, y: ((u - y) * (u - y).detach()).sum(), {}),
        ("random", lambda u, y: squares(u, y) * torch.rand(()), {}),
        ("dropout", lambda u, y: squares(F.dropout(u), y), {}),
        ("complex", lambda u, y: torch.complex(u - y, u).sum(), {}),
        ("multi_margin", lambda u, y: F.multi_margin_loss(u, torch.tensor(0)), {}),
        ("gaussian_nll", lambda u, y: F.gaussian_nll_loss(u, y, torch.ones_like(u)), {}),
        ("kl_div", lambda u, y: F.kl_div(u.log_softmax(0), y.softmax(0), reduction="sum"), {"answers": True}),
        ("nn.MSELoss()", nn.MSELoss(), {"answers": True}),
        ("nn.L1Loss()", nn.L1Loss(), {}),
        ("nn.HuberLoss()", nn.HuberLoss(), {}),
    ):  # fmt: skip
        yield on(f"loss/{name}", q=lambda: floats(2, 3), loss=f, phi=mean(f), **kw)
    for name, loss in (
        ("unknown name", "l1"),
        ("loss None", None),
        ("a number", 3),
        ("the class nn.MSELoss", nn.MSELoss),
        ("an empty name", ""),
    ):
        yield on(f"loss/{name}", loss=loss, phi=lambda u, y: fail())
    indexed = lambda u, y: F.cross_entropy(u, y) * torch.tensor([1.0, 2.0], dtype=D)[y]
    yield on("loss/weights by W[y]", y=lambda: torch.tensor([0, 1, 1, 0, 1]), loss=indexed, phi=mean(indexed))
    held = lambda m, d: js.supervised(m, d.inputs, d.targets, js.losses.mse(d.targets))
    yield on("loss/targets twice", objective=held, phi=lambda u, y: fail())


def fail() -> Any:
    raise ValueError("no such loss")


def cases() -> Iterator[Case]:
    for make in (
        targets,
        classes,
        losses,
    ):
        yield from make()
