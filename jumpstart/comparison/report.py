"""What a comparison found: rows, a summary, a table and a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..report import plots, records
from ..report.plots import COLOURS, pyplot
from ..report.records import Row


@dataclass
class Report:
    """Rows of a comparison: contender, step, gradient_evaluations, seconds, loss, metrics, jumps tried, accepted."""

    name: str
    rows: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(row["contender"] for row in self.rows))

    def curve(self, contender: str, x: str = "seconds", y: str = "loss") -> tuple[list[float], list[float]]:
        """Two columns of one contender's records."""
        chosen = [row for row in self.rows if row["contender"] == contender]
        return [row[x] for row in chosen], [row[y] for row in chosen]

    def target(self, baseline: str | None = None) -> float:
        """The loss that everyone is timed to: the best that the baseline (default: the first contender) reached."""
        _, losses = self.curve(baseline or self.contenders[0])
        return min((loss for loss in losses if math.isfinite(loss)), default=math.nan)

    def summary(self, baseline: str | None = None) -> list[Row]:
        """One row a contender: time and gradient evaluations to the baseline's best loss, and where it ended."""
        target, found = self.target(baseline), []
        for contender in self.contenders:
            rows = [row for row in self.rows if row["contender"] == contender]
            reached = next((row for row in rows if row["loss"] <= target), None)
            last = rows[-1]
            extra = {key: last[key] for key in self.settings.get("metrics", []) if key in last}
            found.append(
                {
                    "contender": contender,
                    "seconds_to_target": reached["seconds"] if reached else None,
                    "evaluations_to_target": reached["gradient_evaluations"] if reached else None,
                    "seconds": last["seconds"],
                    "evaluations": last["gradient_evaluations"],
                    "loss": last["loss"],
                    **extra,
                    "jumps": f"{last['accepted']}/{last['jumps']}" if last.get("jumps") is not None else "–",
                }
            )
        return found

    def table(self, baseline: str | None = None) -> str:
        """The summary as text."""
        columns = {
            "contender": "",
            "seconds_to_target": f"s to loss {self.target(baseline):.2g}",
            "evaluations_to_target": "gradients to it",
            "seconds": "s in all",
            "evaluations": "gradients in all",
            "loss": "final loss",
            **{key: key for key in self.settings.get("metrics", [])},
            "jumps": "jumps kept/tried",
        }
        return records.table(self.summary(baseline), columns)

    def figure(self) -> Any:
        """Loss against gradient evaluations and against seconds, and each further metric against seconds."""
        plt = pyplot()
        metrics = list(self.settings.get("metrics", []))
        panels = [("gradient_evaluations", "loss"), ("seconds", "loss"), *(("seconds", key) for key in metrics)]
        figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.2), squeeze=False)
        for axis, (x, y) in zip(axes[0], panels, strict=True):
            values: list[float] = []
            for i, contender in enumerate(self.contenders):
                xs, ys = self.curve(contender, x, y)
                # Jumps in full lines, what they are measured against dashed.
                style = "-" if "jump" in contender else (0, (4, 1.5))
                axis.plot(xs, ys, color=COLOURS[i % len(COLOURS)], linestyle=style, label=contender, linewidth=1.4)
                values += [v for v in ys if math.isfinite(v)]
            if values and min(values) > 0 and max(values) > 20 * min(values):
                axis.set_yscale("log")
            axis.set_xlabel(x.replace("_", " "))
            axis.set_ylabel(y)
            axis.grid(alpha=0.25, linewidth=0.5)
        figure.suptitle(self.name, fontsize=10)
        handles, labels = axes[0][0].get_legend_handles_labels()
        columns = min(4, len(labels))
        below = 0.09 * -(-len(labels) // columns)
        figure.legend(handles, labels, loc="lower center", ncol=columns, frameon=False)
        figure.tight_layout(rect=(0, below, 1, 1))
        return figure

    def save(self, folder: str | Path, figure: bool = True) -> Path:
        """Write results.json and, where matplotlib is installed, the figure."""
        path = records.write(folder, self.name, self.settings, self.rows, self.seeds)
        if figure:
            plots.save(self.figure(), Path(folder) / f"{self.name}.png")
        return path
