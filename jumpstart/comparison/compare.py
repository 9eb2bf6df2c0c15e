"""``compare``: the same start, jumped and stepped, recorded against steps, gradient evaluations and wall time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from torch import nn

from ..errors import InputError
from ..objectives.objective import Objective
from ..report import records
from ..report.names import require_file_name
from ..utils.brief import brief
from ..utils.progress import share
from .ablation import Ablation
from .contenders import Contender
from .race import Evaluate, Limits, race
from .report import Report
from .seeds import Start, over_seeds, started


@overload
def compare(
    model: nn.Module,
    objective: Callable[[nn.Module], Objective],
    contenders: Mapping[str, Contender],
    *,
    seconds: float | Mapping[str, float] = ...,
    steps: int | None = ...,
    evaluations: float | None = ...,
    evaluate: Evaluate | None = ...,
    name: str = ...,
    seed: int = ...,
    seeds: None = ...,
    folder: str | Path | None = ...,
    progress: bool | None = ...,
) -> Report: ...


@overload
def compare(
    model: Start,
    objective: Callable[[nn.Module], Objective],
    contenders: Mapping[str, Contender],
    *,
    seeds: int | Sequence[int],
    seconds: float | Mapping[str, float] = ...,
    steps: int | None = ...,
    evaluations: float | None = ...,
    evaluate: Evaluate | None = ...,
    name: str = ...,
    folder: str | Path | None = ...,
    progress: bool | None = ...,
) -> Ablation: ...


def compare(
    model: Any,
    objective: Callable[[nn.Module], Objective],
    contenders: Mapping[str, Contender],
    *,
    seconds: float | Mapping[str, float] = 10.0,
    steps: int | None = None,
    evaluations: float | None = None,
    evaluate: Evaluate | None = None,
    name: str = "comparison",
    seed: int = 0,
    seeds: int | Sequence[int] | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Report | Ablation:
    """Run every contender from a copy of the same model, interleaved, and record them all.

    Whoever has used the least time goes next, so that a slow spell of the machine hits all alike. Recording and
    evaluation are not timed, nor is a first step that each takes on a copy. A contender that raises an exception is
    out of the race: its last row says why under "failed", a warning too, and the others go on.

    Args:
        model: the start; it is not changed. With ``seeds`` a function of the seed, or a module that is copied and
            whose layers are initialized anew by each.
        objective: builds the objective for a copy of the model.
        contenders: by name; from :func:`stepped`, :func:`jumped`, :func:`jumps_only`, or any generator function of
            (model, objective) that yields {"gradient_evaluations": so far} after each step.
            The first is the baseline of the table.
        seconds: each contender's time, ``math.inf`` for no limit; or a time for each by name.
        steps, evaluations: each contender's number of steps, and of gradient evaluations, where these end a run
            earlier.
        evaluate: further numbers to record (held-out accuracy, say), by name; called in eval mode, without gradients.
        name: of the files: letters, digits, '-' and '_'.
        seed: of the contenders' random streams.
        seeds: how many starts, from seed 0 on, or which: the same comparison from each, as :func:`jumpstart.ablate`.
        folder: where results.json is written at the end; after an interrupt, with the rows so far. With ``seeds`` one
            for each in ``seed-N``, and those that are there are not run again.
        progress: a bar with the time left: None on terminals alone.

    Returns:
        A :class:`Report`; with ``seeds`` an :class:`Ablation`, the reports of them all.

    Raises:
        InputError: quoting what cannot be compared. ArchiveError: with ``seeds`` the folder holds other runs.

    Example:
        >>> import torch
        >>> from jumpstart import jumps_only, stepped, supervised
        >>> x, y = torch.randn(16, 2), torch.randn(16, 1)
        >>> report = compare(torch.nn.Linear(2, 1), lambda m: supervised(m, x, y),
        ...                  {"Adam": stepped(torch.optim.Adam), "jumps": jumps_only(lambda k: {})}, steps=3)
        >>> report.contenders
        ['Adam', 'jumps']
    """
    times = seconds if isinstance(seconds, Mapping) else dict.fromkeys(contenders, seconds)
    _require(contenders, objective, times)
    limits = Limits(times, steps, evaluations)
    require_file_name(name, "compare")
    told = {"seconds": seconds, "steps": steps, "evaluations": evaluations}
    if seeds is not None:
        if seed != 0:
            raise InputError(f"compare: seed={seed} and seeds={brief(seeds)} both say where it starts: give one.")
        return over_seeds(
            lambda number: (started(model, number, "compare"), objective), contenders, limits, told, seeds,
            evaluate=evaluate, name=name, who="compare", folder=folder, progress=progress,
        )  # fmt: skip
    if not isinstance(model, nn.Module):
        raise InputError(
            f"compare: model={brief(model)} is no torch.nn.Module; a function of the seed goes with seeds=."
        )
    if folder is not None:
        records.require_writable(folder)
    report = Report(name, settings=told, seeds=[seed])
    with share(name, progress) as bar:
        race(model, objective, contenders, limits, evaluate, report, bar, seed, folder)
    if folder is not None:
        report.save(folder, figure=False)
    return report


def _require(contenders: Any, objective: Any, times: Mapping[str, float]) -> None:
    if not contenders:
        raise InputError("compare needs at least one contender.")
    if not callable(objective):
        raise InputError(f"compare: objective must be a function of the model, got {type(objective).__name__}.")
    if missing := set(contenders) - set(times):
        raise InputError(f"compare: seconds names no time for {sorted(missing)}.")
