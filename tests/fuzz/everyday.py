# ruff: noqa: E501, E731  (tables: one case a line)
"""Ordinary networks in float32, as they are after ``nn.Module()`` and after training: all must be answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Case, Data, floats, tokens


class Block(nn.Module):
    """A residual block of a small ResNet."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.m, self.n = nn.BatchNorm2d(c), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.n(self.b(F.relu(self.m(self.a(x))))))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Block(4), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.p = nn.Embedding(11, 8), nn.Parameter(0.02 * torch.randn(6, 8))
        self.t, self.o = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), nn.Linear(8, 3)

    def forward(self, i: Tensor) -> Tensor:
        return self.o(self.t(self.e(i) + self.p).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r, self.o = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(x)[0][:, -1])


def relu(d: int = 4, h: int = 32, c: int = 3, depth: int = 2) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(d, h), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(h, h), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(h, c))


def zero_head(model: Any) -> nn.Module:
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


def scaled(model: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(by)
    return model


def trained(make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> nn.Module:
    """After 200 steps of Adam: small residuals, saturated units."""
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with torch.enable_grad():
        for _ in range(200):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    return model


def cases() -> Iterator[Case]:
    S = torch.float32
    table = lambda scale=1.0, n=8: (
        lambda: Data(
            (scale * floats(n, 4, seed=1)).to(S), floats(n, 3, seed=2, dtype=S), (scale * floats(3, 4, seed=3)).to(S)
        )
    )
    images = lambda: Data(
        floats(6, 1, 6, 6, seed=1, dtype=S), floats(6, 3, seed=2, dtype=S), floats(3, 1, 6, 6, seed=3, dtype=S)
    )
    words = lambda: Data(tokens(6, 6, high=11, seed=1), floats(6, 3, seed=2, dtype=S), tokens(3, 6, high=11, seed=3))
    series = lambda: Data(
        floats(6, 5, 3, seed=1, dtype=S), floats(6, 3, seed=2, dtype=S), floats(3, 5, 3, seed=3, dtype=S)
    )
    blank = lambda: Data(
        torch.cat([floats(5, 4, seed=1), torch.zeros(3, 4, dtype=torch.float64)]).to(S),
        floats(8, 3, seed=2, dtype=S),
        floats(3, 4, dtype=S),
    )
    x, y = floats(8, 4, seed=1, dtype=S), floats(8, 3, seed=2, dtype=S)
    tanh = lambda: nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    norm = lambda: nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    make: tuple[tuple[str, Callable[[], nn.Module], Callable[[], Data], dict[str, Any]], ...] = (
        ("ReLU", relu, table(), {}),
        ("ReLU, wide", lambda: relu(h=256), table(), {}),
        ("ReLU, deep", lambda: relu(depth=8), table(), {}),
        ("ReLU, tiny inputs", relu, table(1e-3), {}),
        ("ReLU, large inputs", relu, table(1e3), {}),
        ("ReLU, zero samples", relu, blank, {}),
        ("ReLU, many samples", relu, table(n=30), {}),
        ("ReLU, zero head", lambda: zero_head(relu()), table(), {}),
        ("ReLU, small weights", lambda: scaled(relu(), 0.1), table(), {}),
        ("ReLU, large weights", lambda: scaled(relu(), 5.0), table(), {}),
        ("ReLU, trained", lambda: trained(relu, x, y), table(), {}),
        ("tanh", tanh, table(), {}),
        ("tanh, large inputs", tanh, table(1e2), {}),
        ("tanh, saturated", lambda: scaled(tanh(), 10.0), table(), {}),
        ("tanh, trained", lambda: trained(tanh, x, y), table(), {}),
        ("sine features", lambda: nn.Sequential(nn.Linear(4, 32), Sine(), nn.Linear(32, 3)), table(), {}),
        ("GELU and LayerNorm", lambda: nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3)), table(), {}),
        ("BatchNorm in train mode", norm, table(), {}),
        ("BatchNorm in eval mode", lambda: norm().eval(), table(), {}),
        ("BatchNorm, trained", lambda: trained(norm, x, y), table(), {}),
        ("BatchNorm, trained, eval", lambda: trained(norm, x, y).eval(), table(), {}),
        ("dropout in eval mode", lambda: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)).eval(), table(), {}),
        ("PReLU", lambda: nn.Sequential(nn.Linear(4, 16), nn.PReLU(), nn.Linear(16, 3)), table(), {}),
        ("CNN", lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)), images, {}),
        ("ResNet in eval mode", lambda: resnet().eval(), images, {}),
        ("ResNet in train mode", resnet, images, {}),
        ("LSTM", Recurrent, series, {}),
        ("transformer in eval mode", lambda: Transformer().eval(), words, {}),
    )  # fmt: skip
    for name, build, data, options in make:
        yield Case(f"everyday/{name}", build, data, answers=True, moves=True, **options)
    labels = lambda: Data(
        floats(8, 4, seed=1, dtype=S), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), floats(3, 4, seed=3, dtype=S)
    )
    for name, build in (("ReLU", relu), ("tanh", tanh), ("BatchNorm in train mode", norm)):
        yield Case(f"everyday/{name}, classes", build, labels, "cross_entropy", answers=True, moves=True)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(10 * x)
