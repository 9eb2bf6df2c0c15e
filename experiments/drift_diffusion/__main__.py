"""Minibatch runs from one start: mean displacement and variance by modes of the full-batch run's W_S.

python -m experiments.drift_diffusion [--quick] [--seeds N] [--out DIR]

A tanh network on noisy regression (squared loss), plain steps of a fortieth of the critical rate. The full-batch run is
recorded; modes are eigenvectors of its W_S, by the share of each that it has learned: channel (half and more),
reservoir (less than 5%), between. Then independent runs on batches drawn with replacement: their mean displacement
(drift) and variance (diffusion) in the outputs, for batch sizes, rates at the same flow time, and times.

What the account predicts, and what refutes it: summary.PREDICTIONS (medians over seeds). Where a prediction is of "each
group", one group outside of the band refutes it. The variance is also computed beforehand, from the covariance of
per-sample gradients on the full-batch run, carried by the propagators that are recorded there: no free number.

Beside it, without a prediction: the variance of tangent runs, to first order in the deviation of the weights, which
know what recorded operators leave out, that a deviation changes the kernel.

A first run at a tenth of the critical rate refuted all but "saturated" (docs/results/drift_diffusion/tenth): λmax grew
up to fourteenfold, the full-batch run itself passed 2/λmax, and the propagated variance exploded where the real one did
not. The rate was then chosen on seeds 100 and 101 so that the full-batch run stays stable; predictions are unchanged.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments
from . import summary
from .problem import NOISE, SHARE, TOY, Problem, Size
from .runs import CHANNEL, RESERVOIR, measured


def main() -> None:
    asked = arguments("drift_diffusion", __doc__, 5)
    torch.set_num_threads(1)
    size = TOY if asked.quick else Size()
    rows: list[Row] = []
    with counter("drift and diffusion", asked.seeds, asked.progress) as count:
        for seed in range(asked.seeds):
            rows += measured(Problem(seed, size), size, seed)
            count(f"seed {seed}")
    table = summary.lines(rows)
    verdicts = summary.verdicts(table)
    settings = {
        "quick": asked.quick, **asdict(size), "noise": NOISE, "share of the critical rate": SHARE,
        "channel": CHANNEL, "reservoir": RESERVOIR, "predictions": summary.PREDICTIONS, "summary": table,
        "verdicts": verdicts,
    }  # fmt: skip
    path = records.write(asked.out, "drift_diffusion", settings, rows, range(asked.seeds))
    print(records.table(table, summary.HEADS), records.table(verdicts, summary.VERDICTS), sep="\n\n")
    drawn, trouble = plots.drawn(lambda: summary.picture(rows), asked.out / "drift_diffusion.png")
    print(f"\nwritten: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"))


if __name__ == "__main__":
    main()
