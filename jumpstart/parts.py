"""Parts: the pieces that the stacked outputs u = f(θ) are made of, each knowing how its Jacobian is cheapest.

A part is a function of the network alone. A new kind of data (graphs, sequences, …) is a new part.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from .autodiff import pullback
from .errors import EmptyBatchError, InputError, NonFiniteError, OutputTypeError
from .parameters import Net

JACOBIAN_BYTES = 2**28  # a chunk of an explicit Jacobian, before it is copied out


class Part(abc.ABC):
    """Some rows of the outputs, as a function of the network."""

    @abc.abstractmethod
    def outputs(self, net: Callable[..., Any]) -> Tensor:
        """The rows u (n, …) for the network as a pure callable."""

    def jacobian(self, net: Net, theta: Tensor) -> Tensor:
        """(N, P) explicit Jacobian of the flattened outputs, by batched backward passes."""
        u, pull = pullback(lambda th: self.outputs(net.bind(th)), theta)
        chunk = max(1, int(JACOBIAN_BYTES // max(1, theta.numel() * theta.element_size())))
        eye = torch.eye(u.numel(), dtype=u.dtype, device=u.device).view(-1, *u.shape)
        return torch.cat([vmap(pull)(rows) for rows in eye.split(chunk)])


class Batch(Part):
    """The model called on a batch of inputs: a tensor, a tuple (positional) or a dict (keywords)."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self.size = _length(inputs)

    def outputs(self, net: Callable[..., Any]) -> Tensor:
        return self.apply(net, self.inputs)

    @staticmethod
    def apply(net: Callable[..., Any], inputs: Any) -> Tensor:
        if isinstance(inputs, dict):
            u = net(**inputs)
        elif isinstance(inputs, (tuple, list)):
            u = net(*inputs)
        else:
            u = net(inputs)
        return require_tensor(u)

    def split(self, size: int) -> list[Batch]:
        """The same batch in chunks of at most ``size`` samples."""
        return [Batch(take(self.inputs, slice(i, i + size))) for i in range(0, self.size, size)]


class Points(Part):
    """A residual given at one point, over many points: rows scale·fn(net, x)."""

    def __init__(self, fn: Callable[[Callable[..., Any], Tensor], Tensor], points: Tensor, scale: float) -> None:
        self.fn, self.points, self.scale = fn, points, scale

    def _row(self, net: Callable[..., Any], x: Tensor) -> Tensor:
        return self.scale * require_tensor(self.fn(net, x), "a residual function").reshape(-1)

    def outputs(self, net: Callable[..., Any]) -> Tensor:
        return vmap(lambda x: self._row(net, x))(self.points).reshape(-1)

    def jacobian(self, net: Net, theta: Tensor) -> Tensor:
        rows = vmap(jacrev(lambda th, x: self._row(net.bind(th), x)), (None, 0))
        per_point = theta.numel() * theta.element_size()
        chunk = max(1, int(JACOBIAN_BYTES // max(1, per_point)))
        return torch.cat([rows(theta, x).reshape(-1, theta.numel()) for x in self.points.split(chunk)])


class Opaque(Part):
    """Any function of the network that returns a tensor."""

    def __init__(self, fn: Callable[[Callable[..., Any]], Tensor]) -> None:
        self.fn = fn

    def outputs(self, net: Callable[..., Any]) -> Tensor:
        return require_tensor(self.fn(net), "the outputs function")


def require_tensor(u: Any, who: str = "the model") -> Tensor:
    """Raise unless the outputs are one floating-point tensor with at least one dimension.

    Raises:
        OutputTypeError: quotes the type and gives the remedy.
    """
    if not isinstance(u, Tensor):
        keys = f" with fields {list(u)[:6]}" if isinstance(u, dict) else ""
        raise OutputTypeError(
            f"{who} returned {type(u).__name__}{keys}, not a tensor: use js.Objective(model, outputs=lambda net: "
            "net(inputs).logits, loss=…) (or [0], or ['logits']) to say which tensor is trained."
        )
    if not u.is_floating_point():
        raise OutputTypeError(f"{who} returned a tensor of {u.dtype}: outputs must be real floating-point numbers.")
    return u


def take(inputs: Any, rows: slice) -> Any:
    """The same nest of tensors with only some samples; what has no batch dimension of that length is kept."""
    n = _length(inputs)

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, dict):
            return {key: pick(value) for key, value in leaf.items()}
        if isinstance(leaf, (tuple, list)):
            return tuple(pick(value) for value in leaf)
        return leaf[rows] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == n else leaf

    return pick(inputs)


def leaves(inputs: Any) -> list[Tensor]:
    """The tensors in a nest of dicts, tuples and lists."""
    if isinstance(inputs, dict):
        inputs = list(inputs.values())
    if isinstance(inputs, (tuple, list)):
        return [leaf for item in inputs for leaf in leaves(item)]
    return [inputs] if isinstance(inputs, Tensor) else []


def require_finite(inputs: Any, what: str) -> None:
    """Raise for NaN or infinity in any floating-point tensor of a nest.

    Raises:
        NonFiniteError: says how many entries, and where the first one is.
    """
    for leaf in leaves(inputs):
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            bad = ~torch.isfinite(leaf)
            first = tuple(int(i) for i in bad.nonzero()[0])
            raise NonFiniteError(
                f"{what} of shape {tuple(leaf.shape)} hold {int(bad.sum())} NaN or infinite entries, the first at "
                f"{first}: drop or repair those samples."
            )


def _length(inputs: Any) -> int:
    found = [leaf for leaf in leaves(inputs) if leaf.dim()]
    if not found:
        raise InputError(f"inputs must be a tensor or a tuple or dict of tensors, got {type(inputs).__name__}.")
    n = found[0].shape[0]
    if n == 0:
        raise EmptyBatchError(f"inputs of shape {tuple(found[0].shape)} hold no sample.")
    return n


def weight_scale(weight: float) -> float:
    """√weight of a residual term, checked."""
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(f"a term's weight must be positive and finite, got {weight!r}.")
    return math.sqrt(weight)
