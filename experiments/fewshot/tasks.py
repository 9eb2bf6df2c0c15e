"""Four tasks on texts, by a seed's few samples of each class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .. import texts
from ..texts import Texts
from .encoder import Top, toy

TRANSFERS = (
    "balance_not_updated_after_bank_transfer", "failed_transfer", "pending_transfer",
    "transfer_not_received_by_recipient", "transfer_timing",
)  # fmt: skip
BILLS = ("balance", "bill_balance", "bill_due", "min_payment", "pay_bill")
TESTED = 400  # texts of a test, at most


def banking77() -> tuple[Texts, Texts]:
    """Five intents about transfers, which are easily confused."""
    train, test, names = texts.banking77()
    chosen = [names.index(name) for name in TRANSFERS]
    return texts.only(train, chosen), texts.only(test, chosen)


def clinc150() -> tuple[Texts, Texts]:
    """Five intents of one domain, on balances and bills."""
    train, test, names = texts.clinc150("banking")
    chosen = [names.index(name) for name in BILLS]
    return texts.only(train, chosen), texts.only(test, chosen)


TASKS: dict[str, Callable[[], tuple[Texts, Texts]]] = {
    "banking77": banking77, "clinc150": clinc150, "sst2": texts.sst2, "ag_news": texts.ag_news,
}  # fmt: skip


class Embedder(Protocol):
    """Of texts the states that go into the last layer, and that layer with a fresh head."""

    def states(self, texts: Texts) -> Tensor: ...

    def top(self, classes: int, seed: int) -> Top: ...


class Toy:
    """Random states with a class's own direction, in place of an encoder."""

    def states(self, texts: Texts) -> Tensor:
        generator = torch.Generator().manual_seed(len(texts.texts))
        h = torch.randn(len(texts.texts), 4, 16, generator=generator)
        h[:, 0, :8] += 2 * torch.nn.functional.one_hot(texts.labels, 8)
        return torch.cat([h, torch.ones_like(h[..., :1])], 2)

    def top(self, classes: int, seed: int) -> Top:
        return toy(classes, seed)


def drawn(train: Texts, test: Texts, shots: int, seed: int) -> tuple[Texts, Texts]:
    """``shots`` texts of each class, and as many of the test as are read."""
    classes = train.labels.unique().tolist()
    order = torch.randperm(len(test.texts), generator=torch.Generator().manual_seed(0))[:TESTED].tolist()
    return texts.few(train, shots, classes, seed), Texts([test.texts[i] for i in order], test.labels[order])
