"""Objectives over 1, 2 and 3 processes: differences from one, collectives and bytes against the model, memory.

python -m experiments.distributed [--quick] [--out DIR]            starts the processes itself, on this machine, by gloo
torchrun --nproc-per-node 2 -m experiments.distributed [--quick]   the same of the processes that torchrun has started
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import jumpstart as js
from jumpstart.distributed.optimizers import current
from jumpstart.distributed.world import World
from jumpstart.distributed.wrapped import whole as jumping
from jumpstart.linearization.linearize import linearize
from jumpstart.report import records
from jumpstart.report.records import Row

from .common import arguments

SIZES = (1, 2, 3)
SAMPLES, LARGE = 300, 50_000  # of what is compared and counted, and of what memory is measured on
INPUTS, WIDTH, OUTPUTS = 20, 32, 3
WIDE = 256  # hidden units where memory is measured, twice
BROAD = 2048  # hidden units of the model in shards, twice: it has far more parameters than its outputs have numbers
DEPTH = 4  # Krylov vectors of the jumps
BYTES = 8  # of a float64
ROUNDS = 20  # collectives that a time is the median of
PRICED = 2**20  # numbers of the all-reduce that a bandwidth is read off
# A network that is assumed for the prediction: one 10-gigabit link a process, 50 µs a collective.
LATENCY, BANDWIDTH = 5e-5, 1.25e9
MACHINES = (1, 2, 4, 8, 16, 32, 64)
FORWARD, PER_KRYLOV, CANDIDATES = 1.0, 3.0, 8  # seconds of all samples' forward pass; forward passes a product; looks


def network(width: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, OUTPUTS)
    ).to(dtype)


def samples(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, INPUTS, generator=g, dtype=dtype)
    return x, torch.sin(x @ torch.randn(INPUTS, OUTPUTS, generator=g, dtype=dtype))


def own(n: int) -> slice:
    """This process's samples: the first has a tenth more than the last."""
    rank, size = dist.get_rank(), dist.get_world_size()
    cuts = [round(n * r / size * (1.05 if 0 < r < size else 1.0)) for r in range(size + 1)]
    return slice(cuts[rank], cuts[rank + 1])


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def counted(world: World, call: Callable[[], Any]) -> dict[str, Any]:
    """Agreements, payloads and their bytes of a call."""
    before = world.traffic.agreements, world.traffic.payloads, world.traffic.bytes
    call()
    now = world.traffic
    return {
        "agreements": now.agreements - before[0],
        "collectives": now.payloads - before[1],
        "bytes": now.bytes - before[2],
    }


def expected(what: str, most: int, parameters: int, size: int) -> int:
    """Bytes of the model in docs/distributed.md."""
    rows, sums = size * most * OUTPUTS * BYTES, parameters * BYTES
    return {"outputs": rows, "J v": rows, "J^T w": sums, "gradient": rows + sums}[what]


def measured(quick: bool) -> dict[str, Any]:
    """What one process has to tell."""
    group = dist.group.WORLD
    n = SAMPLES // 5 if quick else SAMPLES
    x, y = samples(n, torch.float64)
    mine = own(n)

    def spread() -> Any:
        return js.supervised(network(WIDTH, torch.float64), x[mine], y[mine], group=group)

    def alone() -> Any:
        return js.supervised(network(WIDTH, torch.float64), x, y)

    objective = spread()
    world, lin, theta = objective.world, linearize(objective), objective.theta()
    v, w = torch.ones_like(theta), torch.ones_like(lin.u)
    calls = {
        "outputs": lambda: lin.outputs(theta), "J v": lambda: lin.jvp(v), "J^T w": lambda: lin.vjp(w),
        "gradient": lambda: objective.evaluate(theta),
    }  # fmt: skip
    traffic = []
    for name, call in calls.items():
        told = expected(name, objective.shards.most, len(theta), world.size)
        traffic.append({"what": name, **counted(world, call), "model": told})
    apart = {}
    for name, options in {"Krylov jump": {"basis": "krylov", "depth": DEPTH}, "dense jump": {"basis": "dense"}}.items():
        one, many = alone(), spread()
        begun = time.perf_counter()
        told = counted(world, lambda many=many, options=options: js.jump(many, **options))
        traffic.append({"what": name, **told, "model": None, "seconds": time.perf_counter() - begun})
        js.jump(one, **options)
        apart[name] = _apart(many.theta(), one.theta())
    before = js.solve(alone()).outputs(10.0)
    apart["solve"] = _apart(js.solve(spread()).outputs(10.0), before)
    return {
        "size": world.size, "rank": world.rank, "samples": mine.stop - mine.start, "traffic": traffic, "apart": apart,
        "memory": _memory(quick), "shards": _shards(quick), **_prices(world),
    }  # fmt: skip


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _prices(world: World) -> dict[str, float]:
    """Seconds of an agreement, and bytes a second of a long all-reduce; medians."""
    long = torch.ones(PRICED, dtype=torch.float64)
    found = {}
    for name, call in {
        "agreement": lambda: world.agree("price"),
        "sum": lambda: world.sum("price", lambda: long),
    }.items():
        times = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
        found[name] = sorted(times)[ROUNDS // 2]
    return {"agreement": found["agreement"], "bandwidth": PRICED * BYTES / max(found["sum"], 1e-9)}


def _memory(quick: bool) -> dict[str, float]:
    """MiB that a Krylov jump on many samples adds to what the process has had before."""
    n = LARGE // 25 if quick else LARGE
    mine = own(n)
    x, y = (tensor[mine].clone() for tensor in samples(n, torch.float32))
    before = peak()
    begun = time.perf_counter()
    objective = js.supervised(network(WIDE, torch.float32), x, y, group=dist.group.WORLD)
    js.jump(objective, basis="krylov", depth=DEPTH)
    return {"samples": n, "MiB": peak() - before, "seconds": time.perf_counter() - begun}


def held() -> float:
    """What this process has in memory now, in MiB."""
    return _status("VmRSS")


def most(call: Callable[[], Any]) -> float:
    """The most that it has while it calls a function, in MiB."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the kernel's record begins anew
    call()
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def _shards(quick: bool) -> dict[str, Any]:
    """FSDP2: bytes of what is gathered for a jump and for a skip against the model, and memory beside the shards."""
    size, rows = dist.get_world_size(), 60 * dist.get_world_size()
    x, y = (tensor[own(rows)].clone() for tensor in samples(rows, torch.float32))
    width = BROAD // 8 if quick else BROAD
    model: Any = network(width, torch.float32)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    model.reshard()
    parameters = list(model.parameters())
    shards = [-(-p.shape[0] // size) * p[0].numel() for p in parameters]  # of the first process, which has the most
    told = 4 * size * sum(shards)
    before = held()
    objective = js.supervised(model, x, y)
    kept, world = held() - before, objective.world
    assert world is not None
    twin = jumping(optimizer)
    found: list[Row] = [
        {"what": "weights", **counted(world, objective.theta), "model": told},
        {
            "what": "weights, gradients, AdamW's state",
            **counted(world, lambda: _stretch(twin)),
            "model": 4 * told,
        },
    ]
    jump = most(lambda: js.jump(objective, basis="krylov", depth=DEPTH)) - before
    skip = most(lambda: js.skip(objective, optimizer, 20)) - before
    other = js.supervised(network(width, torch.float32), x, y, group=dist.group.WORLD)
    before = held()
    plain = most(lambda: js.jump(other, basis="krylov", depth=DEPTH)) - before
    count = sum(p.numel() for p in parameters)
    memory = {"whole": 4 * count / 2**20, "kept": kept, "jump": jump, "skip": skip, "without shards": plain}
    return {"traffic": found, "parameters": count, "MiB": memory}


def _stretch(twin: torch.optim.Optimizer) -> None:
    with current(twin):
        pass


def predicted(samples: int, outputs: int, parameters: int, vectors: int) -> list[Row]:
    """Seconds of a Krylov jump by the cost model, on a network that is assumed; nothing here is measured."""
    rows = []
    for size in MACHINES:
        passes = (PER_KRYLOV * vectors + CANDIDATES) * FORWARD / size
        gathers, sums = vectors + CANDIDATES, vectors + 1
        collectives = 2 * (gathers + sums)
        sent = gathers * samples * outputs * BYTES + 2 * sums * parameters * BYTES * (size - 1) / size
        talk = 0.0 if size == 1 else collectives * LATENCY * size.bit_length() + sent / BANDWIDTH
        rows.append({"machines": size, "compute": passes, "exchange": talk, "seconds": passes + talk})
    return rows


def started(size: int, quick: bool) -> list[dict[str, Any]]:
    """So many processes on this machine, and what each has told."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "TELL": "1",
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "1048576",  # what is freed is given back, so that a peak is of what is held
    }  # fmt: skip
    command = [sys.executable, "-m", "experiments.distributed", *(["--quick"] if quick else [])]
    running = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    found = []
    for process in running:
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a process of {size} ended with {process.returncode}.")
        found.append(json.loads(out.splitlines()[-1]))
    return found


def as_one_of_several(quick: bool) -> None:
    """What each of the processes does: measure, and print."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=300))
    found = measured(quick)
    if os.environ.get("TELL") or found["rank"] == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def summarized(rows: list[Row]) -> dict[str, list[Row]]:
    """Tables of the page."""
    first = [row for row in rows if row["rank"] == 0]
    traffic = [{"processes": row["size"], **line} for row in first for line in row["traffic"]]
    differences = [{"processes": row["size"], **row["apart"]} for row in first]
    memory = []
    for size in sorted({row["size"] for row in rows}):
        here = [row for row in rows if row["size"] == size]
        memory.append({
            "processes": size, "samples": here[0]["memory"]["samples"],
            "most a process": max(row["memory"]["MiB"] for row in here),
            "agreement": 1e3 * here[0]["agreement"], "bandwidth": here[0]["bandwidth"] / 2**20,
        })  # fmt: skip
    sent = [{"processes": row["size"], **line} for row in first for line in row["shards"]["traffic"]]
    shards = [{"processes": row["size"], **row["shards"]["MiB"]} for row in first]
    return {"traffic": traffic, "differences": differences, "memory": memory, "sent": sent, "shards": shards}


def main() -> None:
    if "RANK" in os.environ:
        as_one_of_several("--quick" in sys.argv)
        return
    asked = arguments("distributed", __doc__, seeds=1)
    rows = [row for size in (SIZES[:2] if asked.quick else SIZES) for row in started(size, asked.quick)]
    model = network(WIDTH, torch.float64)
    settings = {
        **summarized(rows), "parameters": sum(p.numel() for p in model.parameters()),
        "predicted": predicted(10**6, 10, 10**6, 12), "latency": LATENCY, "link": BANDWIDTH,
        "samples": rows[0]["samples"], "wide": WIDE, "depth": DEPTH, "broad": rows[0]["shards"]["parameters"],
    }  # fmt: skip
    path = records.write(asked.out, "distributed", settings, rows, range(1))
    columns = {name: name for name in ("processes", "what", "agreements", "collectives", "bytes", "model")}
    print(records.table(settings["traffic"], columns))
    print(records.table(settings["differences"], {name: name for name in settings["differences"][0]}))
    print(records.table(settings["memory"], {name: name for name in settings["memory"][0]}))
    print(records.table(settings["sent"], {name: name for name in settings["sent"][0]}))
    print(records.table(settings["shards"], {name: name for name in settings["shards"][0]}))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
