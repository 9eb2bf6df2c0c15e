"""Is a wrapped run ever worse than the user's own loop, beyond what another seed does? A thousand random problems.

python -m experiments.never_worse [--quick] [--problems N] [--minutes M] [--out DIR]

Bare against the default wrapper from the same weights along the same minibatches: at equal effective steps, and when
as many gradient evaluations are spent. Noise is what bare runs of other seeds do: other minibatches, or other weights
where every step sees all samples. A problem's band is the largest of these log ratios, either way, but at least 1%.
Held against the same band: "bare, as far as that", which takes as many steps as the wrapped run at equal budget came;
"placebo", a bare run of one more seed; "nudged", a bare run of the same seed whose weights are changed by a thousandth
at the start: what next to nothing does to it. OUT/rows.jsonl grows as in experiments.skipping.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from jumpstart.report import plots, records
from jumpstart.report.records import Row

from .random_problems import ledger
from .random_problems.ledger import Ledger, Options
from .random_problems.pictures import ordered, ratio_axis
from .random_problems.problems import Problem, problem
from .random_problems.runs import NUDGE, Finished, Run, bare, wrapped
from .random_problems.tables import TWICE, WORSE, against, batch, faults, median, tried

PROBLEMS, TOY = 1000, 4
LENGTHS, TOY_LENGTHS = (100, 200, 400), (60,)
NOISE = 3  # other seeds of each bare run
FURTHEST = 4  # times as many effective steps, at most, in a run at equal budget
LEAST = math.log(1.01)  # of a band
BARE, STEPS, BUDGET, PLACEBO, NUDGED = "bare", "equal effective steps", "equal budget", "placebo", "nudged"
FURTHER = "bare, as far as that"
SHOWN = (STEPS, BUDGET, FURTHER, PLACEBO, NUDGED)
SIDES = ("training", "held out")


def measure(of: Problem, length: int, noise: int) -> Row:
    """All arms on one problem, and the losses that bare runs of other seeds end at."""
    arms: dict[str, Callable[[], Finished]] = {
        BARE: lambda: bare(of, length),
        STEPS: lambda: wrapped(of, length),
        BUDGET: lambda: wrapped(of, FURTHEST * length, budget=length),
        PLACEBO: lambda: other(of, length, noise + 1),
        NUDGED: lambda: bare(of, length, nudge=NUDGE),
    }
    order = list(arms)
    random.Random(of.number).shuffle(order)  # who goes first is nobody's advantage
    found = {arm: tried(arms[arm]) for arm in order}
    # At equal budget the wrapped run is further on: what its held-out loss is worth, a bare run as long tells.
    found[FURTHER] = (
        tried(lambda: bare(of, found[BUDGET]["effective"])) if "error" not in found[BUDGET] else found[BUDGET]
    )
    seeds = [asdict(other(of, length, seed).losses) for seed in range(1, noise + 1)]
    start = asdict(Run.start(of).losses())
    return {
        **of.told,
        "length": length,
        "start": start,
        "arms": {arm: found[arm] for arm in (BARE, *SHOWN)},
        "noise": seeds,
    }


def other(of: Problem, length: int, seed: int) -> Finished:
    """A bare run of another seed: of the minibatches' order, or of the weights where there are none."""
    return bare(of, length, replica=seed) if of.full else bare(of, length, order=seed)


def ratios(row: Row, arm: str) -> tuple[float, float]:
    """log ratios of training and held-out loss to the bare run's."""
    return against(row["arms"][arm], row["arms"][BARE], row["start"])


def bands(row: Row) -> tuple[float, float]:
    """What noise does to the training loss and to the held-out loss, as log ratios."""
    found = [against({"losses": losses}, row["arms"][BARE], row["start"]) for losses in row["noise"]]
    return (max(LEAST, *(abs(r[0]) for r in found)), max(LEAST, *(abs(r[1]) for r in found)))


def usable(rows: Sequence[Row], arm: str) -> list[Row]:
    """Rows where the arm has an answer and the bare run did not diverge."""
    return [row for row in rows if "error" not in row["arms"][arm] and not any(map(math.isnan, ratios(row, arm)))]


def summarized(rows: Sequence[Row]) -> list[Row]:
    """A line for minibatch or full, an arm, and training or held-out loss."""
    lines = []
    for way in ("full", "minibatch"):
        for arm in SHOWN:
            same = usable([row for row in rows if batch(row) == way], arm)
            for side, name in enumerate(SIDES):
                if same:
                    lines.append({"batch": way, "arm": arm, "loss": name, **_line(same, arm, side)})
    return lines


def _line(rows: Sequence[Row], arm: str, side: int) -> Row:
    values = [ratios(row, arm)[side] for row in rows]
    above = [value - bands(row)[side] for value, row in zip(values, rows, strict=True)]
    below = [value + bands(row)[side] for value, row in zip(values, rows, strict=True)]
    costs = [(row["arms"][arm], row["arms"][BARE]) for row in rows]
    return {
        "problems": len(rows), "median": median(values), "10%": median(values, 0.1), "90%": median(values, 0.9),
        "most": max(values), "worse": sum(v > WORSE for v in values), "better": sum(v < -WORSE for v in values),
        "twice": sum(v > TWICE for v in values),
        "beyond": sum(v > 0 for v in above), "ahead": sum(v < 0 for v in below),
        "effective": median(a["effective"] / b["effective"] for a, b in costs),
        "evaluations": median(a["evaluations"] / b["evaluations"] for a, b in costs),
        "seconds": median(a["seconds"] / b["seconds"] for a, b in costs),
    }  # fmt: skip


def both(rows: Sequence[Row]) -> list[Row]:
    """Problems that are worse beyond noise in training and in held-out loss at once, and in either."""
    lines = []
    for arm in SHOWN:
        same = usable(rows, arm)
        over = [[r > band for r, band in zip(ratios(row, arm), bands(row), strict=True)] for row in same]
        counts = {"both": sum(all(o) for o in over), "either": sum(any(o) for o in over)}
        lines.append({"arm": arm, "problems": len(same), **counts})
    return lines


def worst(rows: Sequence[Row], count: int = 10) -> list[Row]:
    """Problems at equal effective steps that are furthest beyond their band."""
    lines = []
    for row in usable(rows, STEPS):
        for side, name in enumerate(SIDES):
            ratio, band = ratios(row, STEPS)[side], bands(row)[side]
            if ratio > band:
                kind = {key: row[key] for key in ("number", "network", "optimizer", "length")} | {"noise": band}
                lines.append({**kind, "task": row["loss"], "batch": batch(row), "loss": name, "log ratio": ratio})
    return sorted(lines, key=lambda line: line["noise"] - line["log ratio"])[:count]


def picture(rows: Sequence[Row]) -> Any:
    """Sorted ratios of both wrapped arms, over those of noise."""
    ways = [way for way in ("full", "minibatch") if any(batch(row) == way for row in rows)]
    figure, axes = plots.pyplot().subplots(
        len(ways), 2, figsize=(8.4, 2.9 * len(ways)), sharex=True, sharey=True, squeeze=False
    )
    for line, way in zip(axes, ways, strict=True):
        same = [row for row in rows if batch(row) == way]
        for side, axis in enumerate(line):
            noise = [
                against({"losses": losses}, row["arms"][BARE], row["start"])[side]
                for row in same
                for losses in row["noise"]
            ]
            at, values = ordered(noise)
            axis.fill_between(at, 0, values, color="0.85", linewidth=0, label="other seeds, bare")
            for colour, arm in zip(plots.COLOURS[1::-1], (BUDGET, STEPS), strict=True):
                at, values = ordered([ratios(row, arm)[side] for row in usable(same, arm)])
                axis.plot(at, values, color=colour, linewidth=1.6, label=f"wrapped, {arm}")
            at, values = ordered([ratios(row, FURTHER)[side] for row in usable(same, FURTHER)])
            axis.plot(at, values, color=plots.COLOURS[1], linewidth=1, linestyle=":", label=FURTHER)
            ratio_axis(axis)
            axis.set_title(
                f"{SIDES[side].replace(' ', '-')} loss, {'full batch' if way == 'full' else way} ({len(same)} problems)"
            )
        line[0].set_ylabel("loss over the bare run's")
    for axis in axes[-1]:
        axis.set_xlabel("share of problems, sorted")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


COLUMNS = {
    "batch": "batch", "arm": "", "loss": "loss", "problems": "problems", "median": "median", "10%": "10%", "90%": "90%",
    "most": "most", "worse": "> 10% worse", "better": "better", "twice": "2× worse", "beyond": "worse beyond noise",
    "ahead": "better beyond", "effective": "effective steps", "evaluations": "evaluations", "seconds": "seconds",
}  # fmt: skip
BOTH = {"arm": "worse beyond noise in", "problems": "problems", "both": "both losses", "either": "either"}


def main() -> None:
    asked = ledger.options("never_worse", __doc__, PROBLEMS, TOY, (NOISE, "other seeds that make a problem's noise"))
    torch.set_num_threads(1)
    book = Ledger(asked.out, ledger.sources(sys.modules[__name__]))
    if book.others:
        print(f"{book.path}: {book.others} lines of other sources are left out")
    rows = ledger.work(book, jobs(asked), asked)
    summary = {
        "problems": len(rows), "lines": summarized(rows), "both": both(rows), "worst": worst(rows),
        "faults": faults(rows),
    }  # fmt: skip
    settings = {
        "quick": asked.quick, "problems": asked.problems, "tuning": asked.tuning, "noise": asked.seeds,
        "sources": book.source, "summary": summary,
    }  # fmt: skip
    path = records.write(asked.out, "never_worse", settings, rows, range(asked.seeds + 1))
    content = records.read(asked.out)  # what is printed and drawn is what was written
    show(content["settings"]["summary"])
    _, trouble = plots.drawn(lambda: picture(content["rows"]), asked.out / "never_worse.png")
    print("\n".join([*filter(None, [trouble]), f"\nwritten: {path}"]))


def jobs(asked: Options) -> Iterator[tuple[str, Callable[[], Row]]]:
    """A problem each, of one of the lengths, in turn."""
    lengths = TOY_LENGTHS if asked.quick else LENGTHS
    for i, number in enumerate(asked.numbers):
        of, length = problem(number), lengths[i % len(lengths)]
        yield f"{number} {length} {asked.seeds}", lambda of=of, length=length: measure(of, length, asked.seeds)


def show(found: Row) -> None:
    """Print the tables."""
    print(f"{found['problems']} problems; log ratios of losses to the bare run's, cost over it (medians)")
    print(records.table(found["lines"], COLUMNS))
    print(f"\n{records.table(found['both'], BOTH)}")
    headings = {"worst": "furthest beyond noise at equal effective steps", "faults": "faults of the library"}
    for name, says in headings.items():
        if lines := found[name]:
            print(f"\n{says}\n{records.table(lines, {key: key for key in lines[0]})}")


if __name__ == "__main__":
    main()
