"""Fast ways that were not taken: the reason is kept, so that a slow run can say why it is slow.

Two kinds are told apart. *Expected*: an unknown layer, a model or a residual that cannot be run with stand-ins; the
general way is right there, and the reason is for whoever asks. *Unexpected*: a fault of the library, or of torch's
private parts that it leans on; answers stay exact, but speed is lost without need, so it is also warned of.
"""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parent.parent
LENGTH = 200  # characters of a message that are kept
_OWNER = "_jumpstart_owner"  # set on an exception where it first leaves code that is known to be somebody's


class NotFollowed(Exception):
    """A fast way does not apply to what it was given; the message is the reason, for people."""


@dataclass(frozen=True)
class Fallback:
    """Why a fast way was left; ``unexpected`` where that looks like a fault and not like a limit."""

    reason: str
    unexpected: bool = False

    def warn(self, what: str) -> None:
        """Tell that ``what`` is slower than it could be: a RuntimeWarning, once a text by Python's own filter."""
        warnings.warn(
            f"{what}: a fast way failed ({self.reason}). Answers stay exact by the general way, which is slower; "
            "please report this. Objective.notes() repeats it.",
            RuntimeWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def theirs(doing: str) -> Iterator[None]:
    """Code of the user's runs inside: what it raises is a limit of the fast way, said in the words of ``doing``."""
    try:
        yield
    except Exception as error:
        _mark(error, doing)
        raise


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Code of the library's that the user's code calls: what it raises is ours, although it passes through theirs."""
    try:
        yield
    except Exception as error:
        _mark(error, None)
        raise


def _mark(error: Exception, owner: str | None) -> None:
    if not hasattr(error, _OWNER):  # the innermost owner counts
        setattr(error, _OWNER, owner)


def fallback(error: Exception) -> Fallback:
    """What an exception that ended a fast way says: expected from ``NotFollowed`` or the user's code."""
    if isinstance(error, NotFollowed):
        return Fallback(str(error))
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):  # a limit of the machine, and no fault
        return Fallback(f"memory ran out ({described(error)})")
    doing: str | None = getattr(error, _OWNER, None)
    if doing is not None:
        return Fallback(f"{doing} ({described(error)})")
    return Fallback(f"unexpected {described(error)}{_where(error)}", unexpected=True)


def described(error: BaseException) -> str:
    """Type and first line of an exception."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _where(error: BaseException) -> str:
    """The library's own line that it happened in or below, or else the innermost one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)]
    frame = next(iter([*own[::-1], *frames[::-1]]), None)
    return "" if frame is None else f" at {Path(frame.filename).name}:{frame.lineno}"
