"""Fine-tuning loops: tuned AdamW and what is done about its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart.training.pace import BUDGET as DEFAULT_BUDGET
from jumpstart.utils.cost import FORWARD

from .tasks import Batch, Cached, Problem, batches, collate, cross_entropy

SMALL = 32  # samples of Fast Forward's validation set
PERIOD = 6  # steps between its line searches
SAMPLES = 2  # batches that an action's samples are, as many again judge
BUDGET = 0.5  # of the run, for tries that lose: of so few steps the default allows hardly one
CHUNK = 64


class Clock:
    """Seconds of this process, with pauses; gradient evaluations in steps' worth beside them."""

    def __init__(self) -> None:
        self.seconds, self.gradients, self._since = 0.0, 0.0, time.process_time()

    def pause(self) -> None:
        self.seconds += time.process_time() - self._since

    def go_on(self) -> None:
        self._since = time.process_time()


@torch.no_grad()
def loss_on(model: nn.Module, data: Cached) -> float:
    total = 0.0
    for begin in range(0, len(data), CHUNK):
        some = collate([data[i] for i in range(begin, min(begin + CHUNK, len(data)))])
        total += float(cross_entropy(model, some)) * len(some["labels"])
    return total / len(data)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


class Averages:
    """EMA and LAWA weights beside a run's own."""

    def __init__(self, model: nn.Module, decay: float = 0.95, last: int = 6, interval: int = 5) -> None:
        self.parameters = trained(model)
        self.decay, self.last, self.interval, self.steps = decay, last, interval, 0
        self.moving = [p.detach().clone() for p in self.parameters]
        self.kept: list[list[Tensor]] = []

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        share = min(self.decay, self.steps / (10 + self.steps))  # a start that nothing has been learned at is forgotten
        for own, p in zip(self.moving, self.parameters, strict=True):
            own.lerp_(p, 1 - share)
        if self.steps % self.interval == 0:
            self.kept = [*self.kept, [p.detach().clone() for p in self.parameters]][-self.last :]

    def weights(self) -> dict[str, list[Tensor]]:
        found = {"EMA": self.moving}
        if self.kept:
            found["LAWA"] = [torch.stack(rows).mean(0) for rows in zip(*self.kept, strict=True)]
        return found


@torch.no_grad()
def at_weights(model: nn.Module, weights: list[Tensor], data: Cached) -> float:
    own = [p.detach().clone() for p in trained(model)]
    for p, value in zip(trained(model), weights, strict=True):
        p.copy_(value)
    found = loss_on(model, data)
    for p, value in zip(trained(model), own, strict=True):
        p.copy_(value)
    return found


class FastForward:
    """Every few steps the last update is repeated while the loss of a small validation set falls."""

    def __init__(self, model: nn.Module, small: Cached, clock: Clock, batch: int) -> None:
        self.model, self.clock, self.cost = model, clock, FORWARD * len(small) / batch
        self.small = collate([small[i] for i in range(len(small))])
        self.before: list[Tensor] = []
        self.repeated = 0

    def prepare(self, step: int) -> None:
        if (step + 1) % PERIOD == 0:
            self.before = [p.detach().clone() for p in trained(self.model)]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        if (step + 1) % PERIOD:
            return
        moved = [p - old for p, old in zip(trained(self.model), self.before, strict=True)]
        best = self._loss()
        while True:
            for p, d in zip(trained(self.model), moved, strict=True):
                p += d
            loss = self._loss()
            if not loss < best:
                break
            best, self.repeated = loss, self.repeated + 1
        for p, d in zip(trained(self.model), moved, strict=True):
            p -= d

    def _loss(self) -> float:
        self.clock.gradients += self.cost
        return float(cross_entropy(self.model, self.small))


def solved_head(model: Any, problem: Problem, clock: Clock) -> None:
    """The library's: damping by leave-one-out."""
    data = js.from_loader(
        model, problem.train, loss="cross_entropy", samples=len(problem.train), fixed=True, collate_fn=collate,
        chunk=CHUNK,
    )  # fmt: skip
    js.fit_head(data()).apply()
    clock.gradients += FORWARD * len(problem.train) / problem.batch


def logistic_head(model: Any, problem: Problem, clock: Clock) -> None:
    """scikit-learn's, its damping by cross-validation: what LP-FT starts from."""
    from sklearn import linear_model

    made: Any = linear_model.LogisticRegressionCV  # its stubs know another version

    train, features = problem.train, []
    with torch.no_grad():
        for begin in range(0, len(train), CHUNK):
            some = collate([train[i] for i in range(begin, min(begin + CHUNK, len(train)))])
            features.append(model.features(some["hidden"], some["mask"]))
    clock.gradients += FORWARD * len(train) / problem.batch
    x = torch.cat(features).double()
    scale = float(x.std())
    found = made(
        Cs=[0.1, 1.0, 10.0, 100.0],
        cv=3,
        scoring="neg_log_loss",
        max_iter=300,
        use_legacy_attributes=False,
        l1_ratios=(0,),
    )
    found.fit((x / scale).numpy(), train.targets.numpy())
    weight, bias = torch.tensor(found.coef_) / scale, torch.tensor(found.intercept_)
    if len(weight) == 1:  # of two classes it knows the difference
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)


HEADS: dict[str, Callable[[Any, Problem, Clock], None]] = {"fit_head": solved_head, "LP-FT": logistic_head}
ACTIONS: dict[str, tuple[str, ...]] = {
    "auto": ("skip",), "head": ("head",), "line": ("line",), "trajectory": ("trajectory",), "average": ("average",),
}  # fmt: skip


def endless(data: Cached, batch: int, seed: int) -> Iterator[Batch]:
    while True:
        yield from batches(data, batch, seed)
        seed += 1000


def optimizer_of(model: nn.Module, name: str, rate: float, schedule: str, steps: int) -> tuple[Any, Any]:
    """And its scheduler, if it has one."""
    if name == "schedule-free":
        from schedulefree import AdamWScheduleFree  # pyright: ignore[reportMissingImports]

        found = AdamWScheduleFree(trained(model), lr=rate, warmup_steps=0 if schedule == "constant" else steps // 10)
        found.train()
        return found, None
    found = torch.optim.AdamW(trained(model), lr=rate)
    if schedule == "constant":
        return found, None
    return found, torch.optim.lr_scheduler.LambdaLR(found, lambda at: max(0.0, 1 - at / steps))


def run(
    problem: Problem,
    name: str,
    rate: float,
    schedule: str,
    seed: int,
    steps: int,
    every: int,
    held: Cached,
    target: float = -1.0,
) -> dict[str, Any]:
    """One run; its curve of (steps, gradient evaluations, seconds, loss on ``held``), ended at ``target``."""
    model, clock = problem.start(seed), Clock()
    curves: dict[str, list[tuple[float, float, float, float]]] = {}

    def look(step: int, averages: Averages | None) -> float:
        clock.pause()
        here = (step, clock.gradients, clock.seconds)
        lowest = loss_on(model, held)
        curves.setdefault(name, []).append((*here, lowest))
        for kind, weights in averages.weights().items() if averages else ():
            curves.setdefault(kind, []).append((*here, at_weights(model, weights, held)))
        clock.go_on()
        return lowest

    train, forward = problem.train, None
    if name == "Fast Forward":
        order = torch.arange(len(train))
        train = train.part(order[SMALL:])
        forward = FastForward(model, problem.train.part(order[:SMALL]), clock, problem.batch)
    if name in HEADS:
        HEADS[name](model, problem, clock)
        if look(0, None) <= target:
            return {"curves": curves, "told": [], "earned": 0.0}
    optimizer, scheduler = optimizer_of(model, name, rate, schedule, steps)
    if name in ACTIONS:
        loader = batches(problem.train, problem.batch, seed)
        data = js.from_loader(
            model, loader, loss="cross_entropy", samples=min(SAMPLES * problem.batch, len(train) // 2), seed=seed
        )
        optimizer = js.JumpOptimizer(
            optimizer, data, actions=ACTIONS[name], budget=DEFAULT_BUDGET if name == "auto" else BUDGET
        )
    averages = Averages(model) if name == "AdamW" else None
    stream, booked, taken, seen = endless(train, problem.batch, seed), 0, 0, False
    for step in optimizer.steps(steps) if hasattr(optimizer, "steps") else range(steps):
        if forward:
            forward.prepare(taken)
        optimizer.zero_grad()
        cross_entropy(model, next(stream)).backward()
        optimizer.step()
        taken += 1
        clock.gradients += 1
        seen = False
        if isinstance(optimizer, js.JumpOptimizer):
            new = optimizer.results[booked:]
            clock.gradients += sum(result.cost for result in new)
            booked += len(new)
        if forward:
            forward.follow(taken - 1)
        if scheduler:
            scheduler.step()
        if averages:
            clock.pause()
            averages.update()
            clock.go_on()
        if taken % every == 0 or step + 1 >= steps:
            if name == "schedule-free":
                optimizer.eval()
            lowest, seen = look(taken, averages), True
            if name == "schedule-free":
                optimizer.train()
            if lowest <= target:
                break
    if not seen:  # a skip went to the end
        look(taken, averages)
    results = getattr(optimizer, "results", [])
    earned = (
        forward.repeated
        if forward
        else sum(max(0.0, result.saved + result.cost) for result in results if result.accepted)
    )
    return {"curves": curves, "told": [str(result) for result in results], "earned": float(earned)}
