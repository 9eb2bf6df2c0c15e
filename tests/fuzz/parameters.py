# ruff: noqa: E731  (tables: one case a line)
"""What a module remembers and draws, and how its parameters are kept."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .case import Case, D, Fn, batch, floats, mlp


class Count(nn.Module):
    """What a module remembers from call to call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.l, self.kind, self.calls = mlp(), kind, 0
        self.register_buffer("steps", torch.zeros((), dtype=D))
        self.register_buffer("mean", torch.zeros(5, dtype=D))
        self.own = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.l[0](x))
        kind = self.kind
        if kind == "buffer, only counted":
            self.steps += 1
        elif kind == "buffer in the outputs":
            self.steps += 1
            h = h / (1 + self.steps)
        elif kind == "buffer replaced":
            self.steps = self.steps + 1
            h = h / (1 + self.steps)
        elif kind == "attribute, only counted":
            self.calls += 1
        elif kind == "attribute in the outputs":
            self.calls += 1
            h = h / self.calls
        elif kind == "running mean":
            self.mean = 0.9 * self.mean + 0.1 * h.mean(0).detach()
            h = h - self.mean
        elif kind == "running mean with gradient":
            self.mean = 0.9 * self.mean + 0.1 * h.mean(0)
            h = h - self.mean
        elif kind == "last activations":
            self.last = h
        else:
            h = h + 0.1 * self.drawn(kind, h)
        return self.l[2](h)

    def drawn(self, kind: str, h: Tensor) -> Any:
        if kind == "torch's generator":
            return torch.randn_like(h)
        if kind == "torch's generator, tiny":
            return 1e-9 * torch.randn_like(h)
        if kind == "own generator":
            return torch.randn(h.shape, generator=self.own, dtype=D)
        if kind == "own generator, seeded at each call":
            return torch.randn(h.shape, generator=self.own.manual_seed(3), dtype=D)
        if kind == "manual_seed inside":
            torch.manual_seed(0)
            return torch.randn(h.shape, dtype=D)
        if kind == "fork_rng inside":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return torch.randn(h.shape, dtype=D)
        if kind == "random":
            return random.random()
        if kind == "numpy.random":
            return np.random.rand()
        if kind == "the clock":
            return time.perf_counter() % 1
        if kind == "drawn, not used":
            torch.rand(3)
            return 0.0
        return torch.bernoulli(h.sigmoid())


def state() -> Iterator[Case]:
    for kind in (
        "buffer, only counted", "buffer in the outputs", "buffer replaced", "attribute, only counted",
        "attribute in the outputs", "running mean", "running mean with gradient", "last activations",
    ):  # fmt: skip
        yield Case(f"state/{kind}", lambda kind=kind: Count(kind).double(), batch(3), answers="only counted" in kind)
    for kind in (
        "torch's generator", "torch's generator, tiny", "own generator", "own generator, seeded at each call",
        "manual_seed inside", "fork_rng inside", "random", "numpy.random", "the clock", "drawn, not used", "bernoulli",
    ):  # fmt: skip
        own = kind in ("random", "numpy.random")
        yield Case(f"noise/{kind}", lambda kind=kind: Count(kind).double(), batch(3), own=own)


def structures() -> Iterator[Case]:
    """How parameters are kept: tied, shared, frozen, odd shapes."""

    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
        model[2].weight = model[0].weight
        return model.double()

    def shared() -> nn.Module:
        layer = nn.Linear(3, 3)
        return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(3, 2)).double()

    def frozen(keep: str) -> nn.Module:
        model = mlp().double()
        for name, p in model.named_parameters():
            p.requires_grad_(keep in name)
        return model

    def strange(change: Any) -> Any:
        def build() -> nn.Module:
            model = mlp().double()
            with torch.no_grad():
                change(model)
            return model

        return build

    def viewed(m: Any) -> None:
        """Two parameters that are views of one storage."""
        whole = floats(5 * 3 + 5)
        m[0].weight.data, m[0].bias.data = whole[:15].view(5, 3), whole[15:]

    def overlapping(m: Any) -> None:
        whole = floats(16)
        m[0].weight.data, m[0].bias.data = whole[:15].view(5, 3), whole[11:]

    for name, build in (
        ("tied weights", tied),
        ("shared module", shared),
        ("biases alone", lambda: frozen("bias")),
        ("one layer alone", lambda: frozen("2.")),
        ("one bias alone", lambda: frozen("2.bias")),
        ("transposed weight", strange(lambda m: setattr(m[0].weight, "data", floats(3, 5).T))),
        ("strided bias", strange(lambda m: setattr(m[0].bias, "data", floats(10)[::2]))),
        ("views of one storage", strange(viewed)),
    ):
        yield Case(f"parameters/{name}", build, batch(3), answers=True)
    yield Case("parameters/expanded bias", strange(lambda m: setattr(m[0].bias, "data", floats(1).expand(5))), batch(3))
    yield Case("parameters/overlapping storage", strange(overlapping), batch(3))
    yield Case(
        "parameters/flipped view",
        strange(lambda m: setattr(m[0].bias, "data", floats(5).as_strided((5,), (1,)))),
        batch(3),
        answers=True,
    )
    yield Case("parameters/all frozen", lambda: frozen("nothing"), batch(3))
    yield Case("parameters/NaN", strange(lambda m: m[0].weight[0, 0].fill_(float("nan"))), batch(3))
    yield Case("parameters/infinite", strange(lambda m: m[2].bias[0].fill_(float("inf"))), batch(3))
    yield Case("parameters/huge", strange(lambda m: m[2].weight.mul_(1e8)), batch(3))
    yield Case("parameters/tiny", strange(lambda m: m[2].weight.mul_(1e-8)), batch(3), answers=True)

    par = lambda *s, **k: nn.Parameter(floats(*s, **k))
    for name, forward, layers, parameters, good in (
        ("scalar", lambda s, x: s.w * s.a(x), 1, {"w": par()}, True),
        ("zero-size", lambda s, x: s.a(x) + s.w.sum(), 1, {"w": par(0)}, True),
        ("unused", lambda s, x: s.a(x), 1, {"w": par(4)}, True),
        ("one by one", lambda s, x: x * s.w[0, 0] + s.a(x).sum(1, keepdim=True), 1, {"w": par(1, 1)}, True),
        (
            "list",
            lambda s, x: torch.tanh(x @ s.w[0]) @ s.w[1],
            0,
            {"w": nn.ParameterList([par(3, 4), par(4, 3)])},
            True,
        ),
        (
            "dict",
            lambda s, x: torch.tanh(x @ s.w["a"]) @ s.w["b"],
            0,
            {"w": nn.ParameterDict({"a": par(3, 4), "b": par(4, 3)})},
            True,
        ),
        (
            "integer, frozen",
            lambda s, x: s.a(x) * s.w,
            1,
            {"w": nn.Parameter(torch.tensor(3), requires_grad=False)},
            True,
        ),
        (
            "boolean mask, frozen",
            lambda s, x: s.a(x * s.w),
            1,
            {"w": nn.Parameter(torch.tensor([True, False, True]), requires_grad=False)},
            True,
        ),
        ("per sample", lambda s, x: s.a(x) + s.w, 1, {"w": par(5, 3)}, False),
        ("outputs are a parameter", lambda s, x: s.w, 0, {"w": par(5, 3)}, False),
        ("outputs are a parameter, expanded", lambda s, x: s.w.expand(x.shape[0], -1), 0, {"w": par(3)}, False),
        (
            "outputs indexed from a table",
            lambda s, x: s.w[(x.abs().sum(1) * 10).long() % 4],
            0,
            {"w": par(4, 3)},
            False,
        ),
        (
            "complex",
            lambda s, x: torch.view_as_real(x.to(s.w.dtype) @ s.w).sum(2),
            0,
            {"w": nn.Parameter(torch.complex(floats(3, 3), floats(3, 3, seed=4)))},
            False,
        ),
        (
            "complex and real",
            lambda s, x: s.a(torch.fft.ifft(torch.fft.fft(x) * s.w).real),
            1,
            {"w": nn.Parameter(torch.complex(floats(3), floats(3, seed=4)))},
            False,
        ),
        (
            "complex, abs",
            lambda s, x: s.a((x.to(s.w.dtype) @ s.w).abs()),
            1,
            {"w": nn.Parameter(torch.complex(floats(3, 3), floats(3, 3, seed=4)))},
            False,
        ),
        (
            "complex, conjugated",
            lambda s, x: (x.to(s.w.dtype) @ s.w.conj() * s.w[0]).imag,
            0,
            {"w": nn.Parameter(torch.complex(floats(3, 3), floats(3, 3, seed=4)))},
            False,
        ),
        (
            "complex, frozen",
            lambda s, x: s.a((x.to(s.w.dtype) @ s.w).real),
            1,
            {"w": nn.Parameter(torch.complex(floats(3, 3), floats(3, 3, seed=4)), requires_grad=False)},
            True,
        ),
    ):
        layer = [nn.Linear(3, 3)] if layers else []
        build = lambda forward=forward, layer=layer, parameters=parameters: copy(
            Fn(forward, *layer, **parameters).double()
        )
        yield Case(f"parameters/{name}", build, batch(3, c=3), answers=good)

    class Deep(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.inner = nn.ModuleDict(
                {"x.y".replace(".", "_"): nn.ModuleList([Deep(depth - 1) if depth else mlp(c=3)])}
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.inner["x_y"][0](x)

    yield Case("parameters/deep nest", lambda: Deep(6).double(), batch(3, c=3), answers=True)
    kept = lambda: Fn(lambda s, x: s.a(x) @ s.m, nn.Linear(3, 3), m=nn.Buffer(floats(3, 3)))
    yield Case("parameters/weights in a buffer", lambda: kept().double(), batch(3, c=3), answers=True)
    twice = lambda s, x: s.a(torch.tanh(s.a(torch.tanh(s.a(x)))))
    yield Case(
        "parameters/a layer used three times", lambda: Fn(twice, nn.Linear(3, 3)).double(), batch(3, c=3), answers=True
    )
    toggled = lambda s, x: s.b(torch.tanh(s.a.requires_grad_(False)(x)))
    yield Case(
        "parameters/frozen in forward",
        lambda: Fn(toggled, nn.Linear(3, 3), nn.Linear(3, 3)).double(),
        batch(3, c=3),
        own=True,
    )


def copy(model: nn.Module) -> nn.Module:
    """A fresh module: the table above is made once."""
    return deepcopy(model)


def cases() -> Iterator[Case]:
    for make in (
        state,
        structures,
    ):
        yield from make()
