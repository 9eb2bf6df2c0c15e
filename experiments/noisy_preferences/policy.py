"""A policy: the upper layers of a language model, adapted, on cached states of the lower ones.

Pairs of answers stay side by side in every layer, (n, 2, T, width), so that row i of whatever passes is pair i: that is
what a sample's gradient, and a kernel between samples, are taken of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RANK, SCALE = 8, 2.0
BETA = 0.1  # of the preference loss: margins are in units of 1/β nats
OUT = -1e9  # added to the attention paid to padding


@dataclass(frozen=True)
class Sizes:
    """Of a Llama layer."""

    width: int
    inner: int
    heads: int
    groups: int  # heads of keys and values
    theta: float = 1e5  # of rotary positions
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.width // self.heads


class LoRA(nn.Module):
    """A frozen linear layer and a trained product of two thin ones beside it (Hu et al., arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, RANK, bias=False), nn.Linear(RANK, outputs, bias=False)
        nn.init.normal_(self.down.weight, std=inputs**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + SCALE * self.up(self.down(x))


class Norm(nn.Module):
    """RMSNorm, frozen."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width), requires_grad=False), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


def turned(x: Tensor, sizes: Sizes, first: int = 0) -> Tensor:
    """Rotary positions (Su et al., arXiv:2104.09864) of (…, T, head), from ``first`` on; attention sees differences."""
    half = sizes.head // 2
    speeds = sizes.theta ** (-torch.arange(half, dtype=x.dtype) / half)
    angles = torch.arange(first, first + x.shape[-2], dtype=x.dtype)[:, None] * speeds
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Layer(nn.Module):
    """One of Llama's: attention in groups, then a gated linear unit, each behind a norm and beside a shortcut."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, kept = sizes, sizes.groups * sizes.head
        self.before, self.between = (Norm(sizes.width, sizes.epsilon) for _ in range(2))
        self.query, self.out = (LoRA(sizes.width, sizes.width) for _ in range(2))
        self.key, self.value = (LoRA(sizes.width, kept) for _ in range(2))
        self.gate, self.rise = (LoRA(sizes.width, sizes.inner) for _ in range(2))
        self.fall = LoRA(sizes.inner, sizes.width)

    def heads(self, x: Tensor, count: int) -> Tensor:
        """(…, T, count · head) to (…, heads, T, head); those of a group are repeated."""
        parted = x.unflatten(-1, (count, self.sizes.head)).transpose(-2, -3)
        return parted.repeat_interleave(self.sizes.heads // count, -3)

    def forward(self, h: Tensor, bias: Tensor, wanted: slice = slice(None)) -> Tensor:
        """What (…, T, width) becomes at the places that are ``wanted``; all are looked at."""
        x, sizes = self.before(h), self.sizes
        q = turned(self.heads(self.query(x[..., wanted, :]), sizes.heads), sizes, wanted.start or 0)
        k = turned(self.heads(self.key(x), sizes.groups), sizes)
        scores = q @ k.transpose(-1, -2) / math.sqrt(sizes.head) + bias[..., wanted, :]
        seen = (scores.softmax(-1) @ self.heads(self.value(x), sizes.groups)).transpose(-2, -3).flatten(-2)
        h = h[..., wanted, :] + self.out(seen)
        x = self.between(h)
        return h + self.fall(F.silu(self.gate(x)) * self.rise(x))


class Policy(nn.Module):
    """Margins of pairs: β times how much more the chosen answer has gained over the reference than the other.

    The reference is the policy before it is adapted, whose log-probabilities are among the inputs. Probabilities are
    among the tokens that the head knows, those that occur in any answer.
    """

    def __init__(self, sizes: Sizes, layers: int, tokens: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(layers))
        self.norm = Norm(sizes.width, sizes.epsilon)
        self.head = nn.Linear(sizes.width, tokens, bias=False).requires_grad_(False)

    def logits(self, hidden: Tensor, present: Tensor, answers: int) -> Tensor:
        """(n, 2, A, tokens) before each of the last A places.

        Args:
            hidden: (n, 2, T, width), prompts to the left, so that all answers begin at the same place. present: (n, 2,
                T), 1 where there is a token.
        """
        length = hidden.shape[-2]
        causal = torch.ones(length, length, dtype=hidden.dtype, device=hidden.device).tril()
        bias = OUT * (1 - causal * present[..., None, :])[..., None, :, :]
        for layer in self.layers[:-1]:
            hidden = layer(hidden, bias)
        hidden = self.layers[-1](hidden, bias, slice(length - answers - 1, length - 1))
        return self.head(self.norm(hidden))

    def answered(self, hidden: Tensor, present: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (n, 2) of answers ``tokens`` (n, 2, A)."""
        logits = self.logits(hidden, present, tokens.shape[-1])
        each = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
        return (each * present[..., -tokens.shape[-1] :]).sum(-1)

    def forward(self, hidden: Tensor, present: Tensor, tokens: Tensor, reference: Tensor) -> Tensor:
        gained = self.answered(hidden, present, tokens) - reference
        return BETA * (gained[:, :1] - gained[:, 1:])


def divergence(policy: Policy, reference: Policy, batch: dict[str, Tensor]) -> Tensor:
    """KL(reference ‖ policy) in nats a token of the chosen answers, (n,)."""
    hidden, present, count = batch["hidden"][:, :1], batch["present"][:, :1], batch["tokens"].shape[-1]
    own, base = (of.logits(hidden, present, count).log_softmax(-1) for of in (policy, reference))
    there = present[..., -count:]
    return ((base.exp() * (base - own)).sum(-1) * there).sum((1, 2)) / there.sum((1, 2))


def loaded(layers: Any, norm: Any, head: Tensor, config: Any) -> Policy:
    """From transformers' Llama layers, their last norm and the rows of its head (tokens, width)."""
    parameters = getattr(config, "rope_parameters", None) or {}
    sizes = Sizes(
        config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads,
        float(parameters.get("rope_theta") or config.rope_theta), config.rms_norm_eps,
    )  # fmt: skip
    found = Policy(sizes, len(layers), len(head))
    with torch.no_grad():
        for own, given in zip(found.layers, layers, strict=True):
            theirs = given.self_attn, given.mlp
            names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
            for name, other in names.items():
                getattr(own, name).base.weight.copy_(getattr(theirs[0], other).weight)
            for name, other in {"gate": "gate_proj", "rise": "up_proj", "fall": "down_proj"}.items():
                getattr(own, name).base.weight.copy_(getattr(theirs[1], other).weight)
            own.before.weight.copy_(given.input_layernorm.weight)  # type: ignore[union-attr]
            own.between.weight.copy_(given.post_attention_layernorm.weight)  # type: ignore[union-attr]
        found.norm.weight.copy_(norm.weight)
        found.head.weight.copy_(head)
    return found
