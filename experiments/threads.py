"""Jumps on a busy machine: seconds a jump with 1 thread, 2 and nothing set; idle, beside others, in a container.

python -m experiments.threads [--quick] [--seeds N] [--out DIR]

Each cell is a fresh process that makes a fixed number of jumps on two problems. Nobody else should use the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import jumpstart as js
from jumpstart.demo import poisson
from jumpstart.report import records
from jumpstart.report.records import Row
from jumpstart.utils import containers, threads

from .common import arguments, spread

JUMPS, WARM = 10, 2  # timed ones, after those that find the first horizon
THREADS = ("1", "2", "unset")
STATES = ("idle", "one spinning", "two spinning", "one processor", "quota of one")
PROBLEMS = ("Poisson PINN", "cross-entropy net")
WAIT = 600.0  # seconds for a cell


def jumpers() -> dict[str, js.Jumper]:
    """A Poisson PINN in float64, and a small classifier in float32."""
    torch.manual_seed(0)
    x, y = torch.randn(256, 20), torch.randint(0, 5, (256,))
    net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5))
    made = poisson.objective(poisson.network(0)), js.supervised(net, x, y, "cross_entropy")
    return {name: js.Jumper(objective) for name, objective in zip(PROBLEMS, made, strict=True)}


def child(asked: str, count: int) -> None:
    """In a process of its own: print the seconds a jump of each problem, and the threads before and after."""
    if asked != "unset":
        torch.set_num_threads(int(asked))
    before, found = torch.get_num_threads(), {}
    for name, jumper in jumpers().items():
        for _ in range(WARM):
            jumper.jump()
        begun = time.perf_counter()
        for _ in range(count):
            jumper.jump()
        found[name] = (time.perf_counter() - begun) / count
    print(json.dumps({"seconds": found, "threads": before, "kept": before == torch.get_num_threads()}))


def measure(states: Sequence[str], asked: Sequence[str], count: int, repeats: int) -> tuple[list[Row], list[str]]:
    """A row a state, setting, repeat and problem; and the states that this machine does not permit."""
    rows: list[Row] = []
    refused: list[str] = []
    for state in states:
        with surroundings(state) as prefix:
            if prefix is None:
                refused.append(state)
                continue
            for repeat in range(repeats):
                for threads_asked in asked:  # interleaved, so that a slow spell hits all alike
                    told = _run(prefix, threads_asked, count)
                    rows += [
                        {
                            "state": state, "threads": threads_asked, "repeat": repeat, "problem": problem,
                            "seconds": seconds, "threads taken": told["threads"], "kept": told["kept"],
                        }
                        for problem, seconds in told["seconds"].items()
                    ]  # fmt: skip
    return rows, refused


def _run(prefix: Sequence[str], asked: str, count: int) -> dict[str, Any]:
    bare = {name: value for name, value in os.environ.items() if name not in threads.SET}
    command = [*prefix, sys.executable, "-W", "ignore", "-m", "experiments.threads", "--child", asked, str(count)]
    done = subprocess.run(command, env=bare, stdout=subprocess.PIPE, text=True, check=True, timeout=WAIT)
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def surroundings(state: str) -> Iterator[list[str] | None]:
    """The machine in that state, and what to put before a command; None where it is not permitted."""
    if state.endswith("spinning"):
        spin = [sys.executable, "-S", "-c", "while True: pass"]
        spinning = [subprocess.Popen(spin) for _ in range(STATES.index(state))]
        try:
            yield []
        finally:
            for process in spinning:
                process.send_signal(signal.SIGKILL)
                process.wait()
    elif state == "one processor":
        yield _shell(f"taskset -p -c {min(os.sched_getaffinity(0))} $$ > /dev/null")
    elif state == "quota of one":
        with quota_of_one() as file:
            yield None if file is None else _shell(f"echo $$ > {file}")
    else:
        yield []


def _shell(first: str) -> list[str]:
    return ["sh", "-c", f'{first} && exec "$@"', "sh"]


@contextlib.contextmanager
def quota_of_one() -> Iterator[Path | None]:
    """The file that takes a process into a control group with one processor's time; None without the rights."""
    name, made = f"jumpstart-{os.getpid()}", None
    try:
        for root, limits in (
            (containers.ROOT, {"cpu.max": "100000 100000"}),
            (containers.ROOT / "cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}),
        ):
            folder = root / name
            with contextlib.suppress(OSError):
                folder.mkdir()
                made = folder
                for file, text in limits.items():
                    (folder / file).write_text(text)
                yield folder / "cgroup.procs"
                return
            if made is not None:
                made.rmdir()
                made = None
        yield None
    finally:
        if made is not None:
            with contextlib.suppress(OSError):
                made.rmdir()


def summarized(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A line a state, setting and problem: milliseconds a jump, and how many times those of one thread."""
    found: list[Row] = []
    cells = {(row["state"], row["problem"], row["threads"]): None for row in rows}
    for state, problem, asked in sorted(cells, key=lambda c: (STATES.index(c[0]), c[1], THREADS.index(c[2]))):

        def taken(asked: str, state: str = state, problem: str = problem) -> list[float]:
            same = [row for row in rows if (row["state"], row["problem"], row["threads"]) == (state, problem, asked)]
            return [1e3 * row["seconds"] for row in same]

        mine, one = spread(taken(asked)), spread(taken("1"))
        times = mine["median"] / one["median"]
        found.append({"state": state, "problem": problem, "threads": asked, **mine, "times one thread": times})
    return found


def main() -> None:
    if "--child" in sys.argv:
        at = sys.argv.index("--child")
        child(sys.argv[at + 1], int(sys.argv[at + 2]))
        return
    asked = arguments("threads", __doc__, seeds=3)
    states, settings = (STATES[:1], ("1", "unset")) if asked.quick else (STATES, THREADS)
    repeats, count = (1, 2) if asked.quick else (asked.seeds, JUMPS)
    rows, refused = measure(states, settings, count, repeats)
    summary = summarized(rows)
    told = {"jumps": count, "repeats": repeats, "processors": containers.processors(), "not permitted": refused}
    path = records.write(asked.out, "threads", {**told, "summary": summary}, rows, range(1))
    columns = {
        "state": "machine", "problem": "", "threads": "threads", "median": "ms a jump", "min": "least", "max": "most",
        "times one thread": "times one thread",
    }  # fmt: skip
    print(records.table(summary, columns))
    for state in refused:
        print(f"{state}: not permitted on this machine")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
