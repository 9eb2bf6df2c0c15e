"""Parametrizations, caches, state, noise, and how parameters are kept."""

# ruff: noqa: E731  (tables: one case a line)
from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations as P
from torch.nn.utils import parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import jumpstart as js

from .case import Case, D, Data, Fn, batch, floats, mlp


def chain(layer: nn.Module, train: bool = True) -> nn.Module:
    """A changed layer, an activation and a plain layer."""
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 2)).double().train(train)


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


class Positive(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return F.softplus(w)

    def right_inverse(self, w: Tensor) -> Tensor:
        return w.abs() + 0.1


class LowRank(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def right_inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return w[:, :1].clone(), w[:1].clone()


class Noise(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + 0.1 * torch.randn_like(w)


def registered(*kinds: type[nn.Module], shape: tuple[int, int] = (3, 4)) -> nn.Module:
    layer = nn.Linear(*shape)
    for kind in kinds:
        parametrize.register_parametrization(layer, "weight", kind())
    return layer


def parametrizations() -> Iterator[Case]:
    for name, make, good in (
        ("weight_norm", lambda: P.weight_norm(nn.Linear(3, 4)), True),
        ("weight_norm, whole", lambda: P.weight_norm(nn.Linear(3, 4), dim=None), True),
        (
            "weight_norm conv",
            lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), P.weight_norm(nn.Conv1d(1, 2, 2)), nn.Flatten()),
            True,
        ),
        ("orthogonal", lambda: P.orthogonal(nn.Linear(3, 4)), True),
        ("orthogonal cayley", lambda: P.orthogonal(nn.Linear(3, 4), orthogonal_map="cayley"), True),
        ("orthogonal householder", lambda: P.orthogonal(nn.Linear(3, 4), orthogonal_map="householder"), False),
        ("old weight_norm", lambda: old_weight_norm(nn.Linear(3, 4)), True),
        ("positive", lambda: registered(Positive), True),
        ("low rank", lambda: registered(LowRank), True),
        ("positive, then positive", lambda: registered(Positive, Positive), True),
        ("noise", lambda: registered(Noise), False),
        ("pruned", lambda: prune.l1_unstructured(nn.Linear(3, 4), "weight", 0.5), True),
        ("pruned at random", lambda: prune.random_unstructured(nn.Linear(3, 4), "bias", 2), True),
    ):
        yield Case(f"parametrized/{name}", lambda make=make: chain(make()), batch(3), answers=good)
    yield Case("parametrized/symmetric", lambda: chain(registered(Symmetric, shape=(4, 4))), batch(4), answers=True)
    for train, (name, make) in itertools.product(
        (True, False), (("spectral_norm", P.spectral_norm), ("old spectral_norm", old_spectral_norm))
    ):
        build = lambda make=make, train=train: chain(make(nn.Linear(3, 4)), train)
        yield Case(f"parametrized/{name} {'train' if train else 'eval'}", build, batch(3), answers=not train)
    for name, make in (
        ("weight_norm", lambda: P.weight_norm(nn.Linear(3, 4))),
        ("positive", lambda: registered(Positive)),
    ):
        build = lambda make=make: chain(make())
        yield Case(f"parametrized/{name} cached", build, batch(3), around=parametrize.cached)

    yield Case(
        "parametrized/spectral_norm cached",
        lambda: chain(P.spectral_norm(nn.Linear(3, 4)), False),
        batch(3),
        around=parametrize.cached,
    )

    def called(model: nn.Module, data: Data) -> Any:
        model(data.inputs)  # fills the cache
        return js.supervised(model, data.inputs, data.targets)

    full = lambda: chain(P.weight_norm(nn.Linear(3, 4)))
    yield Case("parametrized/a filled cache", full, batch(3), around=parametrize.cached, objective=called)


def keeping() -> Iterator[Case]:
    """Weights that are kept somewhere else than where they are put."""
    two = (lambda: nn.Linear(3, 4), lambda: nn.Linear(4, 2))

    def build(forward: Any, prepare: Any = None) -> Any:
        def make() -> nn.Module:
            model = Fn(forward, *(make() for make in two)).double()
            if prepare is not None:
                prepare(model)
            return model

        return make

    def remember(s: Any) -> None:
        s.kept = [s.a.weight]  # a list: not seen by named_parameters as a second name

    def effective(s: Any, x: Tensor) -> Tensor:
        if not hasattr(s, "cache"):
            s.cache = 2 * s.a.weight
        return s.b(torch.tanh(F.linear(x, s.cache, s.a.bias)))

    def copied(s: Any, x: Tensor) -> Tensor:
        if not hasattr(s, "cache"):
            s.cache = s.a.weight.detach().clone()
        return s.b(torch.tanh(F.linear(x, s.cache, s.a.bias)))

    def closed(s: Any, x: Tensor) -> Tensor:
        return s.b(torch.tanh(F.linear(x, s.kept[0], s.a.bias)))

    def data(s: Any, x: Tensor) -> Tensor:
        return s.b(torch.tanh(F.linear(x, s.a.weight.data, s.a.bias)))

    def mixed(s: Any, x: Tensor) -> Tensor:
        return s.b(torch.tanh(s.a(x))) + F.linear(x, s.kept[0]).sum(1, keepdim=True)

    yield Case("kept/in a list", build(closed, remember), batch(3))
    yield Case("kept/in a list, and used as well", build(mixed, remember), batch(3))
    yield Case("kept/cached at the first call", build(effective), batch(3))
    yield Case("kept/a detached copy at the first call", build(copied), batch(3))
    yield Case("kept/weight.data", build(data), batch(3))
    yield Case("kept/a cache that was filled", build(effective, lambda s: s(floats(5, 3))), batch(3))
    params = lambda s, x: s.b(torch.tanh(sum(F.linear(x, p) for p in list(s.a.parameters()) if p.dim() == 2)))
    yield Case("kept/by parameters()", build(params), batch(3), answers=True)
    states = lambda s, x: s.b(torch.tanh(F.linear(x, s.state_dict()["a.weight"], s.a.bias)))
    yield Case("kept/by state_dict()", build(states), batch(3))

    class Outside(nn.Module):
        """Calls a module that it does not own."""

        def __init__(self) -> None:
            super().__init__()
            self.own, self.other = nn.Linear(3, 2), (mlp(),)

        def forward(self, x: Tensor) -> Tensor:
            return self.own(x) + self.other[0](x)

    def outside() -> nn.Module:
        model = Outside().double()
        model.other[0].double()
        return model

    yield Case("kept/another module in a tuple", outside, batch(3))

    class Plain(nn.Module):
        """A plain tensor that requires a gradient: SGD(model.parameters()) leaves it."""

        def __init__(self) -> None:
            super().__init__()
            self.l, self.w = nn.Linear(3, 2), torch.ones(2, dtype=D, requires_grad=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.w * self.l(x)

    yield Case("kept/a tensor that is no parameter", lambda: Plain().double(), batch(3), answers=True)


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
    import copy as standard

    return standard.deepcopy(model)


def cases() -> Iterator[Case]:
    for make in (parametrizations, keeping, state, structures):
        yield from make()
