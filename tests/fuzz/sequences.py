# ruff: noqa: E731  (tables: one case a line)
"""torch.nn's layers of sequences and words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, Data, batch, floats, tokens
from .layers import First, layer


def recurrent() -> Iterator[Case]:
    last: First = lambda out: out[0][:, -1]
    for name, make in (
        ("RNN tanh", lambda: nn.RNN(2, 3, batch_first=True)),
        ("RNN relu", lambda: nn.RNN(2, 3, nonlinearity="relu", batch_first=True)),
        ("LSTM", lambda: nn.LSTM(2, 3, batch_first=True)),
        ("LSTM bidirectional", lambda: nn.LSTM(2, 2, batch_first=True, bidirectional=True)),
        ("LSTM projected", lambda: nn.LSTM(2, 3, batch_first=True, proj_size=2)),
        ("LSTM two layers", lambda: nn.LSTM(2, 2, num_layers=2, batch_first=True)),
        ("GRU", lambda: nn.GRU(2, 3, batch_first=True)),
        ("GRU no bias", lambda: nn.GRU(2, 3, batch_first=True, bias=False)),
    ):
        yield from layer(f"recurrent/{name}", make, 3, 2, pick=last)
        if name in ("LSTM", "GRU"):
            yield from layer(f"recurrent/{name} eval", make, 3, 2, pick=last, train=False, few=False)
    yield from layer(
        "recurrent/LSTM dropout train", lambda: nn.LSTM(2, 2, 2, batch_first=True, dropout=0.5), 3, 2, few=False
    )
    yield from layer("recurrent/RNNCell", lambda: nn.RNNCell(2, 3), 2)
    yield from layer("recurrent/LSTMCell", lambda: nn.LSTMCell(2, 3), 2)
    yield from layer("recurrent/GRUCell", lambda: nn.GRUCell(2, 3), 2)

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.o = nn.GRU(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.r(x.transpose(0, 1))[1][0])

    yield Case("recurrent/GRU time first", lambda: TimeFirst().double(), batch(3, 2), answers=True)


def attention() -> Iterator[Case]:
    class Attend(nn.Module):
        def __init__(self, **kw: Any) -> None:
            super().__init__()
            self.mask, self.causal = kw.pop("mask", None), kw.pop("causal", False)
            self.weights = kw.pop("weights", True)
            self.m = nn.MultiheadAttention(4, 2, batch_first=True, **kw)

        def forward(self, x: Tensor) -> Tensor:
            mask = None
            if self.mask:
                mask = (torch.arange(x.shape[1]) >= 2).expand(x.shape[0], -1)
            causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.causal else None
            return self.m(x, x, x, key_padding_mask=mask, attn_mask=causal, need_weights=self.weights)[0]

    for name, kw in (
        ("MultiheadAttention", {}),
        ("MultiheadAttention fast", {"weights": False}),
        ("MultiheadAttention causal", {"causal": True}),
        ("MultiheadAttention padded", {"mask": True}),
        ("MultiheadAttention bias_kv", {"add_bias_kv": True}),
        ("MultiheadAttention zero_attn", {"add_zero_attn": True}),
        ("MultiheadAttention no bias", {"bias": False}),
    ):
        yield from layer(f"attention/{name}", lambda kw=kw: Attend(**kw), 3, 4, few=False)
        if not kw or "weights" in kw:
            yield from layer(f"attention/{name} eval", lambda kw=kw: Attend(**kw), 3, 4, train=False, few=False)
    small = {"d_model": 4, "nhead": 2, "dim_feedforward": 4, "batch_first": True}
    for name, make in (
        ("EncoderLayer", lambda: nn.TransformerEncoderLayer(dropout=0.0, **small)),
        ("EncoderLayer norm first", lambda: nn.TransformerEncoderLayer(dropout=0.0, norm_first=True, **small)),
        ("EncoderLayer gelu", lambda: nn.TransformerEncoderLayer(dropout=0.0, activation="gelu", **small)),
        ("Encoder", lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(dropout=0.0, **small), 1)),
    ):
        yield from layer(f"attention/{name} train", make, 3, 4, few=False)
        yield from layer(f"attention/{name} eval", make, 3, 4, train=False)
    yield from layer(
        "attention/EncoderLayer dropout train", lambda: nn.TransformerEncoderLayer(**small), 3, 4, few=False
    )

    class Decode(nn.Module):
        def __init__(self, whole: bool) -> None:
            super().__init__()
            kw = {"dropout": 0.0, **small}
            self.t = (
                nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **kw)
                if whole
                else nn.TransformerDecoderLayer(**kw)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.t(x, x[:, :2])

    yield from layer("attention/DecoderLayer", lambda: Decode(False), 3, 4, few=False)
    yield from layer("attention/Transformer", lambda: Decode(True), 3, 4, few=False)


def embeddings() -> Iterator[Case]:
    class Words(nn.Module):
        def __init__(self, embed: nn.Module, fill: bool = False, bag: bool = False) -> None:
            super().__init__()
            self.e, self.o, self.bag = embed, nn.Linear(3, 2), bag
            if fill:
                nn.init.normal_(embed.weight)

        def forward(self, i: Tensor) -> Tensor:
            return self.o(torch.tanh(self.e(i) if self.bag else self.e(i).mean(1)))

    for name, make, good in (
        ("Embedding", lambda: Words(nn.Embedding(7, 3)), True),
        ("padding zero row", lambda: Words(nn.Embedding(7, 3, padding_idx=0)), False),
        ("padding filled row", lambda: Words(nn.Embedding(7, 3, padding_idx=0), fill=True), False),
        ("scale_grad_by_freq", lambda: Words(nn.Embedding(7, 3, scale_grad_by_freq=True)), False),
        ("sparse", lambda: Words(nn.Embedding(7, 3, sparse=True)), False),
        ("max_norm", lambda: Words(nn.Embedding(7, 3, max_norm=1.0)), False),
        ("max_norm large", lambda: Words(nn.Embedding(7, 3, max_norm=100.0)), False),
        ("bag sum", lambda: Words(nn.EmbeddingBag(7, 3, mode="sum"), bag=True), False),
        ("bag mean", lambda: Words(nn.EmbeddingBag(7, 3, mode="mean"), bag=True), False),
        ("bag max", lambda: Words(nn.EmbeddingBag(7, 3, mode="max"), bag=True), False),
        ("bag padding", lambda: Words(nn.EmbeddingBag(7, 3, mode="mean", padding_idx=0), fill=True, bag=True), False),
        ("bag scale", lambda: Words(nn.EmbeddingBag(7, 3, mode="sum", scale_grad_by_freq=True), bag=True), False),
        ("bag sparse", lambda: Words(nn.EmbeddingBag(7, 3, mode="sum", sparse=True), bag=True), False),
        ("bag max_norm", lambda: Words(nn.EmbeddingBag(7, 3, mode="sum", max_norm=1.0), bag=True), False),
        ("from_pretrained frozen", lambda: Words(nn.Embedding.from_pretrained(floats(7, 3))), True),
    ):
        for n in (5, 2):
            data = batch(4, n=n, make=tokens)
            yield Case(
                f"embedding/{name}{', n = c' if n == 2 else ''}", lambda make=make: make().double(), data, answers=good
            )

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(4, 3, padding_idx=0)
            nn.init.normal_(self.e.weight)
            self.o = nn.Linear(3, 4)
            self.o.weight = self.e.weight

        def forward(self, i: Tensor) -> Tensor:
            return self.o(torch.tanh(self.e(i).mean(1)))

    few = lambda *s, seed=0: tokens(*s, high=4, seed=seed)
    yield Case("embedding/padding and tied", lambda: Tied().double(), batch(4, n=4, c=4, make=few))

    class Offsets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.EmbeddingBag(7, 3, mode="sum"), nn.Linear(3, 2)

        def forward(self, i: Tensor, w: Tensor) -> Tensor:
            starts = torch.arange(0, i.numel(), i.shape[1])
            return self.o(self.e(i.reshape(-1), starts, per_sample_weights=w.reshape(-1)))

    data = lambda: Data((tokens(5, 3), floats(5, 3)), floats(5, 2, seed=2), (tokens(2, 3, seed=4), floats(2, 3)))
    yield Case("embedding/bag offsets", lambda: Offsets().double(), data)

    class Lm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(4, 3)

        def forward(self, i: Tensor) -> Tensor:
            return torch.tanh(self.e(i)) @ self.e.weight.T

    y = lambda: Data(few(3, 2, seed=1), few(3, 2, seed=2), few(2, 2, seed=3))
    yield Case("embedding/language model", lambda: Lm().double(), y, loss="cross_entropy", answers=True)


def cases() -> Iterator[Case]:
    for make in (
        recurrent,
        attention,
        embeddings,
    ):
        yield from make()
