"""Weights pruned by membership in ker W_S: those that did least in the signal channel go first.

python -m experiments.pruning [--quick] [--seeds N] [--out DIR]

A tanh network on digits, trained with momentum along a record of 40 directions. A weight's energy in the channel is
what it moved for a unit of each of the channel's directions, squares summed. Rivals: random, magnitude, movement
|θ − θ₀|, saliency (θ² times the Gauss-Newton diagonal, as optimal brain damage); and energy times θ². Each ranking
chooses from four ways of being used on seeds from 100 on: all weights together or per layer, units of a layer, or for
the channel its tolerance. Pruned weights go to zero; to zero, and the others are trained on; or back to the start, as
an update that is sparse.

What the account predicts, and what refutes it: summary.PREDICTIONS.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments
from . import summary
from .runs import FIRST, SPARSITIES, TUNERS, chosen, reported
from .scores import MOMENTUM, RATE, TOY, Size, Trained


def main() -> None:
    asked = arguments("pruning", __doc__, 5)
    torch.set_num_threads(1)
    size, seeds = (TOY, range(FIRST, FIRST + 1)) if asked.quick else (Size(), range(FIRST, FIRST + TUNERS))
    rows: list[Row] = []
    with counter("pruning", 1 + asked.seeds, asked.progress) as count:
        picked = chosen([(seed, Trained(seed, size)) for seed in seeds])
        count("tuning")
        for seed in range(asked.seeds):
            rows += reported(seed, size, picked)
            count(f"seed {seed}")
    table, verdicts = summary.lines(rows), summary.verdicts(rows)
    settings = {
        "quick": asked.quick, **asdict(size), "rate": RATE, "momentum": MOMENTUM, "sparsities": SPARSITIES,
        "tuning seeds": list(seeds), "predictions": summary.PREDICTIONS, "summary": table, "verdicts": verdicts,
    }  # fmt: skip
    path = records.write(asked.out, "pruning", settings, rows, range(asked.seeds))
    print(records.table(table, summary.HEADS), records.table(verdicts, summary.VERDICTS), sep="\n\n")
    drawn, trouble = plots.drawn(lambda: summary.picture(rows), asked.out / "pruning.png")
    print(f"\nwritten: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"))


if __name__ == "__main__":
    main()
