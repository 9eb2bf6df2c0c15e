"""Code that an interrupt comes before or after, but never into the middle of.

Signals, Ctrl-C among them, reach Python as exceptions that a handler raises between any two instructions of the main
thread. Blocking them in the kernel is not enough, since a native thread may be given the process's signal; so it is
Python's own handlers that are exchanged for one that takes notes.
"""

from __future__ import annotations

import functools
import signal
import threading
from typing import Any

try:  # without the wrappers that make an enum of every answer: all signals are looked at in 2 µs, not 35
    from _signal import getsignal as _get  # pyright: ignore[reportMissingImports]
    from _signal import signal as _set  # pyright: ignore[reportMissingImports]
except ImportError:  # another Python than CPython
    from signal import getsignal as _get
    from signal import signal as _set

_FIXED = {getattr(signal, name, None) for name in ("SIGKILL", "SIGSTOP")}  # nobody handles these
_SIGNALS = tuple(sorted(int(number) for number in signal.valid_signals() - _FIXED))

_depth = 0  # of nested uninterrupted(); the main thread's alone
_held: dict[int, Any] = {}  # signal -> the handler that waits
_late: dict[int, Any] = {}  # signal that came meanwhile -> the frame it came in


class uninterrupted:
    """Hold back whatever signal handlers would raise, until the block is over; then let them raise.

    For a few assignments that belong together: compute first, then

    >>> state = {}
    >>> with uninterrupted():
    ...     state["weights"] = 1
    ...     state["moments"] = 2

    May be nested; costs a few microseconds. Python runs handlers in the main thread alone, so that in others there is
    nothing to do. The block should be short: Ctrl-C waits for its end.
    """

    def __init__(self) -> None:
        self.entered = False

    def __enter__(self) -> None:
        global _depth
        if threading.get_ident() != threading.main_thread().ident:
            return
        _depth, self.entered = _depth + 1, True
        if _depth == 1:
            try:
                _hold()
            except BaseException:  # the handler of a signal that was not held yet has raised
                self.__exit__()
                raise

    def __exit__(self, *_: object) -> None:
        global _depth
        if not self.entered:
            return
        _depth, self.entered = _depth - 1, False
        if not _depth:
            try:
                _release()
            finally:
                _release()  # what the first was kept from, by a handler that was back already
                _deliver()


def watch(seen: list[BaseException]) -> None:
    """From the end of the present block on, whatever a handler raises is noted in ``seen`` as well.

    Torch's clean-up may raise an error of its own over an interrupt, and a fallback may swallow that: whoever has
    begun to watch can tell (:mod:`jumpstart.utils.guard`).
    """
    if threading.get_ident() == threading.main_thread().ident:
        for number, handler in _held.items():
            _held[number] = functools.partial(_note, seen, handler)


def unwatch(seen: list[BaseException]) -> None:
    """The end of :func:`watch`; inside a block, too."""
    if threading.get_ident() == threading.main_thread().ident:
        for number, handler in _held.items():
            if isinstance(handler, functools.partial) and handler.func is _note and handler.args[0] is seen:
                _held[number] = handler.args[1]


def _note(seen: list[BaseException], handler: Any, number: int, frame: Any) -> None:
    try:
        handler(number, frame)
    except BaseException as error:
        seen.append(error)
        raise


def _hold() -> None:
    for number in _SIGNALS:
        handler = _get(number)
        if callable(handler) and handler is not _collect:
            _held[number] = handler
            _set(number, _collect)


def _release() -> None:
    for number in list(_held):
        if _get(number) is _collect:  # the block may have set another itself
            _set(number, _held[number])
        del _held[number]


def _deliver() -> None:
    if not _late:
        return
    number = next(iter(_late))
    frame, handler = _late.pop(number), _get(number)
    try:
        if callable(handler):
            handler(number, frame)
    finally:
        _deliver()


def _collect(number: int, frame: Any) -> None:
    if _depth or number not in _held:
        _late[number] = frame
        return
    # Left in place by a release that was interrupted: no longer.
    handler = _held.pop(number)
    _set(number, handler)
    handler(number, frame)
