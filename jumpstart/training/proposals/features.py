"""The last linear layer of a network, and what goes into it: one forward pass, with nothing hung on the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import InputError, UnknownNameError
from ...objectives.objective import Objective
from ...objectives.parts import join
from ...objectives.pure import ties
from ...utils.brief import brief
from ...utils.guard import guarded

NEAR = 1e-3  # relative difference up to which a layer's output is the model's, in half precision even


@dataclass(frozen=True)
class Head:
    """The last linear layer: names of its weight (C, d) and bias (C,) or None; features (n, d) that go into it;
    outputs of the model (n, …) at the same weights."""

    weight: str
    bias: str | None
    features: Tensor
    outputs: Tensor

    @property
    def layer(self) -> str:
        return self.weight.removesuffix("weight").removesuffix(".")


class _Calls(TorchFunctionMode):
    """Calls of F.linear with tensors that are known, in order."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.seen: list[tuple[str, str | None, Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.linear:
            given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **(kwargs or {})}
            name = self.names.get(id(given["weight"]))
            if name is not None:
                bias = given.get("bias")
                self.seen.append((name, None if bias is None else self.names.get(id(bias), ""), given["input"], out))
        return out


@guarded(lambda objective, *_, **__: objective.model)
@torch.no_grad()
def head_of(objective: Objective, theta: Tensor, head: str | None = None) -> Head:
    """The linear layer whose outputs are the model's, at weights θ (P,), and its features on the objective's samples.

    Args:
        head: the layer's name, None to find it.

    Raises:
        UnknownNameError: there is no linear layer of that name.
        InputError: no linear layer comes last; it is used more than once; a sample has several rows.
    """
    objective.require_alone("fitting a head")
    model = objective.model
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if head is not None and head not in linears:
        raise UnknownNameError(f"head={brief(head)} is no nn.Linear of the model; there are {linears[:8]}.")
    net = objective.net.bind(theta)
    names = {id(tensor): name for name, tensor in net.tensors().items()}
    rows, calls = [], []
    for part in objective.parts:
        with part.translated(model), _Calls(names) as seen:
            u = part.outputs(net)
        rows.append(u)
        calls.append(_last(seen.seen, u, head, type(model).__name__, linears))
    (name, bias, *_), outputs = calls[0], join(rows)
    if any(call[:2] != (name, bias) for call in calls) or bias == "":
        raise InputError(f"fit_head: parts of the objective end in other layers, or the bias of {name!r} is computed.")
    places = dict(ties(model))
    if shared := [place for place, first in places.items() if place != name and first == places.get(name, name)]:
        raise InputError(f"fit_head: {name!r} is tied to {shared[0]!r}: fitting it would change the features as well.")
    features = join([call[2].reshape(-1, call[2].shape[-1]) for call in calls])
    if len(features) != len(outputs):
        raise InputError(
            f"fit_head: outputs {tuple(outputs.shape)} have {len(features)} rows of features for {len(outputs)} "
            "samples: a head is fitted where there is one a sample."
        )
    return Head(name, bias, features, outputs)


def _last(
    seen: list[tuple[str, str | None, Tensor, Tensor]], u: Tensor, head: str | None, who: str, linears: list[str]
) -> tuple[str, str | None, Tensor, Tensor]:
    """The call whose outputs are the model's."""
    wanted = seen if head is None else [call for call in seen if call[0] == f"{head}.weight"]
    found = [call for call in wanted if call[3].numel() == u.numel() and _near(call[3].reshape(u.shape), u)]
    if not found:
        which = f"the outputs of {head!r}" if head is not None else "those of a linear layer"
        raise InputError(
            f"fit_head: the outputs of {who} are not {which} as they are ({linears[-3:]} are there): a head that is "
            "followed by something else, or computed in another way, is no convex problem; train it with js.jump."
        )
    if sum(call[0] == found[-1][0] for call in seen) > 1:
        raise InputError(f"fit_head: {found[-1][0]!r} is used more than once in a pass.")
    return found[-1]


def _near(found: Tensor, u: Tensor) -> bool:
    tolerance = NEAR if found.dtype in (torch.float16, torch.bfloat16) else 1e-5
    return bool(torch.allclose(found.double(), u.double(), rtol=tolerance, atol=tolerance * float(u.abs().max())))
