"""Weights that may be better than a loop's, proposed between its steps and accepted by measurement."""

from collections.abc import Callable

from .average import Average
from .head import Head
from .line import Line
from .proposal import Proposal
from .trajectory import Trajectory

# name → what makes it, with its defaults
PROPOSALS: dict[str, Callable[[], Proposal]] = {kind.name: kind for kind in (Line, Trajectory, Average, Head)}

__all__ = ["PROPOSALS", "Average", "Head", "Line", "Proposal", "Trajectory"]
