"""The same comparison from several starts: one core for ``ablate``, ``compare(seeds=)`` and the command line."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ArchiveError, InputError
from ..objectives.objective import Objective
from ..report import records
from ..utils.brief import brief
from ..utils.progress import share
from .ablation import Ablation
from .contenders import Contender
from .race import Evaluate, Limits, race
from .report import Report

Start = nn.Module | Callable[[int], nn.Module]
Problem = Callable[[int], tuple[nn.Module, Callable[[nn.Module], Objective]]]
SAME = 1e-4  # relative difference up to which two losses are of the same start


def over_seeds(
    problem: Problem,
    contenders: Mapping[str, Contender],
    limits: Limits,
    told: Mapping[str, Any],
    seeds: int | Sequence[int],
    *,
    evaluate: Evaluate | None = None,
    name: str = "ablation",
    who: str = "ablate",
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Ablation:
    """Race contenders from a start for each seed.

    Args:
        problem: a seed's model, and what builds the objective for a copy of it.
        told: what is asked for, in words: a seed that is in the folder already is read if it was asked for the same.

    Raises:
        InputError: seeds that are none, a folder that cannot be written. ArchiveError: the folder holds other runs.
    """
    chosen = _chosen(seeds, who)
    told = {**told, "contenders": list(contenders)}
    if folder is not None:
        records.require_writable(folder)
    reports: dict[int, Report] = {}
    try:
        with share(who, progress) as bar:
            for i, seed in enumerate(chosen):
                model, objective = problem(seed)
                place = None if folder is None else Path(folder) / f"seed-{seed}"
                report = None if place is None else _kept(place, told, model, objective)
                if report is None:

                    def tell(done: float, text: str, i: int = i, seed: int = seed) -> None:
                        bar((i + done) / len(chosen), f"seed {seed}, {text}")

                    report = Report(name, settings={**told, "ablation": told}, seeds=[seed])
                    race(model, objective, contenders, limits, evaluate, report, tell, seed)
                    if place is not None:
                        report.save(place, figure=False)
                reports[seed] = report
                bar((i + 1) / len(chosen), f"seed {seed}")
    except BaseException as error:
        if folder is not None and reports:
            error.add_note(f"{len(reports)} of {len(chosen)} seeds are in {folder}; the same call goes on after them")
        raise
    return Ablation(reports)


def started(model: Any, seed: int, who: str) -> nn.Module:
    """A seed's model: what a function of the seed returns, or a copy of a module with its layers initialized anew.

    Raises:
        InputError: it is neither, or a layer cannot be initialized anew.
    """
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise InputError(f"{who}: model={brief(model)}: give a module, or a function of the seed.")
        with torch.random.fork_rng(devices=[]):
            made = model(seed)
        if not isinstance(made, nn.Module):
            raise InputError(f"{who}: model({seed}) is {brief(made)}, not a torch.nn.Module.")
        return made
    twin = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in twin.named_modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise InputError(
                    f"{who}: {type(layer).__name__} ({name or 'the model itself'}) holds parameters and has no "
                    "reset_parameters(): give a function of the seed as model."
                )
    return twin


def _chosen(seeds: Any, who: str) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        return list(range(seeds))
    listed: list[Any] = list(seeds) if isinstance(seeds, Sequence) and not isinstance(seeds, str) else []
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in listed)
    if listed and whole and len({*listed}) == len(listed):
        return listed
    raise InputError(f"{who}: seeds={brief(seeds)}: say how many, or which, each once.")


def _kept(
    place: Path, told: Mapping[str, Any], model: nn.Module, objective: Callable[[nn.Module], Objective]
) -> Report | None:
    """A seed that was run before.

    Raises:
        ArchiveError: it was of other variants or limits, or it began at another loss: of another model or other data.
    """
    if not (place / records.NAME).is_file():
        return None
    report = Report.read(place)
    found = report.settings.get("ablation")
    if found != told:
        raise ArchiveError(
            f"{place} holds a run of {brief(found)}, and {brief(dict(told))} is asked for: give another folder."
        )
    twin = copy.deepcopy(model)
    of = objective(twin)
    before, here = report.rows[0]["loss"], of.value(of.theta())
    if not (math.isclose(before, here, rel_tol=SAME) or (math.isnan(before) and math.isnan(here))):
        raise ArchiveError(
            f"{place} holds a run that began at a loss of {before:.6g}, and this model begins at {here:.6g}: the model "
            "or its data are others. Give another folder."
        )
    return report
