"""Over several processes as in one: each entry is a relative difference from what one process computes."""

from __future__ import annotations

import copy
import math
import os
import pathlib
import warnings
import zlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.nn.parallel import DistributedDataParallel

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.linearization.operators import GraphJacobian

from . import kept, resumed, sharded
from .jobs import data, mlp, near, shard, weights


def main() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in (products, solves, jumps, skips, residuals, loops, gates):
        found.update(part())
    if dist.get_world_size() == 2:
        for part in (sharded.products, sharded.jumps, sharded.skips, kept.stale, kept.untouched, kept.zero):
            found.update(part())
    for kind in resumed.KINDS:
        keep(resumed.stage(pathlib.Path(os.environ["JOB_FOLDER"]), kind))
    found["weights"] = _BITS
    return found


_BITS: list[int] = []  # checksums of weights that must be the same on all processes


def keep(w: Tensor) -> None:
    _BITS.append(zlib.crc32(w.numpy().tobytes()))


def pair(seed: int, n: int = 18, loss: str = "mse", chunk: int | None = None) -> tuple[Any, Any]:
    """The same objective of one process, and spread."""
    x, y = data(seed, n)
    if loss == "cross_entropy":
        y = y.argmax(1)
    own = shard(n)
    options = {"weights": torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}
    if loss == "huber":
        options["mask"] = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) > 0.3
    one = js.supervised(mlp(seed), x, y, loss, chunk=chunk, **options)
    spread = {name: value[own] for name, value in options.items()}
    many = js.supervised(mlp(seed), x[own], y[own], loss, chunk=chunk, group=dist.group.WORLD, **spread)
    return one, many


# From an objective, its linearization, the graphs of that, and v (P,) and w shaped like the outputs.
CALLS = {
    "value": lambda o, lin, graph, v, w: torch.tensor(o.value(lin.theta)),
    "gradient": lambda o, lin, graph, v, w: o.gradient(lin.theta)[1],
    "evaluate": lambda o, lin, graph, v, w: o.evaluate(lin.theta)[1],
    "outputs": lambda o, lin, graph, v, w: lin.outputs(lin.theta + 0.1 * v),
    "jvp": lambda o, lin, graph, v, w: lin.jvp(v),
    "vjp": lambda o, lin, graph, v, w: lin.vjp(w),
    "second": lambda o, lin, graph, v, w: lin.second(v),
    "second_pull": lambda o, lin, graph, v, w: lin.second_pull(v, w),
    "graph": lambda o, lin, graph, v, w: graph @ v,
    "graph.T": lambda o, lin, graph, v, w: graph.T @ w.reshape(-1),
    "jacobian": lambda o, lin, graph, v, w: lin.jacobian(),
}


def products() -> dict[str, Any]:
    """Differences, and collectives of each product."""
    found: dict[str, Any] = {}
    for loss, chunk in (("mse", None), ("cross_entropy", 4), ("huber", None)):
        one, many = pair(1, loss=loss, chunk=chunk)
        world = many.world
        g = torch.Generator().manual_seed(5)
        a, b = linearize(one), linearize(many)
        v = torch.randn(one.space.size, generator=g, dtype=torch.float64)
        w = torch.randn(a.u.shape, generator=g, dtype=torch.float64)
        ga, gb = GraphJacobian(a), GraphJacobian(b)
        for name, call in CALLS.items():
            before = world.traffic.agreements, world.traffic.payloads
            there = call(many, b, gb, v, w)
            counts = world.traffic.agreements - before[0], world.traffic.payloads - before[1]
            found[f"{loss} {name}"] = near(there, call(one, a, ga, v, w))
            found[f"counts {loss} {name}"] = list(counts)
    return found


def solves() -> dict[str, Any]:
    found = {}
    for basis in ("dense", "krylov", lambda problem: js.bases.dense(problem, route="svd")):
        for loss in ("mse", "cross_entropy"):
            one, many = pair(2, loss=loss)
            a, b = js.solve(one, basis=basis), js.solve(many, basis=basis)
            q, times = data(3, 4 + dist.get_rank())[0], torch.tensor([0.5, 3.0, 20.0])
            name = f"{loss} {basis if isinstance(basis, str) else 'svd'}"
            found[f"{name} outputs"] = near(b.outputs(times), a.outputs(times))
            found[f"{name} predict"] = near(b.predict(q, times), a.predict(q, times))
            many_times = torch.linspace(0, 9, 30)
            found[f"{name} predict many"] = near(b.predict(q, many_times), a.predict(q, many_times))
            found[f"{name} parameters"] = near(b.parameters(2.0)["0.weight"], a.parameters(2.0)["0.weight"])
            if isinstance(basis, str) and basis == "dense":
                found[f"{name} risk"] = near(b.risk(times), a.risk(times))
    return found


def jumps() -> dict[str, Any]:
    """Random problems, in every way to jump."""
    found = {}
    ways = ({}, {"basis": "dense"}, {"basis": "krylov", "depth": 4}, {"search": "levenberg-marquardt"})
    for seed in range(int(os.environ.get("JOB_PROBLEMS", "4"))):
        for i, options in enumerate(ways):
            loss = ("mse", "cross_entropy")[seed % 2] if i < 3 else "mse"
            one, many = pair(10 + seed, 8 + seed, loss)
            a, b = js.jump(one, **options), js.jump(many, **options)
            assert a.outcome is b.outcome, (seed, options, a, b)
            found[f"jump {seed} {options}"] = near(weights(many.model), weights(one.model))
            keep(weights(many.model))
    jumper_one, jumper_many = (js.Jumper(o, basis="matrix-free", depth=5) for o in pair(40))
    for i in range(2):
        jumper_one.jump(), jumper_many.jump()
        found[f"matrix-free {i}"] = near(weights(jumper_many.objective.model), weights(jumper_one.objective.model))
    return found


def skips() -> dict[str, Any]:
    one, many = pair(50, 24)
    results = []
    for objective in (one, many):
        optimizer = torch.optim.AdamW(objective.model.parameters(), lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            _loss(objective).backward()
            optimizer.step()
        results.append(js.skip(objective, optimizer, 30))
    assert results[0].steps == results[1].steps > 0, results
    keep(weights(many.model))
    return {"skip": near(weights(many.model), weights(one.model))}


def _loss(objective: Any) -> Tensor:
    """The loss of all samples through the model, its gradient that of all."""
    value, gradient, _ = objective.evaluate(objective.theta())
    flat = torch.cat([p.reshape(-1) for p in objective.model.parameters()])
    return value + (flat @ gradient - (flat @ gradient).detach())


def burgers(net: Any, x: Tensor) -> Tensor:
    def u(z: Tensor) -> Tensor:
        return net(z)[0]

    slope, bend = torch.func.grad(u)(x), torch.func.hessian(u)(x)
    return slope[1] + u(x) * slope[0] - 0.05 * bend[0, 0]


def start(net: Any, x: Tensor) -> Tensor:
    return net(torch.stack([x[0], x.new_zeros(())]))[0] + torch.sin(math.pi * x[0])


def equation(group: Any = None) -> Any:
    torch.manual_seed(0)
    model = mlp(0, 2, 1, 6)
    xs = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    if group is not None:
        xs = xs[shard(21)]
    return js.residual(
        model, js.Term(burgers, js.domains.Box((-1, 0), (1, 1)), count=23, seed=3), js.Term(start, xs), group=group
    )


def residuals() -> dict[str, Any]:
    found = {}
    folder = pathlib.Path(os.environ["JOB_FOLDER"])
    size, rank = dist.get_world_size(), dist.get_rank()
    one, many = equation(), equation(dist.group.WORLD)
    start_from = one.theta()
    for name, options in {"jump": {}, "krylov jump": {"basis": "krylov"}}.items():
        js.jump(one, **options), js.jump(many, **options)
        found[f"residual {name}"] = near(weights(many.model), weights(one.model))
        for a, b in zip(one.terms(), many.terms(), strict=True):
            found[f"residual {name} {a.name}"] = abs(a.loss - b.loss) / a.loss
    results = []
    for objective, path in ((one, folder / f"alone{size}-{rank}.jump"), (many, folder / f"fit{size}.jump")):
        objective.move(objective.theta(), start_from, lambda: None)
        js.fit(objective, jumps=3, progress=False, path=path)
        objective.move(objective.theta(), start_from, lambda: None)
        results.append(js.fit(objective, jumps=7, progress=False, path=path))  # goes on
    a, b = results
    assert (a.jumps, a.accepted, a.outcome) == (b.jumps, b.accepted, b.outcome), (a, b)
    found["fit"] = near(weights(many.model), weights(one.model))
    found["fit loss"] = abs(a.loss - b.loss) / a.loss
    found["fit generalization"] = abs(a.generalization - b.generalization) / a.generalization
    keep(weights(many.model))
    return found


def loops() -> dict[str, Any]:
    """A loop of 60 effective steps with skips, under DDP, against one process; its state goes on in another size."""
    found = {}
    n = 24
    x, y = data(60, n)
    cuts = [n * r // dist.get_world_size() for r in range(dist.get_world_size() + 1)]  # DDP's mean needs equal shards
    own = shard(n, cuts)

    def run(model: Any, x: Tensor, y: Tensor, objective: Any, total: int, state: Any = None, **options: Any) -> Any:
        inner = torch.optim.Adam(model.parameters(), lr=3e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the reference is of this process alone, as it should be
            optimizer = js.JumpOptimizer(inner, objective, **options)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in optimizer.steps(total):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        return optimizer

    for name, options in {"loop": {"at": 20}, "loose loop": {}}.items():
        one, many = mlp(61), DistributedDataParallel(mlp(61))
        a = run(one, x, y, js.supervised(one, x, y), 60, **options)
        objective = js.supervised(many, x[own], y[own])
        assert objective.world is not None and objective.model is many.module
        b = run(many, x[own], y[own], objective, 60, **options)
        assert a.skipped == b.skipped > 0, (a, b)
        found[name] = near(weights(many), weights(one))
        keep(weights(many))
    # Rehearsed skips magnify rounding: so far apart are two runs of one process, its samples in another order.
    order, other = torch.randperm(n, generator=torch.Generator().manual_seed(0)), mlp(61)
    run(other, x[order], y[order], js.supervised(other, x[order], y[order]), 60)
    found["loose reordered"] = near(weights(other), weights(one))
    # Half of the steps here, and the state for a program of another size to go on with.
    half = DistributedDataParallel(mlp(61))
    c = run(half, x[own], y[own], js.supervised(half, x[own], y[own]), 30, at=20)
    folder = pathlib.Path(os.environ["JOB_FOLDER"])
    if (folder / "earlier" / ".metadata").exists():
        mine = folder / f"told{dist.get_world_size()}-{dist.get_rank()}.pt"
        dcp_to_torch_save(folder / "earlier", mine)
        told = torch.load(mine, weights_only=False)
        gone_on = DistributedDataParallel(mlp(61))
        gone_on.module.load_state_dict(told["model"])
        run(
            gone_on, x[own], y[own], js.supervised(gone_on, x[own], y[own]), 60, copy.deepcopy(told["optimizer"]), at=20
        )
        reference = mlp(61)
        reference.load_state_dict(told["model"])
        run(reference, x, y, js.supervised(reference, x, y), 60, copy.deepcopy(told["optimizer"]), at=20)
        found["loop resumed"] = near(weights(gone_on), weights(reference))
    dist.barrier()
    state = {"model": half.module.state_dict(), "optimizer": c.state_dict()}
    checkpoint.save(state, checkpoint_id=folder / "earlier")
    return found


def gates() -> dict[str, Any]:
    """Steps gated by the exact variance of samples, in a DDP loop, against one process."""
    n, found = 24, {}
    x, y = data(70, n)
    size = dist.get_world_size()
    own = shard(n, [n * r // size for r in range(size + 1)])
    ends = []
    for model, rows in ((mlp(71), slice(None)), (DistributedDataParallel(mlp(71)), own)):
        plain = model.module if isinstance(model, DistributedDataParallel) else model
        optimizer = js.optim.GatedAdamW(plain.parameters(), lr=1e-2, rule="hard", statistics="exact")
        with js.gating.record(model):
            for _ in range(5):
                optimizer.zero_grad()
                (model(x[rows]) - y[rows]).square().mean().backward()
                optimizer.step()
        ends.append(weights(plain))
    found["gated"] = near(ends[1], ends[0])
    keep(ends[1])
    many = DistributedDataParallel(mlp(71))
    with js.gating.record(many):
        (many(x[own]) - y[own]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(many.parameters(), 1e-3)
        try:
            js.gating.samples.noise(many.module[0].weight)
        except js.errors.InputError as error:
            found["clipped"] = str(error)
    return found
