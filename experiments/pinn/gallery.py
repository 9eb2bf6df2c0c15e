"""Each equation of the races once, as a user would solve it: pictures of the solution, the error, and the way there.

python -m experiments.pinn.gallery [--quick] [--seeds N] [--problems a,b] [--out DIR]

A minute each on one thread with ``fit`` as it is. OUT/NAME.png is of the first seed.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import jumpstart as js
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments, spread
from ..pages import machine, markdown
from .equations import EQUATIONS, Equation

SECONDS, JUMPS, SHARE = 60.0, 6, 0.05
FLOOR = 1e-16  # below everything that is drawn


def run(equation: Equation, seed: int, quick: bool) -> tuple[Row, torch.nn.Module]:
    model = equation.network(seed)
    objective = equation.objective(model, SHARE if quick else 1.0)
    options: dict[str, Any] = {"jumps": JUMPS} if quick else {"budget": SECONDS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", js.CollocationWarning)
        found = js.fit(objective, error=equation.error, seed=seed, progress=False, **options)
    keys = ("seconds", "loss", "unseen", "error")
    course = {
        key: [None if row.get(key) is None else float(f"{row[key]:.3g}") for row in found.history] for key in keys
    }
    return {
        "problem": equation.name, "seed": seed, "parameters": objective.space.size, "jumps": found.jumps,
        "seconds": found.seconds, "loss": found.loss, "unseen": found.generalization, "error": found.error,
        "course": course,
    }, model  # fmt: skip


def picture(equation: Equation, model: torch.nn.Module, row: Row) -> Any:
    """The solution (its first output), how far the network is from it, and error and loss against seconds."""
    points, exact = equation.reference()
    with torch.no_grad():
        away = (model(points)[:, 0] - exact[:, 0]).abs()
    x, y, u = _grid(points, exact[:, 0])
    _, _, off = _grid(points, away.clamp_min(FLOOR))
    plt = plots.pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(11.0, 3.0), layout="constrained")
    figure.suptitle(f"{equation.title}: error {records.show(row['error'])}", fontsize=10)
    for axis, values, label in ((axes[0], u, "solution"), (axes[1], np.log10(off), "log₁₀ |network − solution|")):
        drawn = axis.pcolormesh(x, y, values.T, shading="nearest", cmap="viridis" if axis is axes[0] else "magma")
        figure.colorbar(drawn, ax=axis)
        axis.set_title(label, fontsize=9)
        axis.set(xlabel="x", ylabel="y" if _in_space(equation) else "t")
    course = row["course"]
    for key, label, colour in (
        ("error", "relative error", plots.COLOURS[0]), ("unseen", "loss on other points", plots.COLOURS[1]),
        ("loss", "loss", plots.COLOURS[2]),
    ):  # fmt: skip
        shown = [(s, v) for s, v in zip(course["seconds"], course[key], strict=True) if v]
        if shown:
            axes[2].plot(*zip(*shown, strict=True), label=label, color=colour, linewidth=1.3)
    axes[2].set(yscale="log", xlabel="seconds")
    axes[2].legend(frameon=False, fontsize=8)
    return figure


def _in_space(equation: Equation) -> bool:
    """Whether the second coordinate is no time: nothing is called a start."""
    return all(part.name != "start" for part in equation.parts)


def _grid(points: Tensor, values: Tensor) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Values at points of a grid, NaN where there is none."""
    (x, i), (y, j) = (np.unique(column.numpy(), return_inverse=True) for column in points.unbind(1))
    found = np.full((len(x), len(y)), np.nan)
    found[i, j] = values.numpy()
    return x, y, found


def summarized(rows: list[Row]) -> list[Row]:
    found = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        same = [row for row in rows if row["problem"] == name]
        errors = spread([row["error"] for row in same])
        found.append({
            "problem": EQUATIONS[name].title, "parameters": same[0]["parameters"], "runs": len(same),
            "jumps": spread([row["jumps"] for row in same])["median"],
            "unseen": spread([row["unseen"] for row in same])["median"], "error": errors["median"],
            "range": f"{records.show(errors['min'])} … {records.show(errors['max'])}",
        })  # fmt: skip
    return found


HEADS = {
    "problem": "", "parameters": "parameters", "runs": "seeds", "jumps": "jumps", "unseen": "loss on other points",
    "error": "relative error", "range": "of seeds",
}  # fmt: skip


def page(content: Row) -> str:
    """What docs/gallery.md says of it."""
    summary, seconds = content["settings"]["summary"], content["settings"]["seconds"]
    one = all(line["runs"] == 1 for line in summary)
    shown = {key: head for key, head in HEADS.items() if not (one and key in ("runs", "range"))}
    return "\n\n".join((
        f"After {seconds:g} seconds on one thread, {'one seed' if one else 'medians'}:", markdown(summary, shown),
        f"<sub>{machine(content)}</sub>",
    ))  # fmt: skip


def main() -> None:
    asked = arguments("pinn.gallery", __doc__, 3, EQUATIONS)
    torch.set_num_threads(1)
    rows = []
    with counter("gallery", len(asked.problems) * asked.seeds, asked.progress) as count:
        for seed in range(asked.seeds):
            for name in asked.problems:
                row, model = run(EQUATIONS[name], seed, asked.quick)
                rows.append(row)
                if seed == 0:
                    path = asked.out / f"{name}.png"
                    _, trouble = plots.drawn(lambda e=EQUATIONS[name], m=model, r=row: picture(e, m, r), path)
                    if trouble:
                        print(trouble)
                count(f"{name}: {row['error']:.2g}")
    lines = summarized(rows)
    settings = {"quick": asked.quick, "seconds": SECONDS, "summary": lines}
    path = records.write(asked.out, "pinn.gallery", settings, rows, range(asked.seeds))
    print(records.table(lines, HEADS), f"written: {path}", sep="\n")


if __name__ == "__main__":
    main()
