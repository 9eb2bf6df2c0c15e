"""What an optimizer is told of a jump, and a look at the step that it would take next, before the weights move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..jumping.candidates import Candidate
from ..linearization.problem import LinearizedProblem
from ..objectives.objective import Objective
from ..objectives.parts import Part, join
from ..objectives.pure import Bound, Net
from ..optim import adapters
from ..optim.twin import Changes, Twin
from ..utils.autodiff import pullback
from ..utils.cost import FORWARD
from ..utils.fallback import described
from ..utils.guard import drawing
from ..utils.warn import warn

LEFT = 0.5  # share of what a jump gained that must be left after the next step: real ones meet more than is tried
REBUILD, RESET, KEEP = "rebuild", "reset", "keep"
# What is tried of first moments, in order, until the next step does not undo the jump.
AFTER = {KEEP: (KEEP, REBUILD, RESET), REBUILD: (REBUILD, RESET), RESET: (RESET,)}


class NextStep:
    """Decides on a jump by what the loop does next: a condition of :class:`jumpstart.jumping.conditions.Conditions`.

    A step is tried along the objective's gradient at the new point, as the loop takes it: in the model's present modes,
    so that BatchNorm's statistics move. More are tried along the gradients of other data, or where there are none along
    the objective's with the noise of the loop's last gradient, either way. After each of them half of what the jump
    took off the training loss must be left.

    Args:
        optimizer: the wrapped one; it is copied, never stepped. after: a key of ``AFTER``.
        others: objectives of other data for the same parameters.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        after: str,
        others: Sequence[Objective] = (),
    ) -> None:
        self.optimizer, self.objective, self.after = optimizer, objective, after
        self.steps = (objective, *others)
        self.loop = Net(objective.model, objective.space, select=objective.net.select)  # in the modes that the loop has
        self.passes = sum(step.shape[0] for step in self.steps) / objective.shape[0]
        tries = len(self.steps) if others else 3
        self.cost = self.passes + 1 + len(AFTER[after]) * tries * FORWARD

    def __call__(self, problem: LinearizedProblem, candidate: Candidate) -> Callable[[], None] | None:
        """What the optimizer's state becomes if the weights move; None where its next step would undo the jump."""
        space, present = self.objective.space, dict(self.objective.model.named_parameters())

        def named(vector: Tensor) -> dict[Tensor, Tensor]:
            return {present[name]: piece for name, piece in space.unflatten(vector).items()}

        theta = problem.lin.theta + candidate.displacement
        drawing()  # dropout draws as it will in the loop
        steps = [self._gradient(objective, theta) for objective in self.steps]
        problem.lin.ledger.gradients += self.passes
        if len(steps) == 1 and (noise := self._noise(problem)) is not None:
            gradient, buffers = steps[0]
            steps += [(gradient + noise, buffers), (gradient - noise, buffers)]
        if not all(bool(torch.isfinite(gradient).all()) for gradient, _ in steps):
            return None
        listeners = adapters.listeners(self.optimizer)
        weights, moved, gradient = named(theta), named(candidate.displacement), named(steps[0][0])
        for policy in AFTER[self.after]:
            twin = Twin(self.optimizer)
            twin.write(weights)
            adapters.carry(twin.optimizer, {twin[p]: piece for p, piece in moved.items()})
            if policy != KEEP:
                known = {twin[p]: g if policy == REBUILD else None for p, g in gradient.items()}
                adapters.refresh(twin.optimizer, known)
            changes = twin.changes()
            # Who listens changes the state in ways that only the real optimizer can be put through.
            if listeners or all(
                self._stays(twin, named(g), buffers, problem, candidate.training) for g, buffers in steps
            ):
                return Follow(self.optimizer, changes, moved, listeners)
        return None

    def _noise(self, problem: LinearizedProblem) -> Tensor | None:
        """What the loop's last gradient has besides the objective's at the start, up to scale; None where it has none.

        A loop on minibatches, or with dropout, goes on to meet the like of it.
        """
        space, present = self.objective.space, dict(self.objective.model.named_parameters())
        last = {name: present[name].grad for name in space.names}
        if any(grad is None or grad.is_sparse for grad in last.values()):
            return None
        climbs = adapters.climbing(self.optimizer)
        flat = space.flatten({name: -g if present[name] in climbs else g for name, g in last.items() if g is not None})
        own, _ = self._gradient(self.objective, problem.lin.theta)
        problem.lin.ledger.gradients += 1
        square = torch.dot(own, own)
        if not bool(torch.isfinite(flat).all()) or not bool(square > 0):
            return None
        return flat - torch.dot(flat, own) / square * own

    def _gradient(self, objective: Objective, theta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """∇Φ (P,) at weights θ in the loop's own modes, and what the model's buffers are after that pass."""
        buffers = {name: buffer.clone() for name, buffer in objective.model.named_buffers()}
        modes = {module.training for module in objective.model.modules()}
        if objective.training is None or modes == {objective.training}:
            return objective.gradient(theta)[1], buffers
        if objective.shards is not None:  # rows are spread: the loss is of all of them

            def pulled(part: Part, at: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
                return pullback(
                    lambda th: part.outputs(Bound(self.loop, {**objective.space.unflatten(th), **buffers})), at
                )

            return objective.spread(pulled, theta)[1], buffers
        leaf = theta.detach().clone().requires_grad_()
        with torch.enable_grad():
            net = Bound(self.loop, {**objective.space.unflatten(leaf), **buffers})
            loss = objective.loss.value(join([part.outputs(net) for part in objective.parts]))
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient, buffers

    def _stays(
        self,
        twin: Twin,
        gradients: dict[Tensor, Tensor],
        buffers: dict[str, Tensor],
        problem: LinearizedProblem,
        training: float,
    ) -> bool:
        """Whether enough of the training loss's fall, to ``training``, is left after the next step."""
        trial = Twin(twin.optimizer)
        climbs = adapters.climbing(self.optimizer)
        try:
            trial.step({twin[p]: -g if p in climbs else g for p, g in gradients.items()})
        except Exception as error:  # one that needs a closure, or sparse gradients: nothing can be said
            warn(
                f"the step that {type(self.optimizer).__name__} takes after a jump cannot be tried beforehand "
                f"({described(error)}): jumps are accepted without that look.",
                RuntimeWarning,
            )
            return True
        objective, present = self.objective, dict(self.objective.model.named_parameters())
        ahead = {name: trial[twin[present[name]]].detach() for name in objective.space.names}
        problem.lin.ledger.forwards += 1
        with torch.no_grad():
            net = Bound(objective.net, {**ahead, **buffers})
            loss = problem.training(objective.answers(net))
        return loss < math.inf and loss <= LEFT * training + (1 - LEFT) * problem.training_before


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
