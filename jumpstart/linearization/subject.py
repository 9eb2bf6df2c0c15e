"""What a probe of derivatives was about: the model's code, modes, hooks and weights, and not the data.

Two objectives of one subject (minibatches, new points) need not be probed twice. Compared are the modules with their
plain attributes and hooks, the parameters that move, the functions without the tensors that they hold, and the
operations of a forward pass with their scalars, so that a branch that the data took shows.
"""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor
from torch.nn.modules import module as torch_module

from ..objectives.objective import Objective
from ..objectives.taylor.fingerprint import fingerprint, of_model


def subject(objective: Objective, trace: tuple[Any, ...]) -> int:
    """The subject of a probe, as a number to be compared with another of the same process while the model lives."""
    model = objective.model
    hooks = [(tuple(m._forward_hooks), tuple(m._forward_pre_hooks)) for m in model.modules()]
    everywhere = (tuple(torch_module._global_forward_hooks), tuple(torch_module._global_forward_pre_hooks))
    weights = [(id(p), p.requires_grad, tuple(p._backward_hooks or ())) for p in model.parameters()]
    parts = [(type(part), part.name, _code(getattr(part, "fn", None))) for part in objective.parts]
    about = (objective.training, objective.space.names, of_model(model), hooks, everywhere, weights, parts)
    return hash((repr(about), trace))


def _code(fn: Any) -> Any:
    """A function, without the tensors that it holds: those are data."""
    if not isinstance(fn, types.FunctionType):
        return fingerprint(fn)
    cells = []
    for cell in fn.__closure__ or ():
        try:
            cells.append(_no_data(cell.cell_contents))
        except ValueError:  # a name that is not bound yet
            cells.append(None)
    return id(fn.__code__), fingerprint(cells), fingerprint(_no_data(fn.__defaults__ or ()))


def _no_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, dict):
        return {key: _no_data(entry) for key, entry in value.items()}
    return [_no_data(entry) for entry in value] if isinstance(value, (tuple, list)) else value
