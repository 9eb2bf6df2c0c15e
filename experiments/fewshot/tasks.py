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
    """``shots`` texts of each class, and a test of the others.

    Both are drawn from all of a task's texts: the published tests of banking77 and CLINC150 are of another kind than
    their training sets (measured: 24 of a class of the latter promise a loss of 0.01, by five folds as well as by
    leave-one-out, and the published test has 0.17), which no estimate from training samples can know.
    """
    pool = [*train.texts, *test.texts]
    labels = torch.cat([train.labels, test.labels])
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    chosen = [int(i) for label in labels.unique() for i in order[labels[order] == label][:shots]]
    taken = set(chosen)
    rest = [i for i in order.tolist() if i not in taken][:TESTED]
    few, held = (Texts([pool[i] for i in rows], labels[rows]) for rows in (chosen, rest))
    return few, held
