"""A copy of an optimizer with weights of its own: what it would do next is tried there, what is right is adopted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Optimizer = torch.optim.Optimizer
MISSING = object()  # no entry: an optimizer takes one of None for the state of a step


class Twin:
    """State, groups and weights of an optimizer, copied; its hooks, which are the user's, stay behind.

    Attributes:
        optimizer: the copy. twins: parameter of the original -> the copy's.

    Raises:
        Exception: whatever an optimizer raises that cannot be copied.
    """

    def __init__(self, original: Optimizer) -> None:
        self.optimizer: Optimizer = object.__new__(type(original))
        vars(self.optimizer).update(copy.deepcopy(stripped(original)))
        Optimizer.__setstate__(self.optimizer, {})  # the hook tables that torch expects, empty
        self.original = original
        self.twins: dict[Tensor, Tensor] = {}
        for group, twin in zip(original.param_groups, self.optimizer.param_groups, strict=True):
            self.twins.update(zip(group["params"], twin["params"], strict=True))

    def __getitem__(self, parameter: Tensor) -> Tensor:
        return self.twins[parameter]

    @torch.no_grad()
    def write(self, weights: Mapping[Tensor, Tensor]) -> None:
        """Set weights, by the original's parameters."""
        for parameter, value in weights.items():
            self.twins[parameter].copy_(value)

    def step(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """A step of the copy on these gradients, by the original's parameters; others have none."""
        for parameter, twin in self.twins.items():
            gradient = gradients.get(parameter)
            twin.grad = None if gradient is None else gradient.detach().to(twin.dtype).clone()
        plain_step(self.optimizer)(self.optimizer)
        for twin in self.twins.values():
            twin.grad = None

    def changes(self) -> Changes:
        """What of the original's state differs from the copy's: to be assigned at once."""
        return Changes(self)


class Changes:
    """Assignments that make an optimizer's state its twin's; computed first, made by :meth:`apply`, which cannot fail.

    Tensors are written in place, so that whoever holds them sees the same.
    """

    def __init__(self, twin: Twin | None = None) -> None:
        self.writes: list[tuple[Tensor, Tensor]] = []
        self.entries: list[tuple[dict[Any, Any], Any, Any]] = []
        if twin is None:
            return
        for parameter, own in twin.twins.items():
            if own in twin.optimizer.state:
                self._compare(twin.original.state[parameter], twin.optimizer.state[own])
        for group, own in zip(twin.original.param_groups, twin.optimizer.param_groups, strict=True):
            self._compare(group, {key: value for key, value in own.items() if key != "params"})

    def _compare(self, old: dict[str, Any], new: Mapping[str, Any]) -> None:
        for key, value in new.items():
            present = old.get(key)
            if isinstance(value, Tensor) and isinstance(present, Tensor) and present.shape == value.shape:
                if not torch.equal(present, value):
                    self.writes.append((present, value.clone()))  # the copy may take a step yet
            elif isinstance(value, Tensor) or (isinstance(value, (bool, int, float)) and value != present):
                self.entries.append((old, key, value))

    def reverse(self) -> Changes:
        """What undoes them."""
        back = Changes()
        back.writes = [(present, present.detach().clone()) for present, _ in self.writes]
        back.entries = [(old, key, old.get(key, MISSING)) for old, key, _ in self.entries]
        return back

    @torch.no_grad()
    def apply(self) -> None:
        for present, value in self.writes:
            present.copy_(value)
        for old, key, value in self.entries:
            if value is MISSING:
                old.pop(key, None)
            else:
                old[key] = value


def stripped(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's attributes without ``step`` as schedulers replace it on the instance, and without hooks."""
    return {k: v for k, v in vars(optimizer).items() if not (k == "step" or k.endswith("_hooks"))}


def plain_step(optimizer: Optimizer) -> Callable[..., Any]:
    """The class's own ``step``, a function of the optimizer."""
    return unwrapped(type(optimizer).step)


def unwrapped(step: Callable[..., Any]) -> Callable[..., Any]:
    """A class's ``step`` without what torch wraps around it to call hooks, among them such as are set for all."""
    return getattr(step, "__wrapped__", step) if getattr(step, "hooked", False) else step
