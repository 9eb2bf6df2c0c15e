"""One run: full-batch steps until 95% of the held-out table is right, or the budget is spent."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import jumpstart as js
from jumpstart.gating import record
from jumpstart.optim import GatedAdamW
from jumpstart.report.records import Row

from ..training import Data
from .contenders import Contender, Filter, optimizers
from .tasks import Protocol, Setting

GOAL = 0.95
LEARNED = 0.99  # of the training part: memorized, or understood


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    return float((model(data.xt).argmax(1) == data.yt).double().mean())


def opened(optimizer: Any) -> float | None:
    """The mean of streaming gates; nothing is kept of exact ones."""
    if not isinstance(optimizer, GatedAdamW) or optimizer.param_groups[0]["statistics"] == "exact":
        return None
    gates = [optimizer.gate(p) for group in optimizer.param_groups if group["rule"] for p in group["params"]]
    counts = [p.numel() for group in optimizer.param_groups if group["rule"] for p in group["params"]]
    return sum(float(g.mean()) * n for g, n in zip(gates, counts, strict=True)) / sum(counts)


def run(of: Protocol, who: Contender, setting: Setting, seed: int, steps: int) -> Row:
    """Steps, gradients and seconds of the process to the goal, None where it is not reached, and the curve.

    Looks at the held-out part are nobody's time.
    """
    data, model = of.data(seed), of.model(seed)
    made: list[Any] = optimizers(model, who, setting)
    outer, slow = made[0], Filter(list(model.parameters())) if who.filtered else None
    begun = time.process_time()
    if who.skips:
        made = [js.JumpOptimizer(outer, js.supervised(model, data.x, data.y, "cross_entropy"))]
    with record(model) if who.exact else contextlib.nullcontext():
        found = _loop(of, data, model, made, slow, outer, steps, begun)
    if who.skips:
        found |= {"taken": made[0].taken, "tries": made[0].jumps, "kept": sum(r.accepted for r in made[0].results)}
    return found


def _loop(
    of: Protocol,
    data: Data,
    model: nn.Module,
    made: list[Any],
    slow: Filter | None,
    outer: Any,
    steps: int,
    begun: float,
) -> Row:
    wrapped = made[0] if isinstance(made[0], js.JumpOptimizer) else None
    looks, marked, learned, value = 0.0, 0, None, 0.0
    curve: list[list[Any]] = []
    for step in wrapped.steps(steps) if wrapped is not None else range(steps):
        for optimizer in made:
            optimizer.zero_grad()
        logits = model(data.x)
        loss = F.cross_entropy(logits, data.y)
        loss.backward()
        if slow is not None:
            slow()
        for optimizer in made:
            optimizer.step()
        now = wrapped.effective_steps if wrapped is not None else step + 1
        if now // of.every == marked and now < steps:
            continue
        marked, looking = now // of.every, time.process_time()
        value, train = accuracy(model, data), float((logits.argmax(1) == data.y).double().mean())
        learned = now if learned is None and train >= LEARNED else learned
        curve.append([now, loss.item(), train, value, opened(outer)])
        looks += time.process_time() - looking
        if value >= GOAL:
            break
    spent = now if wrapped is None else wrapped.taken + sum(r.gradient_evaluations for r in wrapped.results)
    seconds, there = time.process_time() - begun - looks, value >= GOAL
    return {
        "steps": now if there else None, "gradients": spent if there else None, "seconds": seconds if there else None,
        "learned": learned, "spent": [now, spent, seconds], "best": max(point[3] for point in curve), "curve": curve,
    }  # fmt: skip
