"""Is the loss on other points worth having: as a predictor of the error, and as a reason to warn.

python -m experiments.pinn.parted [--quick] [--seeds N] [--problems a,b] [--out DIR]

Every equation of the races, with a twentieth, a fifth and all of its points, three ways: points renewed (what ``fit``
does on domains), the first points of the domains, and the same points given. Two questions:

- Along a run, how well do the ranks of the loss on other points agree with those of the error (Spearman), and how well
  those of the training loss?
- At the end of a run whose points stay, does ``fit`` warn where the error has stopped falling, and only there? It has
  stopped if, while the loss went on to fall a hundredfold, the lowest error did not fall by half. Runs whose loss never
  fell a hundredfold are not asked.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from statistics import median
from typing import Any

import scipy.stats
import torch

import jumpstart as js
from jumpstart.objectives.residual import Residuals
from jumpstart.report import records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments
from ..pages import machine, markdown
from .equations import EQUATIONS, Equation

SECONDS, JUMPS = 12.0, 12
SHARES = (0.05, 0.2, 1.0)
RENEWED, FIRST, GIVEN = "renewed", "first points of domains", "given points"
WAYS = (RENEWED, FIRST, GIVEN)
FELL = 0.01  # of the loss: since then the error has stopped, or has not
HALF = 0.5  # of the error
ENOUGH = 6  # pairs that a rank correlation is asked of


def given(equation: Equation, model: torch.nn.Module, share: float) -> Residuals:
    """At the points that the domains would draw, without the domains."""
    points = equation.drawn(0, share).points
    terms = [
        js.Term(part.point, rows, weight=part.weight / len(rows), name=part.name)
        for part, rows in zip(equation.parts, points, strict=True)
    ]
    return js.residual(model, *terms)


def run(equation: Equation, share: float, way: str, seed: int, quick: bool) -> Row:
    """One fit, what it said, and what was so."""
    model = equation.network(seed)
    share = 0.1 * share if quick else share
    objective = given(equation, model, share) if way == GIVEN else equation.objective(model, share)
    options: dict[str, Any] = {"jumps": JUMPS} if quick else {"budget": SECONDS}
    if way == FIRST:
        options["adaptive"] = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = js.fit(objective, error=equation.error, seed=seed, progress=False, **options)
    seen = [r for r in found.history if "unseen" in r and r.get("error") is not None]
    return {
        "problem": equation.name, "share": share, "way": way, "seed": seed,
        "warned": any(issubclass(w.category, js.CollocationWarning) for w in caught),
        "stopped": stopped(found.history), "loss": found.loss, "start": found.start, "error": found.error,
        "unseen": found.generalization, "jumps": found.jumps, "seconds": found.seconds,
        "rank of unseen": ranked([r["unseen"] for r in seen], [r["error"] for r in seen]),
        "rank of loss": ranked([r["loss"] for r in seen], [r["error"] for r in seen]),
    }  # fmt: skip


def stopped(history: Sequence[Row]) -> bool | None:
    """Whether the error did not halve while the loss fell another hundredfold; None where it did not fall so far."""
    rows = [r for r in history if r.get("error") is not None]
    if not rows:
        return None
    end = min(r["best"] for r in rows)
    before = [r["error"] for r in rows if r["best"] > end / FELL]
    after = [r["error"] for r in rows if r["best"] <= end / FELL]
    return None if not before or not after else min(after) > HALF * min(before)


def ranked(first: list[float], second: list[float]) -> float | None:
    """Spearman's correlation; None of few."""
    if len(first) < ENOUGH:
        return None
    found = float(scipy.stats.spearmanr(first, second).statistic)  # type: ignore[attr-defined]
    return found if math.isfinite(found) else None


def middle(values: list[float | None]) -> float | None:
    kept = [v for v in values if v is not None]
    return median(kept) if kept else None


def lowest(values: list[float | None]) -> float | None:
    return min((v for v in values if v is not None), default=None)


def summarized(rows: list[Row]) -> list[Row]:
    """A line for each way."""
    found = []
    for way in WAYS:
        same = [row for row in rows if row["way"] == way]
        stuck, going = ([row for row in same if row["stopped"] is told] for told in (True, False))
        line: Row = {
            "way": way, "runs": len(same), "unseen": middle([row["rank of unseen"] for row in same]),
            "unseen, lowest": lowest([row["rank of unseen"] for row in same]),
            "loss": middle([row["rank of loss"] for row in same]),
            "loss, lowest": lowest([row["rank of loss"] for row in same]),
        }  # fmt: skip
        if way != RENEWED:  # which mends what the others warn of
            line["stopped, warned"] = f"{sum(row['warned'] for row in stuck)}/{len(stuck)}"
            line["falling, warned"] = f"{sum(row['warned'] for row in going)}/{len(going)}"
        found.append(line)
    return found


HEADS = {
    "way": "points", "runs": "runs", "unseen": "rank correlation with the error, of the loss on other points",
    "unseen, lowest": "lowest", "loss": "of the loss", "loss, lowest": "lowest",
    "stopped, warned": "error stopped: warned", "falling, warned": "error still falling: warned",
}  # fmt: skip


def page(content: Row) -> str:
    """What docs/pinns.md says of it."""
    return "\n\n".join((markdown(content["settings"]["summary"], HEADS), f"<sub>{machine(content)}</sub>"))


def main() -> None:
    asked = arguments("pinn.parted", __doc__, 2, EQUATIONS)
    torch.set_num_threads(1)
    rows = []
    names, shares = (asked.problems[:1], SHARES[1:2]) if asked.quick else (asked.problems, SHARES)
    with counter("fits", len(names) * len(shares) * len(WAYS) * asked.seeds, asked.progress) as count:
        for seed in range(asked.seeds):
            for name in names:
                for share in shares:
                    for way in WAYS:
                        rows.append(run(EQUATIONS[name], share, way, seed, asked.quick))
                        count(f"{name}, {share:g} of the points, {way}")
    lines = summarized(rows)
    settings = {"quick": asked.quick, "seconds": SECONDS, "summary": lines}
    path = records.write(asked.out, "pinn.parted", settings, rows, range(asked.seeds))
    print(records.table(lines, HEADS), f"written: {path}", sep="\n")


if __name__ == "__main__":
    main()
