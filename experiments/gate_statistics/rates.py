"""Rates of opening: closed form, beside the optimizers on Gaussian samples and on a real network's gradients.

The gradient of Linear(D, 1) under a mean is the mean of its inputs: whatever is given as inputs are per-sample
gradients of D coordinates. A coordinate whose weight moved had an open gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from jumpstart.gating import open_rate
from jumpstart.gating.samples import record
from jumpstart.optim.gated_adamw import GatedAdamW
from jumpstart.report.records import Row

SIGNALS = (0.0, 0.5, 1.0, 2.0)  # |μ| of one batch's mean, in that mean's own standard deviation σ/√b
BATCHES = (8, 32, 128, 512)
COORDINATES = 500  # of each signal
SETTLED, LOOKS, APART = 300, 40, 10  # steps before anything is counted; how often, and at which intervals
RHO = 0.99


@dataclass(frozen=True)
class Form:
    """Statistics and threshold of a hard gate."""

    statistics: str
    correction: bool
    divided: bool = False

    def optimizer(self, parameters: Any, batch: int) -> GatedAdamW:
        return GatedAdamW(
            parameters, lr=1.0, weight_decay=0.0, statistics=self.statistics, correction=self.correction, rho=RHO,
            alpha=1 / (batch - 1) if self.divided else 1.0,
        )  # fmt: skip

    def rate(self, signal: float, batch: int) -> float:
        return open_rate(
            "hard", self.statistics, self.correction, signal=signal, batch=batch, rho=RHO, divided=self.divided
        )


FORMS = {
    "exact, batch": Form("exact", False),
    "exact, averaged": Form("exact", True),
    "streaming, corrected": Form("streaming", True),
    "streaming, as published": Form("streaming", False),
    "exact, divided twice": Form("exact", False, divided=True),
}

Draw = Callable[[int], Tensor]  # a batch size → per-sample gradients with no signal and unit variance


def gaussian(coordinates: int, seed: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda batch: torch.randn(batch, coordinates, generator=generator)


def network(coordinates: int, seed: int, data: tuple[Tensor, Tensor], epochs: int = 20) -> Draw:
    """Gradients of a perceptron at a trained point: centred and scaled, coordinate by coordinate, over its samples.

    Batches are drawn with replacement, so that the samples are the population, whose mean is known.
    """
    x, y = data
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    each = vmap(grad(lambda w, a, b: F.cross_entropy(functional_call(model, w, (a[None],)), b[None])), (None, 0, 0))
    found = torch.cat([g.flatten(1) for g in each(weights, x, y).values()], 1).double()
    found -= found.mean(0)
    spread = found.square().mean(0).sqrt()
    # A pixel that is never lit has no gradient at all.
    alive = torch.nonzero(spread > 1e-9 * spread.max()).flatten()
    chosen = alive[torch.randperm(len(alive), generator=generator)[:coordinates]]
    table = (found[:, chosen] / spread[chosen]).float()
    return lambda batch: table[torch.randint(len(table), (batch,), generator=generator)]


def signals(coordinates: int) -> Tensor:
    """The signal of each coordinate: ``SIGNALS`` in turn."""
    return torch.tensor(SIGNALS).repeat(coordinates // len(SIGNALS) + 1)[:coordinates]


def measured(draw: Draw, coordinates: int, batch: int, settled: int, looks: int) -> dict[str, list[float]]:
    """Form → share of coordinates that moved, for each signal."""
    of = signals(coordinates)
    shift = of / batch**0.5
    models = {name: nn.Linear(coordinates, 1, bias=False) for name in FORMS}
    optimizers = {name: form.optimizer(models[name].parameters(), batch) for name, form in FORMS.items()}
    recorders = [record(models[name]) for name, form in FORMS.items() if form.statistics == "exact"]
    moved = {name: torch.zeros(coordinates) for name in FORMS}
    for step in range(1, settled + looks * APART + 1):
        samples = draw(batch) + shift
        due = step > settled and (step - settled) % APART == 0
        for name, model in models.items():
            optimizers[name].zero_grad()
            model(samples).mean().backward()
            with torch.no_grad():
                model.weight.zero_()
            optimizers[name].step()
            if due:
                moved[name] += (model.weight.detach()[0] != 0) / looks
    for recorder in recorders:
        recorder.remove()
    return {name: [float(share[of == signal].mean()) for signal in SIGNALS] for name, share in moved.items()}


def rows(
    source: str, draw: Draw, seed: int, coordinates: int, batches: Sequence[int], settled: int, looks: int
) -> list[Row]:
    """A row for each form, batch and signal."""
    found: list[Row] = []
    for batch in batches:
        shares = measured(draw, coordinates, batch, settled, looks)
        for name, form in FORMS.items():
            for signal, share in zip(SIGNALS, shares[name], strict=True):
                found.append({"part": "rates", "source": source, "seed": seed, "form": name, "batch": batch,
                              "signal": signal, "open": share, "closed form": form.rate(signal, batch)})  # fmt: skip
    return found
