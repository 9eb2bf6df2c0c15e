"""What each part of the wrapper, and of a jump, is worth: whole runs with one thing changed.

python -m experiments.ablation [--quick] [--problems N] [--minutes M] [--only PART] [--out DIR]

Random problems by number, and the digits and energy tasks; one thread, equal effective steps, over bare runs. Forecast,
tolerance, moments and actions are varied on full batches; batches on the same problems in smaller ones, by default and
with all of the run as the budget of tries that lose; acceptance on minibatches of n/2 along an objective of n/2
samples, drawn anew at each try.
OUT/rows.jsonl grows as in experiments.skipping.

The part "jumps" is about jumps themselves, on a regression, a classification and a differential equation: basis, depth,
metric, gate, second order, order of searches, batch size, at equal gradient evaluations; in OUT/jumps, by --seeds.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

import jumpstart as js
from jumpstart.report import plots, records
from jumpstart.report.records import Row

from . import training
from .jump_parts import run as jump_parts
from .pages import machine, markdown
from .random_problems import ledger
from .random_problems.ledger import Ledger, Options
from .random_problems.problems import Data, Problem, problem
from .random_problems.runs import Batches, Finished, Run, bare, recorded, spent
from .random_problems.tables import WORSE, against, faults, median, tried
from .random_problems.variants import CHANGES, FROZEN, RESET, Moments, replaced

PROBLEMS, TOY = 300, 1
STEPS, TOY_STEPS = 200, 40
LEAST = 32  # samples of a problem, so that an eighth of them is a minibatch
TASKS = ("digits", "energy")  # of experiments.training
BARE, DEFAULT = "bare", "as it is"
PARTS = ("forecast", "tolerance", "moments", "actions", "batches", "acceptance")
JUMPS = "jumps"  # the part that is about jumps themselves
SHARES = {"n": 1, "n/2": 2, "n/8": 8, "n/32": 32}


# ---- problems --------------------------------------------------------------------------------------------------------


def of_task(name: str) -> tuple[Problem, Callable[[], Run]]:
    """A task of experiments.training, full batch, as a problem with a run."""
    task = training.TASKS[name]
    found = task.data()
    loss = "mse" if task.loss == "mse" else "cross_entropy"
    of = replace(
        problem(0), number=-1 - TASKS.index(name), network=name, loss=loss, optimizer="Adam", rate=task.rate, decay=0.0,
        samples=len(found.x), batch=len(found.x), dtype="float32",
    )  # fmt: skip

    def make() -> Run:
        torch.manual_seed(0)
        model = task.network(found)
        optimizer = torch.optim.Adam(model.parameters(), lr=task.rate)
        return Run(of, Data(found.x, found.y, found.xt, found.yt), model, optimizer, Batches(of, 0))

    return of, make


def full(number: int) -> Problem:
    """A random problem whose steps see all samples."""
    of = problem(number)
    return replace(of, batch=of.samples)


# ---- runs ------------------------------------------------------------------------------------------------------------


def variants() -> dict[str, dict[str, dict[str, Any]]]:
    """Part -> name -> options of the wrapper; what is in ``CHANGES`` by name as well, or a policy of moments."""
    return {
        "forecast": {
            name: {} for name in ("predicted, not corrected", "1 secant", "2 secants", "5 secants", "8 secants")
        },
        "tolerance": {f"tolerance {value:g}": {"tolerance": value} for value in (0.1, 0.4)},
        # Of skips of 20 steps: after one to the end of the run nobody asks for moments.
        "moments": {name: {"skip": 20} for name in ("as replayed", FROZEN, RESET)},
        "actions": {
            **{f"skips, {name}": {"actions": ("skip", name)} for name in ("line", "trajectory", "average", "head")},
            "all five": {"actions": ("skip", "line", "trajectory", "average", "head")},
            "all but skips": {"actions": ("line", "trajectory", "average", "head")},
        },
        "acceptance": {name: {} for name in ("others: any fall of the mean", "the same samples: any fall")},
    }


def plain(make: Callable[[], Run], steps: int) -> Finished:
    """The loop as it is."""
    run = make()
    for _ in range(steps):
        run.step()
    return Finished(run.losses(), steps, steps, float(steps), float(steps), run.seconds)


def wrapped(make: Callable[[], Run], steps: int, name: str, options: dict[str, Any], sampled: bool) -> Finished:
    """The loop in a wrapper with something changed; ``sampled`` for an objective of half of the samples at a time."""
    run = make()
    of = run.problem
    moments = Moments(name) if name in (FROZEN, RESET) else None
    if moments is not None:
        moments.watch(run.optimizer)
    if not of.full:
        options = {"batch": of.batch, **options}
    begun = time.process_time()
    with recorded() as said, replaced(*CHANGES.get(name, ())):
        objective = halves(run) if sampled else run.objective()
        optimizer = run.optimizer = js.JumpOptimizer(run.optimizer, objective, on_jump=moments, **options)
        for _ in optimizer.steps(steps):
            run.step()
    share = (of.samples // 2 if sampled else of.samples) / of.batch
    seconds = time.process_time() - begun
    return Finished(
        run.losses(), optimizer.effective_steps, optimizer.taken, spent(optimizer, share), math.nan, seconds,
        optimizer.jumps, sum(result.accepted for result in optimizer.results), {}, said,
    )  # fmt: skip


def halves(run: Run) -> Callable[[], js.Objective]:
    """Half of the samples, drawn anew at each call."""
    generator, n = torch.Generator().manual_seed(run.problem.seed("halves")), run.problem.samples

    def make() -> js.Objective:
        rows = torch.randperm(n, generator=generator)[: n // 2]
        return js.supervised(run.model, run.data.x[rows], run.data.y[rows], run.problem.loss)

    return make


def measure(of: Problem, make: Callable[[], Run], steps: int, parts: Sequence[str]) -> Row:
    """All variants of the parts that were asked for, and what they are held against."""
    table, jobs = variants(), {}
    for part in parts:
        if part not in ("batches", "acceptance"):
            for name, options in table[part].items():
                jobs[f"{part}: {name}"] = lambda name=name, options=options: wrapped(make, steps, name, options, False)
    jobs[DEFAULT] = lambda: wrapped(make, steps, DEFAULT, {}, False)
    jobs[BARE] = lambda: plain(make, steps)
    if of.number >= 0:  # tasks are full-batch alone
        jobs |= smaller(of, steps, parts)
    order = list(jobs)
    random.Random(of.number).shuffle(order)
    found = {name: tried(jobs[name]) for name in order}
    return {**of.told, "length": steps, "start": asdict(make().losses()), "arms": {name: found[name] for name in jobs}}


def smaller(of: Problem, steps: int, parts: Sequence[str]) -> dict[str, Callable[[], Finished]]:
    """The same problem in minibatches."""
    jobs: dict[str, Callable[[], Finished]] = {}
    for says, divisor in SHARES.items():
        part = replace(of, batch=max(1, of.samples // divisor))
        start = lambda part=part: Run.start(part)  # noqa: E731
        if "batches" in parts and divisor > 1:
            jobs[f"batches: {says}"] = lambda start=start: wrapped(start, steps, DEFAULT, {}, False)
            jobs[f"batches: {says}{FREE}"] = lambda start=start: wrapped(start, steps, DEFAULT, {"budget": 1.0}, False)
        if "acceptance" in parts and divisor == 2:
            for name in (ONE_SIDED, *variants()["acceptance"]):
                jobs[f"acceptance: {name}"] = lambda start=start, name=name: wrapped(start, steps, name, {}, True)
        if divisor > 1 and any(f"{part_}: " in name for name in jobs for part_ in ("batches", "acceptance")):
            jobs[f"{BARE}, {says}"] = lambda part=part: bare(part, steps)
    return jobs


ONE_SIDED, FREE = "others: one-sided test", ", budget=1"


# ---- tables ----------------------------------------------------------------------------------------------------------


def reference(arm: str) -> str:
    """The bare run that an arm is held against."""
    if arm.startswith("batches: "):
        return f"{BARE}, {arm.removeprefix('batches: ').removesuffix(FREE)}"
    return f"{BARE}, n/2" if arm.startswith("acceptance: ") else BARE


def summarized(rows: Sequence[Row]) -> list[Row]:
    """The table: a line a variant."""
    arms = {name: None for row in rows for name in row["arms"] if not name.startswith(BARE)}
    parts = {part: at for at, part in enumerate((DEFAULT, *PARTS))}
    found = []
    for arm in sorted(arms, key=lambda name: parts[name.split(": ")[0]]):
        same = [row for row in rows if arm in row["arms"] and "error" not in row["arms"][reference(arm)]]
        usable = [row for row in same if "error" not in row["arms"][arm]]
        pairs = [(row["arms"][arm], row["arms"][reference(arm)]) for row in usable]
        ratios = [against(mine, base, row["start"]) for (mine, base), row in zip(pairs, usable, strict=True)]
        train, held = ([r[i] for r in ratios if not math.isnan(r[i])] for i in (0, 1))
        found.append({
            "part": arm.split(": ")[0], "variant": arm.split(": ", 1)[-1], "problems": len(same),
            "errors": len(same) - len(usable),
            "evaluations": median(a["evaluations"] / b["evaluations"] for a, b in pairs),
            "seconds": median(a["seconds"] / b["seconds"] for a, b in pairs),
            "skipped": median(1 - a["taken"] / a["effective"] for a, _ in pairs),
            "train": exp(median(train)), "held": exp(median(held)), "held, 90%": exp(median(held, 0.9)),
            "worse": sum(v > WORSE for v in held), "better": sum(v < -WORSE for v in held),
            "kept": sum(a["kept"] for a, _ in pairs), "tries": sum(a["tries"] for a, _ in pairs),
        })  # fmt: skip
    return found


def exp(value: float | None) -> float | None:
    return None if value is None else math.exp(value)


def page(content: Row) -> str:
    """What docs/benchmarks.md says of it."""
    found = content["settings"]["summary"]
    return "\n\n".join(
        (
            f"{found['problems']} problems, {content['settings']['steps']} steps; medians of ratios to the bare run's "
            "(of the same batch), numbers of problems:",
            markdown(found["lines"], COLUMNS),
            "![costs and held-out losses by variant](results/ablation/ablation.png)",
            f"<sub>{machine(content)}</sub>",
        )
    )


def picture(rows: Sequence[Row]) -> Any:
    """Evaluations over the bare run's against the share of runs that end worse; a dot a variant."""
    lines = summarized(rows)
    figure, axes = plots.pyplot().subplots(1, 2, figsize=(9.6, 0.26 * len(lines) + 1.4), sharey=True)
    names = [line["variant"] if line["part"] in (DEFAULT, "tolerance") else f"{line['part']}: {line['variant']}"
             for line in lines]  # fmt: skip
    for i, line in enumerate(lines):
        arm = line["variant"] if line["part"] == DEFAULT else f"{line['part']}: {line['variant']}"
        colour = plots.COLOURS[(DEFAULT, *PARTS).index(line["part"]) % len(plots.COLOURS)]
        usable = [row for row in rows if arm in row["arms"] and "error" not in row["arms"][arm]]
        pairs = [(row["arms"][arm], row["arms"][reference(arm)], row["start"]) for row in usable]
        costs = [a["evaluations"] / b["evaluations"] for a, b, _ in pairs]
        held = [r for r in (against(a, b, start)[1] for a, b, start in pairs) if math.isfinite(r)]
        for axis, values in ((axes[0], costs), (axes[1], held)):
            middle = [median(values, share) for share in (0.1, 0.5, 0.9)]
            axis.plot([middle[0], middle[2]], [i, i], color=colour, linewidth=1)
            axis.plot(middle[1], i, "o", color=colour)
    axes[0].set(xlabel="evaluations over the bare run's")
    axes[1].set(xlabel="log ratio of held-out losses")
    axes[0].set_yticks(range(len(names)), names, fontsize=7)
    axes[0].invert_yaxis()
    for axis, at in zip(axes, (1.0, 0.0), strict=True):
        axis.axvline(at, color="grey", linewidth=1)
    figure.tight_layout()
    return figure


COLUMNS = {
    "part": "", "variant": "variant", "problems": "problems", "evaluations": "evaluations", "seconds": "seconds",
    "skipped": "skipped", "train": "train", "held": "held out", "held, 90%": "90%", "worse": "> 10% worse",
    "better": "better", "kept": "kept", "tries": "tries", "errors": "errors",
}  # fmt: skip


def jobs(asked: Options) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The tasks, where they are to be had, and random problems that are large enough."""
    steps, parts = (TOY_STEPS if asked.quick else STEPS), tuple(part for part in asked.only if part != JUMPS)
    if not parts:
        return
    if not asked.quick:
        for name in TASKS:
            yield f"{name} {steps} {parts}", lambda name=name: measure(*of_task(name), steps, parts)
    numbers = (number for number in range(asked.numbers.start, asked.numbers.start + 100 * PROBLEMS))
    wanted = (number for number in numbers if problem(number).samples >= LEAST)
    for _, number in zip(range(asked.problems), wanted, strict=False):
        of = full(number)
        yield f"{number} {steps} {parts}", lambda of=of: measure(of, lambda: Run.start(of), steps, parts)


def main() -> None:
    seeds = (jump_parts.SEEDS, "starts of each kind of problem, for the part jumps; one run a problem otherwise")
    asked = ledger.options("ablation", __doc__, PROBLEMS, TOY, seeds, (*PARTS, JUMPS))
    torch.set_num_threads(1)
    if JUMPS in asked.only:
        path = jump_parts.run(asked.out / JUMPS, asked.seeds, asked.quick, asked.progress or False)
        print(f"{jump_parts.told(records.read(path.parent)['rows'])}\n\nwritten: {path}")
        if asked.only == (JUMPS,):
            return
    book = Ledger(asked.out, ledger.sources(sys.modules[__name__], sys.modules[Moments.__module__], training))
    if book.others:
        print(f"{book.path}: {book.others} lines of other sources are left out")
    wrapped(lambda: Run.start(full(0)), 30, DEFAULT, {}, False)  # what is imported at first steps is nobody's time
    rows = ledger.work(book, jobs(asked), asked)
    summary = {"problems": len(rows), "lines": summarized(rows), "faults": faults(rows)}
    settings = {
        "quick": asked.quick, "problems": asked.problems, "steps": TOY_STEPS if asked.quick else STEPS,
        "sources": book.source, "summary": summary,
    }  # fmt: skip
    path = records.write(asked.out, "ablation", settings, rows, range(1))
    content = records.read(asked.out)
    lines, troubles = content["settings"]["summary"]["lines"], content["settings"]["summary"]["faults"]
    print(f"{len(rows)} problems; medians of ratios to the bare run's, numbers of problems")
    print(records.table(lines, COLUMNS))
    if troubles:
        print(f"\nfaults of the library\n{records.table(troubles, {key: key for key in troubles[0]})}")
    _, trouble = plots.drawn(lambda: picture(content["rows"]), asked.out / "ablation.png")
    print("\n".join([*filter(None, [trouble]), f"\nwritten: {path}"]))


if __name__ == "__main__":
    main()
