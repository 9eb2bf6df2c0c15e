"""Samples drawn one after another: which come next is two numbers, so that a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from ...errors import EmptyBatchError, EvaluationError, InputError, JumpstartError
from ...utils.fallback import described
from ..diagnosis import lacks_memory, seen
from .batches import Pair
from .randomness import Private, derived
from .sources import Source

T = TypeVar("T")
END = object()
PATIENCE = 50  # passed over, for each sample that is to be avoided, before it is believed that there are no others
ORDER, CONTENT = 0, 1  # what private random numbers are for


@dataclass(frozen=True)
class Place:
    """Where the next samples are: after ``position`` samples of a pass. ``draws`` counts what was drawn."""

    number: int = 0
    position: int = 0
    draws: int = 0


class theirs:  # a context manager, read as whose code runs inside
    """The loader's code: what it raises comes out as a named error."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, of: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, (JumpstartError, MemoryError, Warning)):
            return
        if isinstance(error, torch.OutOfMemoryError) or lacks_memory(error):
            return
        raise EvaluationError(f"{self.what} raised {described(error).rstrip('.')}{seen(error)}.") from error


class Walk:
    """One pass over a source, some samples at a time."""

    def __init__(self, source: Source, seed: int, number: int) -> None:
        self.source, self.number, self.position = source, number, 0
        self._random = Private(derived(seed, number, ORDER))
        self._ahead: list[Any] = []
        self._items: Iterator[Any] = self._run(lambda: source.walk(seed, number))

    def _run(self, work: Callable[[], T]) -> T:
        with theirs(self.source.what):
            return self._random.run(work)

    def _next(self) -> Any:
        item = self._ahead.pop() if self._ahead else next(self._items, END)
        self.position += item is not END
        return item

    def peek(self) -> Any:
        """The next sample, which stays the next one; END where there is none."""
        if not self._ahead:
            item = self._run(lambda: next(self._items, END))
            self._ahead = [] if item is END else [item]
        return self._ahead[0] if self._ahead else END

    def skip(self, count: int) -> int:
        """Pass over samples; returns how many there were."""
        return self._run(lambda: sum(1 for _ in range(count) if self._next() is not END))

    def take(self, count: int, avoid: Collection[Any]) -> tuple[list[Any], list[Any]]:
        """Up to ``count`` samples that are none of ``avoid``, and their keys; fewer where the pass ends."""
        keys, items = [], []

        def some() -> None:
            passed = 0
            while len(items) < count and passed <= PATIENCE * (len(avoid) + 1):
                item = self._next()
                if item is END:
                    break
                key = self.source.key(item)
                if key in avoid:
                    passed += 1
                    continue
                passed = 0
                keys.append(key)
                items.append(item)

        self._run(some)
        return keys, items


@dataclass
class Drawer:
    """Draws samples from a source.

    Attributes:
        place: where the next samples are. seed: of the private random numbers.
    """

    source: Source
    seed: int
    place: Place = field(default_factory=Place)
    _walk: Walk | None = None
    _behind: int = 0  # samples that a new walk has to pass over

    def check(self, count: int, examine: Callable[[Pair], object]) -> None:
        """Look at the first sample, which stays the first, and whether there are ``count``, as far as that is cheap.

        Raises:
            EmptyBatchError: there is none. InputError and its kinds: it is something else than expected.
        """
        first = self._current().peek()
        if first is END:
            raise EmptyBatchError(f"{self.source.what} gives no samples.")
        examine(self._gathered([first], 0))
        if self.source.size is not None and self.source.size < count:
            self._chosen(count, set())
            self._break_off()

    def draw(self, count: int, avoid: Collection[Any] = ()) -> tuple[list[Any], Pair]:
        """Keys and contents of ``count`` samples that are none of ``avoid``.

        A pass that ends is followed by another, of which samples that are there already are left out. After trouble
        the next draw goes on: behind the samples that could not be loaded, or where the order itself broke off.

        Raises:
            InputError: there are no more. EvaluationError: the loader raised something.
        """
        place = replace(self.place, draws=self.place.draws + 1)
        try:
            keys, items = self._chosen(count, set(avoid))
        except BaseException:
            self._break_off()
            raise
        assert self._walk is not None
        self.place = replace(place, number=self._walk.number, position=self._walk.position)
        return keys, self._gathered(items, place.draws)

    def _chosen(self, count: int, avoid: set[Any]) -> tuple[list[Any], list[Any]]:
        walk, keys, items = self._current(), [], []
        seen_before = avoid
        while True:
            start = walk.position
            some, more = walk.take(count - len(items), seen_before)
            keys, items = [*keys, *some], [*items, *more]
            if len(items) == count:
                return keys, items
            if self.source.once or (start == 0 and not more):
                raise self._too_few(count, len(items), len(avoid), walk.position)
            seen_before = seen_before | set(some)
            walk = self._walk = Walk(self.source, self.seed, walk.number + 1)

    def _too_few(self, count: int, found: int, avoided: int, position: int) -> InputError:
        what = self.source.what
        if self.source.once:
            return InputError(
                f"{what} is used up after {position} samples, {found} of the last {count} asked for: give a "
                "DataLoader, a list, or anything else that can be iterated anew."
            )
        if not position:
            return InputError(f"{what} gives no samples any more: its __iter__ must begin anew each time.")
        if avoided:
            return InputError(
                f"{what} has {found} samples besides the {avoided} of the last jump, and samples={count}: give at most "
                f"{(found + avoided) // 2}."
            )
        return InputError(
            f"{what} has {found} samples, and samples={count}: give at most {found}, or {found // 2} where others are "
            "to accept a jump."
        )

    def _gathered(self, items: list[Any], draws: int) -> Pair:
        with theirs(self.source.what):
            return Private(derived(self.seed, draws, CONTENT)).run(lambda: self.source.gather(items))

    def go_to(self, place: Place) -> None:
        """Go on at another place.

        Raises:
            InputError: an iterator is behind it already; nothing has changed.
        """
        if self.source.once and self._walk is not None:
            if place.position < self._walk.position:
                raise InputError(
                    f"{self.source.what} has given {self._walk.position} samples and cannot go back to "
                    f"{place.position}: make a new one for a run that is resumed."
                )
            self._behind = place.position - self._walk.position
        else:
            self._walk, self._behind = None, place.position
        self.place = place

    def _break_off(self) -> None:
        """After trouble on the way through a pass, whose iterator may be dead: the next draw begins where this did."""
        if self.source.once and self._walk is not None:  # what it gave, it does not give again
            self.place = replace(self.place, position=self._walk.position)
            self._walk, self._behind = None, 0
        else:
            self._walk, self._behind = None, self.place.position

    def _current(self) -> Walk:
        """The pass that the place is in, walked up to it."""
        if self._walk is None:
            self._walk = Walk(self.source, self.seed, self.place.number)
            if not self._behind:
                self._walk.position = self.place.position  # an iterator goes on
        if self._behind:
            passed = self._walk.skip(self._behind)
            if passed < self._behind:
                self._walk = None
                raise InputError(
                    f"this state is after {self.place.position} samples of a pass, and {self.source.what} gives only "
                    f"{passed}: it is of another loader."
                )
            self._behind = 0
        return self._walk

    def __getstate__(self) -> dict[str, Any]:
        # an open iterator does not travel: a copy walks up to its place again
        return {**self.__dict__, "_walk": None, "_behind": self.place.position}
