"""What a fit is asked for, checked at the door."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError
from ..utils.brief import brief
from ..weighting import Rule


@dataclass(frozen=True)
class FitSettings:
    """How a fit goes about it; see :func:`jumpstart.fit` for what each means.

    Raises:
        InputError: quoting what is out of range, or that nothing says when to stop.
    """

    budget: float | None = None
    jumps: float | None = None
    tolerance: float | None = None
    every: int = 1
    patience: int = 40
    nonmonotone: bool = True
    restarts: int = 2
    seed: int = 0
    adaptive: bool | None = None
    weigh: Rule | None = None

    def __post_init__(self) -> None:
        if self.budget is None and self.jumps is None and self.tolerance is None:
            raise InputError("fit: say when to stop, with budget= (seconds), jumps= or tolerance= (loss).")
        for name in ("budget", "jumps"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 < value < math.inf)
            ):
                raise InputError(f"fit: {name}={value!r} must be positive and finite.")
        if self.jumps is not None and self.jumps % 1:
            raise InputError(f"fit: jumps={self.jumps!r}: give a whole number.")
        if self.tolerance is not None and not (
            isinstance(self.tolerance, (int, float)) and math.isfinite(self.tolerance)
        ):
            raise InputError(f"fit: tolerance={self.tolerance!r} is a loss to stop at, or None.")
        for name in ("nonmonotone", "adaptive"):
            value = getattr(self, name)
            if not (isinstance(value, bool) or (name == "adaptive" and value is None)):
                raise InputError(f"fit: {name}={value!r}: give True or False.")
        if self.weigh is not None and not callable(self.weigh):
            raise InputError(f"fit: weigh={brief(self.weigh)}: give a rule, such as js.weighting.Attention(), or None.")
        self._require_whole()

    def _require_whole(self) -> None:
        for name, least in (("every", 1), ("patience", 1), ("restarts", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"fit: {name}={value!r}: give a whole number of at least {least}.")

    @property
    def limit(self) -> float:
        """Most jumps."""
        return math.inf if self.jumps is None else self.jumps
