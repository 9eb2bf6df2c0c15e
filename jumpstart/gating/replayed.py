"""Per-sample gradients of any module: it is run again for one sample at a time, many at once where ``vmap`` can."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from ..errors import InputError, UntraceableError
from ..utils.borrowed import generators
from ..utils.brief import brief


class Call:
    """A call of a module, taken apart into tensors with rows of samples and what they all share.

    Args:
        leaves: positional and keyword arguments, flattened.
        axes: of every leaf, the dimension of samples; None is shared.
        outs: the same for the outputs that received a gradient, and their places among all outputs.
    """

    def __init__(
        self, module: nn.Module, leaves: list[Any], spec: Any, axes: list[int | None], outs: list[tuple[int, int]]
    ) -> None:
        self.bare, self.spec, self.outs = _Bare(module), spec, outs
        self.leaves, self.axes = leaves, axes
        self.rows = [leaf.movedim(axis, 0) for leaf, axis in zip(leaves, axes, strict=True) if axis is not None]
        self.values = {name: value for name, value in module.named_parameters(remove_duplicate=False)}
        self.loops = False  # vmap could not, once

    def gradients(self, names: list[str], deltas: list[Tensor], low: int, high: int) -> dict[str, Tensor]:
        """Gradients (high − low, *shape) of the named parameters, by sample.

        Args:
            deltas: gradients at the outputs, their samples in front.
        """
        rows = [row[low:high] for row in self.rows]
        deltas = [delta[low:high] for delta in deltas]
        given = {name: self.values[name].detach() for name in names}
        random = generators([*rows, *deltas])
        _thread.running = True
        try:
            with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
                warnings.filterwarnings("ignore", message=".*performance drop.*")
                if not self.loops:
                    try:
                        return self._at_once(given, rows, deltas)
                    except Exception:  # whatever a batching rule runs into, a loop is exact
                        self.loops = True
                return self._one_by_one(given, rows, deltas)
        except Exception as error:
            raise UntraceableError(
                f"{type(self.bare.module).__name__} cannot be run again for one sample ({type(error).__name__}: "
                f"{brief(str(error))}); use each='microbatch', or leave its parameters out by params=."
            ) from error
        finally:
            _thread.running = False
            moved = [(g, state) for g, state in random if not torch.equal(g.get_state(), state)]
            for generator, state in moved:
                generator.set_state(state)
            if moved:
                raise InputError(
                    f"{type(self.bare.module).__name__} draws random numbers (dropout?), which cannot be drawn again "
                    "for one sample; set its dropout to 0, use each='microbatch', or leave its parameters out by "
                    "params=."
                )

    def _at_once(self, given: dict[str, Tensor], rows: list[Tensor], deltas: list[Tensor]) -> dict[str, Tensor]:
        def one(rows: list[Tensor], deltas: list[Tensor]) -> dict[str, Tensor]:
            outs, pull, *_ = vjp(lambda given: self._run(given, rows), given)
            return pull(self._cotangents(deltas, outs))[0]

        with torch.no_grad():
            return vmap(one)(rows, deltas)

    def _one_by_one(self, given: dict[str, Tensor], rows: list[Tensor], deltas: list[Tensor]) -> dict[str, Tensor]:
        given = {name: value.clone().requires_grad_() for name, value in given.items()}
        found: dict[str, list[Tensor]] = {name: [] for name in given}
        for i in range(len(deltas[0])):
            with torch.enable_grad():
                outs = self._run(given, [row[i] for row in rows])
            at = self._cotangents([d[i] for d in deltas], outs)
            grads = torch.autograd.grad(outs, list(given.values()), at, allow_unused=True)
            for (name, value), grad in zip(given.items(), grads, strict=True):
                found[name].append(torch.zeros_like(value) if grad is None else grad)
        return {name: torch.stack(grads) for name, grads in found.items()}

    def _cotangents(self, deltas: list[Tensor], outs: list[Tensor]) -> list[Tensor]:
        return [d.unsqueeze(axis).to(o.dtype) for d, (_, axis), o in zip(deltas, self.outs, outs, strict=True)]

    def _run(self, given: dict[str, Tensor], rows: list[Tensor]) -> list[Tensor]:
        """The outputs of a batch of one."""
        left = iter(rows)
        leaves = [
            leaf if axis is None else next(left).unsqueeze(axis)
            for leaf, axis in zip(self.leaves, self.axes, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        held = {f"module.{name}": value for name, value in given.items()}
        # Copies: a module that counts its calls, or keeps statistics, must not do so again.
        held |= {name: value.clone() for name, value in self.bare.named_buffers()}
        outs = tensors(functional_call(self.bare, held, args, kwargs))
        return [outs[place] for place, _ in self.outs]


def tensors(tree: Any) -> list[Tensor]:
    """Tensors of nested tuples, lists and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


_thread = threading.local()


def running() -> bool:
    """Is a module being run again here? Its hooks have nothing to see then."""
    return getattr(_thread, "running", False)


class _Bare(nn.Module):
    """A module without its hooks, which have seen the call already."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)
