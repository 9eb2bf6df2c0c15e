"""What becomes of an optimizer's state where weights move by a proposal: kept, unless what it holds would undo it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...objectives.objective import Objective
from ...optim import adapters
from ...optim.twin import Changes, Twin
from ...skipping.buffers import refreshed
from ...utils.cost import Ledger
from ...utils.fallback import described
from ...utils.warn import warn
from ..next_step import LEFT, Follow

KEEP, RESET = "keep", "reset"
BATCHES = 20  # of BatchNorm's statistics at the new weights: as good as all, at its usual momentum


def following(
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    theta: Tensor,
    target: Tensor,
    losses: tuple[float, float],
    ledger: Ledger,
) -> tuple[Follow, str]:
    """What follows the move from θ to a target (P,), and whether first moments are kept.

    A copy of the optimizer takes a step on gradients of zero, by what it holds of the past alone; where less than half
    of the fall is left after it, first moments start afresh. That is one forward pass; a search's look
    (``next_step``), at three gradient evaluations, would cost more than a cheap proposal brings.

    Args:
        losses: at θ and at the target.
    """
    space, present = objective.space, dict(objective.model.named_parameters())
    moved: dict[Tensor, Tensor] = {present[name]: piece for name, piece in space.unflatten(target - theta).items()}
    twin = Twin(optimizer)
    twin.write({present[name]: piece for name, piece in space.unflatten(target).items()})
    adapters.carry(twin.optimizer, {twin[p]: piece for p, piece in moved.items()})
    listeners = adapters.listeners(optimizer)
    policy = KEEP
    if not listeners and not _stays(twin, objective, losses, ledger):
        policy = RESET
        adapters.refresh(twin.optimizer, {twin[p]: None for p in moved})
    changes: Changes = twin.changes()
    buffers = refreshed(objective, target, BATCHES)
    ledger.forwards += bool(buffers)
    changes.writes += buffers
    return Follow(optimizer, changes, moved, listeners), policy


def _stays(twin: Twin, objective: Objective, losses: tuple[float, float], ledger: Ledger) -> bool:
    """Whether half of the fall is left after a step by what the optimizer holds of the past."""
    present = dict(objective.model.named_parameters())
    trial = Twin(twin.optimizer)
    try:
        trial.step({twin[present[name]]: torch.zeros_like(present[name]) for name in objective.space.names})
    except Exception as error:  # one that needs a closure: nothing can be said
        warn(
            f"the step that {type(twin.original).__name__} takes after a proposal cannot be tried beforehand "
            f"({described(error)}): its moments are kept.",
            RuntimeWarning,
        )
        return True
    ledger.forwards += 1
    ahead = objective.space.flatten({name: trial[twin[present[name]]].detach() for name in objective.space.names})
    loss = float(objective.loss.value(objective.outputs(ahead)))
    return loss <= LEFT * losses[1] + (1 - LEFT) * losses[0]
