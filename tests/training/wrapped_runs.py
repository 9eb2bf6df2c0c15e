"""Random training loops, bare and wrapped: what is drawn, and what is counted.

The training loss is taken in plain torch, not from the library, on the data of the jump's own objective: before the
jump (by a hook of the wrapped optimizer), after it, and after the next step.
"""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js

OPTIMIZERS = {
    "SGD": lambda p, s: torch.optim.SGD(p, 0.1 * s),
    "SGD with decay": lambda p, s: torch.optim.SGD(p, 0.1 * s, weight_decay=0.01),
    "momentum": lambda p, s: torch.optim.SGD(p, 0.1 * s, momentum=0.9),
    "Nesterov": lambda p, s: torch.optim.SGD(p, 0.05 * s, momentum=0.9, nesterov=True),
    "Adam": lambda p, s: torch.optim.Adam(p, 0.01 * s),
    "Adam with decay": lambda p, s: torch.optim.Adam(p, 0.01 * s, weight_decay=1e-3),
    "AdamW": lambda p, s: torch.optim.AdamW(p, 0.01 * s),
    "AMSGrad": lambda p, s: torch.optim.Adam(p, 0.01 * s, amsgrad=True),
    "NAdam": lambda p, s: torch.optim.NAdam(p, 0.01 * s),
    "RAdam": lambda p, s: torch.optim.RAdam(p, 0.01 * s),
    "RMSprop": lambda p, s: torch.optim.RMSprop(p, 0.005 * s),
    "RMSprop with momentum": lambda p, s: torch.optim.RMSprop(p, 0.002 * s, momentum=0.9),
    "Adagrad": lambda p, s: torch.optim.Adagrad(p, 0.03 * s),
    "Adadelta": lambda p, s: torch.optim.Adadelta(p, s),
    "Adamax": lambda p, s: torch.optim.Adamax(p, 0.01 * s),
    "ASGD": lambda p, s: torch.optim.ASGD(p, 0.05 * s),
    "Rprop": lambda p, s: torch.optim.Rprop(p, 0.005 * s),
    "Adafactor": lambda p, s: torch.optim.Adafactor(p, 0.02 * s),  # pyright: ignore
}
STEPS = 41
FULL, FIXED, BATCHES, FRESH = (
    "full batch",
    "minibatches, one objective",
    "the minibatch as objective",
    "one by a function",
)


@dataclass(frozen=True)
class Run:
    """A loop, drawn from its seed."""

    seed: int
    loss: str
    optimizer: str
    speed: float
    data: str
    dtype: torch.dtype
    width: int
    depth: int
    activation: type[nn.Module]
    norm: str
    dropout: float
    samples: int
    features: int
    outputs: int
    every: int
    after: str
    frozen: bool
    scheduled: bool
    accumulate: int
    bad_batch: bool  # one with NaN, which the loop leaves out
    raises: bool  # the function does, now and then
    decoupled: bool = False

    @staticmethod
    def draw(seed: int, **fixed) -> Run:
        r = random.Random(seed)
        loss = r.choice(["mse", "logistic", "cross_entropy"])
        drawn = {
            "loss": loss,
            "optimizer": r.choice(list(OPTIMIZERS)),
            "speed": r.choice([0.3, 1.0, 1.0, 3.0]),
            "data": r.choice([FULL, FULL, FULL, FIXED, FIXED, BATCHES, BATCHES, FRESH]),
            "dtype": r.choice([torch.float32] * 5 + [torch.float64] * 3 + [torch.bfloat16]),
            "width": r.choice([6, 12, 16]),
            "depth": r.choice([1, 2, 2]),
            "activation": r.choice([nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU]),
            "norm": r.choice(["", "", "", "batch", "layer"]),
            "dropout": r.choice([0.0, 0.0, 0.0, 0.2]),
            "samples": r.choice([12, 20, 28, 40]),
            "features": r.choice([3, 6]),
            "outputs": {"mse": r.choice([1, 2]), "logistic": 1, "cross_entropy": r.choice([3, 5])}[loss],
            "every": r.choice([4, 7, 10]),
            "after": r.choice(["keep", "keep", "keep", "rebuild", "reset"]),
            "frozen": r.random() < 0.15,
            "scheduled": r.random() < 0.2,
            "accumulate": r.choice([1, 1, 1, 1, 2]),
            "bad_batch": r.random() < 0.15,
            "raises": r.random() < 0.3,
        }
        return Run(seed, **{**drawn, **fixed})

    @property
    def frame(self) -> bool | None:
        """The mode that objectives evaluate in: BatchNorm and dropout in eval mode."""
        return False if self.norm == "batch" or self.dropout else None

    def model(self) -> nn.Sequential:
        torch.manual_seed(self.seed)
        layers: list[nn.Module] = []
        wide = self.features
        for _ in range(self.depth):
            layers.append(nn.Linear(wide, self.width))
            if self.norm:
                layers.append(nn.BatchNorm1d(self.width) if self.norm == "batch" else nn.LayerNorm(self.width))
            layers += [self.activation(), nn.Dropout(self.dropout)] if self.dropout else [self.activation()]
            wide = self.width
        return nn.Sequential(*layers, nn.Linear(wide, self.outputs)).to(self.dtype)

    def problem(self) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.samples, self.features, generator=g, dtype=torch.float64)
        hidden = torch.tanh(2 * x @ torch.randn(self.features, 8, generator=g, dtype=torch.float64))
        u = hidden @ torch.randn(8, self.outputs, generator=g, dtype=torch.float64)
        u = u + 0.3 * torch.randn(u.shape, generator=g, dtype=torch.float64)
        y = {"mse": u, "logistic": (u > 0).double(), "cross_entropy": u.argmax(1)}[self.loss]
        return x.to(self.dtype), y if self.loss == "cross_entropy" else y.to(self.dtype)

    def value(self, u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss, as a loop takes it: of half-precision outputs in float32."""
        half = u.dtype == torch.bfloat16
        u, y = (u.float() if half else u), (y.float() if half and y.is_floating_point() else y)
        kinds = {
            "mse": F.mse_loss,
            "logistic": F.binary_cross_entropy_with_logits,
            "cross_entropy": F.cross_entropy,
        }
        return kinds[self.loss](u, y)

    def loss_on(self, model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
        training = model.training
        model.train(training if self.frame is None else False)
        with torch.no_grad():
            found = float(self.value(model(data[0]), data[1]))
        model.train(training)
        return found


@dataclass
class Counts:
    """Over any number of runs."""

    runs: int = 0
    jumps: int = 0
    accepted: int = 0
    outcomes: Counter = field(default_factory=Counter)
    rose: list = field(default_factory=list)  # accepted, and the training loss was higher
    undone: list = field(default_factory=list)  # higher after the next step than before the jump
    looked_at: int = 0
    raised: list = field(default_factory=list)  # out of the loop
    not_finite: list = field(default_factory=list)  # though the bare run is
    dear: list = field(default_factory=list)  # over the budget
    share: float = 0.0  # of its budget, the dearest jump
    ratios: dict = field(default_factory=dict)  # seed -> training loss over the bare run's
    warned: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        ratios = sorted(self.ratios.values()) or [math.nan]
        worse, twice, half = (
            sum(f(r) for r in ratios) for f in (lambda r: r > 1.01, lambda r: r > 2, lambda r: r < 0.5)
        )
        lines = [
            f"{self.runs} runs, {self.jumps} jumps tried, {self.accepted} accepted: {dict(self.outcomes)}",
            f"exceptions into the loop {len(self.raised)} {self.raised[:3]}",
            f"not finite where the bare run is {len(self.not_finite)} {self.not_finite[:5]}",
            f"accepted jumps that raised the training loss {len(self.rose)} {self.rose[:5]}",
            f"undone by the next step {len(self.undone)} of {self.looked_at} {self.undone[:8]}",
            f"over the budget {len(self.dear)} {self.dear[:5]}, the dearest took {self.share:.2f} of it",
            f"training loss against the bare run: median {ratios[len(ratios) // 2]:.3f}, worse by > 1% in "
            f"{worse}, twice worse {twice}, half {half} of {len(ratios)}",
            f"warnings {dict(self.warned)}",
        ]
        return "\n".join(lines)


class Loop:
    """One run, as a user would write it."""

    def __init__(self, run: Run, jumps: bool, counts: Counts | None = None, **options) -> None:
        self.run, self.counts = run, counts
        self.model = run.model()
        self.x, self.y = run.problem()
        first, rest = list(self.model[0].parameters()), list(self.model[1:].parameters())
        if run.frozen:
            inner = OPTIMIZERS[run.optimizer]([{"params": rest}, {"params": first}], run.speed)
            inner.param_groups[1]["lr"] = 0.0
        else:
            inner = OPTIMIZERS[run.optimizer](self.model.parameters(), run.speed)
        self.before = math.nan
        self.batch = self.solved = (self.x, self.y)
        self.calls = 0
        self.optimizer: torch.optim.Optimizer = inner
        if jumps:
            objective = self.objective if run.data in (BATCHES, FRESH) else self.build(self.x, self.y)
            self.optimizer = js.JumpOptimizer(
                inner, objective, at=run.every, search=True, **{"after": run.after, **options}
            )
            inner.register_step_post_hook(self.measure)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 15, 0.5) if run.scheduled else None

    def build(self, x, y):
        return js.supervised(self.model, x, y, loss=self.run.loss, training=self.run.frame)

    def objective(self):
        self.calls += 1
        if self.run.raises and self.calls % 3 == 2:
            raise KeyError("the file of the next shard is gone")
        self.solved = self.batch if self.run.data == BATCHES else (self.x, self.y)
        return self.build(*self.solved)

    def measure(self, *_) -> None:
        """Before the jump, if there is one: a function is asked for the present minibatch after this."""
        data = self.batch if self.run.data == BATCHES else (self.x, self.y)
        self.before = self.run.loss_on(self.model, data)

    def __iter__(self):
        """Steps; yields after each."""
        run = self.run
        order = torch.Generator().manual_seed(run.seed)
        torch.manual_seed(run.seed + 1)
        whole = run.data in (FULL, FRESH)
        for step in range(STEPS):
            self.optimizer.zero_grad()
            for _ in range(run.accumulate):
                rows = torch.randperm(run.samples, generator=order)[
                    : run.samples if whole else max(4, run.samples // 3)
                ]
                self.batch = (self.x, self.y) if whole else (self.x[rows], self.y[rows])
                if run.bad_batch and step == 17:
                    self.batch = (self.batch[0] * math.nan, self.batch[1])
                loss = run.value(self.model(self.batch[0]), self.batch[1]) / run.accumulate
                if bool(torch.isfinite(loss)) or not run.bad_batch:
                    loss.backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            yield step

    def end(self) -> float:
        return self.run.loss_on(self.model, (self.x, self.y))


def trial(runs, **options) -> Counts:
    """Every run bare and wrapped."""
    counts = Counts()
    for run in runs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bare = Loop(run, jumps=False)
            for _ in bare:
                pass
        one(run, bare.end(), counts, options)
    return counts


def one(run: Run, bare: float, counts: Counts, options: dict) -> None:
    counts.runs += 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loop = Loop(run, jumps=True, **options)
            follow(loop, counts)
        except Exception as error:
            counts.raised.append((run.seed, f"{type(error).__name__}: {str(error)[:80]}"))
            return
    counts.warned.update(str(w.message)[:24] for w in caught)
    end = loop.end()
    if math.isfinite(bare) and not math.isfinite(end):
        counts.not_finite.append((run.seed, run.optimizer))
    if math.isfinite(bare) and bare > 0:
        counts.ratios[run.seed] = end / bare if math.isfinite(end) else math.inf


def follow(loop: Loop, counts: Counts) -> None:
    optimizer, run = loop.optimizer, loop.run
    assert isinstance(optimizer, js.JumpOptimizer)
    pending = None
    tried, jumps = 0, 0
    for _ in loop:
        if pending is not None:
            before, data, who = pending
            now = run.loss_on(loop.model, data)
            counts.looked_at += 1
            if not now <= before:
                counts.undone.append((run.seed, who, f"{before:.3g}->{now:.3g}"))
            pending = None
        if optimizer.jumps > jumps:
            jumps = optimizer.jumps
            result = optimizer.results[-1]
            counts.jumps += 1
            counts.outcomes[result.outcome.name] += 1
            allowed = optimizer.action.budget * (optimizer.taken - tried) if optimizer.action.budget else math.inf
            counts.share = max(counts.share, result.cost / allowed)
            if result.cost > allowed:
                counts.dear.append((run.seed, round(result.cost / allowed, 2)))
            tried = optimizer.taken
            if result.accepted:
                counts.accepted += 1
                after = run.loss_on(loop.model, loop.solved)
                if not after <= loop.before:
                    counts.rose.append((run.seed, run.optimizer, f"{loop.before:.6g}->{after:.6g}"))
                pending = loop.before, loop.solved, run.optimizer


if __name__ == "__main__":  # python -m tests.training.wrapped_runs FIRST COUNT
    torch.set_num_threads(1)
    start, number = int(sys.argv[1]), int(sys.argv[2])
    print(trial([Run.draw(seed) for seed in range(start, start + number)]))
