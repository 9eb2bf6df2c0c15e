"""Modules that use parameters by themselves, and where in their calls the samples are."""

from __future__ import annotations

import inspect
import weakref
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from ..errors import InputError
from . import layers
from .replayed import tensors
from .uses import Pass, Use, seen

AWAY = "use each='microbatch', or leave its parameters out by params="


class Layout(NamedTuple):
    """Arguments, the dimension of samples of every leaf of them, and that of the first output and of the others."""

    args: tuple
    kwargs: dict
    axes: list[int | None]
    outs: tuple[int, int]


class Unit:
    """A module that uses parameters by itself: a forward hook that makes a ``Use`` of every call.

    Args:
        records: by the parameters' names in the module; each gets to know its uses (``record.fired``).
    """

    def __init__(self, name: str, module: nn.Module, records: dict[str, Any], now: Pass) -> None:
        self.name, self.records, self.now = name, records, now
        self.find = weakref.ref(module)

    @property
    def module(self) -> nn.Module:
        module = self.find()
        assert module is not None  # it is in the backward pass
        return module

    @property
    def title(self) -> str:
        return f"{self.name or 'the model'} ({type(self.module).__name__})"

    @property
    def expand(self) -> str:
        """A way out for tables of positions."""
        return ", or expand its indices to a row for each sample" if isinstance(self.module, nn.Embedding) else ""

    def formula(self, leaves: list[Any]) -> layers.Formula | None:
        return None if len(leaves) != 1 or not isinstance(leaves[0], Tensor) else layers.formula(self.module)

    def tell(self, use: Use) -> int:
        """Let records know; returns how many."""
        told = {id(r): (r, name) for name, r in self.records.items() if r.wanted(self.module, name)}
        for record, name in told.values():
            record.fired = [(other, n) for other, n in record.fired if other.task == use.task]
            record.fired.append((use, name))
        return len(told)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if not seen() or not any(r.wanted(module, name) for name, r in self.records.items()):
            return
        outs = [(place, out) for place, out in enumerate(tensors(output)) if out.requires_grad]
        if not outs:
            return
        layout = self.layout(args, kwargs)
        leaves, spec = pytree.tree_flatten((layout.args, layout.kwargs))
        use = Use(self, self.rows(leaves, layout, outs), leaves, spec, layout.axes)
        for place, out in outs:
            use.outs[place] = layout.outs[min(place, 1)]
            out.register_hook(partial(use.fire, place))

    def layout(self, args: tuple, kwargs: dict) -> Layout:
        """Where the samples of a call are."""
        module = self.module
        if isinstance(module, nn.MultiheadAttention):
            return _of_attention(self.title, module, args, kwargs)
        if isinstance(module, nn.RNNBase):
            return _of_recurrent(self.title, module, args, kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        rows = self.now.rows
        if rows is None or len(leaves) == 1:
            rows = next((len(v) for v in leaves if isinstance(v, Tensor) and v.dim()), None)
        axes = [0 if isinstance(v, Tensor) and v.dim() and len(v) == rows else None for v in leaves]
        return Layout(args, kwargs, axes, (0, 0))

    def rows(self, leaves: list[Any], layout: Layout, outs: list[tuple[int, Tensor]]) -> int:
        """How many samples the call is of.

        Raises:
            InputError: rows are not samples.
        """
        inputs = {_size(v, axis) for v, axis in zip(leaves, layout.axes, strict=True) if axis is not None}
        if self.formula(leaves) is not None and leaves[0].dim() < layers.rank(self.module):
            inputs.add(-1)  # an input without a dimension for samples
        for place, out in outs:
            axis = layout.outs[min(place, 1)]
            have = _size(out, axis)
            want = have if self.now.rows is None else self.now.rows
            if have != want or inputs != {want}:
                shapes = ", ".join(str(tuple(v.shape)) for v in leaves if isinstance(v, Tensor)) or "no tensor"
                raise InputError(
                    f"{self.title} makes {tuple(out.shape)} of {shapes}, which does not have the samples of "
                    f"the model's input ({want}) in dimension {axis}: what each sample adds to its gradient cannot be "
                    f"told; {AWAY}{self.expand}."
                )
        if isinstance(self.module, nn.Embedding) and _counts(leaves[0]):
            raise InputError(
                f"{self.title} is asked for 0 … {len(leaves[0]) - 1}, as many as there are samples: these may be "
                f"positions as well; {AWAY}{self.expand}."
            )
        return inputs.pop()


def _size(v: Tensor, axis: int) -> int:
    return v.shape[axis] if v.dim() > axis else -1


def _counts(v: Any) -> bool:
    """Is it 0, 1, 2, …?"""
    if not isinstance(v, Tensor) or v.dim() != 1 or len(v) < 2:
        return False
    return torch.equal(v, torch.arange(len(v), device=v.device, dtype=v.dtype))


def _of_attention(title: str, module: nn.MultiheadAttention, args: tuple, kwargs: dict) -> Layout:
    bound = inspect.signature(nn.MultiheadAttention.forward).bind(module, *args, **kwargs).arguments
    named = {name: value for name, value in bound.items() if name != "self"}
    if isinstance(mask := named.get("attn_mask"), Tensor) and mask.dim() == 3:
        raise InputError(f"{title}: an attn_mask of its own for each sample is not taken apart; {AWAY}.")
    first = 0 if module.batch_first else 1
    known = {"query": first, "key": first, "value": first, "key_padding_mask": 0}
    axes = [known.get(name) if isinstance(value, Tensor) else None for name, value in named.items()]
    return Layout((), named, axes, (first, 0))


def _of_recurrent(title: str, module: nn.RNNBase, args: tuple, kwargs: dict) -> Layout:
    if any(isinstance(value, nn.utils.rnn.PackedSequence) for value in (*args, *kwargs.values())):
        raise InputError(f"{title}: a PackedSequence has no rows of samples; {AWAY}.")
    first = 0 if module.batch_first else 1
    leaves = pytree.tree_leaves((args, kwargs))  # states follow, layers in front
    axes = [(1 if place else first) if isinstance(value, Tensor) else None for place, value in enumerate(leaves)]
    return Layout(args, kwargs, axes, (first, 1))


def closed(module: nn.Module) -> bool:
    """Modules that use the parameters of their children without calling them."""
    return isinstance(module, nn.MultiheadAttention) or parametrize.is_parametrized(module)


def holders(model: nn.Module) -> list[tuple[str, nn.Module, dict[str, nn.Parameter]]]:
    """Modules that use parameters by themselves, with these."""
    found: list[tuple[str, nn.Module, dict[str, nn.Parameter]]] = []
    known: set[int] = set()

    def visit(name: str, module: nn.Module) -> None:
        if id(module) in known:
            return
        known.add(id(module))
        if closed(module):
            found.append((name, module, dict(module.named_parameters(remove_duplicate=False))))
            return
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        for child_name, child in module.named_children():
            if isinstance(child, (nn.ParameterList, nn.ParameterDict)):  # never called
                prefixed = child.named_parameters(child_name, remove_duplicate=False)
                own |= dict(prefixed)
            else:
                visit(f"{name}.{child_name}" if name else child_name, child)
        found.append((name, module, own))

    visit("", model)
    return [(name, module, own) for name, module, own in found if own]
