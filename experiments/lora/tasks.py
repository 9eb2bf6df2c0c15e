"""What is learned: cached hidden states of texts, their targets, and a network to be adapted to them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .. import texts
from ..common import encoder, folder
from . import models

Batch = dict[str, Tensor]
IGNORED = -100
CACHED_AT_ONCE = 16  # texts a pass through the lower layers


class Cached(Dataset[tuple[Tensor, Tensor]]):
    """Hidden states (T_i, width) of each text, and its target: a class, or the next token of each."""

    def __init__(self, hidden: list[Tensor], targets: Tensor) -> None:
        self.hidden, self.targets = hidden, targets

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.hidden[place], self.targets[place]

    def part(self, places: Tensor) -> Cached:
        return Cached([self.hidden[i] for i in places.tolist()], self.targets[places])

    def by_length(self) -> Cached:
        """The short ones first, so that batches hold little padding."""
        return self.part(torch.tensor(sorted(range(len(self)), key=lambda i: len(self.hidden[i]))))


def collate(samples: list[tuple[Tensor, Tensor]]) -> Batch:
    """Padded to the longest."""
    hidden = nn.utils.rnn.pad_sequence([states for states, _ in samples], batch_first=True)
    mask = torch.zeros(hidden.shape[:2])
    for row, (states, _) in zip(mask, samples, strict=True):
        row[: len(states)] = 1
    return {"hidden": hidden, "mask": mask, "labels": torch.stack([target for _, target in samples])}


def batches(data: Cached, batch: int, seed: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(data, batch, shuffle=True, drop_last=True, collate_fn=collate, generator=generator)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    u = model(hidden=batch["hidden"], mask=batch["mask"])
    return F.cross_entropy(u.flatten(0, -2), batch["labels"].flatten())


@dataclass(frozen=True)
class Problem:
    """Training samples, those that rates are chosen by and those that are reported on, and the network at its start."""

    train: Cached
    tuning: Cached
    reported: Cached
    network: nn.Module
    batch: int
    steps: int  # of a run
    head: bool  # whether there is one to be fitted

    def start(self, seed: int) -> nn.Module:
        """The network with new random adapters."""
        torch.manual_seed(seed)
        network = copy.deepcopy(self.network)
        for module in network.modules():
            if isinstance(module, models.LoRA):
                nn.init.normal_(module.down, std=module.down.shape[1] ** -0.5)
        return network.eval()


def states_of(name: str, model: Any, tokens: list[Tensor]) -> list[Tensor]:
    """What a model without its upper layers says of texts (T_i,); those of a length together, so that none is padded.

    Kept on disk, under a digest of the tokens.
    """
    said = hashlib.sha256(repr((name, [row.tolist() for row in tokens])).encode()).hexdigest()[:16]
    path = models.cache_folder() / f"{name}-{said}.pt"
    if path.is_file():
        return list(torch.load(path).split([len(row) for row in tokens]))
    found: dict[int, Tensor] = {}
    lengths = [len(row) for row in tokens]
    for length in sorted(set(lengths)):
        places = torch.tensor([i for i, own in enumerate(lengths) if own == length])
        for some in places.split(CACHED_AT_ONCE):
            with torch.no_grad():
                states = model(torch.stack([tokens[i] for i in some.tolist()])).last_hidden_state
            found |= dict(zip(some.tolist(), states, strict=True))
    states = torch.cat([found[i] for i in range(len(tokens))])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(states, path)
    return list(states.split(lengths))


def parts(states: list[Tensor], targets: Tensor, sizes: tuple[int, int, int]) -> tuple[Cached, Cached, Cached]:
    data = Cached(states, targets)
    train, tuning, reported = (data.part(places) for places in torch.arange(len(data)).split(list(sizes)))
    return train, tuning.by_length(), reported.by_length()


def chosen(count: int, sizes: tuple[int, int, int]) -> Tensor:
    """As many at random, the same for everybody."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[: sum(sizes)]


def split(model: Any) -> tuple[nn.ModuleList, nn.Module, int]:
    """The upper layers of Llama and its last norm, which it then lacks; and its width."""
    layers, norm = model.layers, model.norm
    model.layers, model.norm = layers[: -models.UPPER], nn.Identity()
    return layers[-models.UPPER :], norm, model.config.hidden_size


def tokenized(tokenizer: Any, given: texts.Texts, places: Tensor, length: int) -> list[Tensor]:
    found = tokenizer([given.texts[i] for i in places.tolist()], truncation=True, max_length=length)
    return [torch.tensor(row) for row in found["input_ids"]]


def encoded(given: texts.Texts, sizes: tuple[int, int, int], classes: int, length: int, steps: int) -> Problem:
    """Texts for the sentence encoder."""
    model, tokenizer = encoder()
    layers = model.encoder.layer
    model.encoder.layer = layers[: -models.UPPER]
    places = chosen(len(given.texts), sizes)
    states = states_of("encoder", model, tokenized(tokenizer, given, places, length))
    network = models.Encoder(layers[-models.UPPER :], models.zero_head(model.config.hidden_size, classes))
    return Problem(*parts(states, given.labels[places], sizes), network, 16, steps, True)


def banking() -> Problem:
    """77 intents from 2,000 questions."""
    return encoded(texts.banking77()[0], (2000, 400, 400), 77, 24, 240)


def films() -> Problem:
    """Praise or not, from 500 sentences."""
    return encoded(texts.sst2()[0], (500, 300, 300), 2, 32, 80)


def news() -> Problem:
    """Four classes from 1,000 pieces of news, by the language model's last token."""
    given, sizes = texts.ag_news()[0], (1000, 150, 150)
    whole, tokenizer = models.language_model()
    layers, norm, width = split(whole.model)
    places = chosen(len(given.texts), sizes)
    states = states_of("smollm2", whole.model, tokenized(tokenizer, given, places, 24))
    network = models.Language(layers, norm, whole.model.rotary_emb, models.zero_head(width, 4), True)
    return Problem(*parts(states, given.labels[places], sizes), network, 16, 60, True)


def plays(length: int = 32, sizes: tuple[int, int, int] = (1000, 80, 80)) -> Problem:
    """The next token of Shakespeare, in windows; outputs are the tokens that occur in his text."""
    text = (folder() / "text" / "tinyshakespeare.txt").read_text()
    whole, tokenizer = models.language_model()
    layers, norm, width = split(whole.model)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    known, codes = ids.unique(return_inverse=True)
    count = (len(ids) - 1) // length
    places = chosen(count, sizes)
    states = states_of("smollm2", whole.model, list(ids[: count * length].view(count, length)[places]))
    following = codes[1 : count * length + 1].view(count, length)[places]
    head = nn.Linear(width, len(known), bias=False).requires_grad_(False)
    with torch.no_grad():
        head.weight.copy_(whole.lm_head.weight[known])
    network = models.Language(layers, norm, whole.model.rotary_emb, head, False)
    return Problem(*parts(states, following, sizes), network, 8, 60, False)


def toy() -> Problem:
    """Random states whose mean decides among three classes."""
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(3 + i % 3, 16, generator=generator) for i in range(200)]
    labels = torch.stack([states.mean(0)[:3].tanh() for states in hidden]).argmax(1)
    torch.manual_seed(0)
    return Problem(*parts(hidden, labels, (120, 40, 40)), models.Toy(3), 16, 20, True)


TASKS: dict[str, Callable[[], Problem]] = {"banking": banking, "films": films, "news": news, "plays": plays}
TOY: dict[str, Callable[[], Problem]] = {"toy": toy}
