"""Models in shards of every kind: what works as in one process, and what is refused, by name."""

from __future__ import annotations

import copy
import functools
import os
import pathlib
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import jumpstart as js
from jumpstart.distributed import layout

from .jobs import data, mlp, near, outcome, weights
from .sharded import full, in_shards, loop, texts, transformer


def main() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in (layouts, stale, untouched, loops, zero, equations, refused):
        found.update(part())
    return found


def rows(n: int) -> slice:
    rank, size = dist.get_rank(), dist.get_world_size()
    return slice(n * rank // size, n * (rank + 1) // size)


def objectives(model: nn.Module, one: nn.Module, n: int = 12, **options: Any) -> tuple[Any, Any]:
    x, y = data(0, n)
    own = rows(n)
    return js.supervised(one, x, y, **options), js.supervised(model, x[own], y[own], **options)


def jumped(model: nn.Module, one: nn.Module, **options: Any) -> float:
    """How far apart two models are after a jump of each."""
    a, b = objectives(model, one, **options)
    first, second = js.jump(a, basis="krylov"), js.jump(b, basis="krylov")
    assert first.accepted and second.accepted, (first, second)
    return near(full(model), weights(one))


def layouts() -> dict[str, float]:
    """Meshes and placements; what is frozen, in no group, ignored, unequal, left whole."""
    found, size = {}, dist.get_world_size()
    for shape in ((1, size), (size, 1)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
        found[f"mesh {shape}"] = jumped(fully_shard(mlp(0), mesh=mesh), mlp(0))

    def across(p: nn.Parameter) -> Shard | None:
        return Shard(1) if p.dim() > 1 and p.shape[1] == 6 else None

    found["Shard(1)"] = jumped(fully_shard(mlp(0, width=6), shard_placement_fn=across), mlp(0, width=6))
    one, model = mlp(0), mlp(0)
    for net in (one, model):
        net[0].bias.requires_grad_(False)
    found["frozen"] = jumped(fully_shard(model), one)
    objective = js.supervised(fully_shard(mlp(0)), *(t[rows(12)] for t in data(0, 12)))
    twins = js.supervised(objective.model, *(t[rows(12)] for t in data(0, 12)))
    assert twins.model is objective.model and twins.world is objective.world
    found["params="] = jumped(fully_shard(mlp(0)), mlp(0), params=["0.*"])
    model = mlp(0)
    fully_shard(model[0])
    found["in no group"] = jumped(model, mlp(0))
    model = mlp(0)
    found["ignored"] = jumped(fully_shard(model, ignored_params={model[2].bias}), mlp(0))
    model = fully_shard(mlp(0))
    with torch.no_grad():
        model(torch.zeros(1, 3, dtype=torch.float64))
    assert not hasattr(model[0].weight, "full_tensor")  # the root stays whole after a forward pass
    found["left whole"] = jumped(model, mlp(0))
    model = fully_shard(mlp(0))
    model.unshard()
    found["unshard()"] = jumped(model, mlp(0))
    model = mlp(0)
    model.compile(backend="eager")
    found["compiled"] = jumped(fully_shard(model), mlp(0))
    found["torch.compile"] = jumped(torch.compile(fully_shard(mlp(0)), backend="eager"), mlp(0))
    model = fully_shard(mlp(0), mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    found["reduce_dtype"] = jumped(model, mlp(0))
    return found


class Tuned(nn.Module):
    """A network with all that a module may hold: buffers, attributes, modules in a list, methods, hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.factor = mlp(3), 1.0
        self.layers = [self.inner]
        self.act, self.last = self.doubled, functools.partial(torch.mul, other=1.0)
        self.register_buffer("shift", torch.zeros(2, dtype=torch.float64))
        self.inner.register_forward_hook(lambda module, args, out: out + 0.1)

    def doubled(self, x: Tensor) -> Tensor:
        return 2 * x * self.factor

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.layers[0](x))) + self.shift + (0.5 if self.training else 0.0)


def stale() -> dict[str, float]:
    """What of a model changes after its objective was made is followed, as in one process."""
    one, model = Tuned(), fully_shard(Tuned())
    a, b = objectives(model, one)
    found = {"at first": abs(a.value(a.theta()) - b.value(b.theta()))}
    for net in (one, model):
        net.factor, net.shift = 1.5, torch.ones(2, dtype=torch.float64)
    found["attributes"] = abs(a.value(a.theta()) - b.value(b.theta()))
    for net in (one, model):
        net.eval()
        net.shift += 1.0
    found["modes"] = abs(a.value(a.theta()) - b.value(b.theta()))
    state = {name: value * 1.1 for name, value in one.state_dict().items()}
    one.load_state_dict(state)
    for p in model.parameters():
        with torch.no_grad():
            p.mul_(1.1)
    model.shift.mul_(1.1)
    found["weights"] = abs(a.value(a.theta()) - b.value(b.theta()))
    for net in (one, model):
        net.inner[0].bias.requires_grad_(False)
    found["frozen since"] = float("frozen" not in outcome(lambda: js.jump(b))[1])
    one, model = mlp(0), fully_shard(mlp(0))
    a, b = objectives(model, one)
    model.reshard()
    model.unshard(async_op=True)  # under way: what it brings is older than the jump
    assert js.jump(a, basis="krylov").accepted and js.jump(b, basis="krylov").accepted
    with torch.no_grad():
        found["gathered before"] = near(model(a.parts[0].inputs), one(a.parts[0].inputs))
    return found


def untouched() -> dict[str, Any]:
    """A jump that is refused, and a read, leave shards and optimizer state to their last write."""
    model = fully_shard(mlp(0))
    x, y = data(0, 12)
    x, y = x[rows(12)], y[rows(12)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    objective = js.supervised(model, x, y)

    def versions() -> list[Any]:
        held = [*model.parameters(), *(t for state in optimizer.state.values() for t in state.values())]
        with torch.no_grad():
            return [(id(t), t._version, t.to_local()._version if hasattr(t, "to_local") else 0) for t in held]

    model.reshard()
    before = versions()
    js.jump(objective, metric=optimizer, horizon=1e-30)
    js.skip(objective, optimizer, 1)  # too few to pay
    js.solve(objective)
    same = versions() == before
    result = js.jump(objective, metric=optimizer)
    assert result.accepted
    moved = versions()
    return {
        "refused leaves all": same,
        "a jump writes in place": [a[0] for a in moved] == [a[0] for a in before] and moved != before,
    }


def loops() -> dict[str, float]:
    """Loops with a scheduler, a search, and rehearsed skips."""
    found, n = {}, 12
    x, y = texts(n)
    ways = {
        "scheduler": {"at": 20}, "search": {"search": True, "at": 10}, "loose": {},
        "loose proposals": {"actions": ("line", "trajectory", "average"), "at": 10},
    }  # fmt: skip
    for name, options in ways.items():
        ends = []
        for model, own in ((transformer(), slice(None)), (in_shards(), rows(n))):
            inner = torch.optim.AdamW(model.parameters(), lr=2e-3)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(inner, 60)
            if name == "scheduler":
                options = {**options, "scheduler": scheduler}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                optimizer = js.JumpOptimizer(inner, js.supervised(model, x[own], y[own], "cross_entropy"), **options)
                steps = optimizer.steps(60) if name in ("scheduler", "loose") else range(24)
                for _ in steps:
                    loop(model, optimizer, x[own], y[own], [0])
                    if name == "scheduler":
                        scheduler.step()
            ends.append((model, optimizer, inner, scheduler))
        (one, a, inner, first), (many, b, other, second) = ends
        assert a.jumps == b.jumps > 0 and a.skipped == b.skipped, (a, b)
        found[f"{name} loop"] = near(full(many), weights(one))
        found[f"{name} moments"] = near(moments(many, other), moments(one, inner))
        found[f"{name} rate"] = abs(inner.param_groups[0]["lr"] - other.param_groups[0]["lr"])
        found[f"{name} steps"] = abs(first.last_epoch - second.last_epoch)
    return found


def moments(model: nn.Module, optimizer: Any) -> Tensor:
    states = [optimizer.state[p] for p in model.parameters()]
    whole = [t.full_tensor() if hasattr(t, "full_tensor") else t for state in states for t in state.values()]
    return torch.cat([t.detach().double().reshape(-1) for t in whole])


def zero() -> dict[str, float]:
    """Loops of ``ZeroRedundancyOptimizer`` under DDP, whose state is spread over the processes."""
    found, (x, y) = {}, data(0, 12)
    ways = {
        "AdamW": ({"at": 20}, torch.optim.AdamW, {"lr": 2e-3}),
        "SGD": ({"at": 20}, torch.optim.SGD, {"lr": 2e-2, "momentum": 0.9}),
        "search": ({"at": 20, "search": True}, torch.optim.AdamW, {"lr": 2e-3}),
    }
    for name, (options, kind, settings) in ways.items():
        one, many = mlp(0), DistributedDataParallel(mlp(0))
        inner = ZeroRedundancyOptimizer(many.parameters(), kind, parameters_as_bucket_view=name == "SGD", **settings)
        ends = []
        for model, own, bare in ((one, slice(None), kind(one.parameters(), **settings)), (many, rows(12), inner)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                optimizer = js.JumpOptimizer(bare, js.supervised(model, x[own], y[own]), **options)
            for _ in optimizer.steps(40):
                optimizer.zero_grad()
                (model(x[own]) - y[own]).square().mean().backward()
                optimizer.step()
            ends.append(optimizer)
        a, b = ends
        assert a.jumps == b.jumps > 0 and a.skipped == b.skipped, (a, b)
        found[f"ZeRO {name}"] = near(weights(many), weights(one))
        inner.consolidate_state_dict(0)
        if dist.get_rank() == 0:
            theirs, ours = b.state_dict()["state"], a.state_dict()["state"]
            pairs = [(theirs[at][key], ours[at][key]) for at in ours for key in ours[at]]
            found[f"ZeRO {name} state"] = max(near(u.double(), v.double()) for u, v in pairs)
    return found


def overlapping(model: nn.Module, x: Tensor) -> Any:
    """A wrapper of an optimizer that steps in the backward pass."""
    inner = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    inner._overlap_with_ddp = True  # as overlap_with_ddp=True and a DDP hook make it
    return js.JumpOptimizer(inner, js.supervised(model, x, x[:, :2], group=dist.group.WORLD))


def equations() -> dict[str, float]:
    def residual(net: Any, x: Tensor) -> Tensor:
        return torch.func.grad(lambda z: net(z)[0])(x)[0] - net(x)[0]

    found, ends = {}, []
    for model in (mlp(5, 1, 1), fully_shard(mlp(5, 1, 1))):
        objective = js.residual(model, js.Term(residual, js.domains.Box((0,), (1,)), count=21))
        path = pathlib.Path(os.environ["JOB_FOLDER"], f"{len(ends)}-{dist.get_rank() if not ends else ''}.jump")
        js.fit(objective, jumps=2, progress=False, path=path)
        ends.append((js.fit(objective, jumps=4, progress=False, path=path), model))  # goes on
    found["fit"] = near(full(ends[1][1]), weights(ends[0][1]))
    return found


def strange(model: nn.Module, x: Tensor) -> Any:
    """A skip by an optimizer of another model in shards."""
    objective = js.supervised(model, x, x[:, :2])
    return js.skip(objective, torch.optim.SGD(fully_shard(mlp(1)).parameters(), lr=0.1), 10)


def copied(model: nn.Module, x: Tensor) -> Any:
    """A copy of a wrapper whose optimizer is of parameters in shards."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return copy.deepcopy(js.JumpOptimizer(optimizer, js.supervised(model, x, x[:, :2])))


def refused() -> dict[str, list[str]]:
    x, y = data(0, 12)
    x, y = x[rows(12)], y[rows(12)]
    found: dict[str, list[str]] = {}

    def build(name: str, model: Any, call: Any = js.supervised, *args: Any, **options: Any) -> None:
        found[name] = outcome(lambda: call(model(), *(args or (x, y)), **options))

    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    build("mixed precision", lambda: fully_shard(mlp(0), mp_policy=half))
    build("output dtype", lambda: fully_shard(mlp(0), mp_policy=MixedPrecisionPolicy(output_dtype=torch.float32)))
    with torch.device("meta"):
        meta = mlp(0)
    build("meta", lambda: fully_shard(meta))

    def closed() -> nn.Module:
        model = mlp(0)
        model[1].forward = lambda x: torch.tanh(x) * model[0].bias.sum()
        return fully_shard(model)

    build("closure", closed)

    def compiled() -> nn.Module:
        model = mlp(0)
        model[0] = torch.compile(model[0], backend="eager")
        return fully_shard(model)

    build("compiled inside", compiled)

    def parallel() -> nn.Module:
        mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("data", "tensor"))
        model = parallelize_module(mlp(0), mesh["tensor"], {"0": ColwiseParallel()})
        return fully_shard(model, mesh=mesh["data"])

    build("tensor parallel", parallel, group=dist.group.WORLD)
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    build("another group", lambda: fully_shard(mlp(0)), group=alone)

    def offloaded() -> nn.Module:
        model = fully_shard(mlp(0))
        model._get_fsdp_state()._fsdp_param_group.offload_policy = CPUOffloadPolicy()  # fully_shard asks for a GPU
        return model

    build("offload", offloaded)

    def inside(x: Tensor, y: Tensor) -> Any:
        model = fully_shard(mlp(0))
        model[1].register_forward_hook(lambda *_: js.supervised(model, x, y))
        return model(x)

    found["in a forward pass"] = outcome(lambda: inside(x, y))
    build("FSDP1", lambda: FullyShardedDataParallel(mlp(0), device_id=torch.device("cpu")), group=dist.group.WORLD)
    build("record", lambda: fully_shard(mlp(0)), lambda model, x: js.gating.record(model).__enter__(), x)
    build("a loader of shards", lambda: fully_shard(mlp(0)), js.from_loader, [(x, y)], "mse")
    build("another model's optimizer", lambda: fully_shard(mlp(0)), strange, x)
    build("ZeRO in the backward pass", lambda: mlp(0), overlapping, x)
    build("a copy", lambda: fully_shard(mlp(0)), copied, x)
    allowance, layout.allowance = layout.allowance, lambda device: 100.0
    build("no room", lambda: fully_shard(mlp(0)))
    layout.allowance = allowance
    build("other shards", lambda: fully_shard(mlp(0, width=6 + 2 * dist.get_rank())))
    return found
