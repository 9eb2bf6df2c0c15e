"""The top of a sentence encoder in plain torch, on cached states: what few-shot contenders train."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..common import encoder
from ..texts import Texts

LONGEST = 24  # tokens of a sentence that are read
BATCH = 64


class Top(nn.Module):
    """A transformer layer, the mean over tokens, unit entries on average, and a linear head.

    Inputs are (n, L, d + 1): states, and a last channel that is 1 where there is a token.
    """

    def __init__(self, width: int, inner: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.rise, self.fall = nn.Linear(width, inner), nn.Linear(inner, width)
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        h, mask = x[..., :-1], x[..., -1]
        n, length, width = h.shape
        q, k, v = (
            part(h).reshape(n, length, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) - 1e9 * (1 - mask)[:, None, None]
        seen = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width)
        h = self.first(self.out(seen) + h)
        h = self.second(self.fall(F.gelu(self.rise(h))) + h)
        pooled = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(pooled, dim=1) * math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def toy(classes: int, seed: int) -> Top:
    """A tiny one with random weights."""
    torch.manual_seed(seed)
    return Top(16, 32, 2, classes)


class Encoder:
    """all-MiniLM-L6-v2: five layers that are run once, and the sixth to train."""

    def __init__(self) -> None:
        self.model, self.tokenizer = encoder()

    @torch.no_grad()
    def states(self, texts: Texts) -> Tensor:
        """(n, L, d + 1): what goes into the last layer, and where tokens are."""
        model, found = self.model, []
        for at in range(0, len(texts.texts), BATCH):
            tokens: Any = self.tokenizer(
                texts.texts[at : at + BATCH], padding="max_length", truncation=True, max_length=LONGEST,
                return_tensors="pt",
            )  # fmt: skip
            h = model(**tokens, output_hidden_states=True).hidden_states[-2]
            found.append(torch.cat([h, tokens["attention_mask"][..., None].to(h)], 2))
        return torch.cat(found)

    def top(self, classes: int, seed: int) -> Top:
        """The last layer, with a fresh head."""
        torch.manual_seed(seed)
        own, layer = self.model.config, self.model.encoder.layer[-1]
        found = Top(own.hidden_size, own.intermediate_size, own.num_attention_heads, classes)
        pairs = {
            "query": layer.attention.self.query, "key": layer.attention.self.key, "value": layer.attention.self.value,
            "out": layer.attention.output.dense, "first": layer.attention.output.LayerNorm,
            "rise": layer.intermediate.dense, "fall": layer.output.dense, "second": layer.output.LayerNorm,
        }  # fmt: skip
        for name, module in pairs.items():
            getattr(found, name).load_state_dict(module.state_dict())
        return found
