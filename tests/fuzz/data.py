"""Data of every shape, type and range; what plain torch makes of them is the oracle."""

# ruff: noqa: E731  (tables: one case a line)
from __future__ import annotations

import math
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

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


def cases() -> Iterator[Case]:
    for make in (inputs, queries):
        yield from make()
