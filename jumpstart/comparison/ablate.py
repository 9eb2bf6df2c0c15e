"""``ablate``: the same comparison from several starts; medians, ranges, failures, and differences pair by pair."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import nn

from ..errors import ArchiveError, InputError
from ..fitting.settings import FitSettings
from ..jumping.jumper import Jumper
from ..objectives.objective import Objective
from ..report import records
from ..report.records import Row
from ..utils.brief import brief
from ..utils.progress import share
from .compare import compare
from .contenders import Contender, fitted
from .report import FAILED, Report

Start = nn.Module | Callable[[int], nn.Module]
Variant = Mapping[str, Any] | Contender
OPTIONS = {f.name for f in fields(FitSettings)} | Jumper.OPTIONS | {"metric"}


@dataclass(frozen=True)
class Ablation:
    """Reports of one comparison from several starts.

    Attributes:
        reports: by seed. The first variant is what the others are compared with.
    """

    reports: dict[int, Report]

    @property
    def variants(self) -> list[str]:
        """Their names, the first of which the others are compared with."""
        return next(iter(self.reports.values())).contenders

    @property
    def metrics(self) -> list[str]:
        """What was measured besides the loss."""
        return next(iter(self.reports.values())).metrics

    def ends(self, variant: str, key: str = "loss") -> dict[int, float]:
        """The last ``key`` (the loss, or a metric) of each seed; NaN where there is none, or the run failed."""
        found = {}
        for seed, report in self.reports.items():
            last = [row for row in report.rows if row["contender"] == variant][-1]
            value = last.get(key)
            found[seed] = math.nan if value is None or last.get(FAILED) else float(value)
        return found

    def rows(self, key: str = "loss") -> list[Row]:
        """A line for each variant: median and range of the last ``key``, failures, and its ratio to the first variant's
        seed by seed: the median, and on how many seeds it is below.

        Where the first variant's value is zero or negative there is no ratio.
        """
        first = self.ends(self.variants[0], key)
        found = []
        for variant in self.variants:
            own = self.ends(variant, key)
            kept = sorted(v for v in own.values() if math.isfinite(v))
            pairs = [(own[s], first[s]) for s in own if math.isfinite(own[s]) and math.isfinite(first[s])]
            ratios = [a / b for a, b in pairs if b > 0]
            found.append(
                {
                    "variant": variant, "median": median(kept) if kept else None, "lowest": kept[0] if kept else None,
                    "highest": kept[-1] if kept else None, "failed": f"{len(own) - len(kept)}/{len(own)}",
                    "ratio": median(ratios) if ratios and variant != self.variants[0] else None,
                    "below": None if variant == self.variants[0] else f"{sum(a < b for a, b in pairs)}/{len(pairs)}",
                }
            )  # fmt: skip
        return found

    def table(self, key: str = "loss") -> str:
        """The rows of ``key`` as text."""
        heads = {
            "variant": "", "median": f"{key}, median", "lowest": "lowest", "highest": "highest", "failed": "failed",
            "ratio": f"over {self.variants[0]!r}", "below": "seeds below it",
        }  # fmt: skip
        return records.table(self.rows(key), heads)


def ablate(
    model: Start,
    objective: Callable[[nn.Module], Objective],
    variants: Mapping[str, Variant],
    *,
    seeds: int | Sequence[int] = 5,
    seconds: float = 10.0,
    steps: int | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Ablation:
    """Run variants from the same starts, a seed at a time, as :func:`jumpstart.compare` does.

    Args:
        model: a function of the seed, or a module that is copied and whose layers are initialized anew by the seed.
        objective: builds the objective for a copy of the model.
        variants: by name: options of :func:`jumpstart.fit`, or a contender as for ``compare``. The first is what the
            others are compared with.
        seeds: how many, from 0 on, or which.
        seconds, steps, evaluate: of each run, as for ``compare``.
        folder: where each seed's results.json goes, in ``seed-N``; seeds that are there already, of the same variants
            and limits, are read and not run again.
        progress: a bar with the time left: None on terminals alone.

    Raises:
        InputError: quoting what cannot be compared. ArchiveError: the folder holds other runs.

    Example:
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> def start(seed):
        ...     torch.manual_seed(seed)
        ...     return torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> from jumpstart import supervised
        >>> found = ablate(start, lambda m: supervised(m, x, x**2),
        ...                {"as it is": {}, "no second order": {"geodesic": False}}, seeds=2, steps=3)
        >>> found.variants
        ['as it is', 'no second order']
    """
    chosen = _chosen(seeds)
    if not isinstance(variants, Mapping) or not variants:
        raise InputError(f"ablate: variants={brief(variants)}: give options of fit by name, the usual ones first.")
    contenders = {name: _contender(name, variant, seconds, steps) for name, variant in variants.items()}
    told = {"seconds": seconds, "steps": steps, "variants": {name: _text(v) for name, v in variants.items()}}
    reports: dict[int, Report] = {}
    with share("ablate", progress) as bar:
        for i, seed in enumerate(chosen):
            place = None if folder is None else Path(folder) / f"seed-{seed}"
            report = None if place is None else _kept(place, told)
            if report is None:
                report = compare(
                    _start(model, seed), objective, contenders, seconds=seconds, steps=steps, evaluate=evaluate,
                    name="ablation", seed=seed, progress=False,
                )  # fmt: skip
                report.settings["ablation"] = told
                if place is not None:
                    report.save(place, figure=False)
            reports[seed] = report
            bar((i + 1) / len(chosen), f"seed {seed}")
    return Ablation(reports)


def _chosen(seeds: Any) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        return list(range(seeds))
    listed: list[Any] = list(seeds) if isinstance(seeds, Sequence) and not isinstance(seeds, str) else []
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in listed)
    if listed and whole and len({*listed}) == len(listed):
        return listed
    raise InputError(f"ablate: seeds={brief(seeds)}: say how many, or which, each once.")


def _contender(name: str, variant: Any, seconds: float, steps: int | None) -> Contender:
    if isinstance(variant, Mapping):
        if unknown := variant.keys() - OPTIONS:
            raise InputError(
                f"ablate: {sorted(unknown)} of {name!r} are no options of fit; there are {sorted(OPTIONS)}."
            )
        ends = {"budget", "jumps", "tolerance"} & variant.keys()
        limit: dict[str, Any] = {} if ends else {"jumps": steps} if steps is not None else {"budget": seconds}
        return fitted(**{**limit, **variant})
    if callable(variant):
        return cast(Contender, variant)
    raise InputError(f"ablate: the variant {name!r} is {brief(variant)}: options of fit, or a contender.")


def _start(model: Start, seed: int) -> nn.Module:
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise InputError(f"ablate: model={brief(model)}: give a module, or a function of the seed.")
        with torch.random.fork_rng(devices=[]):
            made = model(seed)
        if not isinstance(made, nn.Module):
            raise InputError(f"ablate: model({seed}) is {brief(made)}, not a torch.nn.Module.")
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
                    f"ablate: {type(layer).__name__} ({name or 'the model itself'}) holds parameters and has no "
                    "reset_parameters(): give a function of the seed as model."
                )
    return twin


def _text(variant: Variant) -> str:
    return repr(dict(variant)) if isinstance(variant, Mapping) else getattr(variant, "__qualname__", "contender")


def _kept(place: Path, told: dict[str, Any]) -> Report | None:
    """A seed that was run before.

    Raises:
        ArchiveError: it was of other variants or limits.
    """
    if not (place / records.NAME).is_file():
        return None
    report = Report.read(place)
    found = report.settings.get("ablation")
    if found != told:
        raise ArchiveError(
            f"{place} holds a run of {brief(found)}, and {brief(told)} is asked for: give another folder."
        )
    return report
