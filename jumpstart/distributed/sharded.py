"""A model whose parameters are kept in shards (FSDP2's ``fully_shard``), and its *twin* that holds them whole.

The twin is the same tree of modules without what ``fully_shard`` has put there. Buffers, parameters that are in no
shard, and all attributes are the model's own. Objectives are of the twin; its weights are gathered where an objective
reads the model's, and written back to the shards where it moves them. Everything above computes on the twin and knows
nothing of it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import InputError
from ..utils.brief import brief
from ..utils.kinds import is_named
from .layout import gather, is_sharded, local, require_room, scatter
from .world import World

LINK = "_jumpstart_sharded"  # the attribute of a twin that leads to its ``Sharded``
OWN = ("torch.distributed.fsdp", "torch.distributed._composable.replicate")  # modules of what fully_shard puts there
PARALLEL = "torch.distributed.tensor"  # of what parallelize_module does
_TABLES = {"_parameters", "_buffers", "_modules"}
_CALLED = {  # hooks that a call goes through, each with the tables that say how
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}
_BESIDE = {table for tables in _CALLED.values() for table in tables}
_STANDARD = vars(nn.Module()).keys()

_known: WeakValueDictionary[int, Sharded] = WeakValueDictionary()  # by the model's id, which each of them keeps alive


def fully_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to a module itself."""
    return is_named(module, "FSDPModule")


def has_shards(model: Any) -> bool:
    """Whether ``fully_shard`` was applied to a module or to one inside it."""
    return isinstance(model, nn.Module) and any(fully_sharded(module) for module in model.modules())


def meshes(model: nn.Module) -> list[Any]:
    """The meshes that the shards of a model lie on, each once."""
    found: list[Any] = []
    for _, p in _in_shards(model):
        if p.device_mesh not in found:
            found.append(p.device_mesh)
    return found


def group_of(model: nn.Module) -> Any:
    """The process group that a model is sharded over.

    Raises:
        InputError: there is none that holds just these processes.
    """
    reshard(model)
    found = meshes(model)
    if len(found) == 1 and found[0].ndim == 1:
        return found[0].get_group()
    everyone = set(range(dist.get_world_size()))
    if found and all(set(mesh.mesh.reshape(-1).tolist()) == everyone for mesh in found):
        return dist.group.WORLD
    raise InputError(
        f"the model is sharded over {[tuple(mesh.shape) for mesh in found]} processes, of which no group is known: "
        "give group=, a process group of all of them."
    )


class Sharded:
    """A model in shards and its twin.

    Args:
        home: the model. world: the processes that its shards lie on.

    Attributes:
        twin: holds the parameters whole.

    Raises:
        InputError: what of the model cannot be had whole, by name.
    """

    def __init__(self, home: nn.Module, world: World) -> None:
        self.home, self.world = home, world
        reshard(home)
        _require_plain(home)
        self.modules: dict[nn.Module, nn.Module] = {}
        for module in home.modules():
            self.modules[module] = object.__new__(_plain_class(module))
        require_room("the model's weights", [p for _, p in _in_shards(home) if not p.is_meta])
        self._wholes: dict[int, Tensor] = {}  # by the id of a parameter in shards, as the model has them now
        for name, p in _in_shards(home):
            if p.is_meta or local(p).is_meta:
                raise InputError(
                    f"{name!r} is on the meta device, without values: call to_empty and load weights first."
                )
            whole = torch.zeros(p.shape, dtype=p.dtype, device=local(p).device)
            self._wholes[id(p)] = nn.Parameter(whole, requires_grad=p.requires_grad)
        self._seen: dict[nn.Module, dict[str, Any]] = {}
        for module, twin in self.modules.items():
            self._furnish(module, twin)
        self.twin = self.modules[home]
        self.twin.__dict__[LINK] = self
        self.fresh = False  # inside of a stretch that has gathered already, and in which nobody else steps

    def __deepcopy__(self, memo: Any) -> None:
        return None  # a copy of the twin is a model of its own

    def __reduce__(self) -> Any:
        raise InputError("a model in shards cannot be pickled with its objective: make it anew in each process.")

    def _furnish(self, module: nn.Module, twin: nn.Module) -> None:
        here = twin.__dict__
        here["_parameters"] = {name: self._wholes.get(id(p), p) for name, p in module._parameters.items()}
        here["_buffers"] = dict(module._buffers)
        here["_modules"] = {name: None if m is None else self.modules[m] for name, m in module._modules.items()}
        for name, value in vars(module).items():
            if name in _TABLES or name in _BESIDE or _is_fsdp_entry(name, value):
                continue
            if name in _CALLED:
                kept = {key: hook for key, hook in value.items() if not _is_fsdp_function(hook)}
                here[name] = type(value)((key, self._mirrored(name, hook, module)) for key, hook in kept.items())
                for beside in _CALLED[name]:
                    table = getattr(module, beside)
                    here[beside] = type(table)((key, flag) for key, flag in table.items() if key in kept)
            elif name.startswith(("_state_dict", "_load_state_dict")):
                here[name] = type(value)()
            elif name == "_compiled_call_impl":
                here[name] = None
            elif name in _STANDARD:
                here[name] = value
            else:
                here[name] = self._mirrored(name, value, module)
        self._seen[module] = _attributes(module)

    def _mirrored(self, name: str, value: Any, module: nn.Module) -> Any:
        """A value of an attribute, with the twin's modules and parameters in the place of the model's own.

        Raises:
            InputError: it is a function that holds some of them, which nothing can be put in the place of.
        """
        known: dict[int, Any] = {id(other): twin for other, twin in self.modules.items()} | self._wholes
        try:
            if not _reaches(value, known, set()):
                return value
        except _Closure as found:
            raise InputError(
                f"{name!r} of a {type(module).__name__} leads to the function {brief(found.args[0])}, which holds a "
                "module or parameter of the sharded model itself: make it a method, or let it take what it needs."
            ) from None
        return copy.deepcopy(value, known)

    # ---- the model has changed: the twin follows ----------------------------------------------------------------

    def follow(self) -> None:
        """Modes, buffers, what is frozen, and attributes, as the model has them now; nothing is exchanged.

        Raises:
            InputError: modules or parameters have been put in, or taken out.
        """
        reshard(self.home)
        if list(self.home.modules()) != list(self.modules):
            raise InputError("submodules of the sharded model have been replaced since: make the objective anew.")
        self._wholes, before = {}, self._wholes
        try:
            for module, twin in self.modules.items():
                self._follow(module, twin)
        except BaseException:
            self._wholes = before
            raise

    def _follow(self, module: nn.Module, twin: nn.Module) -> None:
        own, theirs = twin._parameters, module._parameters
        if own.keys() != theirs.keys():
            raise InputError(
                f"parameters of a {type(module).__name__} have been added or removed since: make the objective anew."
            )
        for name, p in theirs.items():
            whole = own[name]
            if p is None or whole is None or not is_sharded(p):
                own[name] = p
                continue
            if whole.shape != p.shape or whole.dtype != p.dtype:
                raise InputError(f"{name!r} of a {type(module).__name__} is of another shape or dtype since.")
            self._wholes[id(p)] = whole
            if whole.requires_grad != p.requires_grad:
                whole.requires_grad_(p.requires_grad)
        if twin.training != module.training:
            twin.training = module.training
        twin._buffers.update(module._buffers)
        before, now = self._seen[module], _attributes(module)
        for name in before.keys() - now.keys():
            twin.__dict__.pop(name, None)
        for name, value in now.items():
            if name not in before or before[name] is not value:
                twin.__dict__[name] = self._mirrored(name, value, module)
        self._seen[module] = now

    def refresh(self) -> None:
        """The model's present weights, whole, in the twin; every process calls it: an agreement and an all-gather."""

        def taken() -> list[tuple[str, Any, Tensor]]:
            self.follow()
            return [] if self.fresh else [(repr(name), p, whole.data) for name, p, whole in self.pairs()]

        gather(self.world, "weights in shards", taken)

    def pairs(self) -> Iterator[tuple[str, Any, Tensor]]:
        """Each parameter that is in shards: its name, it, and the whole one."""
        for name, p in _in_shards(self.home):
            yield name, p, self._wholes[id(p)]

    def whole(self, p: Any) -> Tensor | None:
        """The twin's parameter for one of the model's."""
        return self._wholes.get(id(p)) if is_sharded(p) else None

    # ---- the twin was moved: so is the model --------------------------------------------------------------------

    def settle(self) -> None:
        """Write the twin's weights into the model's shards, those that differ; nothing is exchanged."""
        reshard(self.home)
        for name, p, whole in self.pairs():
            scatter(self.world, repr(name), whole, p)


# What leads nowhere, or (weak references) to nothing that a copy could lead elsewhere with: ``apart`` finds that out.
_LEAVES = (str, bytes, int, float, complex, type, types.ModuleType, Tensor, weakref.ref, *weakref.ProxyTypes)


class _Closure(Exception):
    """A function was met that holds what is looked for."""


def found_for(p: Any) -> tuple[Sharded, Tensor] | None:
    """The model that a parameter in shards is of, if an objective knows it, and the whole parameter."""
    for sharded in list(_known.values()):
        whole = sharded.whole(p)
        if whole is not None:
            return sharded, whole
    return None


def whole_model(model: nn.Module, world: World) -> nn.Module:
    """The twin of a model in shards, with its present weights; every process calls it.

    Raises:
        InputError: on all of them; see ``Sharded``; or their models differ.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled one is entered by what it was made of
    known = _known.get(id(model))
    new = known is None or known.world is not world
    # What nobody holds is collected sooner on one process than on another.
    if world.any("whether a model in shards is new", new) or known is None:
        known = world.attempt("a model in shards", lambda: Sharded(model, world))
        told: dict[str, Any] = {"the model": type(known.twin).__name__}
        for name, p, _ in known.pairs():
            told[f"{name!r} (shape, dtype, placements)"] = tuple(p.shape), str(p.dtype), str(p.placements)
        world.require_same("a model in shards", told, "Every process must shard the same model in the same way.")
        _known[id(model)] = known
    known.refresh()
    return known.twin


def link(model: Any) -> Sharded | None:
    """What leads from a twin to the model in shards; None for any other model."""
    return vars(model).get(LINK) if isinstance(model, nn.Module) else None


def refreshed(model: nn.Module) -> None:
    """Gather the weights of a twin; nothing for a model that holds its own. Every process calls it."""
    if (sharded := link(model)) is not None:
        sharded.refresh()


def followed(model: nn.Module) -> None:
    """Let a twin follow its model in what needs no exchange; nothing for a model that holds its own weights."""
    if (sharded := link(model)) is not None:
        sharded.follow()


def settled(model: nn.Module) -> None:
    """Write the weights of a twin into the shards; nothing for a model that holds its own."""
    if (sharded := link(model)) is not None:
        sharded.settle()


@contextlib.contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """A stretch in which a twin is evaluated, and by no way calls modules of its model: their weights stand still.

    An attribute may lead to them past all that a twin has in their place (a weak reference, a global name), and FSDP
    would gather what they need without a word.
    """
    sharded = link(model)
    if sharded is None:
        yield
        return
    modules, thread = sharded.modules, threading.get_ident()

    def refuse(module: nn.Module, _: Any) -> None:
        if module in modules and threading.get_ident() == thread:
            raise InputError(
                f"the sharded model's own {type(module).__name__} is called from inside of a {type(model).__name__} "
                "that is evaluated with whole parameters: by a weak reference, a global name, or a function that holds "
                "it. Reach it by self, as a submodule."
            )

    trap = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        trap.remove()


# ---- what fully_shard makes of a module -------------------------------------------------------------------------


def _in_shards(model: nn.Module) -> list[tuple[str, Any]]:
    """Parameters in shards by name, tied ones once."""
    return [(name, p) for name, p in model.named_parameters() if is_sharded(p)]


def reshard(model: nn.Module) -> None:
    """Let modules whose parameters a forward pass has left whole hold their shards again; values stay.

    Raises:
        InputError: one is in the middle of a forward pass.
    """
    for name, module in model.named_modules():
        for group in _groups(module) if fully_sharded(module) else ():
            if getattr(group, "_all_gather_result", None) is not None:  # under way, of unshard(async_op=True)
                group.wait_for_unshard()  # or a forward pass would take what it has brought for the weights
        if fully_sharded(module) and any(not group.is_sharded for group in _groups(module)):
            module.reshard()  # type: ignore[operator]
            if any(not group.is_sharded for group in _groups(module)):
                place = repr(name or type(module).__name__)
                raise InputError(
                    f"{place} is in the middle of a forward pass, its parameters whole: call jumps outside of it (not "
                    "in a hook)."
                )


def _groups(module: Any) -> list[Any]:
    """A module's groups of parameters: their list has had two names in torch."""
    state = module._get_fsdp_state()
    several = getattr(state, "_fsdp_param_groups", None)
    found = [state._fsdp_param_group] if several is None else several
    return [group for group in found if group is not None]


def _require_plain(model: nn.Module) -> None:
    """Refuse what the twin would compute otherwise, or could not.

    Raises:
        InputError: names it.
    """
    for name, module in model.named_modules():
        place = repr(name or type(module).__name__)
        if name and hasattr(module, "_orig_mod"):
            raise InputError(f"{place} is compiled inside of a sharded model: compile the whole, or module.compile().")
        hooks = [hook for table in _CALLED for hook in getattr(module, table).values()]
        if any(_module_of(hook).startswith(PARALLEL) for hook in hooks):
            raise InputError(f"{place} is parallelized (parallelize_module): only sharded data parallelism is known.")
        if not fully_sharded(module):
            continue
        policy, dtypes = module._get_fsdp_state()._mp_policy, {p.dtype for p in module.parameters()}  # type: ignore
        for what in ("param_dtype", "output_dtype"):
            if (asked := getattr(policy, what)) is not None and {asked} != dtypes:
                raise InputError(
                    f"{place} has a MixedPrecisionPolicy with {what}={asked}, and products are computed in the "
                    f"parameters' own dtype, {_listed(dtypes)}: another function. Leave {what} out (reduce_dtype may "
                    "stay)."
                )
        for group in _groups(module):
            if type(group.offload_policy).__name__ == "CPUOffloadPolicy":
                raise InputError(f"{place} keeps its shards on the CPU (CPUOffloadPolicy): leave offload_policy out.")


def _listed(dtypes: Any) -> str:
    return ", ".join(sorted(map(str, dtypes)))


def _plain_class(module: nn.Module) -> type:
    """The class that a module had before ``fully_shard`` put its own in front."""
    kind = type(module)
    return kind.__mro__[getattr(kind, "_orig_cls_mro_index", 2)] if fully_sharded(module) else kind


def _module_of(function: Any) -> str:
    """Where a function, a method or a partial one comes from."""
    function = getattr(function, "func", function)
    return str(getattr(getattr(function, "__func__", function), "__module__", "") or "")


def _is_fsdp_function(value: Any) -> bool:
    return callable(value) and _module_of(value).startswith(OWN)


def _is_fsdp_entry(name: str, value: Any) -> bool:
    """Whether an attribute of a module is what ``fully_shard`` keeps there."""
    ours = name.startswith(("__composable_api", "_fsdp_", "_is_fsdp_")) or name == LINK
    return ours or (isinstance(value, types.MethodType) and _is_fsdp_function(value))


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds besides what every module does."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _STANDARD and not _is_fsdp_entry(name, value) and name != "_compiled_call_impl"
    }


def _reaches(value: Any, known: dict[int, Any], seen: set[int]) -> bool:
    """Whether a value leads to one of those that are known.

    Raises:
        _Closure: a function does, by its closure or its defaults.
    """
    if id(value) in known:
        return True
    if id(value) in seen or isinstance(value, _LEAVES):
        return False
    seen.add(id(value))
    if isinstance(value, types.FunctionType):
        if any(_reaches(inner, known, seen) for inner in _captured(value)):
            raise _Closure(value)
        return False
    return any([_reaches(inner, known, seen) for inner in _inside(value)])


def _captured(function: types.FunctionType) -> list[Any]:
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a name that has no value yet
            continue
    return found


def _inside(value: Any) -> list[Any]:
    """What a value is made of."""
    found: list[Any] = []
    if isinstance(value, dict):
        found += [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        found += value
    elif isinstance(value, types.MethodType):
        found += [value.__self__, value.__func__]
    elif isinstance(value, functools.partial):
        found += [value.func, *value.args, *value.keywords.values()]
    if hasattr(value, "__dict__"):
        found += vars(value).values()
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        found += [getattr(value, name, None) for name in ([slots] if isinstance(slots, str) else slots)]
    return found
