"""Preferences as a noisy task: a level is the share of pairs that are swapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..noisy.contenders import ADAMW, EARLY
from ..noisy.tasks import NOISE, Samples, Task
from . import pairs
from .pairs import Pairs
from .policy import Policy, divergence

TRAIN = 256  # pairs that a seed draws
LOOKED = 64  # of them that the misfit is measured on


def samples(of: Callable[[], Pairs], level: float, seed: int) -> Samples:
    """Pairs drawn by seed, and +1, or −1 where chosen and rejected are swapped."""
    known, generator = of().known, torch.Generator().manual_seed(seed)
    rows = known[torch.randperm(len(known), generator=generator)[:TRAIN]]
    swapped = torch.rand(len(rows), generator=torch.Generator().manual_seed(NOISE + seed)) < level
    return Samples(rows, 1.0 - 2.0 * swapped.float())


def loss(of: Callable[[], Pairs], model: nn.Module, part: Samples, generator: torch.Generator) -> Tensor:
    """DPO's (Rafailov et al., arXiv:2305.18290): −log σ of the margin, which is 0 at the start."""
    return F.softplus(-part.y * model(**of().batch(part.x))[:, 0]).mean()


def look(of: Callable[[], Pairs], model: nn.Module, parts: Sequence[Samples]) -> list[float]:
    """Share of the clean held-out pairs whose margin is not positive, and the mean loss on each set of samples."""
    assert isinstance(model, Policy)
    found = [1 - float((of().margins(model, of().held) > 0).double().mean())]
    for part in parts:
        some = part[torch.arange(min(LOOKED, len(part)))]
        found.append(float(F.softplus(-some.y * of().margins(model, some.x)).mean()))
    return found


@torch.no_grad()
def more(of: Callable[[], Pairs], model: nn.Module) -> dict[str, float]:
    """The loss on clean held-out pairs, the accuracy on pairs of other problems, and how far the policy has come from
    the reference on chosen answers.
    """
    assert isinstance(model, Policy)
    data = of()
    drift = torch.cat([divergence(model, data.policy, data.batch(part)) for part in data.parts(data.held)])
    return {
        "held-out loss": float(F.softplus(-data.margins(model, data.held)).mean()),
        "others": float((data.margins(model, data.others) > 0).double().mean()), "drift": float(drift.mean()),
    }  # fmt: skip


def accuracy(error: float) -> float:
    return 1 - error


TASK = Task(
    "noisy_preferences", (0.0, 0.3), 3e-3, 32, 16, partial(samples, pairs.pairs),
    lambda seed: pairs.pairs().policy_of(seed), partial(loss, pairs.pairs), partial(look, pairs.pairs),
    1.01, "1%", "accuracy", accuracy,
    contenders=(ADAMW, EARLY, "hard, exact, batch", "hard, streaming, corrected", "snr, streaming, as published",
                "Cautious AdamW"),
    factors=(1.0, 0.3, 0.1), control=(1.0, 0.3, 0.1, 0.03), looks=3, more=partial(more, pairs.pairs),
    titles={"held-out loss": "loss on them", "others": "accuracy, other problems", "drift": "drift, nats a token"},
)  # fmt: skip
TOY = replace(
    TASK, samples=partial(samples, pairs.toy), network=lambda seed: pairs.toy().policy_of(seed),
    loss=partial(loss, pairs.toy), look=partial(look, pairs.toy), more=partial(more, pairs.toy), batch=8,
)  # fmt: skip
