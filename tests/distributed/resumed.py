"""A run that goes on in a group of another size: the state of one program is the next one's beginning."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import jumpstart as js

from .jobs import data, mlp, weights
from .sharded import full

SAMPLES = 24
STAGES = {2: 20, 3: 40, 1: 60}  # processes -> effective steps at the end
BEFORE = {3: 2, 1: 3}  # whose state is gone on from
KINDS = {"DDP": DistributedDataParallel, "FSDP2": fully_shard}


def rows() -> slice:
    rank, size = dist.get_rank(), dist.get_world_size()
    return slice(SAMPLES * rank // size, SAMPLES * (rank + 1) // size)


def wrapped(model: nn.Module, own: slice = slice(None)) -> tuple[Any, Tensor, Tensor]:
    x, y = data(60, SAMPLES)
    objective = js.supervised(model, x[own], y[own])
    inner = torch.optim.Adam(model.parameters(), lr=3e-3)
    return js.JumpOptimizer(inner, objective, at=15, skip=10), x[own], y[own]


def run(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, until: int) -> None:
    for _ in optimizer.steps(STAGES[1]):  # a skip is as long as the run allows, wherever this program ends
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        if optimizer.effective_steps >= until:
            break


def stage(folder: pathlib.Path, kind: str) -> Tensor:
    """Go on from what the program before has left, if there is something, and leave what there is then; the weights."""
    model = KINDS[kind](mlp(61))
    optimizer, x, y = wrapped(model, rows())
    size = dist.get_world_size()
    if size in BEFORE:
        place = folder / f"{kind}{BEFORE[size]}"
        plain, inner = get_state_dict(model, optimizer.inner)
        checkpoint.load({"model": plain, "optimizer": inner}, checkpoint_id=place)
        set_state_dict(model, optimizer.inner, model_state_dict=plain, optim_state_dict=inner)
        own = torch.load(f"{place}.pt", weights_only=False)
        optimizer.load_state_dict({**optimizer.inner.state_dict(), "jumpstart": own})
    run(model, optimizer, x, y, STAGES[size])
    assert optimizer.skipped, optimizer
    place = folder / f"{kind}{size}"
    plain, inner = get_state_dict(model, optimizer.inner)
    checkpoint.save({"model": plain, "optimizer": inner}, checkpoint_id=place)
    if dist.get_rank() == 0:
        torch.save(optimizer.state_dict()["jumpstart"], f"{place}.pt")
    return full(model)


def alone() -> Tensor:
    """The weights of one process that was never interrupted."""
    model = mlp(61)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the others are elsewhere
        optimizer, x, y = wrapped(model)
    run(model, optimizer, x, y, STAGES[1])
    return weights(model)
