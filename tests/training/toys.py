"""A small action that does as it is told, to look at the wrapper alone."""

import torch

from jumpstart.jumping.jump import JumpResult
from jumpstart.training.actions import Action


class Credit(Action):
    """Credits up to ``ahead`` steps after each, without moving anything; raises where ``raises`` says."""

    name = "credit"
    OPTIONS = frozenset()

    def __init__(self, optimizer, ahead=3, raises=()):
        super().__init__(optimizer)
        self.ahead, self.raises, self.credited = ahead, raises, 0
        self.limits, self.starts, self.groups = [], [], 1

    @property
    def skipped(self):
        return self.credited

    def before_step(self):
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.starts.append([(p.detach().clone(), None if p.grad is None else p.grad.clone()) for p in held])
        self.trouble("before_step")

    def after_step(self, taken, limit):
        self.limits.append(limit)
        self.trouble("after_step")
        if not self.ahead:
            return None
        self.credited += self.ahead if limit is None else min(self.ahead, limit)
        return self.book(JumpResult.skipped("a toy"))

    def trouble(self, where):
        if where in self.raises:
            torch.rand(3)
            raise KeyError(f"in {where}")

    def parameters_added(self):
        self.groups = len(self.optimizer.param_groups)

    def not_tried(self, cause):
        return JumpResult.skipped(cause)

    def state_dict(self):
        return {"credited": self.credited}

    def check(self, state):
        assert set(state) == {"credited"}

    def load_state_dict(self, state):
        self.credited = 0 if state is None else state["credited"]
