"""What one jump tells the next: passed along, never changed in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..linalg.nystrom import Nystrom
from ..utils.brief import brief


@dataclass(frozen=True)
class Memory:
    """Empty before the first jump.

    Attributes:
        horizon: flow time to start the next search from; None for none yet.
        scale: share of the full step that was last accepted, for searches over scales.
        best: lowest loss that a nonmonotone search has met; ∞ before. heading: its last step (P,), second order apart.
        sketch: of the kernel, which preconditions the next matrix-free jump.
        modes: how many the last implicit step reached (its effective dimension); None where nobody has counted.
        directions: (r, P) displacements taken last, to be kept in the next Krylov basis.
    """

    horizon: float | None = None
    scale: float = 1.0
    best: float = math.inf
    heading: Tensor | None = None
    sketch: Nystrom | None = None
    modes: float | None = None
    directions: Tensor | None = None

    def at(self, horizon: float) -> Memory:
        """The next search starts at another flow time."""
        return replace(self, horizon=horizon)

    def restarted(self, best: float = math.inf) -> Memory:
        """A nonmonotone search begins anew, from a loss of ``best``."""
        return replace(self, best=best, heading=None)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers by name."""
        sketch = self.sketch
        return {
            "horizon": self.horizon,
            "scale": self.scale,
            "best": self.best,
            "heading": self.heading,
            "modes": self.modes,
            "sketch_vectors": None if sketch is None else sketch.vectors,
            "sketch_values": None if sketch is None else sketch.values,
            "directions": self.directions,
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Memory:
        """What ``state_dict`` gave.

        Raises:
            InputError: something is missing, or is no memory.
        """
        known = Memory().state_dict().keys()
        if not isinstance(state, Mapping) or set(state) != set(known):
            raise InputError(f"this is no memory of jumps: {state!r:.80} has not the entries {sorted(known)}.")
        numbers = {name: state[name] for name in ("scale", "best")}
        numbers |= {name: 1.0 if state[name] is None else state[name] for name in ("horizon", "modes")}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
                raise InputError(f"this is no memory of jumps: {name}={brief(state[name])} is no number.")
        positive = 0 < numbers["horizon"] < math.inf and 0 < numbers["modes"] < math.inf
        if not (positive and 0 < numbers["scale"] <= 1):
            raise InputError(
                f"this is no memory of jumps: horizon={state['horizon']!r}, modes={state['modes']!r} or "
                f"scale={state['scale']!r} is out of range."
            )
        plain = {f.name: state[f.name] for f in fields(Memory) if f.name != "sketch"}
        vectors, values = state["sketch_vectors"], state["sketch_values"]
        if (vectors is None) != (values is None) or not all(
            t is None or isinstance(t, Tensor) for t in (vectors, values, plain["heading"], plain["directions"])
        ):
            raise InputError("this is no memory of jumps: its vectors are no tensors, or one of a pair is missing.")
        return Memory(**plain, sketch=None if vectors is None else Nystrom(vectors, torch.as_tensor(values)))
