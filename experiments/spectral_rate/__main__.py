"""A learning rate from the spectrum at the start, without a trial: 2/λmax(BK), a share of it, per layer; beside tuning.

python -m experiments.spectral_rate [--quick] [--seeds N] [--out DIR]

Gradient descent on the problem linearized at its start is stable up to η* = 2/λmax(BK), with heavy-ball momentum μ up
to (1 + μ) η*; per layer, 2/(L·λmax(BK_l)) for each of L layers is within that bound. λmax comes from DEPTH Lanczos
products, here of JᵀBJ. Three small problems; full batch, batches of 32, and full batch with momentum.

Arms, chosen on seeds from 100 on by held-out loss:
  spectrum, per layer: one share of the critical rate for each kind of training, the same for all problems, of SHARES.
  tuned: a rate for each problem and kind, of a grid of twelve: what a practitioner pays for.
  trials: the run's own short trials, which take as many gradients as the spectrum does, times one of FACTORS a kind.
  0.01: nobody's choice but the most common one.

What the account predicts, and what refutes it (medians over seeds, PREDICTIONS):
  edge: the largest stable rate of the real full-batch run is η* within a factor of 2, in every problem.
  loss: the spectrum's rate ends at most 10% above the tuned rate's held-out loss, in every problem, full batch.
  carried: where the problem changes (inputs three times as large, layers twice as wide) and rates are carried over, the
    spectrum's held-out loss is at most the tuned rate's, in the median of problems and changes.
"""

from __future__ import annotations

import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments
from . import summary
from .arms import DEPTH, EDGES, FACTORS, FIRST, GRID, SHARES, TUNERS, chosen, edge, reported
from .problems import BATCH, CHANGES, KINDS, PROBLEMS

STEPS = 150


def main() -> None:
    asked = arguments("spectral_rate", __doc__, 5)
    torch.set_num_threads(1)
    told = {"quick": asked.quick, "steps": 4 if asked.quick else STEPS}
    rows: list[Row] = []
    factors = {}
    kinds = list(KINDS)[:1] if asked.quick else list(KINDS)
    with counter("spectral rate", len(kinds) + asked.seeds, asked.progress) as count:
        for kind in kinds:
            factors[kind] = chosen(kind, **told)
            count(f"{kind}, tuning")
        for seed in range(asked.seeds):
            for kind in kinds:
                rows += reported(kind, "", seed, factors[kind], told)
            for change in list(CHANGES)[: 1 if asked.quick else None]:
                rows += reported("full batch", change, seed, factors["full batch"], told)
            rows += [edge(name, seed, **told) for name in PROBLEMS]
            count(f"seed {seed}")
    lines, verdicts = summary.lines(rows), summary.verdicts(rows)
    settings = {
        **told, "batch": BATCH, "depth": DEPTH, "shares": SHARES, "grid": GRID, "trial factors": FACTORS,
        "edges": EDGES, "tuning seeds": list(range(FIRST, FIRST + (1 if asked.quick else TUNERS))),
        "predictions": summary.PREDICTIONS, "chosen": factors, "summary": lines, "verdicts": verdicts,
    }  # fmt: skip
    path = records.write(asked.out, "spectral_rate", settings, rows, range(asked.seeds))
    print(records.table(lines, summary.HEADS), records.table(verdicts, summary.VERDICTS), sep="\n\n")
    drawn, trouble = plots.drawn(lambda: summary.picture(rows), asked.out / "spectral_rate.png")
    print(f"\nwritten: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"))


if __name__ == "__main__":
    main()
