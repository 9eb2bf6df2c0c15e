"""What the default wrapper does to training runs as people have them: what it costs, and where it pays.

python -m experiments.training [--quick] [--seeds N] [--problems a,b] [--out DIR]

Each task is trained by its own loop, bare and wrapped (``skip="auto"``), to the same number of effective steps, from
the same weights along the same minibatches; interleaved, single-threaded, seconds of the process. Learning rates were
chosen for the bare loop, on other seeds, from a grid of three a decade.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import jumpstart as js
from jumpstart.report import plots, records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from .common import arguments, cifar10, folder, mnist, spread, uci

BARE, AUTO = "bare", "auto"
SHARE = 0.8  # of the data that are trained on


@dataclass(frozen=True)
class Data:
    """Training and test samples; classes are integers."""

    x: Tensor
    y: Tensor
    xt: Tensor
    yt: Tensor


@dataclass(frozen=True)
class Task:
    """A loop: data, a network, an optimizer, batches of ``batch`` samples (0 for all of them), ``steps`` steps."""

    data: Callable[[], Data]
    network: Callable[[Data], nn.Module]
    loss: str
    rate: float
    batch: int
    steps: int


class Attention(nn.Module):
    """A causal transformer block on (n, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.first(x)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.second(x))


class Characters(nn.Module):
    """A character-level language model: logits (n, T, symbols)."""

    def __init__(self, symbols: int, length: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(symbols, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Attention(width, 4) for _ in range(depth)))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.symbol(x) + self.place))


def split(x: Tensor, y: Tensor) -> Data:
    """A fixed random split."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    at = int(SHARE * len(x))
    return Data(x[order[:at]], y[order[:at]], x[order[at:]], y[order[at:]])


def digits() -> Data:
    """scikit-learn's 8×8 digits."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return split(torch.tensor(found.data, dtype=torch.float32) / 16 - 0.3, torch.tensor(found.target).long())


def mnist_flat() -> Data:
    x, y, xt, yt = mnist()
    return Data(x.flatten(1), y, xt.flatten(1), yt)


def cifar() -> Data:
    """A thousand images of each class."""
    return split(*cifar10(1000))


def characters(length: int = 64) -> Data:
    """Windows of Shakespeare, and the same one character on; the last tenth is the test."""
    text = (folder() / "text" / "tinyshakespeare.txt").read_text()
    symbols = sorted(set(text))
    codes = torch.tensor([symbols.index(c) for c in text])
    starts = torch.arange(0, len(codes) - length - 1, length)
    windows = torch.stack([codes[s : s + length + 1] for s in starts])
    at = int(0.9 * len(windows))
    train, test = windows[:at], windows[at : at + 200]
    return Data(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])


def dense(*widths: int, out: int) -> Callable[[Data], nn.Module]:
    """A ReLU network."""

    def make(data: Data) -> nn.Module:
        sizes = [data.x.shape[1], *widths]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], out))

    return make


def convolutional(data: Data) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


TASKS = {
    "digits": Task(digits, dense(64, out=10), "cross_entropy", 3e-3, 0, 400),
    "energy": Task(lambda: split(*uci("energy")), dense(64, 64, out=1), "mse", 3e-3, 0, 1000),
    "concrete": Task(lambda: split(*uci("concrete")), dense(64, 64, out=1), "mse", 3e-3, 0, 1000),
    "mnist": Task(mnist_flat, dense(128, out=10), "cross_entropy", 1e-3, 64, 3000),
    "cifar": Task(cifar, convolutional, "cross_entropy", 3e-3, 64, 750),
    "characters": Task(characters, lambda data: Characters(65, 64), "cross_entropy", 3e-3, 32, 500),
    "kin40k": Task(lambda: split(*uci("kin40k")), dense(64, 64, out=1), "mse", 3e-3, 256, 3000),
    "protein": Task(lambda: split(*uci("protein")), dense(64, 64, out=1), "mse", 3e-3, 256, 3000),
}
TOY = {"digits": 60}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda u, y: F.cross_entropy(u.flatten(0, -2), y.flatten()),
    "mse": F.mse_loss,
}


def batches(data: Data, batch: int, seed: int) -> Iterator[list[Tensor]]:
    """Minibatches without end; all samples, each time, for a batch of 0."""
    if batch == 0:
        while True:
            yield [data.x, data.y]
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(data.x, data.y), batch, shuffle=True, drop_last=True, generator=generator)
    while True:
        yield from loader


@torch.no_grad()
def test(model: nn.Module, data: Data, loss: str) -> dict[str, float]:
    """Loss, and accuracy where targets are classes, on the test samples."""
    model.eval()
    outputs = torch.cat([model(part) for part in data.xt.split(500)])
    model.train()
    found = {"test loss": float(LOSSES[loss](outputs, data.yt))}
    if loss == "cross_entropy":
        found["accuracy"] = float((outputs.argmax(-1) == data.yt).double().mean())
    return found


def run(task: Task, data: Data, arm: str, seed: int, steps: int) -> Row:
    """One run of a loop; seconds are the process's, the test apart."""
    torch.manual_seed(seed)
    model = task.network(data)
    optimizer: Any = torch.optim.Adam(model.parameters(), lr=task.rate)
    stream, loss = batches(data, task.batch, seed), LOSSES[task.loss]
    begun = time.process_time()
    if arm == AUTO:
        optimizer = js.JumpOptimizer(optimizer, objective(task, model, data, seed))
    for _ in optimizer.steps(steps) if arm == AUTO else range(steps):
        x, y = next(stream)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    seconds = time.process_time() - begun
    row: Row = {"arm": arm, "seed": seed, "seconds": seconds, "steps taken": steps, **test(model, data, task.loss)}
    if arm == AUTO:
        rows = task.batch or len(data.x)
        evaluations = sum(r.gradient_evaluations for r in optimizer.results)
        size = len(data.x) if task.batch == 0 else SAMPLES
        row["steps taken"] = optimizer.taken
        row["gradients"] = (optimizer.taken + evaluations * size / rows) / steps
        row["tries"] = optimizer.jumps
        row["outcomes"] = sorted(r.outcome.name for r in optimizer.results)
    return row


SAMPLES = 256  # of js.from_loader


def objective(task: Task, model: nn.Module, data: Data, seed: int) -> Any:
    """What the wrapper is given: all samples where the loop takes them, else a loader of the same data."""
    if task.batch == 0:
        return js.supervised(model, data.x, data.y, loss=task.loss)
    loader = DataLoader(TensorDataset(data.x, data.y), task.batch, shuffle=True)
    return js.from_loader(model, loader, loss=task.loss, samples=SAMPLES, seed=seed)


def summarized(rows: list[Row]) -> list[Row]:
    """A row a task: seconds and gradients of the wrapped run over the bare one's, and the metric of both."""
    found = []
    for name in dict.fromkeys(row["task"] for row in rows):
        chosen = [row for row in rows if row["task"] == name]
        bare = {row["seed"]: row for row in chosen if row["arm"] == BARE}
        auto = {row["seed"]: row for row in chosen if row["arm"] == AUTO}
        metric = "accuracy" if "accuracy" in chosen[0] else "test loss"
        found.append(
            {
                "task": name,
                "metric": metric,
                "bare": spread([bare[s][metric] for s in bare]),
                "wrapped": spread([auto[s][metric] for s in auto]),
                "seconds": spread([auto[s]["seconds"] / bare[s]["seconds"] for s in bare]),
                "gradients": spread([auto[s]["gradients"] for s in bare]),
                "taken": spread([auto[s]["steps taken"] / bare[s]["steps taken"] for s in bare]),
            }
        )
    return found


def picture(rows: list[Row]) -> Any:
    """Seconds of the wrapped run over the bare one's, a dot a seed."""
    plt = plots.pyplot()
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure, axis = plt.subplots(figsize=(6.4, 0.4 * len(names) + 1.2))
    for i, name in enumerate(names):
        chosen = [row for row in rows if row["task"] == name]
        bare = {row["seed"]: row["seconds"] for row in chosen if row["arm"] == BARE}
        ratios = [row["seconds"] / bare[row["seed"]] for row in chosen if row["arm"] == AUTO]
        axis.plot(ratios, [i] * len(ratios), "o", color=plots.COLOURS[0])
    axis.axvline(1.0, color="grey", linewidth=1)
    axis.set_yticks(range(len(names)), [f"{name}, {TASKS[name].batch or 'all'}" for name in names])
    axis.grid(axis="y", alpha=0.25, linewidth=0.5)
    axis.set(xlabel="seconds of the wrapped run over those of the bare one", ylabel="task, batch",
             title="Equal effective steps, a dot a seed")  # fmt: skip
    figure.tight_layout()
    return figure


def main() -> None:
    asked = arguments("training", __doc__, 3, TASKS)
    names = [name for name in asked.problems if not asked.quick or name in TOY]
    torch.set_num_threads(1)
    rows: list[Row] = []
    with counter("training", len(names) * asked.seeds * 2, asked.progress) as count:
        for name in names:
            task = TASKS[name]
            data, steps = task.data(), TOY[name] if asked.quick else task.steps
            for seed in range(asked.seeds):
                for arm in (BARE, AUTO) if seed % 2 == 0 else (AUTO, BARE):  # who goes first is nobody's advantage
                    rows.append({"task": name, **run(task, data, arm, seed, steps)})
                    count(f"{name}, {arm}")
    summary = summarized(rows)
    told = {name: {k: v for k, v in vars(TASKS[name]).items() if isinstance(v, (int, float, str))} for name in names}
    path = records.write(asked.out, "training", {"tasks": told, "summary": summary}, rows, range(asked.seeds))
    keys = ("bare", "wrapped", "seconds", "gradients", "taken")
    shown = [{**row, **{f"{key}, {part}": row[key][part] for key in keys for part in row[key]}} for row in summary]
    columns = {
        "task": "", "metric": "", "bare, median": "bare: median", "bare, min": "lowest", "bare, max": "highest",
        "wrapped, median": "wrapped: median", "wrapped, min": "lowest ", "wrapped, max": "highest ",
        "seconds, median": "seconds of bare", "gradients, median": "gradients of bare", "taken, median": "steps taken",
    }  # fmt: skip
    print(records.table(shown, columns))
    drawn, trouble = plots.drawn(lambda: picture(rows), asked.out / "training.png")
    print(f"written: {path}" + (f" and {drawn}" if drawn else f"; {trouble}"))


if __name__ == "__main__":
    main()
