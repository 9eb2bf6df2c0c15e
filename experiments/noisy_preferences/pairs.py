"""Pairs of answers: which are learned, with what is swapped, which are held out, and the policy that learns them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..lora.models import language_model
from ..lora.tasks import states_of
from ..texts import Pair, preferences
from .policy import Policy, Sizes, loaded

UPPER = 1  # layers that are adapted
PROMPT, ANSWER = 64, 112  # tokens at most
OTHERS = 100  # pairs of other problems than those that are learned
HELD_OUT = 100  # pairs of the same problems
AT_ONCE = 16  # pairs looked at together

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Pairs:
    """All pairs, as a policy takes them: states (n, 2, T, width), where there are tokens (n, 2, T), answers (n, 2, A),
    their log-probabilities at the start (n, 2); and which are held out, which of other problems, which may be learned.
    """

    hidden: Tensor
    present: Tensor
    tokens: Tensor
    reference: Tensor
    held: Tensor
    others: Tensor
    known: Tensor
    policy: Policy

    def batch(self, rows: Tensor) -> Batch:
        """Some pairs, without the columns where none of them has a token."""
        present, answers = self.present[rows], self.tokens.shape[-1]
        there = present.amax((0, 1)) > 0
        first = int(there.nonzero()[0])
        last = int(there.nonzero()[-1]) + 1 - len(there)  # not above 0
        end = last or None
        return {
            "hidden": self.hidden[rows][:, :, first:end], "present": present[:, :, first:end],
            "tokens": self.tokens[rows][:, :, : answers + last], "reference": self.reference[rows],
        }  # fmt: skip

    def parts(self, rows: Tensor) -> list[Tensor]:
        """Rows in batches of alike length."""
        return list(rows[self.present[rows].sum((1, 2)).argsort(stable=True)].split(AT_ONCE))

    def policy_of(self, seed: int) -> Policy:
        """The policy at its start, which is the reference: adapters drawn by seed."""
        found = copy.deepcopy(self.policy)
        torch.manual_seed(seed)
        for name, weight in found.named_parameters():
            if name.endswith("down.weight"):
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        return found

    @torch.no_grad()
    def margins(self, policy: Policy, rows: Tensor) -> Tensor:
        """(n,), chosen over rejected."""
        found = torch.empty(len(rows))
        places = {row: i for i, row in enumerate(rows.tolist())}
        for part in self.parts(rows):
            found[torch.tensor([places[row] for row in part.tolist()])] = policy(**self.batch(part))[:, 0]
        return found


def arranged(
    prompts: list[Tensor], answers: list[tuple[Tensor, Tensor]], states: list[Tensor], codes: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """States, where tokens are, and answers: prompts flush right, answers flush left.

    Args:
        states, codes: of chosen and rejected in turn: what the lower layers say of prompt and answer (T_i, width), and
            the answer's tokens in the head's numbering.
    """
    left, right = max(len(p) for p in prompts), max(len(a) for pair in answers for a in pair)
    hidden = torch.zeros(len(prompts), 2, left + right, states[0].shape[-1])
    present = torch.zeros(hidden.shape[:3])
    tokens = torch.zeros(len(prompts), 2, right, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        for j in range(2):
            own, code = states[2 * i + j], codes[2 * i + j]
            first = left - len(prompt)
            hidden[i, j, first : first + len(own)] = own
            present[i, j, first : first + len(own)] = 1
            tokens[i, j, : len(code)] = code
    return hidden, present, tokens


def of_others(prompts: list[str], count: int) -> Tensor:
    """Which pairs are of other problems: those of prompts drawn until there are enough."""
    distinct = sorted(set(prompts))
    held, chosen = 0, set()
    for i in torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0)).tolist():
        if held >= count:
            break
        chosen.add(distinct[i])
        held += prompts.count(distinct[i])
    return torch.tensor([prompt in chosen for prompt in prompts])


@cache
def pairs() -> Pairs:
    """School problems with right and wrong answers, under SmolLM2-135M."""
    whole, tokenizer = language_model()
    tokenized: list[tuple[Pair, Any]] = [
        (pair, [torch.tensor(tokenizer(text)["input_ids"]) for text in pair])
        for part in preferences() for pair in part
    ]  # fmt: skip
    kept = [(pair, ids) for pair, ids in tokenized
            if len(ids[0]) <= PROMPT and max(len(ids[1]), len(ids[2])) <= ANSWER]  # fmt: skip
    prompts, answers = [ids[0] for _, ids in kept], [(ids[1], ids[2]) for _, ids in kept]
    vocabulary = torch.cat([answer for two in answers for answer in two]).unique()
    codes = [torch.searchsorted(vocabulary, answer) for two in answers for answer in two]
    layers, norm = whole.model.layers, whole.model.norm
    head = whole.lm_head.weight.detach()[vocabulary]
    policy = loaded(layers[-UPPER:], norm, head, whole.config)
    whole.model.layers, whole.model.norm = layers[:-UPPER], torch.nn.Identity()
    joined = [torch.cat([prompt, answer]) for prompt, two in zip(prompts, answers, strict=True) for answer in two]
    hidden, present, tokens = arranged(prompts, answers, states_of("smollm2-lower", whole.model, joined), codes)
    return referred(policy, hidden, present, tokens, of_others([pair.prompt for pair, _ in kept], OTHERS), HELD_OUT)


@cache
def toy() -> Pairs:
    """Random states of a tiny policy; chosen answers are those that begin with a token of the lower half."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    policy = Policy(Sizes(16, 24, 4, 2), 1, 12)
    count, left, right = 24, 4, 5
    hidden = torch.randn(count, 2, left + right, 16, generator=generator)
    present = torch.ones(count, 2, left + right)
    present[::3, :, 0] = 0
    present[1::3, :, -1] = 0
    tokens = torch.randint(0, 12, (count, 2, right), generator=generator)
    tokens[:, 0, 0] = torch.randint(0, 6, (count,), generator=generator)
    tokens[:, 1, 0] = torch.randint(6, 12, (count,), generator=generator)
    return referred(policy, hidden, present, tokens, torch.arange(count) % 4 == 3, 4)


def referred(policy: Policy, hidden: Tensor, present: Tensor, tokens: Tensor, others: Tensor, held: int) -> Pairs:
    """With what the policy at its start says of the answers; as many of the problems that are learned are ``held``."""
    same = (~others).nonzero()[:, 0]
    same = same[torch.randperm(len(same), generator=torch.Generator().manual_seed(0))]
    parts = same[:held], others.nonzero()[:, 0], same[held:]
    blank = Pairs(hidden, present, tokens, torch.zeros(tokens.shape[:2]), *parts, policy)
    reference = torch.zeros(tokens.shape[:2])
    with torch.no_grad():
        for part in blank.parts(torch.arange(len(tokens))):
            batch = blank.batch(part)
            reference[part] = policy.answered(batch["hidden"], batch["present"], batch["tokens"])
    return Pairs(hidden, present, tokens, reference, *parts, policy)
