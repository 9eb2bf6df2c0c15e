"""Programs for several processes, and how a test runs one: gloo on this machine, float64, small."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import jumpstart as js

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 240.0  # seconds after which a job is ended


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(
    module: str, size: int, folder: pathlib.Path, timeout: float = 60.0, lost: int = 0, **extra: str
) -> list[dict[str, Any]]:
    """Run ``module``'s ``main()`` in so many processes; what each returned, and how it ended.

    Args:
        timeout: of the process group. lost: how many of the last are not waited for.
    """
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": str(size),
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "JOB_FOLDER": str(folder),
        "JOB_TIMEOUT": str(timeout), **extra,
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.distributed.jobs", module]
    running = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for rank in range(size)
    ]  # fmt: skip
    found = []
    try:
        for rank, process in enumerate(running[: size - lost]):
            out, _ = process.communicate(timeout=LIMIT)
            path = folder / f"{rank}.json"
            told = json.loads(path.read_text()) if path.exists() else {}
            found.append({"code": process.returncode, "out": out, **told})
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return found


def near(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def mlp(seed: int, inputs: int = 3, outputs: int = 2, width: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def data(seed: int, n: int, inputs: int = 3, outputs: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=g, dtype=torch.float64)
    return x, torch.sin(x @ torch.randn(inputs, outputs, generator=g, dtype=torch.float64))


def shard(n: int, cuts: list[int] | None = None) -> slice:
    """This process's rows: unequal, and none on rank 1 of three."""
    rank, size = dist.get_rank(), dist.get_world_size()
    cuts = cuts or {1: [0, n], 2: [0, 2 * n // 3, n], 3: [0, n // 4, n // 4, n]}[size]
    return slice(cuts[rank], cuts[rank + 1])


def outcome(call: Callable[[], Any]) -> list[str]:
    """How a call ended: the kind of error and its text."""
    try:
        call()
    except js.errors.JumpstartError as error:
        return [type(error).__name__, str(error)]
    return ["fine", ""]


def main() -> None:
    import importlib

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    seconds = float(os.environ["JOB_TIMEOUT"])
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=seconds))
    told = importlib.import_module(f"tests.distributed.{sys.argv[1]}").main()
    pathlib.Path(os.environ["JOB_FOLDER"], f"{rank}.json").write_text(json.dumps(told))
    os._exit(0)  # a group that has lost a member may not be destroyed in order


if __name__ == "__main__":
    main()
