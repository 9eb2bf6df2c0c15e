"""The step at which a run generalizes, foretold from recorded operators, from the norm of the weights, from neither.

python -m experiments.forecast [--quick] [--seeds N] [--out DIR]

Addition modulo 23, a quadratic network, full-batch AdamW; rate, decay and share of the table are drawn by the seed. The
forecast is made at three times the step of memorizing. Forecasts are fitted on 20 other runs (seeds from 100 on):
  constant: the geometric mean. first passage: T − T_mem = log(V_mem/V*) / (2κ·rate·decay), V = ‖θ‖², κ and V* fitted
  (arXiv:2605.18845, whose authors report 17.7% over 26 runs).
  settings: log T linear in log 1/(rate·decay) and log T_mem. norm, spectrum, held-out accuracy: one number more, which
  is chosen between three for norm and for spectrum, on the fitted runs. Spectrum: of operators recorded over the 20
  steps before the forecast (effective rank and largest eigenvalue of W_S, transfer ‖G_Q‖/‖D_S‖); it sees no held-out
  answer. "+ share": the same, knowing also the share of the table that is trained on; added after a first look at the
  results, and no part of the predictions.

What the account predicts, and what refutes it: forecasts.PREDICTIONS. Runs that generalize before the forecast, or not
within their budget, are counted and left out.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments
from . import forecasts
from .runs import BETAS, DECAYS, FITTED, LEARNED, MOMENT, RATES, SHARES, TOY, Size, run

FIRST, FITS = 100, 20


def main() -> None:
    asked = arguments("forecast", __doc__, 26)
    torch.set_num_threads(1)
    size, fits = (TOY, 6) if asked.quick else (Size(), FITS)
    rows: list[Row] = []
    with counter("forecast", fits + asked.seeds, asked.progress) as count:
        for seed in [*range(FIRST, FIRST + fits), *range(asked.seeds)]:
            rows.append(run(seed, size) | {"part": "fitted" if seed >= FIRST else "reported"})
            count(f"seed {seed}")
    fitted, told = (forecasts.usable([r for r in rows if r["part"] == part]) for part in ("fitted", "reported"))
    counts = {"fitted": len(fitted), "fitted, of": fits, "reported": len(told), "reported, of": asked.seeds}
    settings = {
        "quick": asked.quick, **asdict(size), "memorized at": FITTED, "generalized at": LEARNED, "moment": MOMENT,
        "betas": BETAS, "rates": RATES, "decays": DECAYS, "shares": SHARES, "predictions": forecasts.PREDICTIONS,
        "runs": counts,
    }  # fmt: skip
    table: list[Row] = []
    if told and len(fitted) > 5:  # a fit of four numbers with one run left out
        table = forecasts.lines(fitted, told, forecasts.chosen(fitted))
        verdicts = forecasts.verdicts(table)
        settings |= {"summary": table, "verdicts": verdicts}
        print(records.table(table, forecasts.HEADS), records.table(verdicts, forecasts.VERDICTS), sep="\n\n")
    path = records.write(asked.out, "forecast", settings, rows, range(asked.seeds))
    print(f"\n{counts}")
    print(f"written: {path}")
    if table:
        drawn, trouble = plots.drawn(lambda: forecasts.picture(told, table), asked.out / "forecast.png")
        print(f"written: {drawn}" if drawn else trouble)


if __name__ == "__main__":
    main()
