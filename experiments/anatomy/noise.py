"""Where the noise went, by the operators of its own run and of a run without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from jumpstart.report.records import Row
from jumpstart.trajectory import Operators

from .runs import FAITHFUL, Task, Training, last

HALF = 0.5  # of the largest eigenvalue of W_S: what is less than half learned is the reservoir
FAINT = 1e-2  # of the square of G_Q's largest singular value: what is below is invisible


def learned(operators: Operators, part: Tensor) -> float:
    """The share of a gradient's energy that the run has taken away, for squared loss; 1 when all of it."""
    g, ceiling = part.reshape(-1), len(part) / 4  # ½ B⁻¹
    return float(g @ operators.dissipation @ g) / (ceiling * float(g @ g))


def passed(operators: Operators, part: Tensor) -> float:
    """Mean square of what a part of the targets does to the queries, over its own mean square."""
    g = -2 / len(part) * part.reshape(-1)
    return float((operators.transfer @ g).square().mean() / part.square().mean())


def anatomy(operators: Operators, noise: Tensor) -> Row:
    """Where the noise in the targets went."""
    half = operators.where(noise, HALF)
    faint = operators.where(noise, FAINT)
    kept = learned(operators, noise)
    true = operators.gradient + 2 / len(noise) * noise.reshape(-1)  # the part that is not −B·noise
    return {
        "true learned": learned(operators, true), "learned": kept, "trapped": 1 - kept,
        "reservoir": half.reservoir, "invisible": faint.invisible,
        "passed": passed(operators, noise), "rank": operators.rank(HALF), "effective rank": operators.effective_rank,
        "quadrature": operators.error,
    }  # fmt: skip


def paired(make: Callable[[], nn.Module], tasks: Sequence[Task], of: Training) -> list[Row]:
    """For each task a run with its noise, beside one run without: tasks differ in the noise alone.

    The excess of the test error is what the noise has made. seen: mean square of what the noise did to the queries, by
    the operators of its own run; foretold: by those of the run without, which has never met it.
    """
    clean = last(make, tasks[0], False, of)
    count = sum(p.numel() for p in make().parameters() if p.requires_grad)
    rows = []
    for task in tasks:
        noisy = last(make, task, True, of)
        variance = float(task.noise.square().mean())
        found = anatomy(noisy.operators, task.noise)
        rows.append(
            {
                "weights": count,
                "variance": variance,
                "loss": noisy.loss,
                "test": noisy.test,
                "clean": clean.test,
                "excess": noisy.test - clean.test,
                **found,
                "seen": variance * found["passed"],
                "foretold": variance * passed(clean.operators, task.noise),
                "clean quadrature": clean.operators.error,
            }
        )
    return rows


def faithful(rows: Sequence[Row], key: str) -> list[Row]:
    """Rows whose operators may be asked for ``key``: those of the run without noise where that is foretold."""
    error = "clean quadrature" if key == "foretold" else "quadrature"
    return [row for row in rows if row[error] <= FAITHFUL]


def seldom(rows: Sequence[Row]) -> str:
    """How many rows the operators of which are not asked, in words."""
    lacking = {key: len(rows) - len(faithful(rows, key)) for key in ("seen", "foretold")}
    return (
        f"operators off by more than {FAITHFUL:.0%}, left out: {lacking['seen']} of {len(rows)} runs with noise, "
        + (f"{lacking['foretold']} of those without")
    )
