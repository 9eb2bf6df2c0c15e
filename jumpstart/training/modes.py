"""The ways of the wrapper: skipping, and searching; which of them was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import InputError
from ..jumping.settings import SEARCHES
from ..objectives.objective import Objective
from ..utils.brief import brief
from .actions import Action
from .schedule import Schedule
from .searching import Searching
from .skipping import Skipping

WAYS = {Searching.name: "searches (search=True)", Skipping.name: "skips (search=False)"}


def chosen(
    optimizer: torch.optim.Optimizer,
    objective: Objective | Callable[[], Objective],
    at: Schedule,
    skip: int | str,
    search: bool | str,
    options: dict[str, Any],
) -> Action:
    """The one of the two that was asked for; what belongs to the other is refused by name.

    Raises:
        InputError: as said.
    """
    if not isinstance(search, bool) and search not in SEARCHES:
        raise InputError(f"search={brief(search)}: give True, False, or one of {SEARCHES}.")
    kind, other = (Searching, Skipping) if search else (Skipping, Searching)
    if search and (isinstance(skip, bool) or skip != "auto"):
        raise InputError(f"skip={brief(skip)} is for skipping, search={search!r} does not: give one of them.")
    if astray := sorted(set(options) & (other.OPTIONS - kind.OPTIONS)):
        remedy = "leave search= out" if search else "give search=True as well, or leave it out"
        names = ", ".join(f"{name}=" for name in astray)
        raise InputError(f"JumpOptimizer: {names} is for {'skipping' if search else 'search=True'}: {remedy}.")
    if unknown := sorted(set(options) - kind.OPTIONS):
        raise InputError(f"JumpOptimizer: {unknown} is no option of its jumps; there are {sorted(kind.OPTIONS)}.")
    if not search:
        return Skipping(optimizer, objective, skip=skip, at=at, **options)
    return Searching(optimizer, objective, at, **({"search": search} if isinstance(search, str) else {}), **options)
