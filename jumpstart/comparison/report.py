"""What a comparison found: rows, a summary, a table and a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArchiveError
from ..report import checked, export, names, plots, records
from ..report.names import printable
from ..report.page import render
from ..report.plots import COLOURS
from ..report.records import Row
from ..utils.warn import warn
from . import pages
from .columns import COUNTS, FAILED, NUMBERS

LARGEST = 1e300  # values in a figure: differences of larger ones overflow
DRAWN = 12  # contenders, and metrics, in a figure at most


@dataclass
class Report:
    """Rows of a comparison: contender, step, gradient_evaluations, seconds, loss, metrics, jumps tried, accepted.

    The last row of a contender that raised an exception says so in the column "failed".

    Attributes:
        name: of its files. rows: the records, in seconds and gradient evaluations (``jumpstart.utils.cost``).
        settings: what the run was asked for. seeds: of the starts.
        jumps: a row for every jump (``report.jumps``), the last thousand of a contender. residuals: of objectives with
            points, how large each term's residual is at them in the end. about: environment and command, of a report
            that was read.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    jumps: list[Row] = field(default_factory=list)
    residuals: list[Row] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(folder: str | Path) -> Report:
        """From ``folder/results.json``, a file of unknown origin: what cannot be a comparison is refused.

        Raises:
            ArchiveError: there is none, or it is something else; says what.
        """
        content = records.read(folder)
        settings, where = content.get("settings"), Path(folder) / records.NAME
        metrics = settings.get("metrics", []) if isinstance(settings, dict) else None
        named = isinstance(metrics, list) and all(isinstance(key, str) for key in metrics)
        if not isinstance(settings, dict) or not isinstance(metrics, list) or not named:
            raise ArchiveError(f"{where} is not a comparison: its settings name no metrics.")
        if not content["rows"]:
            raise ArchiveError(f"{where} is not a comparison: it has no rows.")
        for k, row in enumerate(content["rows"]):
            if wrong := _wrong(row, metrics):
                raise ArchiveError(f"{where} is not a comparison: row {k} {wrong}")
        told = content.get("environment")
        seeds = told.get("seeds") if isinstance(told, dict) else None
        name = names.file_name(str(content.get("experiment", "")), "comparison")
        about = {key: content.get(key) for key in ("environment", "command")}
        jumps, residuals = (
            checked.jumps(content.get("jumps"), where),
            checked.residuals(content.get("residuals"), where),
        )
        return Report(
            name, content["rows"], dict(settings), seeds if isinstance(seeds, list) else [], jumps, residuals, about
        )

    @property
    def contenders(self) -> list[str]:
        """Their names, in the order in which they were given."""
        return list(self.grouped())

    def grouped(self) -> dict[str, list[Row]]:
        """The rows of each contender."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row["contender"], []).append(row)
        return found

    @property
    def metrics(self) -> list[str]:
        """What was measured besides."""
        return list(self.settings.get("metrics", []))

    def curve(self, contender: str, x: str = "seconds", y: str = "loss") -> tuple[list[float], list[float]]:
        """Columns ``x`` and ``y`` of one contender's records, by name; NaN where there is no value."""
        chosen = self.grouped()[contender]
        return [_value(row, x) for row in chosen], [_value(row, y) for row in chosen]

    def target(self, baseline: str | None = None) -> float:
        """The loss that everyone is timed to: the best that the baseline (default: the first contender) reached."""
        _, losses = self.curve(self.contenders[0] if baseline is None else baseline)
        return min((loss for loss in losses if math.isfinite(loss)), default=math.nan)

    def summary(self, baseline: str | None = None) -> list[Row]:
        """One row a contender: time and gradient evaluations to the baseline's best loss, and where it ended."""
        target, found = self.target(baseline), []
        for contender, rows in self.grouped().items():
            reached = next((row for row in rows if row["loss"] <= target), None)
            last = rows[-1]
            counted = all(last.get(key) is not None for key in COUNTS)
            found.append(
                {
                    "contender": contender,
                    "seconds_to_target": reached["seconds"] if reached else None,
                    "evaluations_to_target": reached["gradient_evaluations"] if reached else None,
                    "seconds": last["seconds"],
                    "evaluations": last["gradient_evaluations"],
                    "loss": last["loss"],
                    **{key: last[key] for key in self.metrics if key in last},
                    "jumps": f"{last['accepted']}/{last['jumps']}" if counted else "–",
                    **({FAILED: last[FAILED]} if last.get(FAILED) else {}),
                }
            )
        return found

    def table(self, baseline: str | None = None) -> str:
        """The summary as text; ``baseline`` names whose best loss is timed, the first contender's by default."""
        return records.table(self.summary(baseline), self.columns(baseline) | {"contender": ""})

    def columns(self, baseline: str | None = None) -> dict[str, str]:
        """What the columns of the summary are; ``baseline`` as for ``table``."""
        rows = self.summary(baseline)
        return {
            "contender": "contender",
            "seconds_to_target": f"s to loss {self.target(baseline):.2g}",
            "evaluations_to_target": "gradients to it",
            "seconds": "s in all",
            "evaluations": "gradients in all",
            "loss": "final loss",
            **{key: key for key in self.metrics},
            "jumps": "jumps kept/tried",
            **({FAILED: FAILED} if any(FAILED in row for row in rows) else {}),
        }

    def figure(self) -> Any:
        """Loss against gradient evaluations and against seconds, and each further metric against seconds.

        Raises:
            JumpstartError: matplotlib is not installed.
        """
        axes_of = [("gradient_evaluations", "loss"), ("seconds", "loss"), *(("seconds", key) for key in self.metrics)]
        axes_of, contenders = axes_of[: 2 + DRAWN], self.contenders[:DRAWN]
        with plots.panels(len(axes_of), 3.6, 3.2) as (figure, axes):
            for axis, (x, y) in zip(axes, axes_of, strict=True):
                values: list[float] = []
                lines = []
                for i, contender in enumerate(contenders):
                    xs, ys = self.curve(contender, x, y)
                    # Jumps in full lines, what they are measured against dashed.
                    style = "-" if "jump" in contender else (0, (4, 1.5))
                    ys = [v if abs(v) < LARGEST else math.nan for v in ys]
                    colour = COLOURS[i % len(COLOURS)]
                    lines += axis.plot(xs, ys, color=colour, linestyle=style, linewidth=1.4)
                    if y == "loss":
                        plots.mark_jumps(axis, *self._marks(contender, x), colour)
                    values += [v for v in ys if math.isfinite(v)]
                if values and min(values) > 0 and max(values) > 20 * min(values):
                    axis.set_yscale("log")
                axis.set_xlabel(x.replace("_", " "))
                axis.set_ylabel(printable(y), parse_math=False)
                axis.grid(alpha=0.25, linewidth=0.5)
            what = "loss and measures of each contender" if self.metrics else "loss of each contender"
            dots = " (dots: jumps kept, crosses: refused)" if self.jumps else ""
            figure.suptitle(f"{printable(self.name)}: {what}{dots}", fontsize=10, parse_math=False)
            columns = max(1, min(4, len(contenders)))
            below = 0.09 * -(-len(contenders) // columns)
            # Names are no markup: neither '$' nor a leading '_' means anything.
            legend = figure.legend(lines, ["x"] * len(lines), loc="lower center", ncol=columns, frameon=False)
            for text, contender in zip(legend.get_texts(), contenders, strict=True):
                text.set_parse_math(False)
                text.set_text(printable(contender, 40))
            figure.tight_layout(rect=(0, min(below, 0.5), 1, 1))
        return figure

    def _marks(self, contender: str, x: str) -> tuple[list[float], list[float], list[bool]]:
        """A contender's jumps along an axis: where, the loss after, kept or not."""
        rows = [row for row in self.jumps if row["who"] == contender and row.get(x) is not None]
        after = [_value(row, "after") for row in rows]
        after = [v if abs(v) < LARGEST else math.nan for v in after]
        return [row[x] for row in rows], after, [row["accepted"] for row in rows]

    def save(self, folder: str | Path, figure: bool = True) -> Path:
        """Write results.json and, where matplotlib is installed, the figure; a warning says why if there is none.

        Raises:
            InputError: the report's name is no file name, or the folder cannot be written.
        """
        names.require_file_name(self.name, "Report")
        others = {"jumps": self.jumps, "residuals": self.residuals}
        path = records.write(folder, self.name, self.settings, self.rows, self.seeds, others)
        if figure:
            _, trouble = self.draw(folder)
            if trouble:
                warn(f"{path} is written; {trouble}", RuntimeWarning)
        return path

    def html(self, path: str | Path) -> Path:
        """Write one HTML file to look at, which needs no network: curves that can be switched, the table, every jump,
        residuals, environment; returns its path.

        Raises:
            InputError: it cannot be written. MissingPackageError: plotly is not installed.
        """
        return render.write(pages.of_report(self), path)

    def dataframe(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return export.dataframe(self.rows)

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as CSV; returns the path."""
        return export.to_csv(self.rows, path)

    def draw(self, folder: str | Path) -> tuple[Path | None, str]:
        """Save the figure in a folder: its path, or None and why there is none."""
        return plots.drawn(self.figure, Path(folder) / f"{names.file_name(self.name, 'comparison')}.png")


def _value(row: Row, key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else value


def _wrong(row: Any, metrics: list[str]) -> str:
    """What in a row is nothing that a comparison records; empty if nothing is."""
    if not isinstance(row, dict):
        return f"is {row!r:.40}, not a table."
    if not isinstance(row.get("contender"), str):
        return f"names no contender: {row.get('contender')!r:.40}."
    for key in (*NUMBERS, *COUNTS, *metrics):
        value = row.get(key)
        if value is None and key not in NUMBERS:
            continue
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not plain or (isinstance(value, int) and abs(value) > 2**53):
            return f"says {printable(key)}={value!r:.40}, which is no number."
    return "" if isinstance(row.get(FAILED, ""), str) else f"says {FAILED}={row[FAILED]!r:.40}, which is no text."
