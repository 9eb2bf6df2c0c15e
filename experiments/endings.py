"""The end of a training run: a jump in place of the learning rate's decay, beside decays and averages of weights.

python -m experiments.endings --tuning [--seeds N] [--out DIR]      chooses options, by default for the other command
python -m experiments.endings [--quick] [--seeds N] [--minutes M] [--problems a,b] [--out DIR]

A run at constant rate (that of experiments.training) is continued, from when a share of its steps is left, by each
ending: what a jump costs is kept free of steps before it, so that all take the same time. Every ending has as many
options to choose from, on other seeds and a validation part of the training data. BatchNorm's statistics are computed
anew after each. One thread; seconds of the process.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.training.proposals import Average
from jumpstart.utils.progress import counter

from .common import Arguments, arguments, spread
from .loops.averages import EMA, KINDS, LAWA
from .loops.data import drawn, validation
from .pages import machine, markdown
from .random_problems.ledger import rounded
from .targets import FIRST
from .training import LOSSES, TASKS, Data, Task, digits, test

CHOSEN = Path(__file__).resolve().parent.parent / "docs" / "results" / "endings" / "tuning"
NAMES = ("cifar", "characters")
TOY = {"toy": Task(digits, lambda data: nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
                   "cross_entropy", 3e-3, 64, 40)}  # fmt: skip
SHARES = (0.1, 0.2)  # of the run that an ending has
CONSTANT, LINEAR, COSINE, AVERAGE = "constant rate", "linear decay", "cosine decay", "average action"
TRAJECTORY, SKIP, SEARCH, JUMP = "trajectory action", "skip along the mean gradient", "search=True", "js.jump"
# Three each. Decays: the factor they begin and end at. Averages: decay, or steps between weights. Others: samples.
DECAYS = ((1.0, 0.0), (1.0, 0.1), (2.0, 0.0))
INTERVALS = (5, 10, 25)
OPTIONS: dict[str, tuple[Any, ...]] = {
    CONSTANT: (None,), LINEAR: DECAYS, COSINE: DECAYS, EMA: (0.98, 0.99, 0.995), LAWA: INTERVALS, AVERAGE: INTERVALS,
    TRAJECTORY: (256, 512, 1024), SKIP: (512, 1024, 2048), SEARCH: (128, 256, 512), JUMP: (128, 256, 512),
}  # fmt: skip
OBSERVED = (CONSTANT, EMA, LAWA)  # need no steps of their own
BRANCHED = (LINEAR, COSINE, AVERAGE, TRAJECTORY, SKIP, SEARCH, JUMP)
SPARED = (SKIP, SEARCH, JUMP)  # moves at the very end, whose cost is kept free
LATER = 500  # steps: a skip at the end goes as far, or as long as windows pay
DEPTH = 6  # of the Krylov basis
WINDOW = 8  # samples that a window of characters, with its many predictions, counts as
STATISTICS = 2048  # samples that BatchNorm's statistics are computed from


@dataclass
class State:
    """A run on its way."""

    task: Task
    data: Data
    seed: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int

    def clone(self) -> State:
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        return State(self.task, self.data, self.seed, model, optimizer, self.step)

    def batches(self) -> Any:
        """The run's minibatches from here on."""
        return itertools.islice(drawn(self.data, self.task.batch, self.seed), self.step, None)

    def take(self, rows: Tensor, optimizer: Any = None) -> None:
        optimizer = self.optimizer if optimizer is None else optimizer
        optimizer.zero_grad()
        LOSSES[self.task.loss](self.model(self.data.x[rows]), self.data.y[rows]).backward()
        optimizer.step()

    def objectives(self, samples: int) -> Callable[[], js.Objective]:
        """Fresh samples at each call."""
        generator = torch.Generator().manual_seed(20_000 + self.seed)
        per = WINDOW if self.data.y.dim() > 1 else 1
        count = min(samples // per, len(self.data.x))

        def make() -> js.Objective:
            rows = torch.randperm(len(self.data.x), generator=generator)[:count]
            return js.supervised(self.model, self.data.x[rows], self.data.y[rows], loss=self.task.loss)

        return make

    def measured(self) -> dict[str, float]:
        """Test loss and accuracy, with BatchNorm's statistics computed anew."""
        refresh(self.model, self.data)
        return test(self.model, self.data, self.task.loss)


def refresh(model: nn.Module, data: Data) -> None:
    """BatchNorm's statistics as means over samples."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    kept = [(m, m.momentum) for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain mean
    with torch.no_grad():
        for part in data.x[:STATISTICS].split(256):
            model(part)
    for m, momentum in kept:
        m.momentum = momentum


def start(task: Task, data: Data, seed: int) -> State:
    torch.manual_seed(seed)
    model = task.network(data)
    return State(task, data, seed, model, torch.optim.Adam(model.parameters(), lr=task.rate), 0)


def trunk(state: State, options: dict[str, tuple[Any, ...]]) -> tuple[dict[float, State], float, list[Row]]:
    """The run at constant rate: where endings begin, its seconds a step, what it and averages along it end at."""
    steps = state.task.steps
    at = {round((1 - share) * steps): share for share in SHARES}
    parameters = list(state.model.parameters())
    averages = {(name, p): KINDS[name](parameters, p) for name in (EMA, LAWA) for p in options[name]}
    extra, branches, seconds = dict.fromkeys(averages, 0.0), {}, 0.0
    for rows in itertools.islice(state.batches(), steps):
        if state.step in at:
            branches[at[state.step]] = state.clone()
        begun = time.process_time()
        state.take(rows)
        seconds += time.process_time() - begun
        state.step += 1
        for key, average in averages.items():
            begun = time.process_time()
            average.step()
            extra[key] += time.process_time() - begun
    found: list[Row] = [{"ending": CONSTANT, "option": None, "time": 1.0, **state.clone().measured()}]
    for key, average in averages.items():
        other = state.clone()
        with torch.no_grad():
            torch._foreach_copy_(list(other.model.parameters()), average.weights())
        # All of the average's time is the ending's, though it goes on all along.
        over = {share: 1 + extra[key] / (share * seconds) for share in SHARES}
        found.append({"ending": key[0], "option": key[1], "time": max(over.values()), **other.measured()})
    return branches, seconds / steps, found


def factor(ending: str, option: tuple[float, float], done: float) -> float:
    """Of the rate, when a share of the ending is done."""
    first, last = option
    left = 0.5 * (1 + math.cos(math.pi * done)) if ending == COSINE else 1 - done
    return last + (first - last) * left


def decayed(state: State, ending: str, option: Any, count: int) -> Row:
    for i, rows in enumerate(itertools.islice(state.batches(), count)):
        for group in state.optimizer.param_groups:
            group["lr"] = state.task.rate * factor(ending, option, i / count)
        state.take(rows)
    return {}


def wrapped(state: State, ending: str, option: Any, count: int) -> Row:
    """Constant steps with an action, until as much work is done as ``count`` steps are."""
    samples = 512 if ending == AVERAGE else option
    proposal: Any = Average(every=count, interval=option) if ending == AVERAGE else "trajectory"
    optimizer = js.JumpOptimizer(
        state.optimizer, state.objectives(samples), actions=(proposal,), batch=state.task.batch
    )
    batches = state.batches()
    for _ in optimizer.steps(count):
        if ending == TRAJECTORY and optimizer.taken + work(optimizer.results) >= count:
            break
        state.take(next(batches), optimizer)
    return told(optimizer.results)


def work(results: Sequence[Any]) -> float:
    """What tries cost, in steps."""
    return sum(result.cost for result in results)


def told(results: Sequence[Any]) -> Row:
    return {"kept": sum(result.accepted for result in results), "outcomes": sorted(r.outcome.name for r in results)}


def spared(state: State, ending: str, option: Any, count: int, cost: float) -> Row:
    """Constant steps, then one move of all that is left."""
    for rows in itertools.islice(state.batches(), max(0, count - math.ceil(cost))):
        state.take(rows)
    state.optimizer.zero_grad()
    begun = time.process_time()
    objectives = state.objectives(option)
    if ending == SKIP:
        result: Any = js.skip(objectives(), state.optimizer, LATER)
    elif ending == JUMP:
        result = js.jump(objectives(), basis="krylov", depth=DEPTH)
    else:
        optimizer = js.JumpOptimizer(
            state.optimizer, objectives(), at=(), search=True, judge=objectives, basis="krylov", depth=DEPTH,
            budget=None,
        )  # fmt: skip
        result = optimizer.jump()
    return {**told([result]), "move": time.process_time() - begun, "moved": getattr(result, "steps", None)}


def finish(branch: State, ending: str, option: Any, share: float, step_seconds: float, cost: float) -> Row:
    """One ending from its branch."""
    state, count = branch.clone(), round(share * branch.task.steps)
    begun = time.process_time()
    if ending in (LINEAR, COSINE):
        found = decayed(state, ending, option, count)
    elif ending in SPARED:
        found = spared(state, ending, option, count, cost)
    else:
        found = wrapped(state, ending, option, count)
    spent = (time.process_time() - begun) / (count * step_seconds)
    if "move" in found:
        found["move"] /= step_seconds  # in steps
    return {"ending": ending, "option": option, "time": spent, **found, **state.measured()}


def task_of(name: str) -> Task:
    return TOY[name] if name in TOY else TASKS[name]


def measure(name: str, data: Data, seed: int, chosen: Row | None) -> list[Row]:
    """All endings of one run; with options chosen for each share, or all options of a tuning run."""
    task, head = task_of(name), {"task": name, "seed": seed}
    state = start(task, data, seed)
    branches, step_seconds, observed = trunk(state, OPTIONS)
    rows: list[Row] = []
    costs: dict[tuple[str, Any], float] = {}
    for share in SHARES:
        wanted = None if chosen is None else chosen[str(share)]
        for row in observed:
            if wanted is None or row["option"] == wanted[row["ending"]]["option"]:
                rows.append({**head, "share": share, **row})
        order = BRANCHED[seed % len(BRANCHED) :] + BRANCHED[: seed % len(BRANCHED)]
        for ending in order:
            options = OPTIONS[ending] if wanted is None else (wanted[ending]["option"],)
            for option in options:
                cost = 0.0 if wanted is None else wanted[ending]["cost"]
                if ending in SPARED and wanted is None:  # what it costs is seen once, and then kept free
                    if (ending, option) not in costs:
                        probe = finish(branches[share], ending, option, share, step_seconds, task.steps)
                        costs[ending, option] = probe["move"]
                    cost = costs[ending, option]
                row = finish(branches[share], ending, option, share, step_seconds, cost)
                rows.append({**head, "share": share, "cost": cost, **row})
    return rows


def choose(rows: Sequence[Row]) -> Row:
    """By share and ending, the option with the lowest loss, of those that the time allows (1.1 of it)."""
    choices: Row = {}
    for share in SHARES:
        found = choices[str(share)] = {}
        for ending in OPTIONS:
            same = [row for row in rows if row["share"] == share and row["ending"] == ending]
            by_option: dict[str, list[Row]] = {}
            for row in same:
                by_option.setdefault(str(row["option"]), []).append(row)
            in_time = [own for own in by_option.values() if spread([r["time"] for r in own])["median"] <= 1.1]
            # Where none is in time, the cheapest goes, and its time is told.
            best = (
                min(in_time, key=lambda own: spread([r["test loss"] for r in own])["median"])
                if in_time
                else min(by_option.values(), key=lambda own: spread([r["time"] for r in own])["median"])
            )
            cost = spread([row.get("cost", 0.0) for row in best])["median"]
            found[ending] = {"option": best[0]["option"], "cost": cost}
    return choices


def tune(asked: Arguments, names: Sequence[str]) -> None:
    seeds, rows = [FIRST + i for i in range(asked.seeds)], []
    with counter("tuning", len(names) * len(seeds), asked.progress) as count:
        for name in names:
            data = validation(task_of(name).data())
            for seed in seeds:
                rows += measure(name, data, seed, None)
                count(name)
    choices = {name: choose([row for row in rows if row["task"] == name]) for name in names}
    path = records.write(asked.out, "endings", {"choices": choices}, rounded(rows), seeds)
    heads = {key: key for key in ("task", "share", "ending", "option", "test loss", "accuracy", "time", "cost")}
    print(records.table([{**row, "option": str(row["option"])} for row in rows], heads))
    print(f"{choices}\nwritten: {path}")


def chosen(quick: bool) -> Row:
    """What the tuning chose; at toy size the first of all options."""
    if not quick:
        return records.read(CHOSEN)["settings"]["choices"]
    first = {ending: {"option": options[0], "cost": 2.0} for ending, options in OPTIONS.items()}
    return {name: {str(share): first for share in SHARES} for name in TOY}


def summarized(rows: Sequence[Row]) -> list[Row]:
    """A line for a task, a share and an ending; losses less those of the linear decay by seed."""
    found = []
    for name in dict.fromkeys(row["task"] for row in rows):
        for share in SHARES:
            here = [row for row in rows if row["task"] == name and row["share"] == share]
            linear = {row["seed"]: row["test loss"] for row in here if row["ending"] == LINEAR}
            for ending in OPTIONS:
                same = [row for row in here if row["ending"] == ending]
                if not same:
                    continue
                ahead = [row["test loss"] - linear[row["seed"]] for row in same]
                found.append({
                    "task": name, "share": share, "ending": ending, "option": str(same[0]["option"]), "runs": len(same),
                    "loss": spread([row["test loss"] for row in same]),
                    "accuracy": spread([row["accuracy"] for row in same]), "beside linear": spread(ahead),
                    "below linear": sum(value < 0 for value in ahead),
                    "time": spread([row["time"] for row in same])["median"],
                    "kept": sum(row.get("kept", 0) for row in same) if ending in BRANCHED[2:] else None,
                })  # fmt: skip
    return found


def flat(summary: Sequence[Row]) -> list[Row]:
    """With medians in place of spreads."""
    return [{k: v["median"] if isinstance(v, dict) else v for k, v in row.items()} for row in summary]


def page(content: Row) -> str:
    """What docs/benchmarks.md says of it."""
    rows = flat(content["settings"]["summary"])
    return "\n\n".join(
        (
            "Medians of runs; time is of the ending, over as many steps at constant rate. Accuracy of characters is "
            "that of the next one.",
            markdown([{**row, "share": f"{row['share']:.0%}"} for row in rows], HEADS),
            "![test loss less the linear decay's](results/endings/endings.png)",
            "[What the tuning chose](results/endings/tuning/results.json).",
            f"<sub>{machine(content)}</sub>",
        )
    )


def picture(rows: Sequence[Row]) -> Any:
    """Test loss less the linear decay's, a dot a seed."""
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plots.pyplot().subplots(1, len(names), figsize=(4.6 * len(names), 3.8), sharey=True, squeeze=False)
    endings = [ending for ending in OPTIONS if any(row["ending"] == ending for row in rows)]
    for axis, name in zip(axes[0], names, strict=True):
        for i, ending in enumerate(endings):
            for j, share in enumerate(SHARES):
                here = [row for row in rows if row["task"] == name and row["share"] == share]
                linear = {row["seed"]: row["test loss"] for row in here if row["ending"] == LINEAR}
                dots = [row["test loss"] - linear[row["seed"]] for row in here if row["ending"] == ending]
                label = f"last {share:.0%}" if i == 0 else None
                axis.plot(dots, [i + 0.2 * j - 0.1] * len(dots), "o", color=plots.COLOURS[j], markersize=4, label=label)
        axis.axvline(0.0, color="grey", linewidth=1)
        axis.set_xscale("symlog", linthresh=0.05)
        axis.set(title=name, xlabel="test loss less the linear decay's")
    axes[0][0].set_yticks(range(len(endings)), endings)
    axes[0][0].invert_yaxis()
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


HEADS = {
    "task": "task", "share": "share", "ending": "", "option": "option", "runs": "runs", "loss": "test loss",
    "accuracy": "accuracy", "beside linear": "less linear's", "below linear": "below it", "time": "time",
    "kept": "moves kept",
}  # fmt: skip


def main() -> None:
    asked = arguments("endings", __doc__, 5, (*NAMES, *TOY), tuned=True)
    names = [name for name in asked.problems if (name in TOY) == asked.quick]
    torch.set_num_threads(1)
    measure("toy", TOY["toy"].data(), 0, chosen(True)["toy"])  # what is imported at first steps is nobody's time
    if asked.tuning:
        tune(asked, names)
        return
    choices, rows, end, done = chosen(asked.quick), [], time.monotonic() + 60 * asked.minutes, 0
    data = {name: task_of(name).data() for name in names}
    with counter("endings", asked.seeds * len(names), asked.progress) as count:
        for seed in range(asked.seeds):
            if time.monotonic() > end:
                break
            for name in names:
                rows += measure(name, data[name], seed, choices[name])
                count(name)
            done += 1
    summary = summarized(rows)
    path = records.write(asked.out, "endings", {"choices": choices, "summary": summary}, rounded(rows), range(done))
    print(records.table(flat(summary), HEADS))
    drawn_at, trouble = plots.drawn(lambda: picture(rows), asked.out / "endings.png")
    print(f"written: {path}" + (f" and {drawn_at}" if drawn_at else f"; {trouble}"))


if __name__ == "__main__":
    main()
