"""What can be known of a model by looking at it: whatever ``torch.func`` cannot take is refused at the door, by name.

One table. What can only be met while running is in ``diagnosis``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from ..errors import InputError
from ..gating.records import Record
from ..utils.kinds import is_named

NAMED = 4  # places that a message names

Places = Iterator[str]


@dataclass(frozen=True)
class Row:
    """Where in a model (given the parameters that move) something is found, what it is, and what to do."""

    found: Callable[[nn.Module, Collection[str]], Places]
    cause: str
    remedy: str


def _modules(holds: Callable[[nn.Module], bool]) -> Callable[[nn.Module, Collection[str]], Places]:
    def found(model: nn.Module, moving: Collection[str]) -> Places:
        return (name or type(module).__name__ for name, module in model.named_modules() if holds(module))

    return found


def _parameters(holds: Callable[[Tensor], bool]) -> Callable[[nn.Module, Collection[str]], Places]:
    def found(model: nn.Module, moving: Collection[str]) -> Places:
        return (name for name, p in model.named_parameters() if holds(p))

    return found


def _moving(holds: Callable[[Tensor], bool]) -> Callable[[nn.Module, Collection[str]], Places]:
    def found(model: nn.Module, moving: Collection[str]) -> Places:
        return (name for name, p in model.named_parameters() if name in moving and holds(p))

    return found


def _of_class(*names: str) -> Callable[[nn.Module], bool]:
    """By the name of a class among a module's own."""
    return lambda module: is_named(module, *names)


def _quantized(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized"))


def _sparse(model: nn.Module, moving: Collection[str]) -> Places:
    for name, module in model.named_modules():
        weight = f"{name}.weight" if name else "weight"
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and weight in moving:
            yield name or type(module).__name__


def _expanded(p: Tensor) -> bool:
    return any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True))


def _overlapping(model: nn.Module, moving: Collection[str]) -> Places:
    """Parameters that share memory with another one: neighbours in memory, held against each other."""
    spans: dict[int, list[tuple[int, int, str, Tensor]]] = {}
    for name, p in model.named_parameters():
        if name in moving and p.layout == torch.strided and p.numel():
            first = int(p.storage_offset())
            last = first + sum(step * (size - 1) for step, size in zip(p.stride(), p.shape, strict=True))
            spans.setdefault(p.untyped_storage().data_ptr(), []).append((first, last, name, p))
    for held in spans.values():
        held.sort(key=lambda span: span[:2])
        for i, (_, last, name, p) in enumerate(held):
            for start, _, other, q in held[i + 1 :]:
                if start > last:
                    break
                if bool(torch.isin(_places(p), _places(q)).any()):
                    yield f"{name} and {other}"


def _places(p: Tensor) -> Tensor:
    """Where each entry lies in the storage."""
    found = torch.tensor(p.storage_offset(), device="cpu")
    for step, size in zip(p.stride(), p.shape, strict=True):
        found = found[..., None] + step * torch.arange(size, device="cpu")
    return found.reshape(-1)


def _global_hooks(model: nn.Module, moving: Collection[str]) -> Places:
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        yield "torch.nn.modules.module.register_module_full_backward_hook"


def _accumulates(p: Tensor) -> bool:
    """Whether hooks run on its accumulated gradient that may change it; those that record samples do not."""
    hooks = getattr(p, "_post_accumulate_grad_hooks", None) or {}
    return any(not isinstance(getattr(hook, "__self__", None), Record) for hook in hooks.values())


TABLE = (
    Row(
        lambda model, moving: (name for name, p in [*model.named_parameters(), *model.named_buffers()] if is_lazy(p)),
        "has no shape yet (a lazy module)",
        "call the model once on an input, so that it gets its weights",
    ),
    Row(
        _parameters(lambda p: p.is_meta),
        "is on the meta device, without values",
        "load or initialize the weights first",
    ),
    Row(
        _parameters(lambda p: p.is_inference()),
        "was made under torch.inference_mode(), where nothing can be differentiated",
        "make or load the model outside of it",
    ),
    Row(
        _modules(lambda module: isinstance(module, torch.jit.ScriptModule)),
        "is traced or scripted, which torch.func cannot differentiate",
        "give the Python module that it was made from",
    ),
    Row(
        _modules(_of_class("DataParallel", "DistributedDataParallel")),
        "spreads the model over devices",
        "give the model inside (model.module)",
    ),
    Row(
        _modules(_of_class("FullyShardedDataParallel", "FSDPModule")),
        "keeps its parameters in shards, and they are needed whole",
        "js.supervised, js.residual and js.Objective take fully_shard's; else give a module that holds them whole",
    ),
    Row(
        _parameters(lambda p: type(p.data).__name__ == "DTensor"),
        "is a DTensor, which lies on several processes",
        "give a module that holds its parameters whole",
    ),
    Row(
        _modules(lambda module: bool(module._backward_hooks or module._backward_pre_hooks)),
        "has a backward hook, which torch.func does not support",
        "remove it while jumpstart is asked (handle.remove())",
    ),
    Row(_global_hooks, "is a backward hook on all modules", "remove it while jumpstart is asked (handle.remove())"),
    Row(
        _modules(_quantized),
        "is quantized, without a derivative",
        "give the model as it was before quantization",
    ),
    Row(
        _moving(_accumulates),
        "has a hook that runs on its gradient after it is accumulated, which jumpstart does not see",
        "remove it while jumpstart is asked (handle.remove()); a mask is params=[…], a factor a metric",
    ),
    Row(
        _sparse,
        "gives sparse gradients, which torch.func does not support",
        "set sparse=False on the module, which changes no value",
    ),
    Row(
        _moving(_expanded),
        "is an expanded view, several entries of one number, that nothing can be written to",
        "give it memory of its own (p.data = p.data.clone())",
    ),
    Row(_overlapping, "share memory, so that neither moves alone", "give each its own, or make them one parameter"),
)


def require_traceable(model: nn.Module, moving: Collection[str] = ()) -> None:
    """Refuse a model that ``torch.func`` cannot take, or whose parameters by the names ``moving`` it cannot.

    Raises:
        InputError: names the places, the cause and the remedy.
    """
    for row in TABLE:
        places = list(dict.fromkeys(row.found(model, moving)))
        if places:
            more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
            listed = ", ".join(repr(place) for place in places[:NAMED])
            raise InputError(f"{listed}{more} of {type(model).__name__} {row.cause}: {row.remedy}.")
