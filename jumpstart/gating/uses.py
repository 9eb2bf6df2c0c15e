"""What a backward pass shows of one call of a module: its input, kept as autograd keeps it, and the gradient there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .replayed import Call, running, tensors

_C: Any = torch._C  # graph tasks and transforms have no public face


def task() -> int:
    """The backward pass that runs in this thread; −1 outside of any."""
    return _C._current_graph_task_id()


def seen() -> bool:
    """Is a forward pass one that a backward pass may follow: gradients on, no transform, no replay?"""
    return torch.is_grad_enabled() and not running() and _C._functorch.peek_interpreter_stack() is None


class Pass:
    """The call of the model that runs now, and how many samples it was given."""

    rows: int | None = None  # None outside of it

    def enter(self, args: tuple, kwargs: dict) -> None:
        self.rows = next((len(leaf) for leaf in tensors((args, kwargs)) if leaf.dim()), None)

    def leave(self) -> None:
        self.rows = None


class _Hold(torch.autograd.Function):
    """Keeps tensors the way autograd does: what checkpoints drop is dropped, what is overwritten is noticed."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *held: Tensor) -> Tensor:
        ctx.save_for_backward(*held)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:  # never run: nobody asks for the anchor
        return (None,) * (1 + len(ctx.saved_tensors))


class Use:
    """One call of a module, and what a backward pass through it has shown so far."""

    def __init__(self, unit: Any, rows: int, leaves: list[Any], spec: Any, axes: list[int | None]) -> None:
        self.unit, self.rows, self.spec, self.axes = unit, rows, spec, axes
        self.again = task() != -1  # recomputed in a backward pass
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        anchor = torch.zeros((), requires_grad=True, device="cpu")
        self.held: Any = _Hold.apply(anchor, *(leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)))
        self.places: list[int] = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.outs: dict[int, int] = {}  # place among the outputs → dimension of samples
        self.task = -1
        self.deltas: dict[int, Tensor] = {}
        self.inputs: list[Any] | None = None
        self.squared: tuple[list[int], dict[str, tuple[Tensor, Tensor]]] | None = None
        self.left = 0  # parameters whose gradient is still to come in this backward pass

    def fire(self, place: int, grad: Tensor | None) -> None:
        """The gradient at an output arrives."""
        if grad is None:
            return
        if self.task != task():
            self.task, self.deltas, self.inputs, self.squared = task(), {}, None, None
            self.left = self.unit.tell(self)
        self.deltas[place] = grad.detach()

    def given(self) -> list[Any]:
        """The arguments, flattened."""
        if self.inputs is None:
            if self.held is None:
                raise InputError(
                    f"{self.unit.title}: a second backward pass through a graph that was not kept; "
                    "give the first one retain_graph=True."
                )
            self.inputs = list(self.leaves)
            for place, value in zip(self.places, self.held.grad_fn.saved_tensors, strict=True):
                self.inputs[place] = value
            if not _C._autograd._get_current_graph_task_keep_graph():
                self.held = None
        return self.inputs

    def done(self) -> None:
        """A parameter has been answered for; after the last one, inputs are kept no longer than autograd keeps them."""
        self.left -= 1
        if self.left <= 0:
            self.inputs, self.squared, self.deltas = None, None, {}

    def call(self, dtype: torch.dtype) -> Call:
        """The call as one to be replayed, in the parameters' dtype (inputs under autocast may be of another)."""
        leaves = [
            leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in self.given()
        ]
        return Call(self.unit.module, leaves, self.spec, self.axes, [(i, self.outs[i]) for i in sorted(self.deltas)])

    def cotangents(self) -> list[Tensor]:
        return [self.deltas[i].movedim(self.outs[i], 0) for i in sorted(self.deltas)]
