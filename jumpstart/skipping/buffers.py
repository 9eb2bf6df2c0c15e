"""BatchNorm's running statistics after a skip: what so many steps would have made of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..objectives.objective import Objective
from ..objectives.pure import Bound, Net
from ..utils.guard import guarded


@guarded(lambda objective, *_, **__: objective.model)
@torch.no_grad()
def refreshed(objective: Objective, theta: Tensor, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Buffers of the model's BatchNorm layers in train mode, and their values after ``steps`` batches at θ (P,).

    One forward pass of the objective's samples in the loop's own modes, nothing where no layer collects statistics. The
    statistics of all skipped steps are taken for those at their end.
    """
    model = objective.model
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]
    if not layers:
        return []
    objective.require_alone("a skip past BatchNorm in train mode, whose statistics are of all samples,")
    old = {name: buffer.clone() for name, buffer in model.named_buffers()}
    new = {name: buffer.clone() for name, buffer in old.items()}
    net = Bound(Net(model, objective.space), {**objective.space.unflatten(theta), **new})
    for part in objective.parts:
        part.outputs(net)
    present, found = dict(model.named_buffers()), []
    for name, module in layers:
        prefix = f"{name}." if name else ""
        count = f"{prefix}num_batches_tracked"
        seen = int(old[count]) if count in old else 0
        once = 1 / (seen + 1) if module.momentum is None else float(module.momentum)
        whole = steps / (seen + steps) if module.momentum is None else 1 - (1 - once) ** steps
        for key in (f"{prefix}running_mean", f"{prefix}running_var"):
            if once > 0:
                found.append((present[key], old[key] + (new[key] - old[key]) * (whole / once)))
        if count in old:
            found.append((present[count], old[count] + steps))
    return found
