"""Second order and reuse on a PINN, and Adam's metric on a small CNN, beside Adam at three learning rates.

python -m experiments.first_jumps [--quick] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from jumpstart.comparison.compare import compare
from jumpstart.comparison.contenders import Contender, jumps_only, lbfgs, stepped
from jumpstart.comparison.report import Report
from jumpstart.demo import poisson
from jumpstart.linearization.metric import from_optimizer
from jumpstart.objectives.objective import supervised
from jumpstart.objectives.parameters import ParameterSpace
from jumpstart.report import plots, records

from .common import Arguments, arguments, mnist, spread

RATES = (1e-3, 3e-3, 1e-2)
WARM = 40  # Adam steps before the start of the comparison on the CNN, at rate 1e-3
CHECKPOINTS = (30, 60, 90, 120, 180)  # gradient evaluations at which the CNN's rows are read off


def pinn(seed: int, jumps: int, seconds: float, arguments: Arguments) -> Report:
    """Poisson's equation with a 2×32 tanh network: first order, second order, second order and reuse, travel first."""

    def only(travel: int = 0, **options: Any) -> Contender:
        """Dense jumps, the first ``travel`` of them by scaled full steps."""
        return jumps_only(
            lambda k: {"basis": "dense", "search": "scale" if k < travel else "horizon", **options}, count=jumps
        )

    contenders: dict[str, Contender] = {
        f"Adam {lr:g}": stepped(lambda p, lr=lr: torch.optim.Adam(p, lr=lr))
        for lr in RATES[: 1 if arguments.quick else None]
    }
    contenders["L-BFGS"] = lbfgs()
    contenders["jumps, first order"] = only(geodesic=False, chord_steps=0)
    contenders["jumps, second order"] = only(geodesic=True, chord_steps=0)
    contenders["jumps, second order + reuse"] = only(geodesic=True, chord_steps=2)
    contenders["jumps, travel then land"] = only(jumps // 2, geodesic=True, chord_steps=2)
    size = 8 if arguments.quick else 30
    width = 8 if arguments.quick else 32
    return compare(
        poisson.network(seed, (width, width)),
        lambda model: poisson.objective(model, size, size),
        contenders,
        seconds=seconds,
        evaluate=lambda model: {"relative error": poisson.error(model)},
        name="pinn",
        seed=seed,
        progress=arguments.progress,
    )


def cnn(seed: int, images: int, evaluations: float, arguments: Arguments) -> Report:
    """MNIST, cross-entropy, full batch: Krylov jumps in Adam's metric, v̂ frozen, after a few Adam steps."""
    if arguments.quick:
        from jumpstart.demo import digits

        x, y, xt, yt = digits.data(seed)
        x, y, model = x[:images], y[:images], digits.network(seed)
    else:
        x, y, xt, yt = mnist()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:images]
        x, y, xt, yt = x[order], y[order], xt[:4000], yt[:4000]
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2), nn.GELU(), nn.Flatten(),
            nn.Linear(800, 64), nn.GELU(), nn.Linear(64, 10),
        )  # fmt: skip
    warm = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(WARM):
        warm.zero_grad()
        F.cross_entropy(model(x), y).backward()
        warm.step()
    state = copy.deepcopy(warm.state_dict())
    metric = from_optimizer(warm, model, ParameterSpace(model))

    def adam(lr: float) -> Contender:
        def make(parameters: Any) -> torch.optim.Optimizer:
            optimizer = torch.optim.Adam(parameters, lr=lr)
            optimizer.load_state_dict(copy.deepcopy(state))
            optimizer.param_groups[0]["lr"] = lr
            return optimizer

        return stepped(make)

    def jumps(depth: int, **options: Any) -> Contender:
        settings = {"basis": "krylov", "depth": depth, "chord_steps": 0, "geodesic": False, "metric": metric, **options}
        return jumps_only(lambda k: settings)

    contenders = {f"Adam {lr:g}": adam(lr) for lr in RATES[: 1 if arguments.quick else None]}
    contenders |= {f"jumps, depth {depth}": jumps(depth) for depth in (8, 12)}
    contenders["jumps, depth 8, second order"] = jumps(8, geodesic=True)
    contenders["jumps, depth 8, plain metric"] = jumps(8, metric=None)

    def evaluate(net: nn.Module) -> dict[str, float]:
        u = net(xt)
        return {
            "test loss": float(F.cross_entropy(u, yt)),
            "test accuracy": float((u.argmax(1) == yt).float().mean()),
        }

    return compare(
        model, lambda net: supervised(net, x, y, "cross_entropy"), contenders, seconds=math.inf,
        evaluations=evaluations, evaluate=evaluate, name="cnn", seed=seed, progress=arguments.progress,
    )  # fmt: skip


def at_evaluations(report: Report, contender: str, evaluations: float) -> dict[str, Any] | None:
    """The last record made within so many gradient evaluations, if the run went on that long."""
    rows = [r for r in report.rows if r["contender"] == contender]
    within = [r for r in rows if r["gradient_evaluations"] <= evaluations]
    over = rows[-1]["gradient_evaluations"] < 0.9 * evaluations
    return None if over or not within or not within[-1]["step"] else within[-1]


def summarize(reports: dict[str, list[Report]]) -> list[dict[str, Any]]:
    """Median and range over seeds for each contender."""
    rows = []
    for contender in reports["pinn"][0].contenders:
        last = [[r for r in rep.rows if r["contender"] == contender][-1] for rep in reports["pinn"]]
        best = [min(rep.curve(contender, y="relative error")[1]) for rep in reports["pinn"]]
        rows.append(
            {
                "problem": "pinn", "contender": contender, "relative error": spread(best),
                "loss": spread([r["loss"] for r in last]), "seconds": spread([r["seconds"] for r in last]),
                "gradient_evaluations": spread([r["gradient_evaluations"] for r in last]),
            }
        )  # fmt: skip
    for contender in reports["cnn"][0].contenders:
        for evaluations in CHECKPOINTS:
            found = [row for rep in reports["cnn"] if (row := at_evaluations(rep, contender, evaluations))]
            if not found:
                continue
            best = [
                min(
                    r["test loss"]
                    for r in rep.rows
                    if r["contender"] == contender and r["gradient_evaluations"] <= evaluations
                )
                for rep in reports["cnn"]
            ]
            rows.append(
                {
                    "problem": "cnn", "contender": contender, "at": evaluations,
                    "loss": spread([r["loss"] for r in found]), "seconds": spread([r["seconds"] for r in found]),
                    "best test loss": spread(best),
                }
            )  # fmt: skip
    return rows


def main() -> None:
    settings = arguments("first_jumps", __doc__, seeds=3)
    torch.set_num_threads(1)
    seeds = list(range(settings.seeds))
    jumps, seconds, images, evaluations = (3, 0.1, 60, 20.0) if settings.quick else (60, 20.0, 2000, 181.0)
    reports: dict[str, list[Report]] = {"pinn": [], "cnn": []}
    for seed in seeds:
        reports["pinn"].append(pinn(seed, jumps, seconds, settings))
        reports["cnn"].append(cnn(seed, images, evaluations, settings))
    summary = summarize(reports)
    rows = [
        {"problem": name, "seed": seed, **row}
        for name, found in reports.items()
        for seed, report in zip(seeds, found, strict=True)
        for row in report.rows
    ]
    chosen = {"jumps": jumps, "seconds": seconds, "images": images, "evaluations": evaluations, "rates": RATES}
    path = records.write(settings.out, "first_jumps", {**chosen, "summary": summary}, rows, seeds)
    flat = [
        {key: (value["median"] if isinstance(value, dict) else value) for key, value in row.items()} for row in summary
    ]
    columns = ("contender", "at", "loss", "relative error", "best test loss", "seconds", "gradient_evaluations")
    for problem in reports:
        here = [row for row in flat if row["problem"] == problem]
        shown = {key: key.replace("_", " ") for key in columns if any(key in row for row in here)}
        print(f"\n{problem}: medians over {len(seeds)} seeds\n{records.table(here, shown)}")
        _, trouble = plots.drawn(reports[problem][0].figure, settings.out / f"{problem}.png")
        if trouble:
            print(trouble)
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
