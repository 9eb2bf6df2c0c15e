"""A state of plain values as JSON and tensors: what a run needs to go on, for a ``container``.

A state has tensors, None, booleans, numbers, text, and lists of rows of these. Rows are kept by columns, numbers as
tensors: a history of ten thousand rows is written every second, and as text it would take a tenth of that time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .container import Spec

PLAIN = (type(None), bool, int, float, str)
TENSOR = "tensor"  # the key of what stands for a tensor
ROWS = {"keys", "at", "columns"}  # the keys of what stands for rows with the same keys
NUMBERS = {float: torch.float64, int: torch.int64}


def packed(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A state as what stands for it in JSON, and its tensors by name.

    Raises:
        TypeError: names a value that cannot be kept.
    """
    tensors: dict[str, Tensor] = {}
    told = {}
    for name, value in state.items():
        where = f"state.{name}"
        told[name] = _groups(where, value, tensors) if isinstance(value, list) else _item(where, value, tensors)
    return told, tensors


def checked(told: Mapping[str, Any], specs: Mapping[str, Spec] | Mapping[str, Tensor]) -> set[str]:
    """The names of the columns of numbers, which may hold NaN and infinity; ``specs`` are of all tensors there are.

    Raises:
        KeyError, TypeError, ValueError: ``told`` is nothing that :func:`packed` makes, or not with these tensors.
    """
    named, columns = set(), set()
    for value in told.values():
        for name, length in _tensors(value):
            named.add(name)
            if length is not None:
                columns.add(name)
                if specs[name].shape != (length,) or specs[name].dtype not in NUMBERS.values():
                    raise ValueError(f"{name} is no column of {length} numbers")
    if named != specs.keys():
        raise ValueError(f"the state names {sorted(named)[:9]}, the tensors are {sorted(specs)[:9]}")
    return columns


def unpacked(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state that was packed, from what :func:`checked` has found to be one."""
    return {
        name: _rows(value, tensors) if isinstance(value, list) else _value(value, tensors)
        for name, value in told.items()
    }


# -- writing -----------------------------------------------------------------------------------------------------


def _groups(name: str, rows: Sequence[Any], tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Rows by their keys, each group with the rows' places and a column for each key."""
    places: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise TypeError(f"{name}.{i} is a {type(row).__name__}, not a row of named values.")
        places.setdefault(tuple(row), []).append(i)
    found = []
    for group, (keys, at) in enumerate(places.items()):
        if not all(isinstance(key, str) for key in keys):
            raise TypeError(f"{name}.{at[0]} is not a row of named values: its keys are {list(keys)[:9]}.")
        columns = [_column(f"{name}.{group}.{key}", [rows[i][key] for i in at], tensors) for key in keys]
        found.append({"keys": list(keys), "at": at, "columns": columns})
    return found


def _column(name: str, values: list[Any], tensors: dict[str, Tensor]) -> Any:
    kinds = set(map(type, values))
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is float or (kind is int and max(values) < 2**63 and min(values) >= -(2**63)):
        tensors[name] = torch.tensor(values, dtype=NUMBERS[kind], device="cpu")
        return {TENSOR: name}
    return [_item(f"{name}.{i}", value, tensors) for i, value in enumerate(values)]


def _item(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {TENSOR: name}
    if not isinstance(value, PLAIN):
        raise TypeError(f"{name} is a {type(value).__name__}; tensors, None, booleans, numbers and text can be kept.")
    return value


# -- reading -----------------------------------------------------------------------------------------------------


def _tensors(told: Any) -> Iterator[tuple[str, int | None]]:
    """Names of the tensors in a field, with their length where they are columns of numbers."""
    if not isinstance(told, list):
        yield from _named(told)
        return
    places: list[int] = []
    for group in told:
        if group.keys() != ROWS or not all(isinstance(key, str) for key in group["keys"]):
            raise ValueError(f"rows of {sorted(group)[:9]}")
        at, columns = group["at"], group["columns"]
        places += at
        if len(columns) != len(set(group["keys"])):
            raise ValueError(f"{len(columns)} columns for {group['keys'][:9]}")
        for column in columns:
            if isinstance(column, dict):
                yield from ((name, len(at)) for name, _ in _named(column))
            elif len(column) != len(at):
                raise ValueError(f"a column of {len(column)} values for {len(at)} rows")
            else:
                for value in column:
                    yield from _named(value)
    if sorted(places) != list(range(len(places))):
        raise ValueError("rows twice, or missing")


def _named(told: Any) -> Iterator[tuple[str, None]]:
    if isinstance(told, dict):
        if told.keys() != {TENSOR} or not isinstance(told[TENSOR], str):
            raise ValueError(f"a table of {sorted(told)[:9]}")
        yield told[TENSOR], None
    elif not isinstance(told, PLAIN):
        raise TypeError(f"a {type(told).__name__} where a value should be")


def _rows(told: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{} for group in told for _ in group["at"]]
    for group in told:
        rows = [found[i] for i in group["at"]]
        for key, column in zip(group["keys"], group["columns"], strict=True):
            given = isinstance(column, dict)
            values = tensors[column[TENSOR]].tolist() if given else [_value(item, tensors) for item in column]
            for row, value in zip(rows, values, strict=True):
                row[key] = value
    return found


def _value(told: Any, tensors: Mapping[str, Tensor]) -> Any:
    return tensors[told[TENSOR]] if isinstance(told, dict) else told
