"""The ways of the wrapper: skipping, and searching; which of them was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import InputError
from ..jumping.settings import SEARCHES
from ..objectives.objective import Objective
from ..utils.brief import brief
from .actions import Action
from .proposals import PROPOSALS, Proposal
from .proposals.proposing import Proposing
from .schedule import Schedule
from .searching import Searching
from .several import Several
from .skipping import Skipping

WAYS = {Searching.name: "searches (search=True)", Skipping.name: "skips (search=False)"}
ALONE = (Skipping.name,)  # the default: no other action
KNOWN = (Skipping.name, *PROPOSALS)


def way(name: Any) -> str:
    """What a wrapper does whose action has this name, for people."""
    parts = name.split("+") if isinstance(name, str) else []
    if parts and all(part in KNOWN for part in parts) and parts != [Skipping.name]:
        return f"has actions={tuple(parts)}"
    return WAYS.get(name, f"is of the mode {brief(name)}")


def chosen(
    optimizer: torch.optim.Optimizer,
    objective: Objective | Callable[[], Objective],
    at: Schedule,
    skip: int | str,
    search: bool | str,
    actions: Sequence[Any],
    options: dict[str, Any],
) -> Action:
    """What was asked for: a search, a skip, several actions; what belongs to another way is refused by name.

    Raises:
        InputError: as said.
    """
    if not isinstance(search, bool) and search not in SEARCHES:
        raise InputError(f"search={brief(search)}: give True, False, or one of {SEARCHES}.")
    if actions != ALONE and actions != list(ALONE):
        return _several(optimizer, objective, at, skip, search, actions, options)
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


def _several(
    optimizer: torch.optim.Optimizer,
    objective: Objective | Callable[[], Objective],
    at: Schedule,
    skip: int | str,
    search: bool | str,
    actions: Sequence[Any],
    options: dict[str, Any],
) -> Action:
    """Actions by name, or ready-made."""
    if search:
        raise InputError(f"actions={brief(actions)} beside search={search!r}: a search is alone; give one of them.")
    names = _names(actions)
    skips = Skipping.name in names
    if not skips and skip != "auto":
        raise InputError(f"skip={brief(skip)} does nothing without 'skip' among actions={brief(actions)}.")
    known = Proposing.OPTIONS | (Skipping.OPTIONS if skips else frozenset())
    if unknown := sorted(set(options) - known):
        raise InputError(f"JumpOptimizer: {unknown} is no option of actions={names}; there are {sorted(known)}.")
    shared = {name: value for name, value in options.items() if name in Proposing.OPTIONS}
    made: list[Action] = []
    for one in actions:
        if one == Skipping.name:
            made.append(Skipping(optimizer, objective, skip=skip, at=at, **options))
        else:
            proposal = one if isinstance(one, Proposal) else PROPOSALS[str(one)]()
            made.append(Proposing(optimizer, objective, proposal, at, **shared))
    return made[0] if len(made) == 1 else Several(made)


def _names(actions: Any) -> list[str]:
    """Of actions that are known, each once.

    Raises:
        InputError: quotes others.
    """
    given = list(actions) if isinstance(actions, (list, tuple)) else []
    if not given or any(not isinstance(one, Proposal) and one not in KNOWN for one in given):
        raise InputError(f"actions={brief(actions)}: give some of {KNOWN}, or actions of jumpstart.training.proposals.")
    names = [one.name if isinstance(one, Proposal) else one for one in given]
    if len(set(names)) < len(names):
        raise InputError(f"actions={brief(actions)}: each once.")
    return names
