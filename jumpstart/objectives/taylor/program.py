"""A network as a list of steps that jets go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from .jets import Index, Jet


@dataclass(frozen=True)
class LinearPass:
    """One linear layer that was passed: names of its tensors, the jet that went in, and the one that came out."""

    weight: str
    bias: str | None
    before: Jet
    after: Jet


Values = dict[fx.Node, Any]  # what every node holds: a jet, or a tensor or number that does not depend on the input
Step = Callable[[Values, Mapping[str, Tensor], list[Index], list[LinearPass] | None], Any]


@dataclass(frozen=True)
class Program:
    """Layers in order. ``linear`` names the tensors used by linear layers, ``other`` those used in any other way."""

    steps: tuple[tuple[fx.Node, Step], ...]
    source: fx.Node
    result: fx.Node
    linear: frozenset[str]
    other: frozenset[str]

    def run(
        self, tensors: Mapping[str, Tensor], jet: Jet, wanted: list[Index], passed: list[LinearPass] | None = None
    ) -> Jet:
        """The network's jet for that of its input.

        Args:
            tensors: parameters and buffers by name.
            wanted: indices to carry, closed (``jets.closed``).
            passed: linear layers are recorded here, each output asked for gradients, for the explicit Jacobian.
        """
        values: Values = {self.source: jet}
        for node, step in self.steps:
            values[node] = step(values, tensors, wanted, passed)
        return values[self.result]
