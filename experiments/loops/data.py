"""Minibatches that can be gone on with, and a validation part."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..training import SHARE, Data


def validation(data: Data) -> Data:
    """The training part alone, the last of it in place of the test: what choices are made on."""
    at = int(SHARE * len(data.x))
    return Data(data.x[:at], data.y[:at], data.x[at:], data.y[at:])


def drawn(data: Data, batch: int, seed: int) -> Iterator[Tensor]:
    """Rows of minibatches, pass by pass, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data.x), generator=generator)
        yield from order[: len(order) // batch * batch].split(batch)
