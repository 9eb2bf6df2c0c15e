"""Parametrizations, caches, state, noise, and how parameters are kept."""

# ruff: noqa: E731  (tables: one case a line)
from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

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


def copied(layer: Any) -> nn.Module:
    """Another layer with the same numbers: nothing is trained through it."""
    twin = nn.Linear(layer.in_features, layer.out_features).double()
    twin.load_state_dict({k: v.detach() for k, v in layer.state_dict().items()})
    return twin


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

    def versioned(s: Any, x: Tensor) -> Tensor:
        """A cache that knows when the weight was written to, but not when another was put in its place."""
        if getattr(s, "version", None) != s.a.weight._version:
            s.version, s.cache = s.a.weight._version, 2 * s.a.weight.detach()
        return s.b(torch.tanh(F.linear(x, s.cache + 0 * s.a.weight, s.a.bias)))

    def by_identity(s: Any, x: Tensor) -> Tensor:
        if getattr(s, "owner", None) is not s.a.weight:
            s.owner, s.cache = s.a.weight, 2 * s.a.weight
        return s.b(torch.tanh(F.linear(x, s.cache, s.a.bias)))

    def cached_inside(s: Any, x: Tensor) -> Tensor:
        with parametrize.cached():
            return s.b(torch.tanh(s.a(x) + s.a(2 * x)))

    def vector(s: Any, x: Tensor) -> Tensor:
        return s.b(torch.tanh(s.a(x))) + nn.utils.parameters_to_vector(s.parameters()).square().mean()

    def generated(s: Any, x: Tensor) -> Tensor:
        """The second layer's weights times what the first one says."""
        scale = 1 + s.a.bias.mean()
        return torch.func.functional_call(s.b, {k: scale * p for k, p in s.b.named_parameters()}, (torch.tanh(s.a(x)),))

    for name, f, good in (
        ("by get_parameter", lambda s, x: s.b(torch.tanh(F.linear(x, s.get_parameter("a.weight")))), False),
        ("by _parameters", lambda s, x: s.b(torch.tanh(F.linear(x, s.a._parameters["weight"]))), True),
        (
            "by named_parameters",
            lambda s, x: s.b(torch.tanh(F.linear(x, dict(s.named_parameters())["a.weight"]))),
            True,
        ),
        ("by parameters_to_vector", vector, True),
        ("by a cache within a call", cached_inside, True),
        ("by a generated layer", generated, False),
        ("by a cache that knows versions", versioned, False),
        ("by a cache that knows identities", by_identity, False),
        ("by next(parameters()).dtype", lambda s, x: s.b(torch.tanh(s.a(x.to(next(s.parameters()).dtype)))), True),
        ("by a copy of the module", lambda s, x: s.b(torch.tanh(copied(s.a)(x))), False),
    ):
        yield Case(f"kept/{name}", build(f), batch(3), answers=good, own="identities" in name)

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


def cases() -> Iterator[Case]:
    for make in (parametrizations, keeping):
        yield from make()
