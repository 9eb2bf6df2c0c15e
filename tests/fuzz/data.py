"""Data of every shape, type and range; what plain torch makes of them is the oracle."""

# ruff: noqa: E731  (tables: one case a line)
from __future__ import annotations

import math
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jumpstart as js

from .case import Case, D, Data, Fn, floats, mlp

Pair = namedtuple("Pair", "a b")


def build() -> nn.Module:
    return mlp().double()


def on(
    name: str, x: Any = None, y: Any = None, q: Any = None, model: Callable[[], nn.Module] = build, **kw: Any
) -> Case:
    """The usual model on unusual data; x, y, q are made afresh each time by functions."""

    def make() -> Data:
        inputs = x() if x is not None else floats(5, 3, seed=1)
        targets = y() if y is not None else floats(5, 2, seed=2)
        return Data(inputs, targets, q() if q is not None else None, plain() if plain is not None else None)

    plain = kw.pop("plain", None)
    return Case(name, model, make, **kw)


def X(n: int = 5, d: int = 3) -> Tensor:
    return floats(n, d, seed=1)


def Y(n: int = 5, c: int = 2) -> Tensor:
    return floats(n, c, seed=2)


def put(x: Tensor, value: Any, at: Any = (2, 1)) -> Tensor:
    x = x.clone()
    x[at] = value
    return x


class Two(nn.Module):
    """Takes a and b, by place or by name."""

    def __init__(self, keys: bool = False) -> None:
        super().__init__()
        self.l, self.m = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, a: Any, b: Any = None) -> Tensor:
        b = torch.zeros_like(a) if b is None else b
        return torch.tanh(self.l(a)) + self.m(b) * (b if isinstance(b, float) else 1)


def two() -> nn.Module:
    return Two().double()


def inputs() -> Iterator[Case]:
    ok = {"answers": True}
    q = lambda: floats(3, 3, seed=3)
    yield on("inputs/one sample", lambda: X(1), lambda: Y(1), lambda: floats(1, 3), **ok)
    yield on("inputs/n equal to c", lambda: X(2), lambda: Y(2), q, **ok)
    yield on("inputs/n equal to d", lambda: X(3), lambda: Y(3), q, **ok)
    yield on("inputs/many samples", lambda: X(40), lambda: Y(40), q, **ok)
    yield on("inputs/the same sample five times", lambda: X(1).repeat(5, 1), None, q, **ok)
    yield on("inputs/expanded", lambda: X(1).expand(5, 3), None, q, **ok)
    yield on("inputs/zeros", lambda: torch.zeros(5, 3, dtype=D), None, q, **ok)
    yield on("inputs/transposed", lambda: floats(3, 5).T, None, lambda: floats(3, 4).T, **ok)
    yield on("inputs/strided", lambda: floats(10, 6)[::2, ::2], None, q, **ok)
    yield on("inputs/flipped", lambda: X().flip(0), None, q, **ok)
    yield on("inputs/requires_grad", lambda: X().requires_grad_(), None, lambda: q().requires_grad_())
    yield on("inputs/with a graph", lambda: X().requires_grad_() * 2, None, q)
    yield on("inputs/nn.Parameter", lambda: nn.Parameter(X()), None, q)
    yield on("inputs/huge", lambda: 1e6 * X(), None, q, **ok)
    yield on("inputs/tiny", lambda: 1e-12 * X(), None, q, **ok)
    yield on("inputs/NaN", lambda: put(X(), math.nan), None, q)
    yield on("inputs/infinite", lambda: put(X(), math.inf), None, q)
    yield on(
        "inputs/NaN that the model repairs",
        lambda: put(X(), math.nan),
        None,
        None,
        lambda: Fn(lambda s, x: s.a(x.nan_to_num()), mlp()).double(),
    )
    yield on(
        "inputs/minus infinity in a mask",
        lambda: (X(), put(torch.zeros(5, 3, dtype=D), -math.inf)),
        None,
        None,
        lambda: Fn(lambda s, x, m: s.a((x + m).softmax(1)), mlp()).double(),
    )
    yield on("inputs/empty", lambda: X(0), lambda: Y(0))
    yield on("inputs/no features", lambda: X(5, 0))
    yield on("inputs/wrong width", lambda: X(5, 4))
    yield on("inputs/one dimension", lambda: floats(3), lambda: floats(2))
    yield on("inputs/one dimension, one row of targets", lambda: floats(3), lambda: floats(1, 2))
    yield on("inputs/0-d", lambda: floats())
    yield on("inputs/3-d", lambda: floats(5, 4, 3), lambda: floats(5, 4, 2), lambda: floats(2, 4, 3), **ok)
    yield on("inputs/4-d", lambda: floats(5, 1, 2, 3), lambda: floats(5, 1, 2, 2), lambda: floats(2, 1, 2, 3), **ok)
    yield on("inputs/integers", lambda: torch.ones(5, 3, dtype=torch.long))
    yield on("inputs/booleans", lambda: X() > 0)
    yield on("inputs/float32", lambda: X().float(), wide=False)
    yield on("inputs/float16", lambda: X().half(), wide=False)
    yield on("inputs/complex", lambda: torch.complex(X(), X()))
    yield on("inputs/sparse", lambda: X().to_sparse())
    yield on("inputs/None", lambda: None)
    yield on("inputs/a number", lambda: 3.0)
    yield on("inputs/a string", lambda: "x")
    yield on("inputs/NumPy", lambda: X().numpy(), None, lambda: q().numpy(), plain=lambda: Data(X(), Y(), q()))
    yield on("inputs/NumPy float32", lambda: X().numpy().astype("float32"), wide=False)
    yield on("inputs/a list of lists", lambda: X().tolist())
    yield on("inputs/a list of rows", lambda: list(X()))
    yield on("inputs/a generator", lambda: (r for r in X()))
    yield on("inputs/a DataLoader", lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X(), Y())))
    yield on("inputs/a TensorDataset", lambda: torch.utils.data.TensorDataset(X()))
    both = lambda: (X(), floats(5, 3, seed=7))
    qs = lambda: (q(), floats(3, 3, seed=8))
    named = lambda make: lambda: dict(zip("ab", make(), strict=True))
    yield on("inputs/tuple", both, None, qs, two, **ok)
    yield on("inputs/list", lambda: list(both()), None, lambda: list(qs()), two, **ok)
    yield on("inputs/namedtuple", lambda: Pair(*both()), None, lambda: Pair(*qs()), two)
    yield on("inputs/dict", named(both), None, named(qs), two, **ok)
    yield on("inputs/OrderedDict", lambda: OrderedDict(named(both)()), None, named(qs), two, **ok)
    yield on("inputs/UserDict", lambda: UserDict(named(both)()), None, lambda: UserDict(named(qs)()), two)
    yield on(
        "inputs/dict of NumPy",
        lambda: {k: v.numpy() for k, v in named(both)().items()},
        None,
        None,
        two,
        plain=lambda: Data(named(both)(), Y()),
    )
    yield on("inputs/tuple with None", lambda: (X(), None), None, lambda: (q(), None), two)
    yield on("inputs/dict with None", lambda: {"a": X(), "b": None}, None, None, two)
    yield on(
        "inputs/tuple with a float",
        lambda: (X(), 2.0),
        None,
        None,
        lambda: Fn(lambda s, x, k: k * s.a(x), mlp()).double(),
    )
    yield on(
        "inputs/dict with a string",
        lambda: {"x": X(), "how": "sin"},
        None,
        None,
        lambda: Fn(lambda s, x, how: getattr(s.a(x), how)(), mlp()).double(),
    )
    yield on(
        "inputs/tuple with a 0-d tensor",
        lambda: (X(), floats()),
        None,
        lambda: (q(), floats()),
        lambda: Fn(lambda s, x, k: k * s.a(x), mlp()).double(),
    )
    yield on(
        "inputs/tuple with a shared table",
        lambda: (X(), floats(3, 3)),
        None,
        lambda: (q(), floats(3, 3)),
        lambda: Fn(lambda s, x, w: s.a(x @ w), mlp()).double(),
    )
    yield on(
        "inputs/tuple with a table of n rows",
        lambda: (X(), floats(5, 3)),
        None,
        None,
        lambda: Fn(lambda s, x, w: s.a(x @ w.T @ w), mlp()).double(),
    )
    yield on(
        "inputs/tuple, n = rows of a table",
        lambda: (X(3), floats(3, 3)),
        lambda: Y(3),
        lambda: (floats(2, 3), floats(3, 3)),
        lambda: Fn(lambda s, x, w: s.a(x @ w), mlp()).double(),
    )
    yield on("inputs/tuple of other lengths", lambda: (X(), X(4)), None, None, two)
    yield on("inputs/tuple of one", lambda: (X(),), None, lambda: (q(),), **ok)
    yield on("inputs/empty tuple", lambda: ())
    yield on("inputs/empty dict", lambda: {})
    yield on(
        "inputs/nested tuple",
        lambda: ((X(), X()), X()),
        None,
        None,
        lambda: Fn(lambda s, p, z: s.a(p[0] * p[1] + z), mlp()).double(),
    )
    yield on(
        "inputs/dict in a tuple",
        lambda: ({"u": X()}, X()),
        None,
        None,
        lambda: Fn(lambda s, p, z: s.a(p["u"] + z), mlp()).double(),
    )
    yield on("inputs/unknown keyword", lambda: {"a": X(), "z": X()}, None, None, two)
    yield on("inputs/too many", lambda: (X(), X(), X()), None, None, two)
    yield on(
        "inputs/samples in dimension 1",
        lambda: floats(4, 5, 3),
        None,
        None,
        lambda: Fn(lambda s, x: s.a(x.mean(0)), mlp()).double(),
    )
    yield on("inputs/on another device", lambda: X().to("meta"))


def queries() -> Iterator[Case]:
    for name, q in (
        ("one", lambda: floats(1, 3)),
        ("as many as samples", lambda: floats(5, 3)),
        ("the training inputs", X),
        ("many", lambda: floats(30, 3)),
        ("none", lambda: floats(0, 3)),
        ("wrong width", lambda: floats(3, 4)),
        ("NaN", lambda: put(floats(3, 3), math.nan)),
        ("one dimension", lambda: floats(3)),
        ("3-d", lambda: floats(2, 3, 3)),
        ("float32", lambda: floats(3, 3).float()),
        ("integers", lambda: torch.ones(3, 3, dtype=torch.long)),
        ("transposed", lambda: floats(3, 2).T.contiguous().T),
        ("expanded", lambda: floats(1, 3).expand(4, 3)),
        ("requires_grad", lambda: floats(3, 3).requires_grad_()),
        ("a list", lambda: floats(3, 3).tolist()),
        ("a tuple of one", lambda: (floats(3, 3),)),
        ("NumPy", lambda: floats(3, 3).numpy()),
        ("a string", lambda: "x"),
        ("dict", lambda: {"input": floats(3, 3)}),
    ):
        plain = None
        if name == "float32":
            yield on("queries/float32", q=q, wide=False)
            continue
        if name == "NumPy":
            plain = lambda: Data(X(), Y(), floats(3, 3))
        yield on(f"queries/{name}", q=q, plain=plain)


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
    for make in (inputs, queries, targets, classes, losses):
        yield from make()
