"""What optimizers keep in their tables and attributes: told apart, copied with what they share, and written back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..optim.twin import Changes, stripped

Optimizer = torch.optim.Optimizer


def attributes(optimizer: Optimizer, twin: Optimizer) -> dict[str, Any]:
    """Copies of what an optimizer holds besides its tables.

    Raises:
        InputError: parameters, or an optimizer of them, are among it: a step of the copy would move those.
    """
    found, memo = {}, {id(optimizer): twin}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in stripped(optimizer).items():
        if name not in ("param_groups", "state"):
            found[name] = copy.deepcopy(value, memo)
            if any(id(p) in memo for p in held):
                raise InputError(
                    f"{type(optimizer).__name__} holds its parameters in .{name} as well, and may step another "
                    "optimizer of them: its steps cannot be skipped; give the optimizer inside, or use search=True."
                )
    return found


def own_numbers(optimizer: Optimizer) -> dict[str, Any]:
    """Attributes that a step may change."""
    kinds = (bool, int, float, Tensor, list, dict)
    fixed = ("param_groups", "state", "defaults")
    return {k: v for k, v in stripped(optimizer).items() if isinstance(v, kinds) and k not in fixed}


def touched(state: Mapping[str, Any]) -> bool:
    """Whether a parameter has been stepped: some optimizers make its state before that."""
    return bool(state) and float(state.get("step", 1)) > 0


def by_entry(value: Any, parameter: Tensor) -> bool:
    """Whether an entry of the state has one number for each of the parameter's."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape


def alike(parameters: Sequence[nn.Parameter], state: Any) -> bool:
    """Whether parameters have states of one kind, equal in all that is not by entry."""
    if len({(p.dtype, p.device) for p in parameters}) > 1:
        return False
    states = [state.get(p, {}) for p in parameters]
    if any(set(other) != set(states[0]) for other in states):
        return False
    for key in states[0] if states else ():
        entries = [other[key] for other in states]
        sized = [by_entry(value, p) for value, p in zip(entries, parameters, strict=True)]
        if all(sized):
            continue
        if any(sized) or not all(same(entries[0], value) for value in entries):
            return False
    return True


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        both = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
        return both and bool((a == b).all())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def owned(entries: Mapping[Any, Any], shared: dict[int, Any] | None = None) -> dict[Any, Any]:
    """A copy of a table without its parameters; what tables with the same ``shared`` have in common stays common."""
    memo = {} if shared is None else shared
    return {key: _copied(value, memo) for key, value in entries.items() if key != "params"}


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """What ``copy.deepcopy`` gives, a good deal faster for plain tensors and numbers."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if type(value) is not Tensor or value.requires_grad:
        return copy.deepcopy(value, memo)
    if id(value) not in memo:
        memo[id(value)] = value.clone()
    return memo[id(value)]


def change(found: Changes, table: dict[Any, Any], key: Any, value: Any, shared: dict[int, Any]) -> None:
    """What makes an entry this value; tensors in place, since others may hold them (a rate, a captured graph)."""
    present = table.get(key)
    if isinstance(value, Tensor) and isinstance(present, Tensor) and present.shape == value.shape:
        if not same(present, value):
            found.writes.append((present, value.detach().clone()))
    elif not same(present, value):
        found.entries.append((table, key, copy.deepcopy(value, shared)))
