"""What a gated step takes beside torch's AdamW: an optimizer's step at 10M parameters, a loop's with exact statistics.

python -m experiments.gate_costs [--quick] [--seeds N] [--out DIR]

Arms take turns within each round; medians of rounds, one thread, seconds of the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import jumpstart as js
from jumpstart.optim import GatedAdamW
from jumpstart.report import records
from jumpstart.report.records import Row

from .common import arguments, spread
from .pages import machine, markdown

ROUNDS, TOY = 15, 2
SHAPES = [(1024, 1024)] * 9 + [(1024,)] * 9 + [(1000, 500)]
WIDTH, BATCH = 1024, 256
PLAIN = "AdamW, foreach"
Optimizers = dict[str, Callable[[Any], torch.optim.Optimizer]]
STEPS: Optimizers = {
    PLAIN: lambda p: torch.optim.AdamW(p, foreach=True),
    "AdamW, default": torch.optim.AdamW,
    "AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True),
    "gated, hard": lambda p: GatedAdamW(p, rule="hard"),
    "gated, soft": lambda p: GatedAdamW(p, rule="soft"),
    "gated, snr": lambda p: GatedAdamW(p, rule="snr"),
    "gated, hard, rows": lambda p: GatedAdamW(p, rule="hard", reduce="row"),
}
LOOPS: Optimizers = {
    PLAIN: lambda p: torch.optim.AdamW(p, foreach=True),
    "gated, streaming": lambda p: GatedAdamW(p),
    "gated, exact": lambda p: GatedAdamW(p, statistics="exact"),
}


def steps(quick: bool) -> dict[str, Callable[[], None]]:
    """An optimizer's step on gradients that are there."""
    torch.manual_seed(0)
    found = {}
    for name, make in STEPS.items():
        parameters = [nn.Parameter(0.02 * torch.randn(s)) for s in (SHAPES[-1:] if quick else SHAPES)]
        for p in parameters:
            p.grad = 0.01 * torch.randn_like(p)
        found[name] = make(parameters).step
    return found


def loops(quick: bool) -> dict[str, Callable[[], None]]:
    """A step of a loop: forwards, backwards, and the optimizer's."""
    width = 64 if quick else WIDTH
    x, y = torch.randn(BATCH, width), torch.randn(BATCH, width)
    found = {}
    for name, make in LOOPS.items():
        torch.manual_seed(0)
        layers = [nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)]
        model = nn.Sequential(*layers)
        optimizer = make(model.parameters())
        context = js.gating.record(model) if name == "gated, exact" else nullcontext()
        found[name] = _looped(model, optimizer, x, y, context)
    return found


def _looped(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Any, context: Any) -> Callable[[], None]:
    context.__enter__()  # as long as the process

    def take() -> None:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()

    return take


def timed(arms: dict[str, Callable[[], None]], rounds: int, what: str) -> list[Row]:
    """Seconds of each arm in each round; a first one warms up."""
    rows = []
    for i in range(rounds + 2):
        for name, take in arms.items():
            begun = time.process_time()
            take()
            if i > 1:
                rows.append({"what": what, "arm": name, "round": i - 2, "seconds": time.process_time() - begun})
    return rows


def summarized(rows: list[Row]) -> list[Row]:
    """Medians, and the ratio to plain AdamW of the same round."""
    found = []
    for what, arm in dict.fromkeys((row["what"], row["arm"]) for row in rows):
        own = [row["seconds"] for row in rows if (row["what"], row["arm"]) == (what, arm)]
        plain = [row["seconds"] for row in rows if (row["what"], row["arm"]) == (what, PLAIN)]
        ratios = [a / b for a, b in zip(own, plain, strict=True)]
        found.append({"what": what, "arm": arm, "milliseconds": 1e3 * spread(own)["median"], "over": spread(ratios)})
    return found


def page(content: dict[str, Any]) -> str:
    """For docs/gates.md."""
    rows = [
        {
            "": row["what"], "arm": row["arm"], "milliseconds": row["milliseconds"],
            "of AdamW, foreach": f"{row['over']['median']:.2f} ({row['over']['min']:.2f} to {row['over']['max']:.2f})",
        }
        for row in content["settings"]["summary"]
    ]  # fmt: skip
    return f"{markdown(rows)}\n\n<sub>{machine(content)}</sub>"


def main() -> None:
    asked = arguments("gate_costs", __doc__, 1)
    torch.set_num_threads(1)
    rounds = TOY if asked.quick else ROUNDS
    rows = timed(steps(asked.quick), rounds, "optimizer's step, 10M parameters")
    rows += timed(loops(asked.quick), rounds, f"loop's step, 3×{WIDTH}, batch {BATCH}")
    summary = summarized(rows)
    path = records.write(
        asked.out, "gate_costs", {"quick": asked.quick, "rounds": rounds, "summary": summary}, rows, [0]
    )
    shown = [{**row, "times": row["over"]["median"]} for row in summary]
    print(records.table(shown, {"what": "", "arm": "arm", "milliseconds": "ms", "times": "of AdamW, foreach"}))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
