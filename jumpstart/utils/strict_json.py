"""JSON that any parser reads: NaN and infinity, which JSON does not have, as ``{"not finite": "nan"}``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

NOT_FINITE = "not finite"  # the key that stands for a number that JSON has no word for


def dumps(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """As text.

    Args:
        default: what to write for that which JSON does not know, as in ``json.dumps``; keys become text with it.

    Raises:
        TypeError: JSON does not know something, and there is no ``default``.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False, default=default)
    except (ValueError, TypeError):  # a number that is not finite, a key that is no text: slower, and rarely needed
        return json.dumps(_spelt(value, default), indent=indent, allow_nan=False)


def loads(text: str | bytes, strict: bool = True) -> Any:
    """What :func:`dumps` wrote, the same numbers.

    Args:
        strict: refuse the words NaN and Infinity, which Python's own ``json`` writes.

    Raises:
        ValueError: this is no JSON; RecursionError: its tables are too deep.
    """
    return json.loads(text, object_hook=_unspelt, parse_constant=_refused if strict else None)


def _spelt(value: Any, default: Callable[[Any], Any] | None) -> Any:
    if isinstance(value, Mapping):
        named = {key if default is None or isinstance(key, str) else str(key): item for key, item in value.items()}
        return {key: _spelt(item, default) for key, item in named.items()}
    if isinstance(value, (list, tuple)):
        return [_spelt(item, default) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else {NOT_FINITE: repr(float(value))}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if default is None:
        raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
    return _spelt(default(value), default)


def _unspelt(table: dict[str, Any]) -> Any:
    if table.keys() != {NOT_FINITE}:
        return table
    value = float(table[NOT_FINITE])
    if math.isfinite(value):
        raise ValueError(f"{value} is finite")
    return value


def _refused(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
