"""Losses by name, and which options each takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..errors import InputError, NotSmoothError
from ..utils.brief import brief
from ..utils.values import require_dense
from .base import Loss
from .convex import Convex
from .cross_entropy import CrossEntropy
from .lines import kinked
from .logistic import Logistic
from .regression import Huber, Poisson
from .squared import mse
from .torch_losses import from_torch

ENTRIES = frozenset({"weights", "mask"})

# name → what makes it, and the options that it takes
LOSSES: dict[str, tuple[Callable[..., Loss], frozenset[str]]] = {
    "mse": (mse, ENTRIES),
    "huber": (Huber, ENTRIES | {"delta"}),
    "poisson": (Poisson, ENTRIES),
    "logistic": (Logistic, ENTRIES | {"pos_weight"}),
    "multi_label": (Logistic, ENTRIES | {"pos_weight"}),
    "cross_entropy": (CrossEntropy, ENTRIES | {"class_weights", "ignore_index", "label_smoothing"}),
}
KINKED_NAMES = ("l1", "mae", "l1_loss", "hinge", "multi_margin", "quantile", "pinball", "epsilon_insensitive")

# option → what to do where a loss does not take it
REMEDIES = {
    "class_weights": "weigh samples with weights=, or positives of 'logistic' with pos_weight=",
    "ignore_index": "leave targets out with mask=(targets != value)",
    "label_smoothing": "smooth the targets themselves: 'logistic' takes any in [0, 1]",
    "pos_weight": "weigh samples with weights=, or classes of 'cross_entropy' with class_weights=",
    "delta": "leave it out, or take loss='huber'",
    "mask": "put the mask into the targets and let the function multiply by it",
    "weights": "leave it out",
}


def as_loss(loss: str | Callable[[Tensor, Tensor], Tensor] | Loss, targets: Tensor | None, **options: Any) -> Loss:
    """A loss from its name, a per-sample function, one of torch's own, or itself.

    Args:
        loss: as in ``js.supervised``. targets: (n, …), None beside a :class:`Loss`, which holds its own.
        options: of the named loss, those that are not None; see ``LOSSES``.

    Raises:
        InputError: an unknown loss, or an option that would do nothing for it. NotSmoothError: a loss with kinks.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _require_dense({"targets": targets, **given})
    if isinstance(loss, Loss):
        if given:
            raise InputError(
                f"{_listed(given)} beside a js.Loss, which holds its targets and options already: give them to "
                f"js.losses.{type(loss).__name__}."
            )
        return loss
    if isinstance(loss, type):
        raise InputError(
            f"loss={loss.__name__} is a class: make one, {loss.__name__}(…), or give a name of {sorted(LOSSES)}."
        )
    known = from_torch(loss)
    if known is not None:
        loss, own = known
        if loss == "cross_entropy" and isinstance(targets, Tensor) and targets.dim() > 1 + targets.is_floating_point():
            raise InputError(
                f"torch's own cross-entropy with targets {tuple(targets.shape)} has its classes in dimension 1 of the "
                "outputs, jumpstart in the last: give loss='cross_entropy' and outputs (n, …, classes)."
            )
        if twice := sorted(set(own) & set(given)):
            raise InputError(f"{twice[0]}= is given twice, beside the loss and in torch's own: give it once.")
        given = own | given
    if isinstance(loss, str) and loss.lower() in KINKED_NAMES:
        raise NotSmoothError(kinked(repr(loss)))
    if not callable(loss) and not (isinstance(loss, str) and loss in LOSSES):
        raise InputError(f"loss={brief(loss)} is not known: use one of {sorted(LOSSES)}, a function or a js.Loss.")
    if isinstance(loss, str):
        told, (make, takes) = f"loss {loss!r}", LOSSES[loss]
    else:
        told, make, takes = "a loss that is a function", partial(Convex, loss), frozenset({"weights"})
    for option in given:
        if option not in takes:
            raise InputError(f"{option}= does nothing for {told}: {REMEDIES[option]}.")
    if targets is None:
        raise InputError(f"loss {brief(loss)} needs targets.")
    return make(targets, **given)


def _require_dense(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if isinstance(value, Tensor):
            require_dense(value, name)


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}=" for name in options)
