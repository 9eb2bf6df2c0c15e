"""Runs that generalize late, and what is known of them at the time of the forecast."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jumpstart as js
from jumpstart.report.records import Row
from jumpstart.trajectory import Operators, Recorder

from ..grokking.tasks import Protocol, Sum
from ..training import Data

FITTED, LEARNED = 0.99, 0.8  # training accuracy that counts as memorized, held-out accuracy as generalized
MOMENT = 3  # the forecast is made at this many times the step of memorizing
BETAS = (0.9, 0.98)
RATES, DECAYS, SHARES = (0.003, 0.006, 0.012, 0.02), (0.5, 1.0, 2.0), (0.6, 0.65, 0.7)
MEMORY = 2**27  # of the recorder: Jacobians are not kept


@dataclass(frozen=True)
class Size:
    prime: int = 23
    width: int = 128
    steps: int = 3000
    every: int = 5
    window: int = 20  # steps before the forecast that are recorded
    modes: int = 16


TOY = Size(5, 16, 120, 5, 3, 4)


class Quadratic(Sum):
    """Two embeddings summed, squared, and logits: generalizes modular addition soonest of all networks this small."""

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.tensor([0, self.prime], device=x.device)
        return self.out((self.first(x + shift).sum(1) + self.bias).square())


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def settings(seed: int) -> tuple[float, float, float]:
    """Rate, decay and share of the table, drawn by the seed."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    draws = [int(torch.randint(len(own), (), generator=generator)) for own in (RATES, DECAYS, SHARES)]
    return RATES[draws[0]], DECAYS[draws[1]], SHARES[draws[2]]


def run(seed: int, size: Size) -> Row:
    """Train until it generalizes; what is seen at the moment of the forecast knows nothing of later steps."""
    rate, decay, share = settings(seed)
    protocol = Protocol("addition", size.prime, share, size.width, size.steps, size.every, Quadratic, False, ())
    data, model = protocol.data(seed), protocol.model(seed).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, betas=BETAS)
    row: Row = {"seed": seed, "rate": rate, "decay": decay, "share": share, "memorized": None, "generalized": None}
    step, begins = 0, size.steps  # of the record
    while step < size.steps:
        if row["memorized"] is None and accuracy(model, data.x, data.y) >= FITTED:
            begins = max(MOMENT * step, step + size.window) - size.window
            row |= {"memorized": step, "norm then": _squared(model)}
        if step == begins:
            row["norm before"] = _squared(model)
            row |= _seen(_recorded(model, data, optimizer, size))
            step += size.window
            row |= {"moment": step, "norm": _squared(model), "held-out then": accuracy(model, data.xt, data.yt)}
        else:
            _step(model, data, optimizer)
            step += 1
        looked = step % size.every == 0 or step == row.get("moment")
        if looked and accuracy(model, data.xt, data.yt) >= LEARNED:
            row["generalized"] = step
            break
    return row


def _step(model: nn.Module, data: Data, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(data.x), data.y).backward()
    optimizer.step()


def _squared(model: nn.Module) -> float:
    return float(sum(p.detach().square().sum() for p in model.parameters()))


def _recorded(model: nn.Module, data: Data, optimizer: torch.optim.Optimizer, size: Size) -> Operators:
    """The operators of the steps up to the forecast; inputs of the held-out table are seen, its answers are not."""
    objective = js.supervised(model, data.x, data.y, "cross_entropy")
    recorder = Recorder(objective, data.xt, optimizer=optimizer, modes=size.modes, memory_limit=MEMORY)
    for _ in range(size.window):
        _step(model, data, optimizer)
        recorder.step()
    return recorder.operators()


def _seen(operators: Operators) -> Row:
    """Statistics of the recorded operators, each to be the one number that a forecast is made of."""
    moved = float(operators.displacement.square().sum()) / len(operators.displacement)
    shown = float(operators.transfer.square().sum()) / max(1, len(operators.transfer))
    return {
        "effective rank": operators.effective_rank, "largest eigenvalue": float(operators.spectrum[0]),
        "transfer": math.sqrt(shown / moved), "error": operators.error,
    }  # fmt: skip
