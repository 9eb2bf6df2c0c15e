"""Point 6: where linearization holds. Train for real to several horizons, and hold it against ``predict``.

python -m experiments.endpoint --only 6
python -m experiments.endpoint.linearity [--quick] [--seeds N] [--out DIR]   (by itself)
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import jumpstart as js
from jumpstart.errors import JumpstartError
from jumpstart.report import plots, records

from ..common import Arguments, arguments, encoder, plays, uci
from .data import SETTINGS, cnn, noisy, pooled

Row = dict[str, Any]
TOLERANCE = 0.1  # relative error of the outputs up to which they count as agreeing
TOKENS = 32


@dataclass(frozen=True)
class Case:
    """A network with training and held-out samples, and how it is trained for real."""

    model: nn.Module
    loss: str
    train: tuple[Any, Tensor]
    test: tuple[Any, Tensor]
    params: Any = None
    rate: float = 0.5  # learning rate in units of 1/λ_max at the start; lower where λ_max grows and steps would diverge
    steps: int = 4000
    order: tuple[int, ...] = (1, 2)


class Sentences(nn.Module):
    """The pretrained encoder with one logit on its pooled tokens."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(384, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(pooled(self.body(input_ids=ids, attention_mask=mask).last_hidden_state, mask))


def mlp(name: str, n: int, quick: bool) -> Case:
    x, y = uci(name)
    order = torch.randperm(len(x))
    x, y = x[order].double(), y[order].double()
    width = 32 if quick else 256
    layers = [nn.Linear(x.shape[1], width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
    case = Case(nn.Sequential(*layers).double(), "mse", (x[:n], y[:n]), (x[n : n + 500], y[n : n + 500]))
    return Case(**{**case.__dict__, "steps": 200}) if quick else case


def digits(n: int, quick: bool) -> Case:
    x, y = SETTINGS["digits"].load()
    order = torch.randperm(len(x))
    x, y = x[order].reshape(-1, 1, 8, 8).double(), y[order]
    model = cnn(x, 10, channels=4 if quick else 16).double()
    steps = 100 if quick else 4000
    return Case(model, "cross_entropy", (x[:n], y[:n]), (x[n : n + 500], y[n : n + 500]), rate=0.1, steps=steps)


def sentences(n: int) -> Case:
    texts, labels = plays()
    body, tokenizer = encoder()
    order = torch.randperm(len(texts))[: n + 100].tolist()
    found = tokenizer(
        [texts[i] for i in order], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    y = noisy(labels[order].float()[:, None], 0.0, torch.Generator())
    ids, mask = found["input_ids"], found["attention_mask"]
    model = Sentences(body).eval()

    def linear(name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() == 2 and "embeddings" not in name and "pooler" not in name

    return Case(
        model, "logistic", ((ids[:n], mask[:n]), y[:n]), ((ids[n:], mask[n:]), y[n:]), linear, 0.2, 32, (1,)
    )  # fmt: skip


def cases(args: Arguments) -> dict[str, tuple[Callable[[], Case], int]]:
    """Names, how to make them (after seeding), and over how many seeds."""
    if args.quick:
        return {"digits, CNN": (lambda: digits(8, True), 1)}
    return {
        "energy, MLP": (lambda: mlp("energy", 256, False), args.seeds),
        "kin40k, MLP": (lambda: mlp("kin40k", 256, False), args.seeds),
        "digits, CNN": (lambda: digits(64, False), args.seeds),
        "sentence encoder, 64 examples": (lambda: sentences(64), min(args.seeds, 2)),
    }


def one(name: str, case: Case, seed: int, points: int) -> list[Row]:
    """Rows of one real run: at each horizon the real and the predicted outputs, losses and accuracies."""
    (x, y), (xt, yt) = case.train, case.test
    objective = js.supervised(case.model, x, y, loss=case.loss, params=case.params)
    begun = time.perf_counter()
    solution = js.solve(objective, basis="dense")
    lr = case.rate / float(solution.spectrum[0])
    at = torch.logspace(0, math.log10(case.steps), points).round().long().unique()
    t = at.double() * lr
    checked = solution.check(float(t[-1]), tolerance=TOLERANCE)
    solution.checked = None
    seconds = time.perf_counter() - begun
    predicted = predictions(solution, xt, at, lr, case.order)
    start = {"train": solution.lin.u, "test": solution.predict(xt, 0.0)}
    test_loss = objective.loss.with_targets(yt)
    rows, model = [], copy.deepcopy(case.model)
    chosen = [p for n, p in model.named_parameters() if n in objective.space.names]
    optimizer = torch.optim.SGD(chosen, lr=lr)
    whole = js.supervised(model, x, y, loss=case.loss, params=case.params)
    marks, done = {int(m): i for i, m in enumerate(at)}, 0
    for step in range(1, int(at[-1]) + 1):
        for p, g in zip(chosen, _gradients(whole, chosen), strict=True):
            p.grad = g
        optimizer.step()
        if step not in marks:
            continue
        i, done = marks[step], done + 1
        theta = whole.theta()
        with torch.no_grad():
            real = {"train": whole.outputs(theta), "test": _apply(model, xt)}
        row: Row = {"point": 6, "setting": name, "seed": seed, "time": float(t[i]), "trust": checked.trust_horizon}
        for where, loss in (("train", objective.loss), ("test", test_loss)):
            row[f"loss, {where}, real"] = float(loss.value(real[where]))
            right = loss.correct(real[where])
            row |= {} if right is None else {f"accuracy, {where}, real": float(right.double().mean())}
            for order, (train, test) in predicted.items():
                u = (train if where == "train" else test)[i]
                moved = (real[where] - start[where]).norm()
                row[f"error, {where}, order {order}"] = float((u - real[where]).norm() / moved)
                row[f"loss, {where}, order {order}"] = float(loss.value(u))
                right = loss.correct(u)
                row |= {} if right is None else {f"accuracy, {where}, order {order}": float(right.double().mean())}
        rows.append({**row, "solve seconds": seconds})
    return rows


def predictions(
    solution: js.Solution, xt: Any, at: Tensor, lr: float, orders: tuple[int, ...]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Training and query outputs by order: 1 is exact for the steps of the frozen model; 2 adds the flow's drift."""
    counts, t = [js.steps(int(m), lr) for m in at], at.double() * lr
    train = torch.stack([solution.outputs(count) for count in counts])
    test = torch.stack([solution.predict(xt, count) for count in counts])
    found = {1: (train, test)}
    if 2 in orders:
        train = train + solution.outputs(t, order=2) - solution.outputs(t)
        found[2] = (train, test + solution.predict(xt, t, order=2) - solution.predict(xt, t))
    return found


def _gradients(objective: js.Objective, chosen: list[nn.Parameter]) -> tuple[Tensor, ...]:
    model = objective.model
    part = objective.parts[0]
    return torch.autograd.grad(objective.loss.value(part.outputs(model)), chosen)


def _apply(model: nn.Module, x: Any) -> Tensor:
    return model(*x) if isinstance(x, tuple) else model(x)


def run(args: Arguments) -> list[Row]:
    """Every case and seed; what is missing here (data, packages) is left out with a line."""
    rows: list[Row] = []
    todo = [(name, make, seed) for name, (make, seeds) in cases(args).items() for seed in range(seeds)]
    for name, make, seed in tqdm(todo, desc="where linearization holds", disable=not args.progress):
        torch.manual_seed(seed)
        try:
            case = make()
        except JumpstartError as error:
            print(f"{name} is left out: {error}")
            continue
        rows += one(name, case, seed, 6 if args.quick else 10 if case.steps < 100 else 16)
    found = summary(rows)
    settings = {"quick": args.quick, "tolerance": TOLERANCE, "summary": found}
    records.write(args.out / "linearity", "endpoint.linearity", settings, rows, range(args.seeds))
    _, trouble = plots.drawn(lambda: figure(rows), args.out / "linearity" / "linearity.png")
    if trouble:
        print(trouble)
    told = []
    for line in found:
        for key in ("agreement / trust", "order 2 / order 1"):
            if line[key] is not None:
                check = {"agreement / trust": "real agreement reaches, in trust horizons",
                         "order 2 / order 1": "horizon gained by order 2"}[key]  # fmt: skip
                told.append({"point": 6, "check": f"{line['setting']}: {check}", "value": line[key], "limit": None,
                             "above": False, "holds": None})  # fmt: skip
    return told


def agreement(rows: list[Row], key: str) -> float:
    """The first time at which an error passes the tolerance, by interpolation in the logarithms."""
    rows = sorted(rows, key=lambda row: row["time"])
    for before, after in zip([None, *rows], rows, strict=False):
        if not after[key] <= TOLERANCE:
            if before is None:
                return after["time"]
            a, b = math.log(max(before[key], 1e-12)), math.log(min(after[key], 1e12))
            share = (math.log(TOLERANCE) - a) / (b - a) if b > a else 0.0
            return before["time"] * (after["time"] / before["time"]) ** share
    return rows[-1]["time"]


def summary(rows: list[Row]) -> list[Row]:
    """For each setting and seed: how far real training agrees, beside the trust horizon that a few passes find."""
    found = []
    for name, seed in dict.fromkeys((row["setting"], row["seed"]) for row in rows):
        same = [row for row in rows if (row["setting"], row["seed"]) == (name, seed)]
        first = agreement(same, "error, train, order 1")
        second = agreement(same, "error, train, order 2") if "error, train, order 2" in same[0] else None
        trust, last = same[0]["trust"], max(row["time"] for row in same)
        near = min(same, key=lambda row: abs(math.log(row["time"] / trust))) if trust > 0 else same[0]
        found.append({
            "setting": name, "seed": seed, "last": last, "trust": trust, "agreement": first,
            "agreement / trust": first / trust if trust > 0 else None,
            "order 2 / order 1": None if second is None else second / first,
            "train loss at trust, real": near["loss, train, real"],
            "train loss at trust, predicted": near["loss, train, order 1"],
            "test loss at trust, real": near["loss, test, real"],
            "test loss at trust, predicted": near["loss, test, order 1"],
        })  # fmt: skip
    return found


def figure(rows: list[Row]) -> Any:
    """Above: error of the outputs against the horizon; below: real and predicted losses. First seed in full."""
    plt = plots.pyplot()
    names = list(dict.fromkeys(row["setting"] for row in rows))
    drawn, axes = plt.subplots(2, len(names), figsize=(3.4 * len(names), 5.6), squeeze=False)
    for j, name in enumerate(names):
        for seed in sorted({row["seed"] for row in rows if row["setting"] == name}):
            same = [row for row in rows if row["setting"] == name and row["seed"] == seed]
            t, faint = [row["time"] for row in same], 1.0 if seed == 0 else 0.3
            mute = "" if seed == 0 else "_"  # one entry a curve: matplotlib leaves out labels with an underscore
            for where, style in (("train", "-"), ("test", (0, (4, 1.5)))):
                for order, colour in ((1, "#D55E00"), (2, "#0072B2")):
                    key = f"error, {where}, order {order}"
                    if key in same[0]:
                        axes[0][j].plot(t, [row[key] for row in same], color=colour, linestyle=style, alpha=faint,
                                        label=f"{mute}{where}, order {order}", linewidth=1.2)  # fmt: skip
            axes[0][j].axvline(
                same[0]["trust"], color="#CC79A7", alpha=faint, linewidth=0.8, label=f"{mute}trust horizon"
            )
            if seed:
                continue
            for where, colour in (("train", "#0072B2"), ("test", "#000000")):
                for kind, style in (("real", "-"), ("order 1", ":")):
                    values = [row[f"loss, {where}, {kind}"] for row in same]
                    axes[1][j].plot(t, values, color=colour, linestyle=style, label=f"{where}, {kind}", linewidth=1.4)
        axes[0][j].set(title=name, xscale="log", yscale="log", ylim=(1e-4, 3))
        axes[0][j].axhline(TOLERANCE, color="#999999", linewidth=0.6)
        axes[1][j].set(xscale="log", xlabel="flow time")
    axes[0][0].set_ylabel("error / movement of the outputs")
    axes[1][0].set_ylabel("loss")
    axes[0][0].legend(fontsize=7, frameon=False)
    axes[1][0].legend(fontsize=7, frameon=False)
    drawn.tight_layout()
    return drawn


if __name__ == "__main__":
    run(arguments("endpoint.linearity", __doc__, seeds=3))
