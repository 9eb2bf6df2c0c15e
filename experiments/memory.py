"""What memory is worth: the Poisson anchor by a loop of ``js.jump``, by a loop of ``Jumper.jump``, and by ``fit``.

python -m experiments.memory [--quick] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import jumpstart as js
from jumpstart.demo import poisson
from jumpstart.report import plots, records
from jumpstart.report.records import Row

from .common import arguments, spread

SECONDS = 6.0
WIDTH, POINTS, TOY = 32, 30, 8  # hidden units; points a side; both at toy size
STARTS = {"torch": "torch's initialization", "small": "0.1·randn"}


def forgetful(model: nn.Module, objective: js.Objective) -> Iterator[dict[str, Any]]:
    """The loop that a user writes first: ``while …: js.jump(objective)``; it ends after three rejections in a row."""
    cost, jumps, accepted, refused = 0.0, 0, 0, 0
    while refused < 3:
        result = js.jump(objective)
        cost, jumps, accepted = cost + result.gradient_evaluations, jumps + 1, accepted + result.accepted
        refused = 0 if result.accepted else refused + 1
        yield {"gradient_evaluations": cost, "jumps": jumps, "accepted": accepted}


def run(seeds: int, seconds: float, quick: bool, progress: bool) -> tuple[list[Row], list[Row]]:
    """Records of every run, and a row a start and contender with the errors at the end."""
    contenders = {
        "L-BFGS": js.lbfgs(),
        "js.jump, no memory": forgetful,
        "Jumper.jump": js.jumps_only(lambda k: {}),
        "fit": js.fitted(budget=seconds),
    }
    width, points = (TOY, TOY) if quick else (WIDTH, POINTS)
    rows: list[Row] = []
    for start in STARTS:
        for seed in range(seeds):
            report = js.compare(
                poisson.network(seed, (width,), start), lambda model: poisson.objective(model, points, points),
                contenders, seconds=seconds, seed=seed,
                evaluate=lambda model: {"relative error": poisson.error(model)}, progress=progress, name="memory",
            )  # fmt: skip
            rows += [{"start": start, "seed": seed, **row} for row in report.rows]
    summary = []
    for start in STARTS:
        for name in contenders:
            ends = [_last(rows, start, seed, name) for seed in range(seeds)]
            summary.append(
                {
                    "start": STARTS[start],
                    "contender": name,
                    "error": spread([end["relative error"] for end in ends]),
                    "loss": spread([end["loss"] for end in ends]),
                    "jumps": spread([end.get("jumps", math.nan) for end in ends]),
                }
            )
    return rows, summary


def _last(rows: list[Row], start: str, seed: int, name: str) -> Row:
    return [r for r in rows if (r["start"], r["seed"], r["contender"]) == (start, seed, name)][-1]


def picture(rows: list[Row]) -> Any:
    """Relative error against seconds, a line a seed, one panel a start."""
    plt = plots.pyplot()
    figure, axes = plt.subplots(1, len(STARTS), figsize=(7.6, 3.2), sharey=True)
    names = list(dict.fromkeys(row["contender"] for row in rows))
    for axis, (start, title) in zip(axes, STARTS.items(), strict=True):
        for colour, name in zip(plots.COLOURS, names, strict=False):
            for seed in sorted({row["seed"] for row in rows}):
                chosen = [r for r in rows if (r["start"], r["seed"], r["contender"]) == (start, seed, name)]
                xs, ys = [r["seconds"] for r in chosen], [r["relative error"] for r in chosen]
                axis.plot(xs, ys, color=colour, linewidth=1.0, label=name if seed == 0 else None)
        axis.set(xlabel="seconds", yscale="log", title=title)
        axis.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("relative error")
    axes[1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def main() -> None:
    asked = arguments("memory", __doc__, seeds=5)
    torch.set_num_threads(1)
    seconds = 0.1 if asked.quick else SECONDS
    rows, summary = run(asked.seeds, seconds, asked.quick, asked.progress)
    settings = {"seconds": seconds, "starts": STARTS, "summary": summary}
    path = records.write(asked.out, "memory", settings, rows, range(asked.seeds))
    shown = [
        {**row, **{f"{key}, {part}": row[key][part] for key in ("error", "loss", "jumps") for part in row[key]}}
        for row in summary
    ]
    columns = {
        "start": "", "contender": "", "error, median": "error: median", "error, min": "lowest", "error, max": "highest",
        "loss, median": "loss: median", "jumps, median": "jumps",
    }  # fmt: skip
    print(records.table(shown, columns))
    drawn, trouble = plots.drawn(lambda: picture(rows), asked.out / "memory.png")
    print(f"written: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"))


if __name__ == "__main__":
    main()
