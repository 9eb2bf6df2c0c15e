"""A step beyond stopping: choose damping, gate or sample weights, and the horizon, by the estimated risk.

Every candidate is a ``Solution`` on the same kernel, and is judged by the same leave-one-out; the network is not asked.
Source: docs/theory.md, section 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from ..errors import InputError
from ..flow.horizon import Times
from ..flow.reduced_flow import ReducedFlow
from ..gating import Gate
from ..risk import criteria as risk
from ..utils.brief import brief

Answer = TypeVar("Answer")

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)  # as shares of the fastest rate
GATES = (("hard", {}), ("hard", {"alpha": 3.0}), ("soft", {}), ("snr", {}))
TRIMS = (0.05, 0.1, 0.2, 0.3)  # shares of the samples, those whose left-out loss is largest
FAMILIES = ("horizon", "damping", "gate", "weights")


@dataclass(frozen=True)
class Choice:
    """One candidate: its name, the horizon of its lowest estimated risk, and that risk."""

    name: str
    horizon: float
    risk: float


@dataclass(frozen=True)
class Tuned(Generic[Answer]):
    """The best candidate and all of them.

    Attributes:
        solution: the run that was chosen, as a Solution; ask it at ``horizon``.
        choices: every candidate, best first. The lowest of many estimates is a little too low: trust the order more
            than the number.
    """

    solution: Answer
    horizon: float
    risk: float
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        return "\n".join(f"{c.name:<22} flow time {c.horizon:<9.3g} risk {c.risk:.4g}" for c in self.choices)


def tuned(
    flow: ReducedFlow, over: Sequence[str], limit: float, answer: Callable[[ReducedFlow], Answer], **options
) -> Tuned[Answer]:
    """Weigh every family in ``over``; the plain run is always among the candidates. ``answer`` is made of the best."""
    unknown = [name for name in over if name not in FAMILIES]
    if unknown:
        raise InputError(f"tuned(over={brief(list(over))}): {unknown[0]!r} is none of {list(FAMILIES)}.")
    times = risk.grid(flow, limit)
    found: list[tuple[Choice, ReducedFlow]] = []
    for name, candidate in _candidates(flow, over, times, options):
        risks = risk.estimate(candidate, Times(tuple(times.tolist()), False), "loo", **options)
        at = risk.lowest(risks)
        found.append((Choice(name, float(times[at]), float(risks[at])), candidate))
    found.sort(key=lambda pair: pair[0].risk)
    best, chosen = found[0]
    return Tuned(answer(chosen), best.horizon, best.risk, tuple(choice for choice, _ in found))


def _candidates(
    flow: ReducedFlow, over: Sequence[str], times: Tensor, options: dict
) -> Iterator[tuple[str, ReducedFlow]]:
    yield "plain", flow
    if "damping" in over:
        for share in DAMPINGS:
            yield f"damping {share:g}", flow.damped(share * flow.max_rate)
    if "gate" in over:
        for rule, settings in GATES:
            told = ", ".join(f"{key} {value:g}" for key, value in settings.items())
            yield f"gate {rule} {told}".rstrip(), flow.gated(Gate(rule, settings))
    if "weights" in over:
        yield from _trimmed(flow, times, options)


def _trimmed(flow: ReducedFlow, times: Tensor, options: dict) -> Iterator[tuple[str, ReducedFlow]]:
    """The run without the samples that the others contradict most, as they are mislabelled more often than not."""
    left = risk.leave_out(flow, Times(tuple(times.tolist()), False), **options)
    worst = left.losses[int(left.risk.argmin())].argsort(descending=True)
    n = flow.u.shape[0]
    for share in TRIMS:
        count = int(share * len(worst))
        if 0 < count < n - 1:
            yield f"weights: without {share:.0%}", flow.without(left.samples[worst[:count]])
