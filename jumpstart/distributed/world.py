"""A process group whose processes agree before each collective: on what comes next, and on whether all are well.

Before each payload goes an *agreement*, one all-reduce (maximum) of four numbers: whether a process has failed, which
operation it is at (its checksum, from above and from below), and a number. So a failure on one process is an exception
on all, and processes that have parted are told so instead of exchanging unlike things.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import DivergedError, GroupError, InputError, RankError
from ..utils.brief import brief
from ..utils.fallback import described

T = TypeVar("T")

# its name from torch 2.13 on, and before
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)

AGREED = "_jumpstart_agreed"  # on an exception that every process raises
NAMED = 4  # processes that a message names


@dataclass
class Traffic:
    """What one process has put into collectives.

    Attributes:
        agreements: small all-reduces before a payload, or in its place. counts: payloads by name of the collective.
        bytes: of the payloads, what this process gives (all-reduce) or receives (all-gather, broadcast).
    """

    agreements: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def payloads(self) -> int:
        """Collectives other than agreements."""
        return sum(self.counts.values())


class World:
    """The processes of a ``torch.distributed`` process group, as what is computed by all of them sees them.

    Args:
        group: the process group. What is exchanged here goes over one of its own, of the same processes, so that it
            never meets a loop's collectives.
        timeout: seconds that a process waits for the others; None for as long as the group does.

    Attributes:
        rank, size: of this process, and of the group. traffic: what has been exchanged so far.

    Raises:
        GroupError: the group is gone, or this process is not in it.
    """

    def __init__(self, group: dist.ProcessGroup, timeout: float | None = None) -> None:
        try:
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
            self.backend = dist.get_backend(group)
            self.seconds = _timeout(group) if timeout is None else timeout
            own = dist.new_group(
                dist.get_process_group_ranks(group),
                None if self.seconds is None else datetime.timedelta(seconds=self.seconds),
                self.backend,
                use_local_synchronization=True,
            )
        except (RuntimeError, ValueError, AssertionError) as error:
            raise GroupError(f"the process group {brief(group)} is gone ({described(error)}): make it anew.") from error
        if self.rank < 0:
            raise GroupError("this process is not in the process group that it was given.")
        self.group: Any = own
        self.traffic = Traffic()
        self.gone = ""  # why, once the group has failed

    def __deepcopy__(self, memo: Any) -> World:
        return self

    def __reduce__(self) -> Any:
        raise InputError("an objective over several processes cannot be pickled: make it anew in each process.")

    @property
    def device(self) -> torch.device:
        """Where what is exchanged must lie."""
        return torch.device("cuda", torch.cuda.current_device()) if "nccl" in self.backend else torch.device("cpu")

    # -- agreements --------------------------------------------------------------------------------------------

    def agree(self, what: str, failure: BaseException | None = None, value: float = -math.inf) -> float:
        """All processes are here and well; the largest of their numbers.

        Raises:
            RankError: a process has failed; where all have in the same way, that exception. DivergedError: they are
                at different places. GroupError: one does not answer.
        """
        code = float(zlib.crc32(what.encode()))
        told = torch.tensor([failure is not None, code, -code, value], dtype=torch.float64, device=self.device)
        self._call(what, lambda: dist.all_reduce(told, dist.ReduceOp.MAX, self.group))
        self.traffic.agreements += 1
        failed, high, low, value = told.tolist()
        if failed:
            self._fail(failure)
        if high != -low:
            places = self._exchanged(what)
            raise marked(DivergedError(
                f"the processes have parted: {self._listed(places)}. Each must make the same calls in the same order, "
                "with the same options."
            ))  # fmt: skip
        return value

    def _fail(self, failure: BaseException | None) -> None:
        own = (
            None
            if failure is None
            else (f"{type(failure).__module__}.{type(failure).__qualname__}", described(failure))
        )
        told: list[tuple[str, str] | None] = self._exchanged(own)
        if failure is not None and (len({entry and entry[0] for entry in told}) == 1 or not _plain(failure)):
            raise marked(failure)
        failed = {rank: entry[1] for rank, entry in enumerate(told) if entry is not None}
        raise marked(RankError(
            f"{self._ranks(failed)} of {self.size} failed, and all have stopped, with nothing moved: "
            f"{self._listed(failed)}"
        )) from failure  # fmt: skip

    def _ranks(self, some: Mapping[int, Any]) -> str:
        return f"rank{'s' if len(some) > 1 else ''} {', '.join(map(str, list(some)[:NAMED]))}"

    def _listed(self, told: Mapping[int, Any] | list[Any]) -> str:
        pairs = list(told.items()) if isinstance(told, Mapping) else list(enumerate(told))
        more = f", and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
        return "; ".join(f"rank {rank}: {entry}" for rank, entry in pairs[:NAMED]) + more

    def attempt(self, what: str, compute: Callable[[], T]) -> T:
        """What ``compute`` returns, which calls no collective, if it succeeds on every process.

        Raises:
            RankError: see ``agree``.
        """
        found, failure = None, None
        try:
            found = compute()
        except BaseException as error:  # told to all, and raised there
            failure = error
        try:
            self.agree(what, failure)
        finally:
            del failure  # it holds this frame
        return found  # type: ignore[return-value]

    @contextlib.contextmanager
    def entry(self, what: str) -> Iterator[None]:
        """A stretch that all processes leave together: what fails on one inside of it is an exception on all."""
        try:
            yield
        except BaseException as error:
            if not getattr(error, AGREED, False):
                self.agree(f"end of {what}", error)
            raise
        self.agree(f"end of {what}")

    def most(self, what: str, value: float) -> float:
        """The largest of the processes' numbers; one agreement."""
        return self.agree(what, None, value)

    def least(self, what: str, value: float) -> float:
        return -self.agree(what, None, -value)

    def any(self, what: str, flag: bool) -> bool:
        return self.agree(what, None, float(flag)) > 0

    def require_same(self, what: str, told: Mapping[str, Any], remedy: str) -> None:
        """Refuse what is not the same on all processes.

        Args:
            told: by name for people, anything that can be pickled and compared.

        Raises:
            InputError: on all of them; names the first entry that differs, with its values.
        """
        everyone = self.exchanged(what, dict(told))
        for name in dict.fromkeys(name for one in everyone for name in one):
            values = [one.get(name) for one in everyone]
            if any(value != values[0] for value in values):
                raise marked(InputError(f"{what}: {name} differs between processes ({self._listed(values)}). {remedy}"))

    def require_equal(self, what: str, vector: Tensor) -> None:
        """Refuse a vector that is not the same to the bit on all processes; one agreement.

        Raises:
            DivergedError: on all of them.
        """
        code = float(zlib.crc32(vector.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()))
        high = self.agree(what, None, code)
        low = -self.agree(what, None, -code)
        if high != low:
            raise marked(DivergedError(
                f"{what}: the processes hold other numbers, so that nothing has moved. They must run on the same kind "
                "of processor with the same number of threads, from the same weights and buffers (SyncBatchNorm's)."
            ))  # fmt: skip

    # -- payloads ----------------------------------------------------------------------------------------------

    def sum(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """The sum over processes of what each computes, of one shape: one agreement, one all-reduce.

        The result has the same bits everywhere.
        """
        local = self.attempt(what, lambda: compute().detach().clone())
        moved = local.to(self.device)
        self._call(what, lambda: dist.all_reduce(moved, dist.ReduceOp.SUM, self.group))
        self._booked("all-reduce", moved)
        return moved.to(local.device)

    def stacked(self, what: str, compute: Callable[[], Tensor], counts: Sequence[int]) -> Tensor:
        """The rows (counts[rank], …) that each computes, rank by rank: one agreement, one padded all-gather."""
        local = self.attempt(what, compute)
        most = max(counts)
        padded = torch.zeros(most, *local.shape[1:], dtype=local.dtype, device=self.device)
        padded[: len(local)] = local
        flat = padded.new_empty(self.size * padded.numel())
        own = padded.reshape(-1)
        self._call(what, lambda: _all_gather(flat, own, group=self.group))
        self._booked("all-gather", flat)
        blocks = flat.view(self.size, most, *local.shape[1:])
        return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)]).to(local.device)

    def exchanged(self, what: str, told: Any) -> list[Any]:
        """What each process tells, by rank: any object that can be pickled; one agreement."""
        self.agree(what)
        return self._exchanged(told)

    def _exchanged(self, told: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        self._call("an exchange", lambda: dist.all_gather_object(found, told, self.group))
        self.traffic.counts["exchange"] += 1
        return found

    def told_by(self, what: str, rank: int, told: Any) -> Any:
        """What one process tells all others; one agreement."""
        self.agree(what)
        box = [told if rank == self.rank else None]
        self._call(what, lambda: dist.broadcast_object_list(box, dist.get_global_rank(self.group, rank), self.group))
        self.traffic.counts["broadcast"] += 1
        return box[0]

    def _booked(self, kind: str, tensor: Tensor) -> None:
        self.traffic.counts[kind] += 1
        self.traffic.bytes += tensor.numel() * tensor.element_size()

    def _call(self, what: str, collective: Callable[[], Any]) -> None:
        if self.gone:
            raise marked(GroupError(f"{what}: the process group is gone since {self.gone} Make it anew."))
        try:
            if not dist.is_initialized():
                raise RuntimeError("torch.distributed has been shut down")
            collective()
        except (RuntimeError, ValueError) as error:  # a lost peer, a timeout, a group that was destroyed
            waits = "time" if self.seconds is None else f"{self.seconds:g} s"
            self.gone = f"{what} on rank {self.rank} of {self.size}, where it failed ({described(error)})."
            raise marked(GroupError(
                f"{what}: rank {self.rank} of {self.size} does not reach the others ({described(error)}): a process "
                f"has died, left the program, or taken longer than the {waits} that the group waits. Nothing has moved "
                "here."
            )) from error  # fmt: skip


def _timeout(group: dist.ProcessGroup) -> float | None:
    """Seconds that a group's backend waits; None where it does not tell."""
    for device in ("cpu", "cuda"):
        try:
            return group._get_backend(torch.device(device)).options._timeout / datetime.timedelta(seconds=1)
        except (RuntimeError, AttributeError, TypeError):  # no backend for that device, or one without options
            continue
    return None


def marked(error: BaseException) -> BaseException:
    """An exception that every process raises, so that none needs to be told."""
    setattr(error, AGREED, True)
    return error


def _plain(failure: BaseException) -> bool:
    """Whether a failure may be told by another exception; interrupts stay what they are."""
    return isinstance(failure, Exception)
