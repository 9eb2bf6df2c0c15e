"""Gates on the modes of a flow."""

from __future__ import annotations

import torch

from ..errors import NonFiniteError
from ..gating.rules import apply
from ..gating.statistics import moments
from .reduced_flow import ReducedFlow


def set_gate(flow: ReducedFlow, rule: str | None, **options: float) -> None:
    """Gate a flow's modes by what the samples say at its start (docs/theory.md, section 6)."""
    if not bool(torch.isfinite(flow.slope).all()):
        raise NonFiniteError("the gradient holds NaN or infinity at the present weights, though the outputs do not.")
    if rule is not None:
        flow.gates = apply(rule, *moments(flow.scores()), **options)
