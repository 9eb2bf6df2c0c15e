"""Which tensor of what a model returns is trained: a tensor, or one of a ModelOutput, a mapping, an object, a tuple."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from ..errors import InputError, OutputTypeError, ShapeError
from ..utils.brief import brief

Output = str | int | Callable[[Any], Tensor] | None
USUAL = "logits"  # of what is no tensor, where nothing is said
NAMED = 6  # fields that a message names


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What is trained of what a model returns.

    Attributes:
        output: a name, a place in a tuple, or a function of what is returned; None for a tensor as it is, and
            ``logits`` of anything else.
        shift: leave out the last position (n, T, …) -> (n, T − 1, …): a causal language model's outputs at a token are
            about the next one.
    """

    output: Output = None
    shift: bool = False

    @classmethod
    def of(cls, output: Any, shift: bool = False) -> Chosen:
        """The same from what a user gave, checked."""
        usable = output is None or isinstance(output, (str, int)) or callable(output)
        if isinstance(output, bool) or not usable:
            raise InputError(
                f"outputs={brief(output)}: give the name of a field ('logits'), a place in a tuple (0), or a function "
                "of what the model returns."
            )
        return cls(cast(Output, output), shift)

    def __call__(self, returned: Any) -> Any:
        if callable(self.output):
            found = self.output(returned)
        elif self.output is None and isinstance(returned, Tensor):
            found = returned
        else:
            found = _field(returned, USUAL if self.output is None else self.output)
        if not self.shift:
            return found
        if not isinstance(found, Tensor) or found.dim() < 3 or found.shape[1] < 2:
            raise ShapeError(
                f"shift=True needs outputs (n, T, classes) of at least two positions, got {brief(found)}: leave shift "
                "out where outputs are not a sequence."
            )
        return found[:, :-1]


def _field(returned: Any, name: str | int) -> Any:
    if isinstance(name, str):
        if isinstance(returned, Mapping) and name in returned:
            return returned[name]
        if not isinstance(returned, (Tensor, Mapping)) and hasattr(returned, name):
            return getattr(returned, name)
    elif isinstance(returned, (tuple, list)) and -len(returned) <= name < len(returned):
        return returned[name]
    raise OutputTypeError(
        f"the model returned {_shown(returned)}, which has no {name!r}: outputs= says which tensor is trained, by its "
        "name, its place in a tuple, or as a function of what the model returns."
    )


def _shown(returned: Any) -> str:
    kind = type(returned).__name__
    if isinstance(returned, Mapping):
        return f"{kind} with fields {list(returned)[:NAMED]}"
    if dataclasses.is_dataclass(returned):
        return f"{kind} with fields {[field.name for field in dataclasses.fields(returned)][:NAMED]}"
    if isinstance(returned, (tuple, list)):
        return f"a {kind} of {len(returned)}"
    return brief(returned) if isinstance(returned, Tensor) else kind
