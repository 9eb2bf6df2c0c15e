"""Optimizers to be replayed: every one of torch's that needs no closure, and some written by hand that nobody knows."""

from __future__ import annotations

import torch
from torch import nn

O = torch.optim
KINDS = {
    "SGD": lambda p: O.SGD(p, 0.05),
    "SGD decay": lambda p: O.SGD(p, 0.05, weight_decay=0.1),
    "momentum": lambda p: O.SGD(p, 0.05, momentum=0.9),
    "dampened": lambda p: O.SGD(p, 0.05, momentum=0.8, dampening=0.3, weight_decay=0.01),
    "Nesterov": lambda p: O.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD foreach": lambda p: O.SGD(p, 0.05, momentum=0.9, foreach=True),
    "SGD fused": lambda p: O.SGD(p, 0.05, momentum=0.9, fused=True),
    "SGD uphill": lambda p: O.SGD(p, 0.05, momentum=0.9, maximize=True),
    "Adam": lambda p: O.Adam(p, 0.02),
    "Adam decay": lambda p: O.Adam(p, 0.02, betas=(0.8, 0.95), weight_decay=0.1),
    "Adam amsgrad": lambda p: O.Adam(p, 0.02, amsgrad=True),
    "Adam foreach": lambda p: O.Adam(p, 0.02, foreach=True),
    "Adam fused": lambda p: O.Adam(p, 0.02, fused=True),
    "Adam uphill": lambda p: O.Adam(p, 0.02, maximize=True),
    "AdamW": lambda p: O.AdamW(p, 0.02, weight_decay=0.1),
    "AdamW amsgrad fused": lambda p: O.AdamW(p, 0.02, amsgrad=True, fused=True),
    "AdamW rate as a tensor": lambda p: O.AdamW(p, torch.tensor(0.02, dtype=torch.float64)),
    "NAdam": lambda p: O.NAdam(p, 0.02, weight_decay=0.01, decoupled_weight_decay=True),
    "RAdam": lambda p: O.RAdam(p, 0.02, weight_decay=0.01),
    "RMSprop": lambda p: O.RMSprop(p, 0.02),
    "RMSprop centered": lambda p: O.RMSprop(p, 0.02, centered=True, momentum=0.9, weight_decay=0.01),
    "Adagrad": lambda p: O.Adagrad(p, 0.1, lr_decay=0.1, weight_decay=0.01),
    "Adadelta": lambda p: O.Adadelta(p, 1.0, weight_decay=0.01),
    "Adamax": lambda p: O.Adamax(p, 0.02, weight_decay=0.01),
    "ASGD": lambda p: O.ASGD(p, 0.05, t0=2),
    "Rprop": lambda p: O.Rprop(p, 0.02),
    "Adafactor": lambda p: O.Adafactor(p, 0.02),
}


class LayerScaled(O.Optimizer):
    """LAMB (You et al., arXiv:1904.00962): Adam's state by entry, and a step whose length is each layer's own."""

    def __init__(self, params, lr=0.02, betas=(0.9, 0.99), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                known = self.state[p]
                if not known:
                    known["step"] = torch.tensor(0.0)
                    known["exp_avg"], known["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                known["step"] += 1
                k, (one, two) = float(known["step"]), group["betas"]
                m = known["exp_avg"].lerp_(p.grad, 1 - one) / (1 - one**k)
                v = known["exp_avg_sq"].mul_(two).addcmul_(p.grad, p.grad, value=1 - two) / (1 - two**k)
                way = m / (v.sqrt() + group["eps"])
                p.sub_(group["lr"] * way * (p.norm() / way.norm().clamp_min(1e-12)).clamp(0.1, 10))


class Remembering(O.Optimizer):
    """Keeps lists and dictionaries: in its state, in its groups and as attributes, and counts in each."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr, "table": [[0, 0.0], [0, 0.0]]})
        self.rounds, self.norms, self.last = 0, [], {}

    def __getstate__(self):
        return {**super().__getstate__(), "rounds": self.rounds, "norms": self.norms, "last": self.last}

    @torch.no_grad()
    def step(self, closure=None):
        self.rounds += 1
        for group in self.param_groups:
            group["table"][self.rounds % 2][0] += 1
            for p in (p for p in group["params"] if p.grad is not None):
                known = self.state[p]
                known.setdefault("past", []).append(p.grad.clone())
                del known["past"][:-3]
                known["past"][0].mul_(0.9)  # in place
                p.sub_(group["lr"] / (1 + 0.1 * group["table"][0][0]) * sum(known["past"]))
                self.last["norm"] = float(p.norm())
                self.norms.append(torch.linalg.vector_norm(p))


class Around(O.Optimizer):
    """A lookahead (Zhang et al., arXiv:1907.08610) around another optimizer of the same parameters."""

    def __init__(self, inner, every=3, share=0.5):
        self.inner, self.every, self.share, self.count = inner, every, share, 0
        super().__init__(inner.param_groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.clone())
                if self.count % self.every == 0:
                    slow.lerp_(p, self.share)
                    p.copy_(slow)


BY_HAND = {"layer-scaled": LayerScaled, "remembering": Remembering}


def net(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
