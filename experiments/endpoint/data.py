"""The data sets and networks on which predictions are held against real training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jumpstart.errors import JumpstartError

from ..common import cifar10, encoder, mnist, plays, uci

WIDTH = 512
TOKENS = 48


@dataclass(frozen=True)
class Setting:
    """A data set with its loss and its network; ``load`` gives all samples, shuffled by the caller."""

    name: str
    loss: str
    load: Callable[[], tuple[Tensor, Tensor]]
    model: Callable[[Tensor], nn.Module]


def mlp(x: Tensor, outputs: int = 1, width: int = WIDTH) -> nn.Module:
    inner = x[0].numel()
    layers = [nn.Linear(inner, width), nn.Tanh(), nn.Linear(width, outputs)]
    return nn.Sequential(*([nn.Flatten()] if x.dim() > 2 else []), *layers)


def cnn(x: Tensor, outputs: int = 1, channels: int = 16) -> nn.Module:
    side = x.shape[-1] // 4
    return nn.Sequential(
        nn.Conv2d(x.shape[1], channels, 3, stride=2, padding=1), nn.GELU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(),
        nn.Linear(2 * channels * side * side, outputs),
    )  # fmt: skip


@functools.cache
def _uci(name: str) -> tuple[Tensor, Tensor]:
    return uci(name)


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 8 - 1, torch.tensor(found.target).long()


@functools.cache
def _parity() -> tuple[Tensor, Tensor]:
    x, y, _, _ = mnist()
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:6000]  # the file may be sorted
    return nn.functional.avg_pool2d(x[chosen], 2), (y[chosen, None] % 2).float()


@functools.cache
def _vehicles() -> tuple[Tensor, Tensor]:
    """Vehicles (airplane, automobile, ship, truck: 0, 1, 8, 9 in alphabetical order) against animals."""
    x, y = cifar10(300)
    return x, ((y == 0) | (y == 1) | (y >= 8)).float()[:, None]


@functools.cache
def embeddings() -> tuple[Tensor, Tensor]:
    """Sentence embeddings of the speeches (n, 384), scaled to unit variance, and the play as 0 or 1."""
    texts, labels = plays()
    model, tokenizer = encoder()
    found = []
    with torch.no_grad():
        for at in range(0, len(texts), 64):
            batch = tokenizer(
                texts[at : at + 64], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            found.append(pooled(model(**batch).last_hidden_state, batch["attention_mask"]))
    x = torch.cat(found)
    return (x - x.mean(0)) / x.std(0), labels.float()[:, None]


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over tokens that are not padding."""
    kept = mask[..., None].to(hidden)
    return (hidden * kept).sum(1) / kept.sum(1)


SETTINGS = {
    setting.name: setting
    for setting in (
        *(Setting(name, "mse", functools.partial(_uci, name), mlp) for name in ("energy", "concrete", "airfoil")),
        *(Setting(name, "mse", functools.partial(_uci, name), mlp) for name in ("kin40k", "protein")),
        Setting("digits", "cross_entropy", _digits, functools.partial(mlp, outputs=10)),
        Setting("mnist parity", "logistic", _parity, mlp),
        Setting("cifar vehicles", "logistic", _vehicles, cnn),
        Setting("plays", "logistic", embeddings, mlp),
    )
}


def available(name: str) -> bool:
    """Whether a setting's data and packages are here."""
    try:
        SETTINGS[name].load()
    except (JumpstartError, ImportError):
        return False
    return True


def noisy(y: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Targets of which a share is exchanged for those of other samples at random."""
    count = int(share * len(y))
    chosen = torch.randperm(len(y), generator=generator)[:count]
    y = y.clone()
    y[chosen] = y[torch.randint(0, len(y), (count,), generator=generator)]
    return y


def split(setting: Setting, n: int, noise: float, seed: int, most: int = 1000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out samples (at most ``most``), both with the same share of exchanged labels."""
    generator = torch.Generator().manual_seed(seed)
    x, y = setting.load()
    order = torch.randperm(len(x), generator=generator)
    train, test = order[:n], order[n : n + most]
    return x[train], noisy(y[train], noise, generator), x[test], noisy(y[test], noise, generator)
