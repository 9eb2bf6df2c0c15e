"""torch's own losses, as they are imported, in terms of the named ones.

Called with one sample they would mean something else where a mean knows of the batch (weights, ignored targets).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.loss import _Loss

from ..errors import InputError, NotSmoothError
from .blame import KINKED
from .lines import kinked

FUNCTIONS: dict[Any, str] = {
    F.mse_loss: "mse",
    F.cross_entropy: "cross_entropy",
    F.binary_cross_entropy_with_logits: "logistic",
    F.multilabel_soft_margin_loss: "multi_label",
    F.huber_loss: "huber",
    F.poisson_nll_loss: "poisson",
}

KINKED_MODULES = (
    nn.L1Loss, nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.HingeEmbeddingLoss, nn.MarginRankingLoss,
    nn.CosineEmbeddingLoss, nn.TripletMarginLoss,
)  # fmt: skip


def _cross_entropy(module: Any) -> dict[str, Any]:
    return {
        "class_weights": module.weight,
        "ignore_index": None if module.ignore_index == -100 else module.ignore_index,
        "label_smoothing": module.label_smoothing or None,
    }


def _logistic(module: Any) -> dict[str, Any]:
    _refuse_weight(module)
    return {"pos_weight": module.pos_weight}


def _multi_label(module: Any) -> dict[str, Any]:
    _refuse_weight(module)
    return {}


def _poisson(module: Any) -> dict[str, Any]:
    if not module.log_input or module.full:
        raise InputError("nn.PoissonNLLLoss: only log_input=True, full=False is known, which is loss='poisson'.")
    return {}


def _refuse_weight(module: Any) -> None:
    if module.weight is not None:
        raise InputError(
            f"nn.{type(module).__name__}(weight=…): weights of entries are not taken from torch's module; give "
            "weights= (one a sample), pos_weight= or mask=."
        )


MODULES: dict[type, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    nn.MSELoss: ("mse", lambda module: {}),
    nn.CrossEntropyLoss: ("cross_entropy", _cross_entropy),
    nn.BCEWithLogitsLoss: ("logistic", _logistic),
    nn.MultiLabelSoftMarginLoss: ("multi_label", _multi_label),
    nn.HuberLoss: ("huber", lambda module: {"delta": module.delta}),
    nn.PoissonNLLLoss: ("poisson", _poisson),
}


def from_torch(loss: Any) -> tuple[str, dict[str, Any]] | None:
    """The name and the options of a loss that torch has made, or None where it is not one of those known by name.

    Raises:
        NotSmoothError: a loss with kinks. InputError: another reduction than the mean, or options that have no name.
    """
    if isinstance(loss, KINKED_MODULES) or any(loss is function for function in KINKED):
        raise NotSmoothError(kinked(getattr(loss, "__name__", type(loss).__name__)))
    if isinstance(loss, nn.BCELoss) or loss is F.binary_cross_entropy:
        raise InputError(
            "binary cross-entropy of probabilities is not defined at all outputs that a linearized run passes through: "
            "leave the model's sigmoid out and give loss='logistic', which is the same of logits."
        )
    if isinstance(loss, _Loss) and loss.reduction != "mean":
        raise InputError(
            f"nn.{type(loss).__name__}(reduction={loss.reduction!r}): jumpstart's losses are means, so that flow time "
            "is learning rate × steps of that mean; give reduction='mean'."
        )
    if type(loss) in MODULES:
        name, options = MODULES[type(loss)]
        return name, {key: value for key, value in options(loss).items() if value is not None}
    name = next((name for function, name in FUNCTIONS.items() if loss is function), None)
    return None if name is None else (name, {})
