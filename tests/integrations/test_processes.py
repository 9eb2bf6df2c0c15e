"""accelerate and Lightning over two processes (DDP, gloo): the loop skips, and ends where one process does."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integrations
ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = ("accelerate, wrapped first", "accelerate, prepared first", "lightning, callback", "lightning, module")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_where_one_does(kind):
    package = kind.split(",")[0]
    pytest.importorskip("lightning.pytorch" if package == "lightning" else package)
    launched = [] if package == "lightning" else ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [sys.executable, *launched, "-m", "tests.integrations.over_two", kind]
    known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    told = re.findall(r"RESULT (\d) (\d+) (\w+) (\S+)", done.stdout)
    assert sorted(rank for rank, *_ in told) == ["0", "1"]
    for _, skipped, same, apart in told:
        assert int(skipped) > 0 and same == "True"
        assert float(apart) <= 1e-10
    assert "of this process alone" not in done.stderr
