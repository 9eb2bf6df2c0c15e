"""Packages that only comparisons need."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from jumpstart.comparison.contenders import Contender
from jumpstart.errors import JumpstartError


def installed(made: Mapping[str, Callable[[], Contender]]) -> dict[str, Contender]:
    """Those contenders whose packages are here; the others are named."""
    found = {}
    for name, make in made.items():
        try:
            found[name] = make()
        except JumpstartError as error:
            print(f"{name} is left out: {error}")
    return found


def peer(name: str, requirement: str) -> Any:
    """A package that only comparisons need.

    Raises:
        JumpstartError: it does not import, with what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise JumpstartError(
            f"this rival needs pip install --no-deps {requirement} and what it imports, see "
            f"experiments/pinn/rivals/__init__.py (it said: {error})."
        ) from error
