"""One contender at one setting: a stack of networks, over noises and seeds, and their curves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jumpstart.gating.samples import record
from jumpstart.report.records import Row

from ..loops.averages import Ema, Lawa
from .networks import stack
from .settings import ADAMW, AVERAGES, CONTENDERS, EARLY, EMA, LAWA, REPORTED, SPLIT, STOPPED, Setting, Task

LOOKS, FEWER = 20, 6  # at most, closer together early on; of averages


@dataclass(frozen=True)
class Draw:
    """Which samples a network learns, with which labels, and which it is judged by."""

    noise: float
    seed: int
    train: Tensor
    labels: Tensor  # of train and validation, some of them wrong
    validation: Tensor
    held: Tensor


def draw(task: Task, y: Tensor, noise: float, seed: int, split: bool) -> Draw:
    """Samples by seed; ``noise`` of the labels are another class; the same ones whether a part is kept apart or not."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    known, held = order[: task.count], order[task.count :]
    wrong = torch.rand(task.count, generator=generator) < noise
    other = (y[known] + torch.randint(1, task.classes, (task.count,), generator=generator)) % task.classes
    labels = y.clone()
    labels[known] = torch.where(wrong, other, y[known])
    kept = task.count - int(SPLIT * task.count) if split else task.count
    return Draw(noise, seed, known[:kept], labels, known[kept:], held)


def look(model: nn.Module, x: Tensor, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy of each member; rows and labels (samples, members)."""
    with torch.no_grad():
        u = torch.cat([model(x[part]) for part in rows.split(256)])
        loss = F.cross_entropy(u.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(0)
        return loss.double(), (u.argmax(-1) == labels).double().mean(0)


class Curves:
    """What is seen of each member along a run."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, draws: Sequence[Draw]) -> None:
        self.model, self.x = model, x
        each = range(len(draws))
        parts = {"train": [d.train for d in draws], "held": [d.held for d in draws]}
        if len(draws[0].validation):
            parts["validation"] = [d.validation for d in draws]
        self.parts = {}
        for name, rows in parts.items():
            labels = [(y if name == "held" else draws[i].labels)[rows[i]] for i in each]
            self.parts[name] = torch.stack(rows, 1), torch.stack(labels, 1)
        self.points: list[list[dict[str, Any]]] = [[] for _ in draws]

    def add(self, epoch: int, seconds: float) -> None:
        found = {name: look(self.model, self.x, *part) for name, part in self.parts.items()}
        for i, points in enumerate(self.points):
            points.append({
                "epoch": epoch, "seconds": seconds,
                **{name: float(loss[i]) for name, (loss, _) in found.items()},
                **{f"{name} accuracy": float(right[i]) for name, (_, right) in found.items()},
            })  # fmt: skip


@contextlib.contextmanager
def weights(model: nn.Module, others: Sequence[Tensor]) -> Iterator[None]:
    """The model with other weights for a while."""
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        torch._foreach_copy_(tuple(parameters), list(others))
    yield
    with torch.no_grad():
        torch._foreach_copy_(tuple(parameters), before)


def averages(model: nn.Module, steps: int) -> dict[tuple[str, float], Any]:
    """Beside an AdamW run, whose epochs have so many steps."""
    parameters = list(model.parameters())
    kinds = {EMA: lambda n: Ema(parameters, 1 - 1 / (n * steps)), LAWA: lambda n: Lawa(parameters, n * steps)}
    return {(name, n): kinds[name](n) for name in AVERAGES for n in AVERAGES[name]}


def run(task: Task, name: str, setting: Setting, part: str, seeds: Sequence[int]) -> list[Row]:
    """Rows of all noises and seeds, and where that is AdamW of averages along it; seconds are a member's share."""
    contender, (x, y) = CONTENDERS[name], task.data()
    draws = [draw(task, y, noise, seed, part != REPORTED) for noise in task.noises for seed in seeds]
    model = stack(task.network, [d.seed for d in draws], each=contender.exact)
    rate = task.rate * contender.base * setting.factor
    optimizer = contender.make(list(model.parameters()), 1 if contender.exact else len(draws), rate, setting.decay)
    count = len(draws[0].train)
    steps = count // task.batch
    beside = averages(model, steps) if name == ADAMW and part != STOPPED else {}
    curves = {key: Curves(model, x, y, draws) for key in [None, *beside]}
    generators = [torch.Generator().manual_seed(1000 + d.seed) for d in draws]
    seconds, due, seldom = 0.0, looks(task.epochs, LOOKS), looks(task.epochs, FEWER)
    with record(model) if contender.exact else contextlib.nullcontext():
        for epoch in range(1, task.epochs + 1):
            orders = [d.train[torch.randperm(count, generator=g)] for d, g in zip(draws, generators, strict=True)]
            chosen = torch.stack(orders, 1)
            labels = torch.stack([d.labels[order] for d, order in zip(draws, orders, strict=True)], 1)
            for i in range(0, steps * task.batch, task.batch):
                begun = time.process_time()
                step(model, optimizer, x[chosen[i : i + task.batch]], labels[i : i + task.batch])
                seconds += time.process_time() - begun
                for average in beside.values():
                    average.step()
            if epoch in due:
                curves[None].add(epoch, seconds / len(draws))
            if epoch in seldom:
                for key, average in beside.items():
                    with weights(model, average.weights()):
                        curves[key].add(epoch, seconds / len(draws))
    found = []
    for key, of in curves.items():
        who = (EARLY if part == STOPPED else name) if key is None else key[0]
        own = setting if key is None else replace(setting, average=key[1])
        for d, points in zip(draws, of.points, strict=True):
            found.append({"task": task.name, "noise": d.noise, "seed": d.seed, "contender": who, "part": part,
                          **own.told, "curve": columns(points)})  # fmt: skip
    return found


def looks(epochs: int, count: int) -> set[int]:
    return {round(epochs ** (i / count)) for i in range(count + 1)}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> None:
    """One step of all members: the sum of their mean losses, of which each sees its own."""
    optimizer.zero_grad()
    (F.cross_entropy(model(x).flatten(0, 1), labels.flatten(), reduction="sum") / len(x)).backward()
    optimizer.step()


def columns(points: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    return {key: [point[key] for point in points] for key in points[0]}
