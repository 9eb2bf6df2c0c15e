"""A small transformer in shards (FSDP2), against the same one whole, in one process: differences, relative."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import jumpstart as js
from jumpstart.linearization.linearize import linearize

from .jobs import near, shard, weights

WIDTH, HEADS, LENGTH, TOKENS = 6, 2, 5, 7


class Block(nn.Module):
    """Attention and a small network, each with a norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mixed, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mixed(self.first(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Of tokens (n, length); its logits (n, tokens) are of the next one. Embedding and head are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(TOKENS, WIDTH), nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(1))  # smaller than the world
        self.register_buffer("shift", torch.zeros(TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        for block in self.blocks:
            x = block(x)
        return self.scale * self.head(self.norm(x[:, -1])) + self.shift


def transformer(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer().double()


def in_shards(seed: int = 0, **options: Any) -> Transformer:
    """The same in shards: each block, and the rest."""
    model = transformer(seed)
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def texts(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(TOKENS, (n, LENGTH), generator=g), torch.randint(TOKENS, (n,), generator=g)


def pair(n: int = 12, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """The same objective of one process, and of a model in shards."""
    x, y = texts(n, seed)
    own = shard(n, [n * r // dist.get_world_size() for r in range(dist.get_world_size() + 1)])
    model = in_shards(seed)
    return (
        js.supervised(transformer(seed), x, y, "cross_entropy", **options),
        js.supervised(model, x[own], y[own], "cross_entropy", **options),
    ), model


def full(model: nn.Module) -> Tensor:
    """All weights, by torch's own way to have them whole."""
    found = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in found])


def main() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in (products, jumps, skips):
        found.update(part())
    return found


def products() -> dict[str, Any]:
    found = {}
    (one, many), _ = pair()
    a, b = linearize(one), linearize(many)
    g = torch.Generator().manual_seed(5)
    v = torch.randn(one.space.size, generator=g, dtype=torch.float64)
    w = torch.randn(a.u.shape, generator=g, dtype=torch.float64)
    found["jvp"], found["vjp"] = near(b.jvp(v), a.jvp(v)), near(b.vjp(w), a.vjp(w))
    found["gradient"] = near(many.gradient(b.theta)[1], one.gradient(a.theta)[1])
    times = torch.tensor([0.5, 3.0])
    for basis in ("krylov", "dense"):
        c, d = js.solve(one, basis=basis), js.solve(many, basis=basis)
        found[f"solve {basis}"] = near(d.outputs(times), c.outputs(times))
    return found


def jumps() -> dict[str, Any]:
    found = {}
    for seed, options in enumerate(({"basis": "krylov"}, {"basis": "dense"}, {})):
        (one, many), model = pair(10, seed)
        a, b = js.jump(one, **options), js.jump(many, **options)
        assert a.outcome is b.outcome, (options, a, b)
        found[f"jump {options}"] = near(full(model), weights(one.model))
    return found


def loop(model: Any, optimizer: Any, x: Tensor, y: Tensor, steps: Any) -> None:
    for _ in steps:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


MAKE: dict[str, Callable[[Any], Any]] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=2e-3),
    "SGD": lambda params: torch.optim.SGD(params, lr=2e-2, momentum=0.9),
}


def skips() -> dict[str, Any]:
    found = {}
    for name, make in MAKE.items():
        (one, many), model = pair(12)
        x, y = texts(12)
        own = shard(12, [12 * r // dist.get_world_size() for r in range(dist.get_world_size() + 1)])
        ends = []
        for objective, net, rows in ((one, one.model, slice(None)), (many, model, own)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # the reference is of this process alone
                optimizer = js.JumpOptimizer(make(net.parameters()), objective, at=10)
            loop(net, optimizer, x[rows], y[rows], optimizer.steps(30))
            ends.append(optimizer)
        assert ends[0].skipped == ends[1].skipped > 0, ends
        found[f"skip {name}"] = near(full(model), weights(one.model))
    return found
