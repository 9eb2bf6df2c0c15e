"""A case: a module or data that somebody might have, how it is put to jumpstart, and what plain torch makes of it."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jumpstart as js

D = torch.float64

PHI: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "cross_entropy": lambda u, y: F.cross_entropy(u.reshape(-1, u.shape[-1]), y.reshape(-1)),
    "logistic": F.binary_cross_entropy_with_logits,
}


@dataclass(frozen=True)
class Data:
    """What a module is trained on, and asked about; ``torch`` sees ``plain`` where that is given."""

    inputs: Any
    targets: Any
    queries: Any = None
    plain: Data | None = None


@dataclass(frozen=True)
class Case:
    """One module with its data.

    Attributes:
        build: the module, from the global generator alone (seeded by the name).
        data: the data, the same whenever it is called.
        objective: (model, data) -> jumpstart's objective; ``js.supervised`` where None.
        outputs: (model, inputs) -> u as plain torch has it; the model called on the inputs where None.
        phi: (u, targets) -> scalar, as plain torch has it; that of the loss's name where None.
        around: what is entered while jumpstart runs (not plain torch).
        later: (model, data) -> None, done between a solution and the questions to it, which must not notice.
        answers: an ordinary thing: to be refused would be in the user's way.
        wide: plain torch may run it in float64. coarse: the arithmetic inside, where that is not the outputs'.
        order: ask for order=2 as well. moves: a jump is expected to be accepted.
        own: the module itself changes what is checked to be left alone (a seed, a switch).
    """

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss: Any = "mse"
    options: Mapping[str, Any] = field(default_factory=dict)
    objective: Callable[[nn.Module, Data], Any] | None = None
    outputs: Callable[[nn.Module, Any], Tensor] | None = None
    phi: Callable[[Tensor, Any], Tensor] | None = None
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    later: Callable[[nn.Module, Data], None] | None = None
    answers: bool = False
    wide: bool = True
    coarse: torch.dtype | None = None
    order: bool = False
    moves: bool = False
    own: bool = False

    @property
    def family(self) -> str:
        return self.name.split("/")[0]

    def model(self) -> nn.Module:
        """A fresh one, each time the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            return self.build()

    def ask(self, model: nn.Module, data: Data) -> Any:
        """jumpstart's objective."""
        if self.objective is not None:
            return self.objective(model, data)
        return js.supervised(model, data.inputs, data.targets, self.loss, **self.options)

    def apply(self, model: nn.Module, inputs: Any) -> Tensor:
        """Outputs by plain torch."""
        if self.outputs is not None:
            return self.outputs(model, inputs)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)

    def value(self, u: Tensor, targets: Any) -> Tensor:
        """The loss by plain torch."""
        return self.phi(u, targets) if self.phi is not None else PHI[self.loss](u, targets)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def floats(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=D, device="cpu").to(dtype)


def tokens(*shape: int, high: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(0, high, shape, generator=generator(seed), device="cpu")


def batch(
    *shape: int,
    n: int = 5,
    c: int = 2,
    make: Callable[..., Tensor] = floats,
    dtype: torch.dtype = D,
    target: tuple[int, ...] | None = None,
) -> Callable[[], Data]:
    """Inputs (n, *shape), targets (n, c), three queries."""

    def data() -> Data:
        x, q = make(n, *shape, seed=1), make(3, *shape, seed=3)
        y = floats(*(target or (n, c)), seed=2, dtype=dtype)
        return Data(x.to(dtype), y, q.to(dtype)) if x.is_floating_point() else Data(x, y, q)

    return data


class Readout(nn.Module):
    """layer → flatten → tanh → a small linear map, so that every layer meets a loss of the same shape."""

    def __init__(self, layer: nn.Module, *example: Tensor, c: int = 2, pick: Callable[[Any], Tensor] | None = None):
        super().__init__()
        self.layer, self.pick = layer, pick or (lambda h: h[0] if isinstance(h, tuple) else h)
        training = layer.training
        with torch.no_grad():
            width = self.pick(layer.eval()(*example)).flatten(1).shape[1]
        layer.train(training)
        self.out = nn.Linear(width, c)

    def forward(self, *x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.pick(self.layer(*x)).flatten(1)))


class Fn(nn.Module):
    """A few linear layers and a function of them and the input, written as in a forward method."""

    def __init__(self, forward: Callable[..., Any], *layers: nn.Module, **parameters: Any) -> None:
        super().__init__()
        self.f = forward
        for i, layer in enumerate(layers):
            setattr(self, "abcdefgh"[i], layer)
        for name, value in parameters.items():
            setattr(self, name, value)

    def forward(self, *x: Any, **kwargs: Any) -> Any:
        return self.f(self, *x, **kwargs)


def mlp(d: int = 3, h: int = 5, c: int = 2, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, h), act(), nn.Linear(h, c))
