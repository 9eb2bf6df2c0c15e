"""Schedule-free AdamW as published (Defazio et al., arXiv:2405.15682), with the state that its authors' package keeps.

z takes the steps, x is the average of all z, gradients are met at y = (1 − β)z + βx. In train mode the weights are y,
in eval mode x; x is not stored.
"""

from __future__ import annotations

import torch


class ScheduleFreeAdamW(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        counted = {"k": 0, "weight_sum": 0.0, "lr_max": -1.0, "weight_lr_power": 2.0, "train_mode": False}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, **counted})

    @torch.no_grad()
    def average(self):
        """x of every parameter, from the weights and z."""
        found = []
        for group in self.param_groups:
            beta = group["betas"][0]
            for p in group["params"]:
                known = self.state[p]
                y = group["train_mode"] and "z" in known
                found.append((p - (1 - beta) * known["z"]) / beta if y else p.clone())
        return found

    @torch.no_grad()
    def _become(self, train):
        for group in self.param_groups:
            beta = group["betas"][0]
            if group["train_mode"] != train:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        z = self.state[p]["z"]
                        p.copy_((1 - beta) * z + beta * p if train else (p - (1 - beta) * z) / beta)
                group["train_mode"] = train

    def train(self):
        self._become(True)

    def eval(self):
        self._become(False)

    @torch.no_grad()
    def step(self, closure=None):
        averages = iter(self.average())
        for group in self.param_groups:
            assert group["train_mode"], "call optimizer.train() first"
            (beta, beta2), lr = group["betas"], group["lr"]
            group["k"] += 1
            group["lr_max"] = max(lr, group["lr_max"])
            weight = group["lr_max"] ** group["weight_lr_power"]
            group["weight_sum"] += weight
            share = weight / group["weight_sum"]
            for p in group["params"]:
                x, known = next(averages), self.state[p]
                if p.grad is None:
                    continue
                if not known:
                    known["z"], known["exp_avg_sq"] = p.clone(), torch.zeros_like(p)
                v = known["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                direction = p.grad / ((v / (1 - beta2 ** group["k"])).sqrt() + group["eps"])
                z = known["z"].sub_(lr * (direction + group["weight_decay"] * p))
                p.copy_((1 - beta) * z + beta * ((1 - share) * x + share * z))
