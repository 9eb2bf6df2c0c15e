"""Where samples come from: one pass after another over a dataset, a DataLoader, or anything that gives batches.

A pass is walked in this process, on random numbers of its own, and with a copy of the loader's sampler: workers are not
started, and the iteration of the user's own loop never notices (a DataLoader with persistent workers has one iterator).
Samples are in the order of the sampler, the dataset or the batches, which no clock decides.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ...errors import InputError
from ...utils.brief import brief
from .batches import Pair, Row, Split, copied, digest, rows_of, together
from .randomness import derived, twin_of

Collate = Callable[[list[Any]], Any]


class Source(abc.ABC):
    """Passes over samples.

    Attributes:
        what: for people. once: a single pass is all there is. batch_size: of the user's loop; None if unknown.
        size: samples in a pass; None if unknown.
    """

    once = False

    def __init__(self, what: str, split: Split, batch_size: int | None, size: int | None) -> None:
        self.what, self.split, self.batch_size, self.size = what, split, batch_size, size

    @abc.abstractmethod
    def walk(self, seed: int, number: int) -> Iterator[Any]:
        """Pass ``number`` from its start: items, one a sample, cheap to pass over."""

    @abc.abstractmethod
    def key(self, item: Any) -> Any:
        """What tells a sample from others: equal for the same sample, a number or a text (or a tuple of such)."""

    @abc.abstractmethod
    def gather(self, items: list[Any]) -> Pair:
        """Inputs and targets of samples, one row each."""


class Indexed(Source):
    """A dataset with places, in the order of a sampler; samples are collated together, and so padded to one length.

    Args:
        order: (seed, number of the pass) -> places.
    """

    def __init__(
        self, what: str, split: Split, batch_size: int | None, size: int | None, dataset: Any, collate: Collate,
        order: Callable[[int, int], Iterator[Any]],
    ) -> None:  # fmt: skip
        super().__init__(what, split, batch_size, size)
        self.dataset, self.collate, self.order = dataset, collate, order

    def walk(self, seed: int, number: int) -> Iterator[Any]:
        return self.order(seed, number)

    def key(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            item = item.tolist()
        return tuple(item) if isinstance(item, list) else item

    def gather(self, items: list[Any]) -> Pair:
        many = getattr(self.dataset, "__getitems__", None)  # as torch's own loader asks
        samples = many(items) if many else [self.dataset[item] for item in items]
        return _collated(self, samples, self.collate, len(items))


class Streamed(Source):
    """A dataset without places; samples are told apart by their contents."""

    def __init__(
        self, what: str, split: Split, batch_size: int | None, size: int | None, dataset: Any, collate: Collate
    ) -> None:
        super().__init__(what, split, batch_size, size)
        self.dataset, self.collate = dataset, collate

    def walk(self, seed: int, number: int) -> Iterator[Any]:
        return _anew(self.dataset, self.what)

    def key(self, item: Any) -> Any:
        return digest(item)

    def gather(self, items: list[Any]) -> Pair:
        return _collated(self, items, self.collate, len(items))


class Batched(Source):
    """Anything that gives batches, which are cut into samples.

    Args:
        batches: (seed, number of the pass) -> batches.
    """

    def __init__(
        self, what: str, split: Split, batch_size: int | None, batches: Callable[[int, int], Iterator[Any]],
        once: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(what, split, batch_size, None)
        self.batches, self.once = batches, once

    def walk(self, seed: int, number: int) -> Iterator[Row]:
        for batch in self.batches(seed, number):
            pair = copied(self.split(batch))  # loaders may write over a batch for the next one
            if self.batch_size is None:
                self.batch_size = len(pair[1])
            yield from rows_of(pair)

    def key(self, item: Row) -> str:
        return item.digest()

    def gather(self, items: list[Row]) -> Pair:
        return together(items)


def source_of(loader: Any, split: Split, collate: Collate | None) -> Source:
    """The source for what a user has.

    Raises:
        InputError: it is nothing that gives samples; an option that would do nothing for it.
    """
    what = f"the {type(loader).__name__}"
    if isinstance(loader, DataLoader):
        loader = _inside(loader)
        if collate is not None:
            raise InputError(
                "collate_fn= beside a DataLoader, which has its own: give it the DataLoader, or its dataset."
            )
        return _of_loader(loader, what, split)
    streams = isinstance(loader, IterableDataset)
    if streams or isinstance(loader, Dataset) or _has_places(loader):
        size = _length(loader)
        if streams:
            return Streamed(what, split, None, size, loader, collate or default_collate)
        if size is None:
            raise InputError(f"{what} has no length (__len__), from which samples are drawn: give it one.")
        return Indexed(what, split, None, size, loader, collate or default_collate, lambda *_: _shuffled(loader))
    if collate is not None:
        raise InputError(f"collate_fn= is for a dataset, whose samples it puts together; {what} gives batches.")
    if isinstance(loader, (str, bytes, Mapping, Tensor)) or not isinstance(loader, Iterable):
        raise InputError(
            f"from_loader needs a DataLoader, a Dataset or an iterable of batches, got {brief(loader)}: for tensors at "
            "hand, torch.utils.data.TensorDataset(inputs, targets)."
        )
    if isinstance(loader, Iterator):
        return Batched(what, split, None, lambda *_: loader, once=True)
    return Batched(what, split, None, lambda *_: _anew(loader, what))


def _has_places(loader: Any) -> bool:
    """Whether it is a dataset by its methods, as those of Hugging Face are; lists hold batches."""
    if isinstance(loader, (str, bytes, list, tuple, Mapping, Tensor)):
        return False
    return hasattr(loader, "__getitem__") and hasattr(loader, "__len__")


def _inside(loader: DataLoader) -> DataLoader:
    """The DataLoader that one of accelerate's was made of: theirs counts who iterates it."""
    inner = getattr(loader, "base_dataloader", None)
    return inner if isinstance(inner, DataLoader) else loader


def _of_loader(loader: DataLoader, what: str, split: Split) -> Source:
    collate: Any = loader.collate_fn
    if type(loader).__iter__ is not DataLoader.__iter__:
        if loader.num_workers and loader.persistent_workers:
            raise InputError(
                f"{what} iterates in a way of its own, with persistent workers, whose one iterator belongs to your "
                "loop: give its dataset (collate_fn=, too), or another loader."
            )
        return Batched(what, split, loader.batch_size, lambda *_: _undisturbed(loader, what))
    streams = isinstance(loader.dataset, IterableDataset)
    if loader.batch_sampler is None and streams:
        return Batched(what, split, None, lambda *_: (collate(x) for x in _anew(loader.dataset, what)))
    if loader.batch_sampler is None:
        places = lambda seed, number: _copied(loader.sampler, loader, seed, number)  # noqa: E731
        return Batched(what, split, None, lambda *at: (collate(loader.dataset[place]) for place in places(*at)))
    if streams:
        return Streamed(what, split, loader.batch_size, _length(loader.dataset), loader.dataset, collate)
    batch_size = getattr(loader.batch_sampler, "batch_size", None)
    inner = getattr(loader.batch_sampler, "sampler", None)
    size = _length(loader.dataset) if inner is None or _length(inner) is None else _length(inner)
    return Indexed(
        what, split, batch_size if isinstance(batch_size, int) else None, size, loader.dataset, collate,
        lambda seed, number: _places(_copied(loader.batch_sampler, loader, seed, number)),
    )  # fmt: skip


def _copied(sampler: Any, loader: DataLoader, seed: int, number: int) -> Iterator[Any]:
    return iter(twin_of(sampler, loader.dataset, derived(seed, number), number))


def _places(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if not isinstance(batch, Iterable):
            raise InputError(f"the loader's batch_sampler gives {brief(batch)}, and not a list of places.")
        yield from batch


def _shuffled(dataset: Any) -> Iterator[int]:
    """All places in a random order, by torch's global generator."""
    for some in torch.randperm(len(dataset), generator=torch.default_generator, device="cpu").split(4096):
        yield from some.tolist()


def _anew(loader: Any, what: str) -> Iterator[Any]:
    """An iterator that is nobody else's."""
    found = iter(loader)
    if found is loader:
        raise InputError(
            f"{what} is its own iterator, so that drawing from it would take samples from your loop: let its __iter__ "
            "return a new iterator, or give another instance of it, as iter(…)."
        )
    return found


def _undisturbed(loader: DataLoader, what: str) -> Iterator[Any]:
    """Batches of a loader that iterates in its own way; what it keeps on itself meanwhile is not seen outside."""
    ours: dict[str, Any] = {}
    found: Iterator[Any] | None = None
    while True:
        theirs = dict(vars(loader))
        vars(loader).update(ours)
        try:
            found = _anew(loader, what) if found is None else found
            batch = next(found)
        except StopIteration:
            return
        finally:
            ours = dict(vars(loader))
            vars(loader).clear()
            vars(loader).update(theirs)
        yield batch


def _collated(source: Source, samples: list[Any], collate: Collate, count: int) -> Pair:
    pair = source.split(collate(samples))
    if len(pair[1]) != count:
        raise InputError(
            f"collate_fn makes {len(pair[1])} rows of {count} samples of {source.what}: js.from_loader needs one row a "
            "sample; leave samples out in the dataset."
        )
    return pair


def _length(thing: Any) -> int | None:
    """Its length, where it knows one."""
    try:
        return len(thing)
    except (TypeError, NotImplementedError):
        return None
