"""Errors of a user's loss function, in terms of the loss: what it was called with, what torch said, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError, NondeterministicError, NotSmoothError
from ..utils.cost import Counting
from .lines import kinked

KINKED = (
    F.l1_loss, F.multi_margin_loss, F.multilabel_margin_loss, F.hinge_embedding_loss, F.margin_ranking_loss,
    F.cosine_embedding_loss, F.triplet_margin_loss,
)  # fmt: skip

# What torch says -> what to do about it; the first that fits is told.
REMEDIES = (
    (
        ("item()", "data-dependent", "control flow", "boolean value of tensor"),
        "it reads a value (an index W[y], F.one_hot, an if, a check, .item()), which cannot be done for all samples at "
        "once: for weights by class give loss='cross_entropy', class_weights=W; choose with torch.where; look up with "
        "W.gather(0, y[None])[0]; give targets that are one-hot already",
    ),
    (("num_classes",), "give the number of classes: F.one_hot(y, classes)"),
    (
        ("dynamic shape", "boolean mask", "equal size"),
        "choose entries with torch.where or a mask as a factor and not by an index, as every sample has to have the "
        "same shape; missing targets are left out by mask= of a named loss",
    ),
    (
        ("inplace", "in-place", "in place", "broadcast shape"),
        "write it without operations in place (x = x * w, not x *= w)",
    ),
    (("numpy", "storage", "python object"), "let it use torch operations alone, on tensors"),
    (("random",), "leave randomness out of the loss: the same outputs must have the same loss"),
    (("derivative for", "not implemented", "double backward"), "let it use operations that have second derivatives"),
    (("same dtype", "dtype", "scalar type"), "convert the tensors that it reads with .to(u.dtype)"),
    (("same device", "cuda"), "convert the tensors that it reads with .to(u.device)"),
)  # fmt: skip


def described(fn: Any) -> str:
    """A loss function, for people."""
    if isinstance(fn, nn.Module):
        return repr(type(fn).__name__)
    return repr(getattr(fn, "__name__", None) or type(fn).__name__)


class _Watch(TorchFunctionMode):
    """Refuses losses of torch that mean something else for one sample than for a batch, and remembers kinked ones."""

    def __init__(self) -> None:
        super().__init__()
        self.kinked: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in KINKED:
            self.kinked = func.__name__
        if func in (F.cross_entropy, F.nll_loss):
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            if weight is not None and kwargs.get("reduction", "mean") == "mean":
                raise InputError(
                    f"the loss calls F.{func.__name__} with weight= on one sample, where its mean divides the weight "
                    "out again: give loss='cross_entropy', class_weights=W instead."
                )
        return func(*args, **kwargs)


def called_once(fn: Callable[..., Any], row: Tensor, target: Tensor) -> Any:
    """What the function says of one sample.

    Raises:
        InputError: names the loss, what it was called with, and what went wrong in it.
        NondeterministicError: it draws random numbers (the generator goes back to where it was).
    """
    watch = _Watch()
    try:
        with watch, Counting() as counted:
            found = fn(row, target)
    except InputError:
        raise
    except Exception as error:
        if watch.kinked is not None:
            raise NotSmoothError(kinked(repr(watch.kinked))) from error
        remedy = _remedy(error)
        raise InputError(
            f"the loss {described(fn)} cannot be evaluated: {_said(error)}. "
            + (f"To mend it: {remedy}. " if remedy else "")
            + "It is called with ONE sample, outputs of "
            f"shape {tuple(row.shape)} and a target of shape {tuple(target.shape)}; a function of whole batches "
            "becomes lambda u, y: loss(u[None], y[None])."
        ) from error
    if counted.drew:
        raise NondeterministicError(
            f"the loss {described(fn)} draws random numbers ({', '.join(counted.random)}): the same outputs must have "
            "the same loss. Draw them before, and keep them in the targets; dropout belongs to the model."
        )
    return found


def blamed(error: Exception, fn: Callable[..., Any], row: Tensor, target: Tensor) -> InputError:
    """The error to raise where the function answers for one sample, but not under torch.func's transforms."""
    watch = _Watch()
    with watch:
        fn(row, target)
    if watch.kinked is not None:
        return NotSmoothError(kinked(repr(watch.kinked)))
    remedy = _remedy(error)
    return InputError(
        f"the loss {described(fn)} cannot be differentiated twice for all samples at once: {_said(error)}. "
        + (f"To mend it: {remedy}." if remedy else "Write it with torch operations of one sample's outputs and target.")
    )


def outside(error: Exception, fn: Callable[..., Any]) -> InputError:
    """The error to raise where the function answers at the present outputs alone."""
    return InputError(
        f"the loss {described(fn)} cannot be evaluated at other outputs than the present ones: {_said(error)}. "
        "Linearized runs pass through any outputs: let it answer for all of them (logits with loss='logistic' in place "
        "of probabilities, torch.where or clamps in place of checks)."
    )


def _remedy(error: Exception) -> str | None:
    said = str(error).lower()
    return next((what for words, what in REMEDIES if any(word in said for word in words)), None)


def _said(error: Exception) -> str:
    """The first line of what was said, cut."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:160]}{'…' if len(first) > 160 else ''}".rstrip(".: ")
