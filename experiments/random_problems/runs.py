"""Training runs of random problems, step by step; and the same run inside a wrapper."""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js

from .networks import Tally, network, passed
from .problems import LOSSES, OPTIMIZERS, Data, Problem, data

NUDGE = 1e-3  # of weights, relative: a run that such a change throws off its way is chaotic by itself
FLOOR = 1e-6  # of the loss at the start: what is below counts as this, so that nothing is made of vanishing losses


class Batches:
    """Indices of the minibatches, an endless permuted sequence; None where a step sees all samples."""

    def __init__(self, of: Problem, replica: int) -> None:
        self.problem, self.left = of, torch.empty(0, dtype=torch.long)
        self.generator = torch.Generator().manual_seed(of.seed("order", replica))

    def __next__(self) -> Tensor | None:
        if self.problem.full:
            return None
        if len(self.left) < self.problem.batch:
            self.left = torch.randperm(self.problem.samples, generator=self.generator)
        batch, self.left = self.left[: self.problem.batch], self.left[self.problem.batch :]
        return batch

    def __copy__(self) -> Batches:
        twin = Batches(self.problem, 0)
        twin.left = self.left
        twin.generator.set_state(self.generator.get_state())
        return twin


@dataclass
class Run:
    """A model on its way: ``step`` is what a user's loop does."""

    problem: Problem
    data: Data
    model: nn.Module
    optimizer: Any
    batches: Batches
    seconds: float = 0.0  # of steps, the processor's

    @classmethod
    def start(cls, of: Problem, replica: int = 0, order: int | None = None) -> Run:
        """From the beginning; replicas have other weights, and minibatches in another order unless that is given."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(of.seed("weights", replica))
            model = network(of.network, of.outputs, of.width, of.depth, of.activation)
        model = model.to(getattr(torch, of.dtype))
        optimizer = OPTIMIZERS[of.optimizer].make(model.parameters(), of.rate, of.decay)
        return cls(of, data(of), model, optimizer, Batches(of, replica if order is None else order))

    def clone(self, order: int | None = None) -> Run:
        """The same run, from here on by itself; with ``order``, on minibatches in that other order."""
        # Together, so that the copies belong together; load_state_dict would change the dtype of NAdam's mu_product.
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        batches = copy.copy(self.batches) if order is None else Batches(self.problem, order)
        return Run(self.problem, self.data, model, optimizer, batches, self.seconds)

    def objective(self) -> js.Objective:
        return js.supervised(self.model, self.data.x, self.data.y, self.problem.loss)

    def step(self) -> None:
        begun, rows = time.process_time(), next(self.batches)
        x, y = (self.data.x, self.data.y) if rows is None else (self.data.x[rows], self.data.y[rows])
        self.optimizer.zero_grad()
        LOSSES[self.problem.loss](self.model(x), y).backward()
        self.optimizer.step()
        self.seconds += time.process_time() - begun

    def held_out(self) -> Tensor:
        return passed(self.data.held_x, self.model)

    def losses(self) -> Losses:
        loss = LOSSES[self.problem.loss]
        train = loss(passed(self.data.x, self.model), self.data.y)
        return Losses(float(train), float(loss(self.held_out(), self.data.held_y)))

    @property
    def finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.model.parameters())


@dataclass(frozen=True)
class Losses:
    """Of all training samples, and of those held out."""

    train: float
    held: float

    def above(self, other: Losses, start: Losses) -> tuple[float, float]:
        """log(this / other), of both; what is below ``FLOOR`` of the start counts as that."""
        return (
            _log_ratio(self.train, other.train, FLOOR * start.train),
            _log_ratio(self.held, other.held, FLOOR * start.held),
        )


def _log_ratio(a: float, b: float, floor: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.nan if math.isfinite(a) or not math.isfinite(b) else math.inf
    return math.log(max(a, floor) / max(b, floor))


@dataclass
class Finished:
    """What a run of some length left, and what it cost in steps of the bare loop."""

    losses: Losses
    effective: int
    taken: int
    evaluations: float  # gradient evaluations as counted by the library, in those of a step
    passes: float  # samples through the network, in those of a step
    seconds: float  # the processor's
    tries: int = 0
    kept: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def bare(of: Problem, steps: int, replica: int = 0, order: int | None = None, nudge: float = 0.0) -> Finished:
    """The user's loop as it is; with a nudge, from weights that are relatively so far away at random."""
    run, before = Run.start(of, replica, order), Tally.samples
    if nudge:
        generator = torch.Generator().manual_seed(of.seed("nudge", replica))
        with torch.no_grad():
            for p in run.model.parameters():
                p.mul_(1 + nudge * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    for _ in range(steps):
        run.step()
    passes = (Tally.samples - before) / of.batch
    return Finished(run.losses(), steps, steps, float(steps), passes, run.seconds)


def wrapped(of: Problem, steps: int, replica: int = 0, budget: float = math.inf, **options: Any) -> Finished:
    """The same loop with a :class:`jumpstart.JumpOptimizer`, until as many effective steps, or at a budget's end."""
    run, before, begun = Run.start(of, replica), Tally.samples, time.process_time()
    if not of.full:
        options = {"batch": of.batch, **options}  # without it no step of minibatches is skipped, says the library
    share = of.samples / of.batch  # the objective's samples in those of a step
    with recorded() as said:
        optimizer = run.optimizer = js.JumpOptimizer(run.optimizer, run.objective(), **options)
        for _ in optimizer.steps(steps):
            if spent(optimizer, share) >= budget:
                break
            run.step()
    seconds, passes = time.process_time() - begun, (Tally.samples - before) / of.batch
    outcomes: dict[str, int] = {}
    for result in optimizer.results:
        outcomes[result.outcome.name] = outcomes.get(result.outcome.name, 0) + 1
    return Finished(
        run.losses(), optimizer.effective_steps, optimizer.taken, spent(optimizer, share), passes, seconds,
        optimizer.jumps, sum(result.accepted for result in optimizer.results), outcomes, said,
    )  # fmt: skip


@contextlib.contextmanager
def recorded() -> Iterator[list[str]]:
    """Collect the beginnings of what is warned of, each once."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield said
        finally:
            said += sorted({str(warning.message)[:120] for warning in caught})


def spent(optimizer: Any, share: float) -> float:
    """Gradient evaluations so far, in those of a step of the loop."""
    return optimizer.taken + share * sum(result.gradient_evaluations for result in optimizer.results)
