"""This process as a measuring device: one core, seconds on the clock and on the processor, peak memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
GIB = 2.0**30


def one_core() -> None:
    """Compute on one thread, and stay on one core where the system allows it; child processes inherit that."""
    torch.set_num_threads(1)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def timed(f: Callable[[], Any]) -> tuple[Any, float, float]:
    """f(), the seconds that it took, and the seconds that all threads of this process computed."""
    cpu, begun = time.process_time(), time.perf_counter()
    answer = f()
    return answer, time.perf_counter() - begun, time.process_time() - cpu


def peak_bytes() -> int:
    """The most memory that this process ever held.

    Linux keeps that figure for the program that runs (VmHWM); ``ru_maxrss`` also remembers the process that forked it.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes(pid: int) -> int:
    """What a process holds at present; zero when it is gone or the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def in_fresh_process(kind: str, **settings: Any) -> dict[str, Any]:
    """One measurement of ``child.KINDS`` in a process of its own."""
    command = [sys.executable, "-m", "experiments.endpoint.child", kind, json.dumps(settings)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{kind} with {settings} ended with code {run.returncode}; what it said is above.")
    return json.loads(run.stdout.splitlines()[-1])


def median(values: list[float]) -> float:
    return float(np.median(values))


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and range as flat columns."""
    return {"median": median(seconds), "min": min(seconds), "max": max(seconds)}


def slope(sizes: list[float], values: list[float]) -> float:
    """Of a straight line through the points in log-log."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
