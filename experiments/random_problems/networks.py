"""Small networks: perceptrons, a convolutional one, two transformers. They count what goes through them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES, SIDE, TOKENS, CHANNELS = 6, 8, 6, 5
SHAPES = {
    "mlp": (FEATURES,),
    "cnn": (1, SIDE, SIDE),
    "transformer": (TOKENS, CHANNELS),
    "encoder layer": (TOKENS, CHANNELS),
}


class Tally:
    """Samples that went through counted networks, forwards: what a run cost, told by no library."""

    samples = 0


class Counted(nn.Module):
    """A network that adds the samples it is given to the tally."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        Tally.samples += x.shape[0]
        return self.body(x)


class Attention(nn.Module):
    """Self-attention with two heads, (n, tokens, d) -> the same, in plain operations."""

    def __init__(self, d: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, d = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, tokens, d))


class PreNorm(nn.Module):
    """x + f(norm(x))."""

    def __init__(self, d: int, f: nn.Module) -> None:
        super().__init__()
        self.norm, self.f = nn.LayerNorm(d), f

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x))


class MeanOver(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def network(kind: str, outputs: int, width: int, depth: int, activation: str) -> nn.Module:
    """A network of a kind in ``SHAPES``, in torch's initialization, which draws from the global generator."""
    act: type[nn.Module] = getattr(nn, activation)
    if kind == "mlp":
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(width if i else FEATURES, width), act()]
        return Counted(nn.Sequential(*layers, nn.Linear(width if depth else FEATURES, outputs)))
    if kind == "cnn":
        w = width // 2
        return Counted(
            nn.Sequential(
                nn.Conv2d(1, w, 3, padding=1), act(), nn.MaxPool2d(2), nn.Conv2d(w, w, 3, padding=1), act(),
                nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * w, outputs),
            )
        )  # fmt: skip
    d = max(8, width // 2)
    if kind == "encoder layer":
        middle: list[nn.Module] = [nn.TransformerEncoderLayer(d, 2, 2 * d, dropout=0.0, batch_first=True)]
    else:
        ahead = nn.Sequential(nn.Linear(d, 2 * d), act(), nn.Linear(2 * d, d))
        middle = [PreNorm(d, Attention(d)), PreNorm(d, ahead)]
    return Counted(nn.Sequential(nn.Linear(CHANNELS, d), *middle, MeanOver(), nn.Linear(d, outputs)))


def passed(x: Tensor, model: nn.Module) -> Tensor:
    """Outputs, without gradients and without counting: a look at the network that is no part of a run."""
    before = Tally.samples
    with torch.no_grad():
        u = model(x)
    Tally.samples = before
    return u
