"""Threads: what the user has set stays; where nothing is set, one inside and everything as before outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jumpstart.utils import containers, memory, threads

CHILD = """
import json, sys, torch
import jumpstart as js
from jumpstart.utils import threads
asked, pretended = int(sys.argv[1]), int(sys.argv[2])
if asked: torch.set_num_threads(asked)
if pretended:  # as if torch had taken so many by itself
    torch.set_num_threads(pretended)
    threads._defaults = lambda: frozenset({pretended})
before, seen = torch.get_num_threads(), []
class Watched(torch.nn.Linear):
    def forward(self, x):
        seen.append(torch.get_num_threads())
        return super().forward(x)
x = torch.randn(12, 3)
objective = js.supervised(Watched(3, 1), x, x.sum(1, keepdim=True).sin())
js.jump(objective)
objective.net.large = True
objective.value(objective.theta())
print(json.dumps([before, sorted(set(seen[:-1])), seen[-1], torch.get_num_threads()]))
"""


def child(asked: int, pretended: int, **environment: str) -> list:
    bare = {name: value for name, value in os.environ.items() if name not in threads.SET}
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(asked), str(pretended)], capture_output=True, text=True, check=True,
        env={**bare, **environment, "PYTHONPATH": root},
    )  # fmt: skip
    return json.loads(done.stdout)


def test_unset_is_one_thread_inside_and_untouched_outside():
    """A long network has as many as the processors allow."""
    assert child(0, 4) == [4, [1], min(4, containers.processors()), 4]


def test_what_is_set_stays():
    assert child(3, 0) == [3, [3], 3, 3]
    assert child(0, 2, OMP_NUM_THREADS="2") == [2, [2], 2, 2]


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """A machine with control groups as they are written here."""
    monkeypatch.setattr(containers, "ROOT", tmp_path / "fs")
    monkeypatch.setattr(containers, "MEMBERSHIP", tmp_path / "cgroup")

    def write(membership: str, **files: str) -> None:
        (tmp_path / "cgroup").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        containers.quota.cache_clear()

    yield write
    containers.quota.cache_clear()


GIB = 2**30
V2 = {"memory.max": f"{2 * GIB}\n", "memory.current": f"{GIB}\n", "memory.stat": f"anon 5\ninactive_file {GIB // 2}\n"}


def test_version_2(cgroups):
    cgroups("0::/\n", **{"cpu.max": "150000 100000\n", **V2})
    assert containers.quota() == 1.5
    assert containers.processors() == min(2, len(os.sched_getaffinity(0)))
    assert containers.free_memory() == 1.5 * GIB
    assert memory.available_memory(memory.torch.device("cpu")) <= 0.75 * GIB


def test_the_tightest_of_nested_groups_counts(cgroups):
    cgroups(
        "0::/pod/box\n",
        **{"pod/box/cpu.max": "max 100000\n", "pod/cpu.max": "50000 100000\n", "cpu.max": "400000 100000\n"},
        **{f"pod/{name}": text for name, text in V2.items()}, **{"pod/box/memory.max": "max\n"},
    )  # fmt: skip
    assert containers.quota() == 0.5
    assert containers.processors() == 1
    assert containers.free_memory() == 1.5 * GIB


def test_version_1_by_the_host_s_path_that_is_not_mounted(cgroups):
    cgroups(
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n3:cpuset:/\n",
        **{"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        **{"memory/memory.limit_in_bytes": f"{GIB}\n", "memory/memory.usage_in_bytes": f"{GIB // 4}\n"},
        **{"memory/memory.stat": f"total_inactive_file {GIB // 8}\n"},
    )  # fmt: skip
    assert containers.quota() == 2
    assert containers.free_memory() == 0.875 * GIB


@pytest.mark.parametrize("membership", ["", "0::/\n", "nonsense\n", "4:memory:/a\n2:cpu:/a\n"])
def test_without_limits(cgroups, membership):
    cgroups(
        membership,
        **{"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n", "cpu.max": "max 100000\n"},
        **{"memory/a/memory.limit_in_bytes": "9223372036854771712\n", "memory/a/memory.usage_in_bytes": "5\n"},
    )  # fmt: skip
    assert containers.quota() == float("inf")
    assert containers.free_memory() == float("inf")
    assert containers.processors() == len(os.sched_getaffinity(0))
