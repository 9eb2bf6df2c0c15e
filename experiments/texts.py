"""Texts with classes, and pairs of answers of which one is right, from ``JUMPSTART_DATA`` or their public addresses.

Sentences are given as they stand in the files, in the files' order, so that a seed picks the same ones everywhere.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from jumpstart.errors import JumpstartError

HOST = "https://raw.githubusercontent.com"
BANKING = f"{HOST}/PolyAI-LDN/task-specific-datasets/master/banking_data"
CLINC = f"{HOST}/clinc/oos-eval/master"
SST = f"{HOST}/clairett/pytorch-sentiment-classification/master/data/SST2"
SOURCES = {
    "banking77_train.csv": f"{BANKING}/train.csv",  # CC-BY-4.0
    "banking77_test.csv": f"{BANKING}/test.csv",
    "clinc150.json": f"{CLINC}/data/data_full.json",  # CC-BY-3.0
    "clinc150_domains.json": f"{CLINC}/data/domains.json",
    "sst2_train.tsv": f"{SST}/train.tsv",
    "sst2_dev.tsv": f"{SST}/dev.tsv",
    "sst2_test.tsv": f"{SST}/test.tsv",
    "ag_news_test.csv": f"{HOST}/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/test.csv",
}
PREFERENCES = "gsm8k_preferences.jsonl.gz"  # an answer to a school problem that is right, and one that is not
TENTH = 10  # one problem in so many is kept for the test


class Texts(NamedTuple):
    """Sentences, and the class of each, 0 to C − 1."""

    texts: list[str]
    labels: Tensor


class Pair(NamedTuple):
    """Two answers to a prompt."""

    prompt: str
    chosen: str
    rejected: str


def file(name: str) -> bytes:
    """What ``$JUMPSTART_DATA/text/NAME`` holds, else what is downloaded from :data:`SOURCES`.

    Raises:
        JumpstartError: neither is to be had, with what to set up.
    """
    given = os.environ.get("JUMPSTART_DATA")
    path = Path(given) / "text" / name if given else None
    if path is not None and path.is_file():
        return path.read_bytes()
    set_up = f"{name} is not here: set JUMPSTART_DATA to a folder with text/{name}"
    if name not in SOURCES:
        raise JumpstartError(f"{set_up} (lines with prompt, chosen, rejected); it has no public address.")
    try:
        with urllib.request.urlopen(SOURCES[name], timeout=30) as answer:
            found: bytes = answer.read()
    except OSError as error:
        raise JumpstartError(f"{set_up}, or let it be downloaded from {SOURCES[name]} (it said: {error}).") from error
    return found


def banking77() -> tuple[Texts, Texts, list[str]]:
    """Questions to a bank, 77 intents: 10,003 for training, 3,080 for the test, and the names in their order."""
    parts = [list(csv.DictReader(io.StringIO(file(f"banking77_{part}.csv").decode()))) for part in ("train", "test")]
    names = sorted({row["category"] for row in parts[0]})
    train, test = (_named([row["text"] for row in rows], [row["category"] for row in rows], names) for rows in parts)
    return train, test, names


def clinc150(domain: str | None = None) -> tuple[Texts, Texts, list[str]]:
    """Requests to an assistant, 150 intents, of a domain fifteen: 100 of each for training, 30 for the test; names."""
    content = json.loads(file("clinc150.json"))
    wanted = None if domain is None else json.loads(file("clinc150_domains.json"))
    if wanted is not None and domain not in wanted:
        raise JumpstartError(f"clinc150 has no domain {domain!r}; there are {', '.join(wanted)}.")
    chosen = None if wanted is None else set(wanted[domain])
    rows = {part: [row for row in content[part] if chosen is None or row[1] in chosen] for part in ("train", "test")}
    names = sorted({name for _, name in rows["train"]})
    train, test = (_named([row[0] for row in rows[p]], [row[1] for row in rows[p]], names) for p in ("train", "test"))
    return train, test, names


def sst2() -> tuple[Texts, Texts]:
    """Sentences on films, praise (1) or not (0): 6,920 for training, 1,821 for the test."""
    train, test = (_tabbed(file(f"sst2_{part}.tsv").decode()) for part in ("train", "test"))
    return train, test


def ag_news() -> tuple[Texts, Texts]:
    """News in four classes, title and text: of the published test's 7,600 3,600 for training, the rest the test."""
    rows = list(csv.reader(io.StringIO(file("ag_news_test.csv").decode())))
    texts, labels = [f"{row[1]}. {row[2]}" for row in rows], torch.tensor([int(row[0]) - 1 for row in rows])
    return Texts(texts[:3600], labels[:3600]), Texts(texts[3600:], labels[3600:])


def preferences() -> tuple[list[Pair], list[Pair]]:
    """Pairs of answers to school problems, the right one chosen; for training, and of other problems for the test."""
    pairs = []
    for line in gzip.decompress(file(PREFERENCES)).decode().splitlines():
        row = json.loads(line)
        pairs.append(Pair(row["prompt"], row["chosen"], row["rejected"]))
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(pair.prompt for pair in pairs))}
    held = [places[pair.prompt] % TENTH == 0 for pair in pairs]  # whole problems: no prompt is on both sides
    return (
        [pair for pair, out in zip(pairs, held, strict=True) if not out],
        [pair for pair, out in zip(pairs, held, strict=True) if out],
    )


def few(texts: Texts, count: int, classes: list[int], seed: int) -> Texts:
    """``count`` of each of some classes at random, which are numbered anew in the order given."""
    order = torch.randperm(len(texts.texts), generator=torch.Generator().manual_seed(seed))
    found: list[int] = []
    for label in classes:
        rows = order[texts.labels[order] == label][:count].tolist()
        if len(rows) < count:
            raise JumpstartError(f"class {label} has {len(rows)} texts, {count} are asked for.")
        found += rows
    return Texts([texts.texts[i] for i in found], torch.arange(len(classes)).repeat_interleave(count))


def only(texts: Texts, classes: list[int]) -> Texts:
    """The texts of some classes, which are numbered anew in the order given."""
    places = {label: place for place, label in enumerate(classes)}
    kept = [i for i, label in enumerate(texts.labels.tolist()) if label in places]
    return Texts([texts.texts[i] for i in kept], torch.tensor([places[int(texts.labels[i])] for i in kept]))


def _named(texts: list[str], labels: list[str], names: list[str]) -> Texts:
    places = {name: place for place, name in enumerate(names)}
    return Texts(texts, torch.tensor([places[label] for label in labels]))


def _tabbed(content: str) -> Texts:
    rows = [line.rsplit("\t", 1) for line in content.splitlines() if line]
    return Texts([text for text, _ in rows], torch.tensor([int(label) for _, label in rows]))
