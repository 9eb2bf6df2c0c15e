"""Operators along a real trajectory: what a run did to the gradient that it began with (docs/theory.md, section 11)."""

from .operators import Operators, Where, load
from .recorder import Recorder

__all__ = ["Operators", "Recorder", "Where", "load"]
