"""Take out of a traced graph what is known to vanish: a Taylor polynomial is asked at its own centre."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten: Any = torch.ops.aten
_SAME = {aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.clone.default}
_LINEAR = {  # zero where their first argument is
    *_SAME, aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default, aten.select.int,
    aten.slice.Tensor, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.transpose.int,
    aten.permute.default, aten._to_copy.default, aten.neg.default, aten.sum.dim_IntList, aten.diagonal.default,
    aten.t.default, aten.div.Tensor,
}  # fmt: skip


def simplify(module: fx.GraphModule, points: int, centres: dict[int, bool]) -> fx.GraphModule:
    """Fold zeros and repeated operations away.

    Args:
        module: from ``make_fx``. points: which placeholder holds the points.
        centres: which placeholders hold places, and whether these are the points themselves.
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    root = {inputs[at]: inputs[points] for at, own in centres.items() if own}
    zero: set[Any] = set()
    # Where something is written in place, operations that look alike may see different numbers.
    pure = not any(_writes(node.target) for node in module.graph.nodes)
    seen: dict[Any, fx.Node] = {}

    def source(node: Any) -> Any:
        while isinstance(node, fx.Node) and node.target in _SAME:
            node = node.args[0]
        return root.get(node, node) if isinstance(node, fx.Node) else node

    for node in module.graph.nodes:
        if node.op != "call_function" or (node.kwargs and node.target in (aten.add.Tensor, aten.sub.Tensor)):
            continue
        if _vanishes(node.target, node.args, zero, source):
            zero.add(node)
            continue
        same = _without_zero(node, zero)
        if same is None and pure:
            same = _seen(node, seen)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _without_zero(node: fx.Node, zero: set[Any]) -> fx.Node | None:
    """What a sum or difference with a zero is, where that has its shape and dtype."""
    args: Any = node.args
    same: Any = None
    if node.target is aten.add.Tensor:
        same = args[1] if _in(args[0], zero) else args[0] if _in(args[1], zero) else None
    elif node.target is aten.sub.Tensor and _in(args[1], zero):
        same = args[0]
    return same if same is not None and _alike(same, node) else None


def _seen(node: fx.Node, seen: dict[Any, fx.Node]) -> fx.Node | None:
    """The first operation like this one on the same arguments; None where an argument cannot be compared."""
    try:
        return seen.setdefault((node.target, _key(node.args), _key(node.kwargs)), node)
    except TypeError:
        return None


def _writes(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _vanishes(target: Any, args: Any, zero: set[Any], source: Any) -> bool:
    if target is aten.sub.Tensor and isinstance(args[0], fx.Node) and source(args[0]) is source(args[1]):
        return True
    if target is aten.mul.Tensor:
        return _in(args[0], zero) or _in(args[1], zero)
    if target in (aten.add.Tensor, aten.sub.Tensor):
        return _in(args[0], zero) and _in(args[1], zero)
    return target in _LINEAR and _in(args[0], zero)


def _in(node: Any, zero: set[Any]) -> bool:
    return isinstance(node, fx.Node) and node in zero


def _alike(a: Any, b: fx.Node) -> bool:
    """Same shape and dtype, from what was seen while tracing."""
    left, right = getattr(a, "meta", {}).get("val"), b.meta.get("val")
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return False
    return left.shape == right.shape and left.dtype == right.dtype


def _key(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((name, _key(item)) for name, item in value.items()))
    hash(value)
    return type(value), value
