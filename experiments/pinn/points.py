"""What each choice about collocation points is worth: renewal, growth, weights, features, on three equations.

python -m experiments.pinn.points [--quick] [--seeds N] [--problems a,b] [--out DIR]

Equal seconds on one thread, variants in turn for each seed. Errors are against the solution, and take no part in
anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn

import jumpstart as js
from jumpstart.fitting import collocation
from jumpstart.report import records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments, spread
from ..pages import machine, markdown
from .equations import EQUATIONS, Equation

SECONDS, JUMPS, SHARE = 60.0, 12, 0.05
NAMES = ("convection", "burgers", "kdv")
WAVES = 8  # of random Fourier features, beside the coordinates


def with_waves(equation: Equation) -> Equation:
    """Behind random Fourier features: the first layer is wider by 2 · WAVES inputs."""

    def made(seed: int) -> nn.Module:
        network: Any = equation.network(seed)
        at = next(i for i, layer in enumerate(network) if isinstance(layer, nn.Linear))
        first = network[at]
        torch.manual_seed(seed)
        waves = js.features.Fourier(first.in_features, WAVES, scale=0.5, seed=seed).double()
        front = js.features.Beside(nn.Identity(), waves)
        wider = nn.Linear(first.in_features + 2 * WAVES, first.out_features).double()
        return nn.Sequential(*network[:at], front, wider, *network[at + 1 :])

    return dataclasses.replace(equation, network=made)


@dataclass(frozen=True)
class Variant:
    """``growth`` stands in for the factor by which renewed points grow; ``share`` is of the points at the start."""

    options: dict[str, Any] = field(default_factory=dict)
    growth: float = collocation.GROWTH
    share: float = 1.0
    change: Callable[[Equation], Equation] | None = None


VARIANTS = {
    "as it is": Variant(), "the first points": Variant({"adaptive": False}),
    "renewed, not more of them": Variant(growth=1.0),
    "begun with half of the points": Variant(share=0.5), "begun with twice the points": Variant(share=2.0),
    "residual-based attention": Variant({"weigh": js.weighting.Attention()}),
    "causal weights": Variant({"weigh": js.weighting.Causal()}),
    "chord corrections": Variant({"chord_steps": 3}), "Fourier features beside": Variant(change=with_waves),
}  # fmt: skip


@contextlib.contextmanager
def growing(factor: float) -> Iterator[None]:
    with mock.patch.object(collocation, "GROWTH", factor):
        yield


def run(name: str, label: str, seed: int, quick: bool) -> Row:
    variant = VARIANTS[label]
    equation = EQUATIONS[name] if variant.change is None else variant.change(EQUATIONS[name])
    model = equation.network(seed)
    objective = equation.objective(model, variant.share * (SHARE if quick else 1.0))
    limits: dict[str, Any] = {"jumps": JUMPS} if quick else {"budget": SECONDS}
    with growing(variant.growth), warnings.catch_warnings():
        warnings.simplefilter("ignore", js.CollocationWarning)
        found = js.fit(objective, error=equation.error, seed=seed, progress=False, **limits, **variant.options)
    return {
        "problem": name, "variant": label, "seed": seed, "error": found.error, "loss": found.loss,
        "unseen": found.generalization, "jumps": found.jumps, "seconds": found.seconds,
    }  # fmt: skip


def summarized(rows: list[Row]) -> list[Row]:
    """A line a variant: the median error of each problem, and over that of ``as it is`` seed by seed."""
    found = []
    for label in VARIANTS:
        line: Row = {"variant": label}
        for name in dict.fromkeys(row["problem"] for row in rows):
            own = {row["seed"]: row["error"] for row in rows if (row["problem"], row["variant"]) == (name, label)}
            base = {row["seed"]: row["error"] for row in rows if (row["problem"], row["variant"]) == (name, "as it is")}
            if own:
                line[name] = spread(list(own.values()))["median"]
                line[f"{name}, ratio"] = spread([own[s] / base[s] for s in own if s in base])["median"]
        found.append(line)
    return found


def heads(rows: list[Row]) -> dict[str, str]:
    found = {"variant": ""}
    for name in dict.fromkeys(row["problem"] for row in rows):
        found |= {name: f"{name}: error", f"{name}, ratio": "over “as it is”"}
    return found


def page(content: Row) -> str:
    """What docs/pinns.md says of it."""
    settings = content["settings"]
    return "\n\n".join((
        f"After {settings['seconds']:g} seconds on one thread, medians:",
        markdown(settings["summary"], heads(content["rows"])), f"<sub>{machine(content)}</sub>",
    ))  # fmt: skip


def main() -> None:
    asked = arguments("pinn.points", __doc__, 3, NAMES)
    torch.set_num_threads(1)
    rows = []
    names = asked.problems[:1] if asked.quick else asked.problems
    with counter("points", len(names) * len(VARIANTS) * asked.seeds, asked.progress) as count:
        for seed in range(asked.seeds):
            for name in names:
                for label in VARIANTS:
                    rows.append(run(name, label, seed, asked.quick))
                    count(f"{name}, {label}: {rows[-1]['error']:.2g}")
    lines = summarized(rows)
    settings = {"quick": asked.quick, "seconds": SECONDS, "summary": lines}
    path = records.write(asked.out, "pinn.points", settings, rows, range(asked.seeds))
    print(records.table(lines, heads(rows)), f"written: {path}", sep="\n")


if __name__ == "__main__":
    main()
