"""Point 3: peak memory of the kernel and the training outputs at one horizon, each in a fresh process.

neural-tangents is watched every 50 ms and killed at a limit, which its row then says.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..common import Arguments
from .machine import GIB, in_fresh_process
from .problem import Row, Size, make, row
from .rival import Gone, Rival, interpreter

LIMIT = 19 * GIB


def run(settings: Arguments) -> list[Row]:
    size = Size(16, 12, 2) if settings.quick else Size(512, 512, 10)
    shape: dict[str, Any] = {"width": size.width, "samples": size.samples, "outputs": size.outputs}
    found = {"jumpstart": in_fresh_process("endpoint", **shape)}
    python = interpreter()
    for how in ("structured", "default") if python is not None else ():
        assert python is not None
        found[how] = theirs(python, size, how)
    rows = []
    for name, spent in found.items():
        killed = bool(spent.get("killed"))
        what = f"{size}: GiB at peak, {name}" + (" (at least; killed there)" if killed else "")
        more: dict[str, Any] = {"contender": name, "before_gib": spent["before"] / GIB, "killed": killed, **shape}
        rows.append(row(3, what, spent["peak"] / GIB, seconds=spent["seconds"], **more))
        if name != "jumpstart":
            at_least = " (at least)" if killed else ""
            limit = 10.0 if name == "default" and not settings.quick else None
            ratio = spent["peak"] / found["jumpstart"]["peak"]
            rows.append(row(3, f"{size}: peak, {name} / jumpstart{at_least}", ratio, limit, True, **shape))
            # Above what each process held before: torch alone is larger than jax.
            grown = [max(1.0, run["peak"] - run["before"]) for run in (spent, found["jumpstart"])]
            rows.append(row(3, f"{size}: peak above start, {name} / jumpstart{at_least}", grown[0] / grown[1], **shape))
    return rows


def theirs(python: str, size: Size, how: str) -> dict[str, Any]:
    """neural-tangents on the same problem, killed at the limit."""
    with tempfile.TemporaryDirectory() as folder, Rival(python, LIMIT) as rival:
        make(size, 0).export(Path(folder) / "in.npz")
        rival.ask("load", path=str(Path(folder) / "in.npz"))
        before, seconds = rival.ask("peak")["bytes"], None
        try:
            compiled = rival.ask("compile", how=how)["seconds"]
            kernel = rival.ask("kernel", how=how)["seconds"]
            seconds = compiled + kernel + rival.ask("solve")["seconds"]
            return {"before": before, "peak": rival.ask("peak")["bytes"], "seconds": seconds}
        except Gone:
            if not rival.killed:
                raise
            return {"before": before, "peak": rival.largest, "seconds": seconds, "killed": True}
