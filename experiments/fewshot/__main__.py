"""Few samples a class on a sentence encoder: a solved head and a second stage without validation data, beside training.

python -m experiments.fewshot [--quick] [--seeds N] [--digits] [--out DIR]

Four tasks, samples and test drawn at random from all texts, 8 to 64 samples a class. The lower five layers of a
pretrained encoder are run once for all, the sixth and the head are learned. Seconds are of this process on one thread,
tuning included, states not. ``--digits`` instead learns digits that small networks have not seen.
"""

from __future__ import annotations

import copy
import sys
import time

import torch
import torch.nn.functional as F

from jumpstart.report import records
from jumpstart.report.records import Row
from jumpstart.utils.progress import track

from ..common import arguments
from ..texts import Texts
from . import digits
from .contenders import CONTENDERS
from .encoder import Encoder
from .summary import COLUMNS, goals, summary
from .tasks import TASKS, Embedder, Toy, drawn

SHOTS, TOY_SHOTS = (8, 24, 64), (8,)


def toy_texts() -> tuple[Texts, Texts]:
    """Three classes of nothing but a number."""
    return tuple(Texts([str(i) for i in range(n)], torch.arange(n) % 3) for n in (60, 90))  # pyright: ignore[reportReturnType]


def measure(embedder: Embedder, task: str, texts: tuple[Texts, Texts], shots: int, seed: int) -> list[Row]:
    """Everybody on one draw of a task's samples."""
    few, test = drawn(*texts, shots, seed)
    x, y, held, labels = embedder.states(few), few.labels, embedder.states(test), test.labels
    start = embedder.top(int(y.max()) + 1, seed)
    rows: list[Row] = []
    for name, contender in CONTENDERS.items():
        model = copy.deepcopy(start)
        begun = time.process_time()
        found = contender(model, x, y)
        seconds = time.process_time() - begun
        with torch.no_grad():
            u = found.model(held)
        rows.append({
            "task": task, "shots": shots, "seed": seed, "contender": name, "seconds": seconds,
            "accuracy": float((u.argmax(1) == labels).float().mean()), "loss": float(F.cross_entropy(u, labels)),
            **found.told, **found.later(),
        })  # fmt: skip
    return rows


def main() -> None:
    if "--digits" in sys.argv:
        sys.argv.remove("--digits")
        digits.main()
        return
    asked = arguments("fewshot", __doc__, 3)
    torch.set_num_threads(1)
    embedder: Embedder = Toy() if asked.quick else Encoder()
    texts = {"toy": toy_texts()} if asked.quick else {name: load() for name, load in TASKS.items()}
    shots = TOY_SHOTS if asked.quick else SHOTS
    jobs = [(seed, task, count) for seed in range(asked.seeds) for task in texts for count in shots]
    rows: list[Row] = []
    for seed, task, count in track(jobs, label="few shots") if asked.progress else jobs:
        rows += measure(embedder, task, texts[task], count, seed)
    found = summary(rows)
    settings = {"quick": asked.quick, "summary": found, "goals": goals(rows)}
    path = records.write(asked.out, "fewshot", settings, rows, range(asked.seeds))
    print(records.table(found, COLUMNS))
    for line in goals(rows):
        print(line["says"])
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
