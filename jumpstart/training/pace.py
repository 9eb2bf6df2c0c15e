"""Whether to try again: what tries have cost and brought so far, counted in steps of the loop."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from ..utils.brief import brief

BUDGET = 0.05  # of the run, for tries that lose
OVERDRAFT = 5.0  # steps' worth of work that tries may lose before the run is long enough for its budget
LONGEST = 30  # doublings


def require_budget(budget: Any) -> None:
    """Raise unless it is a share of the run."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise InputError(f"budget={brief(budget)}: give a share of the run, above 0 and at most 1.")


@dataclass
class Pace:
    """A budget for tries that lose, and a back-off that doubles with each in a row.

    Attributes:
        tries, lost, saved: how many there were, and the steps' worth of work that they lost or saved.
        failures: tries that lost, in a row. wait: the step of the loop before which there is no other.
    """

    tries: int = 0
    lost: float = 0.0
    saved: float = 0.0
    failures: int = 0
    wait: int = 0

    def ready(self, taken: int, effective: int, budget: float, price: float) -> bool:
        """Whether a try that may lose ``price`` is due after so many steps, taken and effective."""
        return taken >= self.wait and self.lost - self.saved + price <= OVERDRAFT + budget * effective

    def learn(self, saved: float, taken: int) -> None:
        """From a try: steps that it saved, less its cost."""
        self.tries += 1
        if saved > 0:
            self.saved, self.failures = self.saved + saved, 0
        else:
            self.lost, self.failures = self.lost - saved, min(self.failures + 1, LONGEST)
        self.wait = taken + 2**self.failures

    def words(self, name: str) -> str:
        """What the tries came to, for people."""
        often = f"{self.tries} {'try' if self.tries == 1 else 'tries'}"
        return (
            f"{name}: {often} saved {self.saved:.4g} steps' worth of work and lost {self.lost:.4g}: not again before "
            f"step {self.wait:,}"
        )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, state: Any) -> Pace:
        """What ``state_dict`` gave.

        Raises:
            InputError: it is none.
        """
        if not isinstance(state, dict) or set(state) != set(asdict(cls())):
            raise InputError(f"this is no pace of skips: {brief(state)}.")
        for name in ("tries", "failures", "wait"):
            if isinstance(state[name], bool) or not isinstance(state[name], int) or state[name] < 0:
                raise InputError(f"this is no pace of skips: {name}={brief(state[name])}.")
        for name in ("lost", "saved"):
            number = isinstance(state[name], (int, float)) and not isinstance(state[name], bool)
            if not number or not 0 <= state[name] < math.inf:
                raise InputError(f"this is no pace of skips: {name}={brief(state[name])}.")
        return cls(**state)
