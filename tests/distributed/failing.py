"""What fails on one process, or differs there, and what every process makes of it."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import jumpstart as js
from jumpstart.distributed import wrapped

from . import kept
from .jobs import data, mlp, outcome, shard


class Failing(nn.Module):
    """A network that fails where it is told to: after so many calls, by an error or by something worse."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how, self.left = mlp(0), how, [10**9]  # in a list, as a call leaves no attribute changed

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.left[0] < 0:
            if self.how == "error":
                raise ValueError("a sample that cannot be read")
            if self.how == "memory":
                raise torch.OutOfMemoryError("out of memory, as it were")
            if self.how == "nan":
                return self.inner(x) * float("nan")
            if self.how == "dies":
                os._exit(7)
            if self.how == "sleeps":
                time.sleep(60)
        return self.inner(x)


def ready(how: str, rank: int, after: int = 2, shards: bool = False) -> Any:
    """An objective that fails on one process from its next evaluations on; of a model in shards, it may be."""
    x, y = data(0, 12)
    own = shard(12, [0, 7, 12] if dist.get_world_size() == 2 else [0, 4, 8, 12])
    model = fully_shard(Failing(how)) if shards else Failing(how)
    objective = js.supervised(model, x[own], y[own], group=dist.group.WORLD)
    objective.home = model
    js.solve(objective)  # is asked once whether it is one function
    if dist.get_rank() == rank:
        objective.model.left[0] = after
    return objective


def still(objective: Any, call: Any) -> list[Any]:
    model = getattr(objective, "home", objective.model)
    before = held(model)
    found = outcome(lambda: call(objective))
    return [*found, bool(torch.equal(before, held(model)))]


def held(model: nn.Module) -> Tensor:
    """What this process has of a model's weights."""
    own = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in own])


def skipped(objective: Any) -> Any:
    return js.skip(objective, torch.optim.SGD(objective.home.parameters(), lr=0.01, momentum=0.9), 200)


def main() -> dict[str, Any]:
    how = os.environ.get("JOB_HOW")
    if how is not None:  # a group that is lost: one job each
        objective = ready(how, dist.get_world_size() - 1, shards=bool(os.environ.get("JOB_SHARDS")))
        begun = time.monotonic()
        found = still(objective, js.jump)
        again = outcome(lambda: js.jump(objective))
        return {"found": found, "seconds": time.monotonic() - begun, "again": again}
    rank, group = dist.get_rank(), dist.group.WORLD
    x, y = data(0, 12)
    own = shard(12, [0, 7, 12])
    x, y = x[own], y[own]
    found: dict[str, Any] = {}
    for how in ("error", "memory", "nan"):
        for name, call in {
            "jump": js.jump,
            "solve": js.solve,
            "fit": lambda objective: js.fit(objective, jumps=2, progress=False),
            "skip": skipped,
        }.items():
            for shards in (False, True):
                of = "shards: " if shards else ""
                found[f"{of}{how} in a {name}"] = still(ready(how, 1, 0 if name == "skip" else 2, shards), call)

    def build(name: str, make: Any) -> None:
        found[name] = outcome(make)

    build("other weights", lambda: js.supervised(mlp(rank), x, y, group=group))
    build("other model", lambda: js.supervised(mlp(0, width=8 + rank), x, y, group=group))
    build("other loss", lambda: js.supervised(mlp(0), x, y, ("mse", "huber")[rank], group=group))
    build("other options", lambda: js.supervised(mlp(0), x, y, "huber", delta=1.0 + rank, group=group))
    build("other targets", lambda: js.supervised(mlp(0), x, y[:, : 2 - rank], group=group))
    build("other dtype", lambda: js.supervised(mlp(0), x, y.to((torch.float64, torch.float32)[rank]), group=group))
    outputs = lambda net: net(x) if rank == 0 else net(x)[:, :1]  # noqa: E731
    targets = js.distributed.gathered(y, group)
    build("other outputs", lambda: js.Objective(mlp(0), outputs, js.losses.mse(targets), group=group))
    build("own targets", lambda: js.Objective(mlp(0), lambda net: net(x), js.losses.mse(y), group=group))
    build("a loss with targets", lambda: js.supervised(mlp(0), x, None, js.losses.mse(y), group=group))
    build("NaN in inputs", lambda: js.supervised(mlp(0), x * float("nan") if rank else x, y, group=group))
    build("nothing", lambda: js.supervised(mlp(0), x[:0], y[:0], group=group))
    build("no group", lambda: js.supervised(mlp(0), x, y, group="world"))
    build("mode", lambda: js.supervised(mlp(0).train(rank == 0), x, y, group=group))
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    build("batch statistics", lambda: js.supervised(norm, x, y, group=group))
    with torch.device("meta" if rank else "cpu"):
        meta = mlp(0)
    build("meta on one", lambda: js.supervised(meta, x, y, group=group))
    build("a function of the network", lambda: js.residual(mlp(0), lambda net: net(x)[:, 0], group=group))
    installed, wrapped.installed = wrapped.installed, lambda: f"0.{rank}"
    build("other version", lambda: js.supervised(mlp(0), x, y, group=group))
    wrapped.installed = installed

    def objective() -> Any:
        return js.supervised(mlp(0), x, y, group=group)

    spread = objective()
    found["parted"] = still(spread, js.jump if rank else js.solve)
    found["other options of a call"] = still(objective(), lambda o: js.jump(o, basis=("dense", "krylov")[rank]))
    moved = objective()
    with torch.no_grad():
        moved.model[0].bias += rank
    found["moved apart"] = still(moved, js.jump)
    loop = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    evaluated = js.supervised(loop, x, y, group=group, training=False)
    found["a skip past BatchNorm"] = still(
        evaluated, lambda o: js.skip(o, torch.optim.SGD(o.model.parameters(), lr=0.01), 200)
    )
    loop(x)  # in train mode, on samples of this process
    found["other buffers"] = still(evaluated, js.jump)
    build("a file", lambda: js.solve(objective()).save(f"{os.environ['JOB_FOLDER']}/solution.jump"))
    build("path", lambda: js.fit(objective(), jumps=1, path=f"{os.environ['JOB_FOLDER']}/fit.jump"))
    build("a head", lambda: js.fit_head(objective()))
    build("a recorder", lambda: js.trajectory.Recorder(objective(), lr=0.1))
    build("a loader", lambda: js.from_loader(DistributedDataParallel(mlp(0)), [(x, y)], "mse"))
    found |= kept.refused()
    dist.destroy_process_group()
    build("a group that is gone", lambda: js.supervised(mlp(0), x, y, group=group))
    found["an objective of it"] = still(spread, js.jump)
    return found
