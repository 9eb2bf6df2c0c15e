"""Double descent: where the noise in the targets goes as a network grows past as many weights as samples.

python -m experiments.double_descent [--quick] [--seeds N] [--out DIR]

60 samples of a smooth function of 8 numbers with Gaussian noise; tanh networks with one hidden layer, both layers
trained, and random features, of which the readout alone is (there the kernel stands still: a control). Each is
trained twice from the same weights, with the noise and without it: the difference of the errors at 100 queries is
the excess that the noise makes. Both runs are recorded, and the noise is sent through either's operators; those of the
clean run have never seen it, and foretell. Nothing is read off from operators that by their own identities are off by
more than 5%, after recording every step, too (a rule made after the first run, where one of them was off 10⁷ times).

The account, and what refutes it, is ACCOUNT below: it was written before the runs, and the settings were chosen on
seeds 100 to 102 for a visible peak alone. Two readings of "the noise ends in the reservoir" are told apart: trapped
there (it was not learned), and invisible (it was learned, and the queries do not see it).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from .anatomy import VERDICT, Claim, Training, banded, faithful, judged, paired, ranked, seldom, smooth, told
from .common import arguments, legend_below, plain_ticks, spread

SAMPLES, QUERIES, INPUTS, NOISE = 60, 100, 8, 0.7
NETWORK, FEATURES = "network", "random features"
WIDTHS = {NETWORK: (2, 4, 6, 8, 12, 30, 100), FEATURES: (16, 32, 48, 60, 80, 140, 500)}
TRAININGS = {
    NETWORK: Training(1500, every=2, until=1e-12),
    FEATURES: Training(2000, share=0.5, every=100),  # the Jacobian stands still
}
ACCOUNT = (
    Claim("peak", "the noise that queries see peaks where the test error does: widths between the peaks", most=1),
    Claim("rank", "rank correlation of the seen noise with the excess of the test error, all widths and seeds", 0.8),
    Claim("size", "from as many weights as samples on: excess over seen noise, median", 0.5, 2.0),
    Claim("forecast", "rank correlation of what the clean run's operators pass on of the noise with the excess", 0.7),
    Claim("trapped", "noise in the reservoir, widest less peak: it is trapped there again beyond the peak", 0.1),
    Claim("invisible", "invisible share of the noise, widest less peak: it is hidden again beyond the peak", 0.1),
)


def model(family: str, width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, 1)).double()
    if family == FEATURES:
        net[0].requires_grad_(False)
    return net


def middle(rows: Sequence[Row], key: str) -> dict[int, float]:
    """Medians over seeds, by width."""
    kept = faithful(rows, key)
    return {w: median(row[key] for row in kept if row["width"] == w) for w in sorted({row["width"] for row in kept})}


def agreement(rows: Sequence[Row], key: str) -> float:
    """Rank correlation of what operators say with the excess."""
    kept = faithful(rows, key)
    return ranked([row[key] for row in kept], [row["excess"] for row in kept])


def measured(rows: Sequence[Row]) -> dict[str, float]:
    """What the claims are about, of one family."""
    test, seen = middle(rows, "test"), middle(rows, "seen")
    widths = list(test)
    top = max(test, key=test.__getitem__)
    apart = abs(widths.index(top) - widths.index(max(seen, key=seen.__getitem__)))
    beyond = [row["excess"] / row["seen"] for row in faithful(rows, "seen") if row["weights"] >= SAMPLES]
    reservoir, invisible = middle(rows, "reservoir"), middle(rows, "invisible")
    return {
        "peak": float(apart), "rank": agreement(rows, "seen"), "size": median(beyond) if beyond else float("nan"),
        "forecast": agreement(rows, "foretold"),
        "trapped": reservoir[widths[-1]] - reservoir[top], "invisible": invisible[widths[-1]] - invisible[top],
    }  # fmt: skip


COLUMNS = {
    "family": "", "width": "width", "weights": "weights", "loss": "training loss", "test": "test error",
    "clean": "without noise", "excess": "excess", "seen": "noise seen", "foretold": "foretold by the clean run",
    "true learned": "true learned", "learned": "noise learned", "reservoir": "noise in the reservoir",
    "invisible": "noise invisible", "quadrature": "operators' error",
}  # fmt: skip


def summarized(rows: Sequence[Row]) -> list[Row]:
    """A line for each family and width: medians over seeds, and of the excess and its forecasts the ranges as well."""
    found = []
    for family, width in dict.fromkeys((row["family"], row["width"]) for row in rows):
        same = [row for row in rows if (row["family"], row["width"]) == (family, width)]
        line: Row = {"family": family, "width": width, "weights": same[0]["weights"]}
        for key in COLUMNS.keys() - line.keys():
            values = [row[key] for row in faithful(same, key)]
            line[key] = median(values) if values else None
        line["ranges"] = {key: spread([row[key] for row in same]) for key in ("test", "excess", "seen")}
        found.append(line)
    return found


def page(content: Row) -> str:
    """For docs/trajectory.md."""
    return told(content, COLUMNS, "family")


def picture(rows: Sequence[Row]) -> Any:
    """A row a family: errors; the excess and what the operators say of it; where the noise is."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    figure, axes = plots.pyplot().subplots(
        len(families), 3, figsize=(11.5, 3.1 * len(families) + 0.8), squeeze=False, layout="constrained"
    )
    errors = (
        ("test", "test error", 0),
        ("clean", "test error, trained without noise", 1),
        ("loss", "training loss", 7),
    )
    seen = (("excess", "excess that the noise makes", 6), ("seen", "noise that queries see, ‖G g‖²/m", 0),
            ("foretold", "the same by the clean run's operators", 2))  # fmt: skip
    shares = (("learned", "noise learned", 3), ("reservoir", "noise in the reservoir (less than half learned)", 1),
              ("invisible", "noise invisible to queries", 4))  # fmt: skip
    for line, family in zip(axes, families, strict=True):
        own = [row for row in rows if row["family"] == family]
        for axis, curves in zip(line, (errors, seen, shares), strict=True):
            for key, label, colour in curves:
                style: Row = {"color": plots.COLOURS[colour], "label": label, "linewidth": 1.5, "marker": "."}
                banded(axis, faithful(own, key), "weights", key, **style)
            axis.axvline(SAMPLES, color="grey", linewidth=0.8, linestyle=":", label="as many weights as samples")
            axis.set(xscale="log", xlabel="weights trained")
            plain_ticks(axis.xaxis)
        line[0].set(yscale="log", ylim=(1e-3, None), ylabel="mean squared error", title=f"{family}: errors")
        line[1].set(yscale="log", ylim=(0.05, None), title="excess error, and the noise that is seen")
        line[2].set(ylim=(-0.03, 1.03), ylabel="share of the noise", title="where the noise went")
    figure.suptitle("Double descent: test error across widths, the noise that queries see, and where the noise is")
    legend_below(figure, 3)
    return figure


def main() -> None:
    asked = arguments("double_descent", __doc__, 3)
    torch.set_num_threads(1)
    rows: list[Row] = []
    families = {name: widths[1::5] if asked.quick else widths for name, widths in WIDTHS.items()}
    with counter("runs", asked.seeds * sum(map(len, families.values())), asked.progress) as count:
        for seed in range(asked.seeds):
            task = smooth(SAMPLES, QUERIES, INPUTS, NOISE, seed)
            for family, widths in families.items():
                of = TRAININGS[family]
                training = Training(60, of.share, of.momentum, of.every) if asked.quick else of
                for width in widths:
                    make = partial(model, family, width, seed)
                    rows += [
                        {"family": family, "width": width, "seed": seed, **row}
                        for row in paired(make, [task], training)
                    ]
                    count(f"{family}, width {width}, seed {seed}")
    verdicts = [
        {"family": family, **line}
        for family in families
        for line in judged(ACCOUNT, measured([row for row in rows if row["family"] == family]))
    ]
    summary = summarized(rows)
    settings = {
        "quick": asked.quick, "samples": SAMPLES, "queries": QUERIES, "inputs": INPUTS, "noise": NOISE,
        "trainings": {name: vars(of) for name, of in TRAININGS.items()}, "account": [c.told() for c in ACCOUNT],
        "verdicts": verdicts, "summary": summary, "left out": seldom(rows),
    }  # fmt: skip
    path = records.write(asked.out, "double_descent", settings, rows, range(asked.seeds))
    print(records.table(summary, COLUMNS), records.table(verdicts, {"family": "", **VERDICT}), sep="\n\n")
    _, trouble = plots.drawn(lambda: picture(rows), asked.out / "double_descent.png")
    print("\n".join([*filter(None, [trouble]), seldom(rows), f"written: {path}"]))


if __name__ == "__main__":
    main()
