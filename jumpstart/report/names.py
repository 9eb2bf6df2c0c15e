"""Names from data: as file names, and as text on a terminal. They may come from a file of unknown origin."""

from __future__ import annotations

import re
from typing import Any

from ..errors import InputError

LONGEST = 80  # characters of a file name


def require_file_name(name: Any, who: str) -> str:
    """The name, if a file can safely be called that.

    Raises:
        InputError: it is anything but letters, digits, '-' and '_'.
    """
    if isinstance(name, str) and re.fullmatch(rf"[A-Za-z0-9_-]{{1,{LONGEST}}}", name):
        return name
    raise InputError(
        f"{who}: name={printable(name)!r} becomes a file name: give 1 to {LONGEST} letters, digits, '-' and '_'."
    )


def file_name(name: str, otherwise: str) -> str:
    """A safe file name that resembles this one; ``otherwise`` where nothing is left of it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name[: 4 * LONGEST]).strip("-")[:LONGEST] or otherwise


def printable(text: Any, most: int = 60) -> str:
    """One line of text without control characters, escape codes or marks that turn the direction of writing."""
    given = text if isinstance(text, str) else str(text)
    shown = given if len(given) <= most else given[: most - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
