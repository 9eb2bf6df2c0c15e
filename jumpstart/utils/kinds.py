"""What a thing is, by name: its library, or a part of torch, need not be there."""

from __future__ import annotations

from typing import Any


def is_named(thing: Any, *names: str) -> bool:
    """Whether a class of one of these names is the thing's, or a parent of it."""
    return any(base.__name__ in names for base in type(thing).__mro__)
