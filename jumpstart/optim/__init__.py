"""Optimizers: gated ones, and what is known of those that users bring. Loads without the solver."""

from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError
from .adapters import Adapter, register
from .gated_adamw import GatedAdamW
from .gated_sgd import GatedSGD

if TYPE_CHECKING:
    from .gated_muon import GatedMuon

__all__ = ["Adapter", "GatedAdamW", "GatedMuon", "GatedSGD", "register"]


def __getattr__(name: str) -> Any:
    if name != "GatedMuon":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"GatedMuon needs torch.optim.Muon, of torch 2.9 or newer; this is torch {torch.__version__}.")
    from .gated_muon import GatedMuon  # torch may be older

    return GatedMuon
