"""Four processes: shards that are replicated, that lie on a part of the processes, and tensor parallelism alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import jumpstart as js

from .jobs import data, mlp, near, outcome, weights
from .kept import jumped
from .sharded import full


def main() -> dict[str, Any]:
    found: dict[str, Any] = {}
    rank, (x, y) = dist.get_rank(), data(0, 12)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    found["HSDP"] = jumped(fully_shard(mlp(0), mesh=mesh), mlp(0))
    # Two models, each of two processes: all that is exchanged is between those.
    own = slice(6 * (rank % 2), 6 * (rank % 2) + 6)
    model, one = fully_shard(mlp(rank // 2), mesh=mesh["shard"]), mlp(rank // 2)
    js.jump(js.supervised(model, x[own], y[own]), basis="krylov")
    js.jump(js.supervised(one, x, y), basis="krylov")
    found["two models"] = near(full(model), weights(one))
    # A mesh of several dimensions that is not all processes has no group that is known.
    part, pair = DeviceMesh("cpu", [[0, 1]], mesh_dim_names=("replicate", "shard")), dist.new_group([0, 1])
    if rank < 2:
        model = fully_shard(mlp(0), mesh=part)
        found["no group"] = outcome(lambda: js.supervised(model, x[own], y[own]))
        js.jump(js.supervised(model, x[own], y[own], group=pair), basis="krylov")
        one = mlp(0)
        js.jump(js.supervised(one, x, y), basis="krylov")
        found["a group that is given"] = near(full(model), weights(one))
    tensors = parallelize_module(mlp(0), init_device_mesh("cpu", (4,)), {"0": ColwiseParallel()})
    found["tensor parallel"] = outcome(lambda: js.supervised(tensors, x, y, group=dist.group.WORLD))
    found["tensor parallel alone"] = outcome(lambda: js.supervised(tensors, x, y))
    torch.distributed.barrier()
    return found
