"""What an optimizer is told of a jump, and a look at the step that it would take next, before the weights move."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..jumping.candidates import Candidate
from ..linearization.problem import LinearizedProblem
from ..objectives.objective import Objective
from ..objectives.pure import random_state_kept
from ..optim import adapters
from ..optim.twin import Changes, Twin
from ..utils.fallback import described

REBUILD, RESET, KEEP = "rebuild", "reset", "keep"
# What is tried of first moments, in order, until the next step does not undo the jump.
AFTER = {REBUILD: (REBUILD, RESET), RESET: (RESET,), KEEP: (KEEP, RESET)}


class NextStep:
    """Decides on a jump by what the optimizer does next: a condition of :class:`jumpstart.jumping.Conditions`.

    Args:
        optimizer: the wrapped one; it is copied, never stepped. after: a key of ``AFTER``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, objective: Objective, after: str) -> None:
        self.optimizer, self.objective, self.after = optimizer, objective, after

    def __call__(self, problem: LinearizedProblem, candidate: Candidate) -> Callable[[], None] | None:
        """What the optimizer's state becomes if the weights move; None where its next step would undo the jump."""
        space, present = self.objective.space, dict(self.objective.model.named_parameters())

        def named(vector: Tensor) -> dict[Tensor, Tensor]:
            return {present[name]: piece for name, piece in space.unflatten(vector).items()}

        theta = problem.lin.theta + candidate.displacement
        with random_state_kept(theta.device):
            gradient = self.objective.gradient(theta)[1]
            problem.lin.ledger.gradients += 1
            if not bool(torch.isfinite(gradient).all()):
                return None
            listeners = adapters.listeners(self.optimizer)
            weights, moved, gradients = named(theta), named(candidate.displacement), named(gradient)
            for policy in AFTER[self.after]:
                twin = Twin(self.optimizer)
                twin.write(weights)
                adapters.carry(twin.optimizer, {twin[p]: piece for p, piece in moved.items()})
                if policy != KEEP:
                    known = {twin[p]: g if policy == REBUILD else None for p, g in gradients.items()}
                    adapters.refresh(twin.optimizer, known)
                changes = twin.changes()
                # Who listens changes the state in ways that only the real optimizer can be put through.
                if listeners or self._stays(twin, gradients, problem):
                    return Follow(self.optimizer, changes, moved, listeners)
        return None

    def _stays(self, twin: Twin, gradients: dict[Tensor, Tensor], problem: LinearizedProblem) -> bool:
        """Whether the training loss after the next step is still no higher than before the jump."""
        climbs = {p for group in self.optimizer.param_groups if group.get("maximize") for p in group["params"]}
        try:
            twin.step({p: -g if p in climbs else g for p, g in gradients.items()})
        except Exception as error:  # one that needs a closure, or sparse gradients: nothing can be said
            warnings.warn(
                f"the step that {type(self.optimizer).__name__} takes after a jump cannot be tried beforehand "
                f"({described(error)}): jumps are accepted without that look.",
                RuntimeWarning,
                stacklevel=2,
            )
            return True
        present = dict(self.objective.model.named_parameters())
        space = self.objective.space
        ahead = space.flatten({name: twin[present[name]].detach() for name in space.names})
        if not bool(torch.isfinite(ahead).all()):
            return False
        loss = problem.training(problem.lin.outputs(ahead))
        return loss < math.inf and loss <= problem.training_before


class Follow:
    """What follows a move of the weights: the optimizer's state, at once, and whoever asked to be told."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        changes: Changes,
        moved: dict[Tensor, Tensor],
        listeners: list[Callable],
    ) -> None:
        self.optimizer, self.changes, self.moved, self.listeners = optimizer, changes, moved, listeners
        self.back = changes.reverse() if listeners else None

    def __call__(self) -> None:
        self.changes.apply()
        try:
            for call in self.listeners:
                call(self.optimizer, self.moved)
        except BaseException:
            assert self.back is not None
            self.back.apply()
            raise
