"""Each known mistake switched on by itself: what it leaves open without a signal, and how a short run ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jumpstart.gating import finite_sample
from jumpstart.report.records import Row

from ..label_noise.runs import draw
from ..label_noise.settings import Task
from .reference import Reference, Switches

BATCH, RATE, NOISE, EPOCHS = 64, 3e-3, 0.4, 60
COORDINATES, SETTLED, LOOKS = 2000, 300, 40
SMALL = 1e-5  # times the loss
TOKENS = (1, 3, 10, 50)  # of the microbatches of one step


AS_IT_SHOULD_BE = Switches()


@dataclass(frozen=True)
class Case:
    """One way to run: a rule, switches, decay, batch size, and the loss's scale."""

    rule: str = "hard"
    switches: Switches = AS_IT_SHOULD_BE
    decay: float = 0.0
    batch: int = BATCH
    scale: float = 1.0


def cases(task: Task) -> dict[str, Case]:
    """By name; the first of each kind is as it should be."""
    again = float(BATCH - 1)

    def near(batch: int) -> Case:
        return Case(switches=Switches(alpha=finite_sample(batch, task.count)), batch=batch)

    most = (BATCH, task.count // 2, 9 * task.count // 10, 99 * task.count // 100)
    return {
        "hard, corrected": Case(),
        "uncorrected": Case(switches=Switches(uncorrected=True)),
        "divided by b − 1 again": Case(switches=Switches(divided=again)),
        "uncorrected and divided again": Case(switches=Switches(uncorrected=True, divided=again)),
        "first step gated by ŝ = m̂²": Case(switches=Switches(first=True)),
        "snr, corrected": Case("snr"),
        "snr, ε = 1e-8": Case("snr", Switches(epsilon=1e-8)),
        "snr, loss × 1e-5": Case("snr", scale=SMALL),
        "snr, loss × 1e-5, ε = 1e-8": Case("snr", Switches(epsilon=1e-8), scale=SMALL),
        "uncorrected, decay 1 outside": Case(switches=Switches(uncorrected=True), decay=1.0),
        "uncorrected, decay 1 inside the gate": Case(switches=Switches(uncorrected=True, inside=True), decay=1.0),
        **{f"α = b/(n − b), b = {batch}": near(batch) for batch in most},
    }


def without_signal(case: Case, seed: int, coordinates: int, settled: int, looks: int) -> float:
    """The mean gate on gradients that are noise and nothing else."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.zeros(coordinates)
    optimizer = Reference([p], RATE, rule=case.rule, switches=case.switches)
    for _ in range(settled + looks):
        p.grad = case.scale * torch.randn(coordinates, generator=generator)
        optimizer.step()
    return sum(optimizer.open[settled:]) / looks


def trained(task: Task, case: Case, seed: int, epochs: int) -> Row:
    """A short run on wrong labels."""
    x, y = task.data()
    of = draw(task, y, NOISE, seed, split=False)
    torch.manual_seed(seed)
    model = task.network()
    optimizer = Reference(model.parameters(), RATE, case.decay, case.rule, case.switches)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = of.train[torch.randperm(task.count, generator=generator)]
        for rows in order[: task.count // case.batch * case.batch].split(case.batch):
            model.zero_grad()
            (case.scale * F.cross_entropy(model(x[rows]), of.labels[rows])).backward()
            optimizer.step()
    with torch.no_grad():
        return {
            "open": sum(optimizer.open) / len(optimizer.open), "open at first": optimizer.open[0],
            "steps": len(optimizer.open), "norm": float(sum(p.square().sum() for p in model.parameters())) ** 0.5,
            "train accuracy": right(model, x[of.train], of.labels[of.train]),
            "held accuracy": right(model, x[of.held], y[of.held]),
        }  # fmt: skip


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


def microbatches(seed: int, coordinates: int) -> dict[str, float]:
    """A gradient accumulated over microbatches of unlike size, no signal: how many exact gates open.

    The variance is that of all tokens; who adds microbatch means alike has a noisier mean than it says.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(TOKENS), 20 * coordinates, generator=generator)
    variance = tokens.var(0) / len(tokens)
    alike = torch.stack([part.mean(0) for part in tokens.split(TOKENS)]).mean(0)
    return {name: float((mean.square() > variance).double().mean())
            for name, mean in (("by tokens", tokens.mean(0)), ("alike", alike))}  # fmt: skip


def rows(
    task: Task,
    seed: int,
    epochs: int = EPOCHS,
    coordinates: int = COORDINATES,
    settled: int = SETTLED,
    looks: int = LOOKS,
) -> list[Row]:
    """A row a case."""
    found: list[Row] = []
    for name, case in cases(task).items():
        share = without_signal(case, seed, coordinates, settled, looks)
        found.append({"part": "traps", "seed": seed, "case": name, "rule": case.rule, "batch": case.batch,
                      "without signal": share, **trained(task, case, seed, epochs)})  # fmt: skip
    for name, share in microbatches(seed, coordinates).items():
        found.append({"part": "traps", "seed": seed, "case": f"exact, microbatches {name}", "without signal": share})
    return found
