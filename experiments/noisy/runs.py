"""One run: a contender at a setting, looked at on the way without being told."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jumpstart.gating.samples import record
from jumpstart.report.records import Row

from ..loops.averages import Ema
from .contenders import ADAMW, AVERAGES, CONTENDERS, EMA, Setting, names
from .tasks import Samples, Task

Point = list[float]  # step, seconds, error, misfit to what is trained on, and to the validation part if there is one
LOOKS = 24


def looks(steps: int, count: int = LOOKS) -> set[int]:
    """At equal ratios, from ten steps on: fast runs are at their best soon."""
    first = min(10, steps)
    return {round(first * (steps / first) ** (i / (count - 1))) for i in range(count)}


def minibatches(samples: Samples, batch: int, generator: torch.Generator) -> Iterator[Samples]:
    """Pass by pass, without end."""
    batch = min(batch, len(samples))
    while True:
        order = torch.randperm(len(samples), generator=generator)
        for rows in order[: len(order) // batch * batch].split(batch):
            yield samples[rows]


@torch.no_grad()
def looked(task: Task, model: nn.Module, parts: Sequence[Samples], weights: Sequence[Tensor] | None = None) -> Point:
    """Error and misfits, with other weights if they are given; what is not finite is infinitely bad."""
    own = trained(model)
    before = [p.detach().clone() for p in own]
    if weights is not None:
        torch._foreach_copy_(tuple(own), list(weights))
    found = task.look(model, parts)
    if weights is not None:
        torch._foreach_copy_(tuple(own), before)
    return [value if math.isfinite(value) else math.inf for value in found]


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def run(
    task: Task,
    contender: str,
    setting: Setting,
    level: float,
    seed: int,
    split: bool,
    ended: Callable[[nn.Module], Any] | None = None,
) -> dict[Any, list[Point]]:
    """Its curve by None, and along AdamW those of its averages by their decay; ``ended`` sees the model at the end."""
    who, generator = CONTENDERS[contender], torch.Generator().manual_seed(seed)
    whole, model = task.samples(level, seed), task.network(seed)
    parts = whole.split(seed) if split else (whole,)
    optimizer = who.make(trained(model), who.base * setting.factor * task.rate, setting.decay)
    averaged = AVERAGES if contender == ADAMW and EMA in names(task) else ()
    averages = {decay: Ema(trained(model), decay) for decay in averaged}
    curves: dict[Any, list[Point]] = {None: [], **{decay: [] for decay in averages}}
    due, spent = looks(task.steps, task.looks or LOOKS), dict.fromkeys(curves, 0.0)
    batches = minibatches(parts[0], task.batch, generator)
    with record(model) if who.exact else contextlib.nullcontext():
        for step in range(1, task.steps + 1):
            began = time.process_time()
            optimizer.zero_grad()
            task.loss(model, next(batches), generator).backward()
            optimizer.step()
            spent[None] += time.process_time() - began
            for decay, average in averages.items():
                began = time.process_time()
                average.step()
                spent[decay] += time.process_time() - began
            if step in due:
                curves[None].append([step, spent[None], *looked(task, model, parts)])
                for decay, average in averages.items():
                    seconds = spent[None] + spent[decay]
                    curves[decay].append([step, seconds, *looked(task, model, parts, average.weights())])
    if ended is not None:
        ended(model)
    return curves


def row(task: Task, contender: str, setting: Setting, level: float, seed: int, split: bool) -> Row:
    """A finished run, for the ledger: curves by the average's decay, "" without one."""
    more: Row = {}
    asked = task.more
    found = run(
        task, contender, setting, level, seed, split, None if asked is None else lambda model: more.update(asked(model))
    )
    curves = {"" if decay is None else f"{decay:g}": curve for decay, curve in found.items()}
    told = {"level": level, "seed": seed, "contender": contender, **setting.told, "split": split, "curves": curves}
    return told if asked is None else {**told, "more": more}
