"""A progress bar for loops that turn out to be long: silent below a second, and where nobody watches a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

from ..errors import InputError
from .brief import brief

T = TypeVar("T")
DELAY = 1.0  # seconds of work before a bar appears

_flag: ContextVar[bool | None] = ContextVar("jumpstart_progress", default=None)


class _Bar(tqdm):
    monitor_interval = 0  # tqdm's watching thread has no place in a library's inner loops


def track(iterable: Iterable[T], total: int | None = None, label: str = "") -> Iterable[T]:
    """The same items, under a progress bar on stderr once the loop has run for a second.

    Without a terminal (and unless forced, see :func:`shown`) the iterable itself is returned, so that a loop costs
    what it did without.

    Args:
        total: how many items there are, where ``iterable`` has no length.
        label: what the loop does, in front of the bar.
    """
    if not _wanted():
        return iterable
    if isinstance(iterable, Sized) and len(iterable) < 2:  # a bar of one item says nothing
        return iterable
    return _Bar(
        iterable, desc=label or None, total=total, delay=DELAY, leave=False, file=sys.stderr, dynamic_ncols=True
    )


@contextlib.contextmanager
def counter(label: str, total: int | None, flag: bool | None = None) -> Iterator[Callable[[str], None]]:
    """A bar for a loop that steps by itself: call the yielded function once a step, with what to show beside the bar.

    Args:
        total: how many steps there will be, None if nobody knows.
        flag: None where stderr is a terminal, True always, False never.
    """
    with shown(flag):
        wanted = _wanted()
    if not wanted:
        yield lambda text: None
        return
    with _Bar(total=total, desc=label, leave=False, file=sys.stderr, dynamic_ncols=True, mininterval=0.2) as bar:

        def step(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        yield step


@contextlib.contextmanager
def share(label: str, flag: bool | None = None) -> Iterator[Callable[[float, str], None]]:
    """A bar for work whose share is known: call the yielded function with that share, and what to show beside the bar.

    Args:
        flag: as for :func:`counter`.
    """
    with shown(flag):
        wanted = _wanted()
    if not wanted:
        yield lambda share, text: None
        return
    layout = "{desc} {percentage:3.0f}% {bar} {elapsed}<{remaining} {postfix}"
    with _Bar(
        total=1.0, desc=label, leave=False, file=sys.stderr, dynamic_ncols=True, mininterval=0.2, bar_format=layout
    ) as bar:

        def move(share: float, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(share - bar.n)

        yield move


@contextlib.contextmanager
def shown(flag: bool | None) -> Iterator[None]:
    """Progress bars inside: None where stderr is a terminal, True always, False never. Threads start afresh at None.

    Raises:
        InputError: ``flag`` is neither None nor a bool.
    """
    if flag is not None and not isinstance(flag, bool):
        raise InputError(f"progress={brief(flag)}: give True, False, or None to show progress on terminals alone.")
    token = _flag.set(flag)
    try:
        yield
    finally:
        _flag.reset(token)


def _wanted() -> bool:
    flag = _flag.get()
    if flag is False or sys.stderr is None:  # pythonw has no stderr at all
        return False
    if flag:
        return True
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # a stand-in without isatty, or closed
        return False
