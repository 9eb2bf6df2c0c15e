"""``Ablation``: what the same comparison found from several starts; medians, ranges, failures, differences in pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import ArchiveError, InputError
from ..report import export, records
from ..report.page import render
from ..report.records import Row
from . import pages
from .columns import FAILED
from .report import Report


@dataclass(frozen=True)
class Ablation:
    """Reports of one comparison from several starts.

    Attributes:
        reports: by seed. The first variant is what the others are compared with.
    """

    reports: dict[int, Report]

    @staticmethod
    def read(*folders: str | Path) -> Ablation:
        """From the folders that :func:`jumpstart.ablate` and ``compare(seeds=…)`` were given, merged.

        Raises:
            ArchiveError: there are none, or of different variants or limits, or a seed twice; says which.
        """
        found: dict[int, Report] = {}
        told: Any = None
        for folder in folders:
            places = sorted(Path(folder).glob(f"seed-*/{records.NAME}"), key=lambda p: (len(p.parent.name), str(p)))
            if not places:
                raise ArchiveError(f"{folder} holds no seed-N/{records.NAME}: give the folder that an ablation wrote.")
            for place in places:
                number = place.parent.name.removeprefix("seed-")
                if not number.isdecimal():
                    raise ArchiveError(f"{place.parent} is of no seed: its name ends in {number!r}.")
                report = Report.read(place.parent)
                asked = report.settings.get("ablation")
                told = asked if told is None else told
                if asked != told or not isinstance(asked, dict):
                    raise ArchiveError(f"{place} is a run of other variants or limits than the seeds before it.")
                if int(number) in found:
                    raise ArchiveError(f"{place}: seed {number} is there twice.")
                found[int(number)] = report
        if not found:
            raise ArchiveError("no folder was given: give those that an ablation wrote.")
        names = {tuple(report.contenders) for report in found.values()}
        if len(names) > 1:
            raise ArchiveError(f"the seeds in {folders[0]} are of different variants.")
        return Ablation(found)

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
        """A line for each variant: median and range of the last ``key``, failures, and how it differs from the first
        variant's seed by seed: the median difference, the median ratio, and on how many seeds it is below.

        Where the first variant's value is zero or negative there is no ratio.
        """
        self._require(key)
        first = self.ends(self.variants[0], key)
        found = []
        for variant in self.variants:
            own = self.ends(variant, key)
            kept = sorted(v for v in own.values() if math.isfinite(v))
            pairs = [(own[s], first[s]) for s in own if math.isfinite(own[s]) and math.isfinite(first[s])]
            ratios = [a / b for a, b in pairs if b > 0]
            itself = variant == self.variants[0]
            found.append(
                {
                    "variant": variant, "median": median(kept) if kept else None, "lowest": kept[0] if kept else None,
                    "highest": kept[-1] if kept else None, "failed": f"{len(own) - len(kept)}/{len(own)}",
                    "difference": median(a - b for a, b in pairs) if pairs and not itself else None,
                    "ratio": median(ratios) if ratios and not itself else None,
                    "below": None if itself else f"{sum(a < b for a, b in pairs)}/{len(pairs)}",
                }
            )  # fmt: skip
        return found

    def heads(self, key: str = "loss") -> dict[str, str]:
        """What the columns of ``rows`` of a ``key`` are."""
        first = self.variants[0]
        return {
            "variant": "", "median": f"{key}, median", "lowest": "lowest", "highest": "highest", "failed": "failed",
            "difference": f"less {first!r}", "ratio": f"over {first!r}", "below": "seeds below it",
        }  # fmt: skip

    def table(self, key: str = "loss") -> str:
        """The rows of ``key`` as text."""
        return records.table(self.rows(key), self.heads(key))

    def records(self) -> list[Row]:
        """Every record of every seed: a report's rows with the seed before them."""
        return [{"seed": seed, **row} for seed, report in self.reports.items() for row in report.rows]

    def dataframe(self) -> Any:
        """``records`` as a pandas DataFrame.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return export.dataframe(self.records())

    def to_csv(self, path: str | Path) -> Path:
        """Write ``records`` as CSV; returns the path."""
        return export.to_csv(self.records(), path)

    def html(self, path: str | Path) -> Path:
        """Write one HTML file to look at: medians and every seed's curve, pairs, jumps; returns its path.

        Raises:
            InputError: it cannot be written. MissingPackageError: plotly is not installed.
        """
        return render.write(pages.of_ablation(self), path)

    def _require(self, key: str) -> None:
        if key not in (known := ["loss", *self.metrics]):
            raise InputError(f"nothing was measured under {key!r}; there are {known}.")
