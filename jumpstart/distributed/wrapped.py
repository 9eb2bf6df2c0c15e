"""What is given as a group or as a model wrapped for several processes, and what must be the same on all of them."""

from __future__ import annotations

import contextlib
import platform
import zlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import GroupError, InputError
from ..utils.brief import brief
from ..utils.kinds import is_named
from ..utils.version import installed
from ..utils.warn import warn
from .layout import is_sharded
from .optimizers import LINK, InShards, Optimizer, Spread, in_shards, is_spread
from .sharded import group_of, has_shards, link, whole_model
from .world import World

_worlds: dict[Any, World] = {}  # by process group: entries of two objectives of one group count as one program


def require_group(group: Any) -> World:
    """The world of a process group.

    Raises:
        InputError: this is no process group. GroupError: it is gone.
    """
    if isinstance(group, World):
        return group
    if not dist.is_available():
        raise GroupError("this torch is built without torch.distributed: leave group= out.")
    if not dist.is_initialized():
        raise GroupError(
            f"group={brief(group)}: torch.distributed is not initialized (any more) in this process: start it under "
            "torchrun, call torch.distributed.init_process_group, or leave group= out."
        )
    if not isinstance(group, dist.ProcessGroup):
        raise InputError(
            f"group={brief(group)}: give a process group of torch.distributed, such as torch.distributed.group.WORLD."
        )
    known = _worlds.get(group)
    if known is None or known.gone:
        _worlds[group] = known = World(group)
    return known


def joined(model: Any, group: Any) -> tuple[Any, World | None]:
    """What an objective is of, and its processes: those of a wrapped model unless another group is given.

    Of a ``DistributedDataParallel`` it is the module inside, of a model that ``fully_shard`` was applied to its twin
    with whole parameters (``sharded``).

    Raises:
        InputError: see ``Sharded``.
    """
    if isinstance(model, nn.Module) and any(is_named(m, "FullyShardedDataParallel") for m in model.modules()):
        raise InputError(
            f"{type(model).__name__} keeps its parameters in FullyShardedDataParallel (FSDP1), flat and in shards: "
            "shard the model by torch.distributed.fsdp.fully_shard, or give one in DistributedDataParallel."
        )
    if (sharded := link(model)) is not None:  # another objective's twin
        model = sharded.home
    if has_shards(model):
        world = require_group(group_of(model) if group is None else group)
        return whole_model(model, world), world
    if isinstance(model, nn.Module) and (found := next((n for n, p in model.named_parameters() if is_sharded(p)), "")):
        raise InputError(
            f"{found!r} of {type(model).__name__} is a DTensor that fully_shard did not make (parallelize_module? "
            "distribute_tensor?): only sharded data parallelism is known; else give a module that holds them whole."
        )
    if is_named(model, "DistributedDataParallel"):
        return model.module, require_group(model.process_group if group is None else group)
    return model, None if group is None else require_group(group)


def whole(optimizer: Optimizer) -> Optimizer:
    """The twin of an optimizer that spreads its state over processes (``optimizers``); any other as it is.

    Raises:
        InputError: it wraps another one, whose parameters are in shards, or steps where nothing can follow.
    """
    if vars(optimizer).get(LINK) is not None:
        return optimizer
    if is_spread(optimizer):
        return Spread(optimizer, require_group(optimizer.process_group)).twin  # type: ignore[attr-defined]
    return InShards(optimizer).twin if in_shards(optimizer) else optimizer


def require_whole(model: Any, who: str) -> None:
    """Refuse a model in shards for what needs the module that the loop calls.

    Raises:
        InputError: as said.
    """
    if has_shards(model):
        raise InputError(
            f"{who} watches the passes of the model that the loop calls, and this one keeps its parameters in shards "
            "(fully_shard): it works with DistributedDataParallel."
        )


def gathered(rows: Tensor, group: Any) -> Tensor:
    """The rows (n_r, …) of all processes (Σ n_r, …), in the order of ranks; every process calls it.

    For losses that are made by hand: ``js.Objective(model, outputs, js.losses.mse(gathered(targets, group)),
    group=group)``.

    Args:
        rows: of this process, perhaps none. group: a process group of torch.distributed.

    Raises:
        InputError: shapes beyond the first dimension, or dtypes, differ between processes. RankError: one has failed.
    """
    world = require_group(group)

    def shape() -> tuple[int, ...]:
        if not isinstance(rows, Tensor) or rows.dim() == 0:
            raise InputError(f"gathered: give a tensor whose rows are samples, got {brief(rows)}.")
        return tuple(rows.shape)

    own = world.attempt("gathering rows", shape)
    told = {"the shape of a row": own[1:], "the dtype": str(rows.dtype)}
    world.require_same("gathering rows", told, "Give rows of one kind, with no row on a process that has none.")
    counts = world.exchanged("rows to be gathered", own[0])
    if not sum(counts):
        return rows
    plain = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    return world.stacked("gathering rows", plain.detach, counts).to(rows.dtype)


def warn_alone(what: str, world: World | None) -> None:
    """Warn where several processes run and each would decide by itself."""
    if world is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        warn(
            f"{what} is of this process alone, and torch.distributed runs over {dist.get_world_size()}: each would "
            "move its weights otherwise. Give js.supervised or js.residual group=torch.distributed.group.WORLD, unless "
            "the processes train models of their own.",
            RuntimeWarning,
        )


def entry(world: World | None, what: str) -> contextlib.AbstractContextManager[None]:
    """A stretch that all processes leave together; nothing where there is one alone."""
    return contextlib.nullcontext() if world is None else world.entry(what)


def require_same_program(world: World, model: Any, told: Mapping[str, Any]) -> None:
    """Refuse processes that would not compute the same: versions, kinds of processor, models, weights, options.

    Raises:
        InputError: on all of them; names what differs.
    """
    about: dict[str, Any] = {
        "jumpstart's version": installed(),
        "torch's version": torch.__version__,
        "Python's version": platform.python_version(),
        "the processor": torch.backends.cpu.get_cpu_capability(),
        "the number of threads": torch.get_num_threads(),
        "the model": type(model).__name__,
    }
    if isinstance(model, nn.Module):
        rows = dict(model.named_parameters())
        about["the model's parameters"] = [
            (name, tuple(p.shape), str(p.dtype), p.device.type, p.requires_grad) for name, p in rows.items()
        ]
        held = [t for t in [*model.parameters(), *model.buffers()] if not t.is_meta]
        about["what the model holds (a checksum of weights and buffers)"] = _checksum(held)
        about["the mode of a module"] = [module.training for module in model.modules()]
    world.require_same(
        "an objective over several processes",
        {**about, **told},
        "Every process must build the same objective, of its own samples.",
    )


def _checksum(tensors: list[torch.Tensor]) -> int:
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), found)
    return found
