"""Who runs, and the settings that each may choose among: four tries, at the same factors of the base rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from jumpstart.optim.gated_adamw import GatedAdamW
from jumpstart.report.records import Row

from ..rivals import MSVAG, Cautious, Rival
from .tasks import Task

FACTORS = (1.0, 0.3, 0.1, 0.03)
CONTROL = (*FACTORS, 0.055, 0.018, 0.01, 0.003)  # of plain AdamW in the reported runs: finer, and further
DECAYS = (0.3, 1.0, 3.0, 10.0)  # in place of torch's 0.01, at a tenth of the base rate
AVERAGES = (0.98, 0.995)  # of EMA, along the runs of AdamW


@dataclass(frozen=True)
class Setting:
    """A factor of the base rate, decay, and of EMA its own."""

    factor: float
    decay: float = 0.01
    average: float | None = None

    @property
    def told(self) -> Row:
        return {"factor": self.factor, "decay": self.decay, "average": self.average}

    def __str__(self) -> str:
        return f"{self.factor:g}, {self.decay:g}" + (f", {self.average:g}" if self.average is not None else "")


@dataclass(frozen=True)
class Contender:
    """An optimizer from parameters, a rate and a decay; ``base`` times the task's rate is its factor 1."""

    make: Callable[[Any, float, float], torch.optim.Optimizer]
    settings: tuple[Setting, ...] = tuple(Setting(factor) for factor in FACTORS)
    exact: bool = False
    gate: bool = False
    base: float = 1.0


def _adamw(parameters: Any, rate: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)  # as the gated ones by default


def _gated(rule: str, statistics: str, correction: bool) -> Contender:
    def make(parameters: Any, rate: float, decay: float) -> torch.optim.Optimizer:
        return GatedAdamW(
            parameters, lr=rate, weight_decay=decay, rule=rule, statistics=statistics, correction=correction
        )

    return Contender(make, exact=statistics == "exact", gate=True)


def _rival(kind: type[Rival], base: float = 1.0) -> Contender:
    # Weights shrink by rate × decay a step, which is to be as much whatever the rate's unit.
    return Contender(lambda parameters, rate, decay: kind(parameters, rate, decay / base), base=base)


def _sgd(parameters: Any, rate: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=0.0)


ADAMW, DECAY, EMA, EARLY = "AdamW", "AdamW, more decay", "AdamW, EMA", "AdamW, stopped early"
CONTENDERS = {
    ADAMW: Contender(_adamw),
    DECAY: Contender(_adamw, tuple(Setting(0.1, decay) for decay in DECAYS)),
    "hard, exact, batch": _gated("hard", "exact", False),
    "hard, streaming, corrected": _gated("hard", "streaming", True),
    "hard, streaming, as published": _gated("hard", "streaming", False),
    "snr, streaming, as published": _gated("snr", "streaming", False),
    "SGD": Contender(_sgd, base=3.0),  # a rate of gradients, not of their signs
    "M-SVAG": _rival(MSVAG, 30.0),  # its average is a tenth of SGD's sum: the same rates
    "Cautious AdamW": _rival(Cautious),
}
GATES = tuple(name for name, contender in CONTENDERS.items() if contender.gate)
NAMES = (ADAMW, DECAY, EMA, EARLY, *(name for name in CONTENDERS if name not in (ADAMW, DECAY)))


def of(task: Task) -> dict[str, Contender]:
    """Those of a task, with the settings that it has time for."""
    found = {}
    for name, contender in CONTENDERS.items():
        if not task.contenders or name in task.contenders:
            kept = [s for s in contender.settings if not task.factors or s.factor in task.factors]
            found[name] = replace(contender, settings=tuple(kept))
    return found


def names(task: Task) -> list[str]:
    """Lines of its tables, in order."""
    return [name for name in NAMES if not task.contenders or name in task.contenders]


def gates(task: Task) -> list[str]:
    return [name for name in names(task) if name in GATES]


def control(task: Task) -> tuple[float, ...]:
    """Factors of plain AdamW's rate in the reported runs."""
    return task.control or CONTROL
