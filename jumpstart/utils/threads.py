"""One policy for threads: what the user has set is respected; where nothing is set, one, unless an operation is long.

torch's pool waits for all of its threads at the end of every operation, and spins meanwhile. On a machine that others
use, too, each of these waits lasts until the scheduler has let all of them run: milliseconds, for operations of
microseconds (docs/decisions/0018-guard-and-threads.md). Chosen from counted work, never from the load or the clock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from .containers import processors

SET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_THREAD_LIMIT")
LONG_CALL = 0.02  # seconds on one thread that an operation of the network takes on average, for more threads to pay
LONG_ALGEBRA = 0.25  # the same of a factorization, which waits many times

_many: int | None = None  # what the guard has taken away, for long operations; None where it has taken nothing


def chosen(count: int) -> bool:
    """Whether ``count`` threads are what the user has set, and not what torch takes by itself."""
    return any(os.environ.get(name) for name in SET) or count not in _defaults()


@cache
def _defaults() -> frozenset[int]:
    """What torch takes by itself: processors or, with MKL, cores; with and without affinity."""
    everyone = set(range(os.cpu_count() or 1))
    try:
        mine = set(os.sched_getaffinity(0))  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        mine = everyone
    return frozenset({len(mine), len(everyone), _cores(mine), _cores(everyone)})


def _cores(processors: set[int]) -> int:
    """Processors that share no core."""
    siblings = set()
    for processor in processors:
        path = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text())
        except OSError:
            siblings.add(str(processor))
    return len(siblings)


def narrow() -> int | None:
    """Down to one thread where the user has set nothing; returns what to :func:`restore`, None where nothing is."""
    global _many
    count = torch.get_num_threads()
    if count == 1 or chosen(count):
        return None
    _many = max(1, min(count, processors()))
    torch.set_num_threads(1)
    return count


def restore(count: int) -> None:
    """Back to what :func:`narrow` found."""
    global _many
    _many = None
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def widen() -> None:
    """All threads that there may be, until the guard ends: for a network whose operations are long."""
    if _many is not None and torch.get_num_threads() != _many:
        torch.set_num_threads(_many)


@contextlib.contextmanager
def many(seconds: float) -> Iterator[None]:
    """All threads that there may be inside, if one thread would take as many seconds as pay for them."""
    before = torch.get_num_threads()
    if _many is None or before == _many or seconds < LONG_ALGEBRA:
        yield
        return
    torch.set_num_threads(_many)
    try:
        yield
    finally:
        torch.set_num_threads(before)
