"""Who takes part: AdamW, its rivals, and gates, each an optimizer for a rate and a decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from jumpstart import gating
from jumpstart.optim import GatedAdamW

from .tasks import Setting

BETAS = (0.9, 0.98)  # of Power et al. (arXiv:2201.02177), for everybody's AdamW
ADAMW, MUON, GROKFAST = "AdamW", "Muon", "Grokfast"
SKIPS = "AdamW + skips"


@dataclass(frozen=True)
class Contender:
    """An optimizer and what goes with it.

    Attributes:
        gate: options of GatedAdamW; None is torch's AdamW. muon: matrices are Muon's. filtered: Grokfast's filter of
            the gradients. skips: inside of js.JumpOptimizer. settings: the setting of another contender's, or a fixed
            one, instead of one of its own. times: budgets of steps that it has.
    """

    gate: dict[str, Any] | None = None
    muon: bool = False
    filtered: bool = False
    skips: bool = False
    settings: str | Setting | None = None
    times: int = 1

    @property
    def exact(self) -> bool:
        return self.gate is not None and self.gate["statistics"] == "exact"


def _gate(rule: str, statistics: str, correction: bool) -> dict[str, Any]:
    return {"rule": rule, "statistics": statistics, "correction": correction}


STREAMING = {
    f"{rule}, {name}": Contender(_gate(rule, "streaming", correction))
    for rule in ("hard", "snr")
    for name, correction in (("corrected", True), ("published", False))
}
# The batch's own mean against the variance of that mean, α = 1: the paper's rule, as if the training set were a fresh
# batch. For a finite set α is b/(n − b), infinite at full batch, and every gate would be shut.
EXACT = {f"{rule}, exact": Contender(_gate(rule, "exact", False)) for rule in ("hard", "snr")}
GATE_SKIPS = "snr, corrected + skips"
TUNED: dict[str, Contender] = {
    ADAMW: Contender(),
    MUON: Contender(muon=True),
    GROKFAST: Contender(filtered=True),
    **STREAMING,
    **EXACT,
}
# A rate and a decay that nobody has looked for: how long AdamW takes there, and who gains how much on that.
UNTUNED = Setting(1e-2, 1.0)
LONG = {
    f"{name}, untuned": replace(TUNED[name], settings=UNTUNED, times=5)
    for name in (ADAMW, "hard, published", "snr, published")
}
CONTENDERS: dict[str, Contender] = {
    **TUNED,
    SKIPS: Contender(skips=True, settings=ADAMW),
    GATE_SKIPS: Contender(_gate("snr", "streaming", True), skips=True, settings="snr, corrected"),
    **LONG,
}


class Filter:
    """Grokfast (Lee et al., arXiv:2405.20233): a slow average of the gradients is added to them, λ times."""

    def __init__(self, parameters: Sequence[nn.Parameter], alpha: float = 0.98, lam: float = 2.0) -> None:
        self.parameters, self.alpha, self.lam = list(parameters), alpha, lam
        self.slow: list[Tensor] | None = None

    @torch.no_grad()
    def __call__(self) -> None:
        found = [p.grad for p in self.parameters if p.grad is not None]
        if self.slow is None:  # it begins at the first gradient, not at zero
            self.slow = [g.clone() for g in found]
        torch._foreach_lerp_(self.slow, found, 1 - self.alpha)
        torch._foreach_add_(found, self.slow, alpha=self.lam)


def optimizers(model: nn.Module, of: Contender, setting: Setting) -> list[torch.optim.Optimizer]:
    """A contender's, all of whose steps are a step; biases are never gated."""
    options: dict[str, Any] = {"lr": setting.rate, "weight_decay": setting.decay}
    adam = {**options, "betas": BETAS, "fused": True}
    if of.gate is not None:
        return [GatedAdamW(gating.groups(model), **adam, **of.gate)]
    if of.muon:
        matrices = [p for p in model.parameters() if p.dim() == 2]
        rest = [p for p in model.parameters() if p.dim() != 2]
        # Muon's rates in AdamW's unit, so that the grid is the same.
        found: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options)]
        return [*found, torch.optim.AdamW(rest, **adam)] if rest else found
    return [torch.optim.AdamW(model.parameters(), **adam)]
