"""The one way in: whatever is borrowed of the model, the thread and the process is given back whole at the end.

Evaluating a network as a function swaps its parameters out, switches attention kernels and modes, and stacks torch's
transforms up, all of it in Python, where an interrupt may come between any two steps, and much of it for the whole
process. So whoever enters the library passes the guard: the outermost entry remembers, the last thing done is to put
everything back, with signals held (docs/decisions/0018-guard-and-threads.md). One lock for all threads: torch's
forward mode has one level for the whole process, so that two threads inside would spoil each other's derivatives.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from .borrowed import Contents, Process, contents, generators, put_back, rewind
from .interrupts import uninterrupted, unwatch, watch

P = ParamSpec("P")
R = TypeVar("R")

_OWN = (*torch.__path__, str(Path(__file__).resolve().parent.parent), contextlib.__file__)
WAIT = 0.02  # seconds between looks for an interrupt, while another thread is inside

_lock = threading.RLock()
_current: Entry | None = None  # the innermost entry of the thread that holds the lock


def guarded(about: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that evaluates a network: it takes the guard, unless it is called from inside.

    Args:
        about: the function's own arguments -> the module that it is about; anything else stands for none.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def entered(*args: P.args, **kwargs: P.kwargs) -> R:
            model = about(*args, **kwargs)
            if _inside(model):
                return function(*args, **kwargs)
            entry = Entry(model)
            try:
                entry.begin()
                return function(*args, **kwargs)
            except BaseException as error:
                entry.error = error
                raise
            finally:
                try:
                    entry.end()
                except BaseException:
                    entry.end()  # a second interrupt on the way in; nothing is done twice
                    raise
                lost, entry.error = entry.lost(), None
                entry.interrupts.clear()  # their frames hold the entry
                if lost is not None:
                    try:
                        raise lost
                    finally:
                        del lost

        return entered

    return decorate


def drawing() -> None:
    """Say that random numbers are drawn from torch's global generators: they go back to where they were found."""
    if _current is not None and _current.thread == threading.get_ident():
        _current.outermost.drew = True


def inside() -> bool:
    """Whether this thread evaluates a network for the library now, and not for its user."""
    return _current is not None and _current.thread == threading.get_ident()


def _inside(model: Any) -> bool:
    entry = _current
    return (
        entry is not None
        and entry.thread == threading.get_ident()
        and (not isinstance(model, nn.Module) or id(model) in entry.known)
    )


class Entry:
    """One way in and out again; an inner one for another model remembers that model alone."""

    def __init__(self, model: Any) -> None:
        self.model = model if isinstance(model, nn.Module) else None
        self.thread = threading.get_ident()
        self.locked, self.over, self.drew = False, False, False
        self.error: BaseException | None = None  # that the function ended with
        self.interrupts: list[BaseException] = []  # that signal handlers raised meanwhile
        self.outer: Entry | None = None
        self._outermost: Entry | None = None  # itself: a circle would keep the model until the collector comes
        self.known: set[int] = set()
        self.contents: list[Contents] = []
        self.generators: list[tuple[torch.Generator, Tensor]] = []
        self.process: Process | None = None

    @property
    def outermost(self) -> Entry:
        """The one that this one is inside of, and no other."""
        return self if self._outermost is None else self._outermost

    def begin(self) -> None:
        """Take the lock, remember, and switch."""
        global _current
        while not self.locked:
            with uninterrupted():
                self.locked = _lock.acquire(timeout=WAIT)
        with uninterrupted():
            self.outer = _current
            self._outermost = None if _current is None else _current.outermost
            self.known = set() if _current is None else set(_current.known)
            if self.model is not None:
                self.known.add(id(self.model))
                self.contents = contents(self.model)
                self.generators = generators(self.model.parameters())
            _current = self
            if self.outer is None:
                self.process = Process()
                self.process.switch()
                watch(self.interrupts)

    def end(self) -> None:
        """Put everything back, whatever has happened, and release the lock."""
        global _current
        with uninterrupted():
            if self.over or not self.locked:
                return
            troubles: list[Exception] = []
            steps: list[Callable[[], Any]] = []
            if self.process is not None:
                steps += self.process.steps([*self.interrupts, *([] if self.error is None else [self.error])])
            steps += [functools.partial(put_back, *kept) for kept in self.contents]
            if self.outermost.drew or threading.active_count() == 1:  # else it may be another thread's draws
                steps += [functools.partial(rewind, *kept) for kept in self.generators]
            for step in steps:
                try:
                    step()
                except Exception as error:  # the others are still to be done; raised below
                    troubles.append(error)
            unwatch(self.interrupts)
            if _current is self:
                _current = self.outer
            self.over = True
            _lock.release()
            if troubles:
                raise troubles[0]

    def lost(self) -> BaseException | None:
        """An interrupt that torch's clean-up has replaced or a fallback swallowed; none that the user's code met."""
        for interrupt in reversed(self.interrupts):
            if interrupt is self.error:
                return None
            trace = interrupt.__traceback__
            if trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OWN):
                return interrupt
        return None


def _after_fork() -> None:
    """In a child process the thread that held the lock may not exist."""
    global _lock, _current
    entry = _current
    if entry is not None and entry.thread == threading.get_ident():
        return
    _lock, _current = threading.RLock(), None
    if entry is not None and entry.outermost.process is not None:
        entry.outermost.process.switches_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
