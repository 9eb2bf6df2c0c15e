"""How soon a minibatch regression is where tuned AdamW ends: seconds and gradients to its best test error.

python -m experiments.targets --tuning [--seeds N] [--out DIR]      chooses settings, by default for the other command
python -m experiments.targets [--quick] [--seeds N] [--minutes M] [--problems a,b] [--out DIR]

The target is AdamW's best test error (median of seeds) at the rate and schedule with which it gets lowest. Every
contender then has the setting that gets it to 1.02 of that soonest, AdamW as well; all choose from the same grid of
rates and schedules, on other seeds and on a validation part of the training data. One thread; seconds of the process,
tests apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from .training import TASKS, Data, dense

CHOSEN = Path(__file__).resolve().parent.parent / "docs" / "results" / "targets" / "tuning"
FIRST = 100  # seed of the tuning
NAMES, TOY = ("kin40k", "protein"), ("toy",)
STEPS, BATCH, EVERY = 4000, 256, 100
SAMPLES = 1024  # of the wrapper's objectives: fresh ones at each try
RATES = (3e-3, 1e-2, 3e-2)  # 1e-3 was the worst of a first grid, 1e-2 at its edge
CONSTANT, COSINE, SHORT = "constant", "cosine", "cosine, half as long"
SCHEDULES = (CONSTANT, COSINE, SHORT)
LEVELS = (1.0, 1.02)
ADAMW = "AdamW"
WRAPPED: dict[str, tuple[Any, ...]] = {
    "skips": ("skip",),
    "skips, average": ("skip", Average(adopt="always")),
    "skips, trajectory": ("skip", "trajectory"),
    "skips, line": ("skip", "line"),
}
CONTENDERS = (ADAMW, EMA, LAWA, *WRAPPED)
# Averages beside a bare run: how they are made, and with which of these parameters.
AVERAGES = {EMA: (0.99, 0.998), LAWA: (50, 250)}


@dataclass(frozen=True)
class Setting:
    """A rate, a schedule, and an average's own parameter."""

    rate: float
    schedule: str
    average: float | None = None

    @property
    def told(self) -> Row:
        return {"rate": self.rate, "schedule": self.schedule, "average": self.average}


def toy() -> Data:
    """A made-up regression, for quick runs."""
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    y = torch.sin(2 * x[:, :1]) * x[:, 1:2]
    return Data(x[:400], y[:400], x[400:], y[400:])


def task(name: str) -> tuple[Data, Callable[[Data], nn.Module]]:
    return (toy(), dense(16, out=1)) if name == "toy" else (TASKS[name].data(), TASKS[name].network)


def scheduler(optimizer: torch.optim.Optimizer, setting: Setting, steps: int) -> Any:
    """A cosine to nothing over ``steps``, or none."""
    if setting.schedule == CONSTANT:
        return None
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    )


def length(setting: Setting, steps: int) -> int:
    return steps // 2 if setting.schedule == SHORT else steps


@torch.no_grad()
def error(model: nn.Module, data: Data) -> float:
    return float(F.mse_loss(torch.cat([model(part) for part in data.xt.split(4096)]), data.yt))


@torch.no_grad()
def error_with(model: nn.Module, data: Data, weights: Sequence[Tensor]) -> float:
    """The test error with other weights."""
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    torch._foreach_copy_(tuple(parameters), list(weights))
    found = error(model, data)
    torch._foreach_copy_(tuple(parameters), before)
    return found


def run(of: tuple[Data, Callable[[Data], nn.Module]], contender: str, setting: Setting, seed: int, steps: int) -> Row:
    """Curves of one run: of the contender, and where that is AdamW of averages along it, each with its own seconds."""
    data, network = of
    torch.manual_seed(seed)
    model = network(data)
    rows, steps = drawn(data, BATCH, seed), length(setting, steps)
    seconds = -time.process_time()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=setting.rate)
    schedule = scheduler(optimizer, setting, steps)
    wrapped = contender in WRAPPED
    if wrapped:
        options = {} if schedule is None else {"scheduler": schedule}
        objective = _objective(model, data, seed)
        optimizer = js.JumpOptimizer(optimizer, objective, actions=WRAPPED[contender], batch=BATCH, **options)
    parameters = list(model.parameters())
    averages = {} if wrapped else {(name, p): KINDS[name](parameters, p) for name in AVERAGES for p in AVERAGES[name]}
    extra = dict.fromkeys(averages, 0.0)  # seconds of averages
    curves: dict[Any, list[list[float]]] = {contender: [], **{key: [] for key in averages}}
    marked = 0
    for step in optimizer.steps(steps) if wrapped else range(steps):
        chosen = next(rows)
        optimizer.zero_grad()
        F.mse_loss(model(data.x[chosen]), data.y[chosen]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        seconds += time.process_time()
        for key, average in averages.items():
            begun = time.process_time()
            average.step()
            extra[key] += time.process_time() - begun
        now = optimizer.effective_steps if wrapped else step + 1
        if now // EVERY > marked or now >= steps:
            marked = now // EVERY
            gradients = spent(optimizer) if wrapped else float(now)
            curves[contender].append([now, seconds, gradients, error(model, data)])
            for key, average in averages.items():
                curves[key].append([now, seconds + extra[key], gradients, error_with(model, data, average.weights())])
        seconds -= time.process_time()
    found: Row = {"curves": curves}
    if wrapped:
        found |= {
            "taken": optimizer.taken,
            "tries": optimizer.jumps,
            "kept": sum(r.accepted for r in optimizer.results),
        }
    return found


def _objective(model: nn.Module, data: Data, seed: int) -> Callable[[], js.Objective]:
    """Fresh samples at each call."""
    generator = torch.Generator().manual_seed(10_000 + seed)

    def make() -> js.Objective:
        rows = torch.randint(len(data.x), (min(SAMPLES, len(data.x)),), generator=generator)
        return js.supervised(model, data.x[rows], data.y[rows], loss="mse")

    return make


def spent(optimizer: Any) -> float:
    """Gradients of a minibatch so far: steps, and the wrapper's evaluations in these."""
    return optimizer.taken + sum(result.gradient_evaluations for result in optimizer.results) * SAMPLES / BATCH


def lines(name: str, contender: str, setting: Setting, seed: int, found: Row) -> list[Row]:
    """A row for each curve of a run."""
    head, told = {"task": name, "seed": seed}, {key: value for key, value in found.items() if key != "curves"}
    rows = []
    for key, curve in found["curves"].items():
        who, own = (key, setting) if isinstance(key, str) else (key[0], replace(setting, average=key[1]))
        best = min(point[3] for point in curve)
        rows.append(head | {"contender": who, **own.told, "best": best, **(told if who == contender else {}),
                            "curve": rounded(curve)})  # fmt: skip
    return rows


def reached(row: Row, target: float) -> tuple[float, float]:
    """Seconds and gradients to a test error; infinite where it is not reached."""
    for _, seconds, gradients, value in row["curve"]:
        if value <= target:
            return seconds, gradients
    return math.inf, math.inf


def setting_of(row: Row) -> Setting:
    return Setting(row["rate"], row["schedule"], row["average"])


def median(values: Sequence[float]) -> float:
    return spread(list(values))["median"]


def best_of(rows: Sequence[Row]) -> float:
    return median([row["best"] for row in rows])


def by_setting(rows: Sequence[Row], contender: str) -> dict[Setting, list[Row]]:
    found: dict[Setting, list[Row]] = {}
    for row in rows:
        if row["contender"] == contender:
            found.setdefault(setting_of(row), []).append(row)
    return found


def choose(rows: Sequence[Row]) -> Row:
    """AdamW's setting that gets lowest, and everybody's that is soonest at 1.02 of that."""
    mine = by_setting(rows, ADAMW)
    lowest = min(mine, key=lambda setting: best_of(mine[setting]))
    target = best_of(mine[lowest]) * LEVELS[-1]
    choices: Row = {"lowest": lowest.told, "error": best_of(mine[lowest])}
    for contender in CONTENDERS:
        found = by_setting(rows, contender)
        if found:
            # Who never gets there has the setting that gets nearest.
            soonest = min(
                found, key=lambda s: (median([reached(row, target)[0] for row in found[s]]), best_of(found[s]))
            )
            choices[contender] = soonest.told
    return choices


def tune(asked: Arguments, names: Sequence[str], steps: int) -> None:
    """Run the grid, and write what is chosen."""
    seeds = [FIRST + i for i in range(asked.seeds)]
    grid = [Setting(rate, schedule) for rate in RATES for schedule in SCHEDULES]
    rows: list[Row] = []
    with counter("tuning", len(names) * len(grid) * len(seeds) * (1 + len(WRAPPED)), asked.progress) as count:
        for name in names:
            data, network = task(name)
            of = validation(data), network
            for seed in seeds:
                for setting in grid:
                    for contender in (ADAMW, *WRAPPED):
                        rows += lines(name, contender, setting, seed, run(of, contender, setting, seed, steps))
                        count(f"{name}, {contender}")
    choices = {name: choose([row for row in rows if row["task"] == name]) for name in names}
    for row in rows:
        target = choices[row["task"]]["error"]
        row |= {f"seconds to {level:g}": reached(row, level * target)[0] for level in LEVELS}
        del row["curve"]
    path = records.write(
        asked.out, "targets", {"steps": steps, "rates": RATES, "choices": choices}, rounded(rows), seeds
    )
    for name in names:
        print(name, *(f"  {key}: {value}" for key, value in choices[name].items()), sep="\n")
    print(f"written: {path}")


def chosen(names: Sequence[str], quick: bool) -> Row:
    """What the tuning chose; at toy size a setting for all."""
    if quick:
        plain = {who: Setting(3e-3, CONSTANT, AVERAGES.get(who, [None])[0]).told for who in CONTENDERS}
        return {name: {"lowest": Setting(3e-3, COSINE).told, **plain} for name in names}
    return records.read(CHOSEN)["settings"]["choices"]


def measure(name: str, choices: Row, seed: int, steps: int) -> list[Row]:
    """All contenders with their settings, and the reference; who goes first is nobody's advantage."""
    of, rows = task(name), []
    wanted = {who: Setting(**choices[who]) for who in CONTENDERS} | {"lowest": Setting(**choices["lowest"])}
    jobs: dict[tuple[str, Setting], None] = {}
    for who, setting in wanted.items():
        jobs[who if who in WRAPPED else ADAMW, replace(setting, average=None)] = None
    order = list(jobs)
    at = seed % len(order)
    for contender, setting in order[at:] + order[:at]:
        for row in lines(name, contender, setting, seed, run(of, contender, setting, seed, steps)):
            own = setting_of(row)
            if row["contender"] == ADAMW and own == wanted["lowest"]:
                rows.append(row | {"contender": LOWEST})
            if own == wanted[row["contender"]]:
                rows.append(row)
    return rows


LOWEST = "AdamW, lowest error"


def summarized(rows: Sequence[Row]) -> list[Row]:
    """A line a contender: best error, and seconds and gradients to the target's levels, with failures."""
    found = []
    for name in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == name]
        target = best_of([row for row in here if row["contender"] == LOWEST])
        for who in (LOWEST, *CONTENDERS):
            same = [row for row in here if row["contender"] == who]
            if not same:
                continue
            line: Row = {"task": name, "contender": who, "runs": len(same), "target": target,
                         "setting": words(setting_of(same[0])), "best": best_of(same)}  # fmt: skip
            for level in LEVELS:
                at = [reached(row, level * target) for row in same]
                line[f"failed, {level:g}"] = sum(math.isinf(seconds) for seconds, _ in at)
                line[f"seconds, {level:g}"] = none(median([seconds for seconds, _ in at]))
                line[f"gradients, {level:g}"] = none(median([gradients for _, gradients in at]))
            found.append(line)
    return found


def none(value: float) -> float | None:
    """Nothing for what is not reached in the median."""
    return value if math.isfinite(value) else None


def words(setting: Setting) -> str:
    return f"{setting.rate:g}, {setting.schedule}" + (f", {setting.average:g}" if setting.average is not None else "")


def page(content: Row) -> str:
    """What docs/benchmarks.md says of it."""
    settings, summary = content["settings"], content["settings"]["summary"]
    names = list(dict.fromkeys(row["task"] for row in summary))
    means = ", ".join(
        f"{name} {records.show(next(r['target'] for r in summary if r['task'] == name))}" for name in names
    )
    return "\n\n".join(
        (
            f"{settings['steps']:,} steps of {settings['batch']} samples. The target is the median of AdamW's best "
            f"test errors, at its best rate and schedule: {means}. Medians of runs; a dash where most of them failed:",
            markdown(summary, HEADS),
            "![test error against seconds](results/targets/targets.png)",
            "[What the tuning chose](results/targets/tuning/results.json).",
            f"<sub>{machine(content)}</sub>",
        )
    )


def picture(rows: Sequence[Row]) -> Any:
    """Median test error against seconds, a panel a task."""
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plots.pyplot().subplots(1, len(names), figsize=(4.4 * len(names), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        here = [row for row in rows if row["task"] == name]
        target = best_of([row for row in here if row["contender"] == LOWEST])
        for colour, who in zip(plots.COLOURS, CONTENDERS, strict=False):
            curves = [row["curve"] for row in here if row["contender"] == who]
            points = [[median([p[i] for p in at]) for i in (1, 3)] for at in zip(*curves, strict=False)]
            axis.plot(*zip(*points, strict=True), color=colour, label=who, linewidth=1.3)
        axis.axhline(target, color="grey", linewidth=1)
        axis.set_ylim(0.93 * target, 1.6 * target)
        axis.set(xlabel="seconds", ylabel="test error", title=name)
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


HEADS = {
    "task": "task", "contender": "", "setting": "rate, schedule", "runs": "runs", "best": "best error",
    "seconds, 1": "seconds to 1.00", "gradients, 1": "gradients", "failed, 1": "failed",
    "seconds, 1.02": "seconds to 1.02", "gradients, 1.02": "gradients ", "failed, 1.02": "failed ",
}  # fmt: skip


def main() -> None:
    asked = arguments("targets", __doc__, 5, (*NAMES, *TOY), tuned=True)
    names = [name for name in asked.problems if (name in TOY) == asked.quick]
    torch.set_num_threads(1)
    steps = 200 if asked.quick else STEPS
    for contender in (ADAMW, *WRAPPED):  # what torch imports at its first steps is nobody's time
        run(task("toy"), contender, Setting(RATES[0], COSINE), 0, 20)
    if asked.tuning:
        tune(asked, names, steps)
        return
    choices, rows, end = chosen(names, asked.quick), [], time.monotonic() + 60 * asked.minutes
    done = 0
    with counter("targets", asked.seeds * len(names), asked.progress) as count:
        for seed in range(asked.seeds):
            if time.monotonic() > end:
                break
            for name in names:
                rows += measure(name, choices[name], seed, steps)
                count(name)
            done += 1
    summary = summarized(rows)
    settings = {"steps": steps, "batch": BATCH, "choices": choices, "summary": summary}
    path = records.write(asked.out, "targets", settings, rows, range(done))
    print(records.table(summary, HEADS))
    drawn_at, trouble = plots.drawn(lambda: picture(rows), asked.out / "targets.png")
    print(f"written: {path}" + (f" and {drawn_at}" if drawn_at else f"; {trouble}"))


if __name__ == "__main__":
    main()
