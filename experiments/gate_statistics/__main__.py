"""How often gates open without a signal and stay shut before one, and what each known mistake does to that.

python -m experiments.gate_statistics [--quick] [--seeds N] [--out DIR]

Rates: exact and streaming statistics, the threshold corrected and as published, and the noise divided by b − 1 twice,
at signal-to-noise 0 to 2 of one batch's mean, b = 8 to 512: in closed form, of the optimizers on Gaussian samples, and
of the optimizers on a digits network's per-sample gradients. Then a reference with one mistake at a time. One thread.
"""

from __future__ import annotations

import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments
from ..label_noise.settings import TASKS
from . import rates, summary, traps


def main() -> None:
    asked = arguments("gate_statistics", __doc__, 3)
    torch.set_num_threads(1)
    task = TASKS["toy" if asked.quick else "digits"]
    batches = (8,) if asked.quick else rates.BATCHES
    coordinates = 40 if asked.quick else len(rates.SIGNALS) * rates.COORDINATES
    settled, looks = (20, 2) if asked.quick else (rates.SETTLED, rates.LOOKS)
    epochs = 2 if asked.quick else traps.EPOCHS
    rows: list[Row] = []
    with counter("gate statistics", 3 * asked.seeds, asked.progress) as count:
        for seed in range(asked.seeds):
            x, y = task.data()
            data = x[: task.count], y[: task.count]
            for source, draw in (
                ("gaussian", rates.gaussian(coordinates, seed)),
                ("network", rates.network(coordinates, seed, data, epochs=2 if asked.quick else 20)),
            ):
                rows += rates.rows(source, draw, seed, coordinates, batches, settled, looks)
                count(source)
            rows += traps.rows(task, seed, epochs, coordinates, settled, looks)
            count("traps")
    lines, cases = summary.rates(rows), summary.traps(rows)
    settings = {
        "quick": asked.quick, "coordinates": coordinates, "settled": settled, "looks": looks, "epochs": epochs,
        "rate": traps.RATE, "noise": traps.NOISE, "tokens": traps.TOKENS, "says": summary.says(lines), "rates": lines,
        "traps": cases,
    }  # fmt: skip
    path = records.write(asked.out, "gate_statistics", settings, rows, range(asked.seeds))
    print(records.table(summary.wide(lines), {key: key for key in summary.wide(lines)[0]}))
    print(settings["says"], records.table(cases, summary.CASES), sep="\n\n")
    drawn, trouble = plots.drawn(lambda: summary.picture(lines), asked.out / "gate_statistics.png")
    print(f"\nwritten: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"))


if __name__ == "__main__":
    main()
