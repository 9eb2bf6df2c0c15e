"""Operators along a real trajectory: what a run did to the gradient that it began with (docs/theory.md, section 11)."""

from ..objectives.balance import balance, rebalance
from .coupling import Coupling, coupling
from .diffusion import Diffusion, Escape
from .left_out import LeaveOneOut
from .operators import Operators, Where, load
from .pictures import picture
from .recorder import Recorder

__all__ = [
    "Coupling",
    "Diffusion",
    "Escape",
    "LeaveOneOut",
    "Operators",
    "Recorder",
    "Where",
    "balance",
    "coupling",
    "load",
    "picture",
    "rebalance",
]
