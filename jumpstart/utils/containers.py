"""What this process may use of the machine: processors by affinity and a container's quota, memory by its limit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def processors() -> int:
    """How many processors may run this process at a time, at least 1: a quota of 1.5 is two."""
    try:
        allowed = len(os.sched_getaffinity(0))  # type: ignore[attr-defined]
    except (AttributeError, OSError):  # not on macOS or Windows
        allowed = os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, quota())))


@cache
def quota() -> float:
    """Processors by the container's CPU quota, read once; ∞ without one."""
    found = math.inf
    for folder in _folders("cpu"):
        words = _read(folder / "cpu.max").split()  # version 2: quota and period, or "max" and period
        if len(words) == 2:
            limit, period = _number(words[0]), _number(words[1])
        else:
            limit, period = (_number(_read(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if limit > 0 and 0 < period < math.inf:
            found = min(found, limit / period)
    return found


def free_memory() -> float:
    """Bytes up to the container's memory limit, what the kernel would drop from its cache included; ∞ without one."""
    found = math.inf
    for folder in _folders("memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = _number(_read(folder / limit)), _number(_read(folder / usage))
            if most < 2.0**60 and used < math.inf:  # version 1 writes a huge number where there is no limit
                found = min(found, max(0.0, most - used + _reclaimable(folder)))
    return found


def _reclaimable(folder: Path) -> float:
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return _number(value)
    return 0.0


def _folders(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from its own to the outermost, versions 2 and 1."""
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        for root in [ROOT] if not controllers else [ROOT / controller, ROOT / controllers]:
            # Inside a container the path may be the host's, which is not mounted: then the root is the container's.
            group = Path(os.path.normpath(f"/{path}"))
            for inner in (group, *group.parents):
                yield root / str(inner).lstrip("/")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _number(text: str) -> float:
    """Not a number (as "max" is none) is no limit."""
    try:
        return float(text)
    except ValueError:
        return math.inf
