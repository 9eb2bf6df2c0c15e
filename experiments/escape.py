"""Escape: when minibatch runs that rest come to leave, forecast by the action of the way out.

python -m experiments.escape [--quick] [--seeds N] [--out DIR]

A small tanh network on noisy regression, more samples than weights, brought to rest by jumps; independent minibatch
runs from there, and the mean number of steps until |direction · (u − rest)| passes so many standard deviations: in the
outputs' leading direction of fluctuation, in one sample, and at a query point. ``trajectory.Diffusion`` says how many,
from the covariance of per-sample gradients at rest; beside it the usual simplifications, noise of the same size in all
weights (Kramers), and noise in proportion to the curvature (one variance for all residuals). Runs that stay longer than
the count of steps are counted as such (exponential waiting times).

ACCOUNT was written before the runs; the share of the critical rate and the numbers of samples and units were chosen on
seed 100, where runs of all settings left within the steps.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.report import plots
from jumpstart.report.records import Row
from jumpstart.trajectory.diffusion import OVERSHOOT, Diffusion, exit_time
from jumpstart.utils.progress import counter

from .anatomy import Claim, concluded, judged, told
from .common import arguments, legend_below, spread

INPUTS, NOISE = 2, 0.5
QUERY = "a query point"
EQUAL, CURVED = "equal noise", "noise as the curvature"
ACCOUNT = (
    Claim("quiet", "least noise: steps over those forecast, median over directions and distances", 0.8, 1.25),
    Claim("exponential", "least noise: slope of log steps against log forecast, median of seeds", 0.9, 1.1),
    Claim("loud", "most noise: steps over those forecast, median", 0.5, 2.0),
    Claim("queries", "least noise, at the query point: steps over those forecast, median", 0.8, 1.25),
    Claim("noise", "|log (steps / forecast)|, median, over that of the nearer simplification", most=0.5),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """``runs`` side by side for ``steps``; forecasts above a quarter of these are left out."""

    samples: int = 64
    units: int = 5
    runs: int = 256
    steps: int = 16_000
    jumps: int = 300  # to rest
    shares: tuple[float, ...] = (0.01, 0.04)  # of the critical rate 2/λmax
    batches: tuple[int, ...] = (16, 4)
    distances: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0)  # standard deviations


TOY = Size(24, 2, 16, 400, 30, (0.1,), (4,), (0.5, 1.0))


def network(units: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, units), nn.Tanh(), nn.Linear(units, 1)).double()


class Runs:
    """Many minibatch runs of a network with one hidden layer, side by side."""

    def __init__(self, model: nn.Sequential, x: Tensor, y: Tensor, runs: int, seed: int) -> None:
        self.x, self.y, self.runs = x, y.reshape(-1), runs
        self.weights = [p.detach().expand(runs, *p.shape).clone() for p in model.parameters()]
        self.generator = torch.Generator().manual_seed(seed)

    def outputs(self, x: Tensor) -> Tensor:
        """(runs, rows) at points (rows, inputs)."""
        first, bias, last, end = self.weights
        return (torch.tanh(x @ first.mT + bias[:, None]) @ last.mT)[..., 0] + end

    def step(self, rate: float, batch: int) -> None:
        """Along the mean square's gradient of a batch drawn with replacement, one for each run."""
        rows = torch.randint(len(self.x), (self.runs, batch), generator=self.generator)
        first, bias, last, end = self.weights
        x = self.x[rows]
        hidden = torch.tanh(x @ first.mT + bias[:, None])  # (runs, batch, units)
        off = 2 / batch * ((hidden @ last.mT)[..., 0] + end - self.y[rows])
        back = off[..., None] * last * (1 - hidden.square())
        last -= rate * (off[:, None] @ hidden)
        end -= rate * off.sum(1, keepdim=True)
        first -= rate * (back.mT @ x)
        bias -= rate * back.sum(1)


def alike(jacobian: Tensor, direction: Tensor, rate: float, noise: Tensor) -> tuple[float, float]:
    """Deviation and relaxation along a direction (P,) of the weights were the ``noise`` (k,) that of the curvature's
    modes, independent of each other.

    Weights that the outputs do not respond to are left out, which would drift away.
    """
    _, sizes, right = torch.linalg.svd(jacobian, full_matrices=False)
    curvature = 2 / len(jacobian) * sizes.square()
    variances = (right @ direction).square() * rate * noise / (2 * curvature - rate * curvature.square())
    total = float(variances.sum())
    return math.sqrt(total), float((variances * rate * curvature).sum()) / total


def measured(size: Size, seed: int) -> list[Row]:
    """A row for each rate, batch, direction and distance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size.samples, INPUTS, generator=generator, dtype=torch.float64)
    noise = NOISE * torch.randn(size.samples, 1, generator=generator, dtype=torch.float64)
    y = torch.sin(1.5 * x[:, :1]) * x[:, 1:] + noise
    query = torch.randn(1, INPUTS, generator=generator, dtype=torch.float64)
    model = network(size.units, seed)
    objective = js.supervised(model, x, y, "mse")
    js.fit(objective, jumps=size.jumps, progress=False)
    lin = linearize(objective)
    jacobian, there = lin.jacobian(), linearize(js.supervised(model, query, y[:1], "mse")).jacobian()
    slopes = jacobian * (2 * (lin.u - y))  # (n, P), of each sample's square
    sizes = torch.linalg.svdvals(jacobian)
    equal = float((slopes - slopes.mean(0)).square().sum()) / size.samples / jacobian.shape[1] * torch.ones_like(sizes)
    curved = 4 * float((lin.u - y).square().mean()) / size.samples * sizes.square()
    critical = size.samples / float(sizes[0].square())
    rows: list[Row] = []
    for share in size.shares:
        for batch in size.batches:
            rate = share * critical
            diffusion = Diffusion(objective, rate, batch, queries=query)
            leading = torch.linalg.eigh(diffusion.covariance)[1][:, -1]
            asked = {"leading": leading, "a sample": torch.eye(size.samples, dtype=torch.float64)[0], QUERY: None}
            lines = []
            for name, direction in asked.items():
                along = there[0] if direction is None else jacobian.T @ direction
                one = there.new_ones(1) if direction is None else direction
                for z in size.distances:
                    far = z * diffusion.deviation(one, queries=direction is None)
                    found = diffusion.escape(one, far, queries=direction is None)
                    line = {
                        "seed": seed, "share": share, "batch": batch, "direction": name, "deviations": z,
                        "action": found.action, "forecast": found.steps, "distance": far,
                    }  # fmt: skip
                    for key, noise in ((EQUAL, equal), (CURVED, curved)):
                        plain, relaxed = alike(jacobian, along, rate, noise / batch)
                        line[key] = exit_time(far / plain + OVERSHOOT * math.sqrt(2 * relaxed)) / relaxed
                    lines.append(line)
            runs = Runs(model, x, y, size.runs, 1000 * seed + batch)
            rows += _left(runs, asked, query, lines, (rate, batch, size.steps))
    return rows


def _left(runs: Runs, asked: dict[str, Tensor | None], query: Tensor, lines: list[Row], how: Any) -> list[Row]:
    """The lines whose forecast is short enough, with the mean number of steps in which runs have left."""
    rate, batch, most = how
    kept = [line for line in lines if line["forecast"] < most / 4]
    names = list(dict.fromkeys(line["direction"] for line in kept))
    unseen = query.new_zeros(len(runs.x))
    directions = [unseen if (chosen := asked[name]) is None else chosen for name in names]
    points = torch.cat([runs.x, query])
    matrix = torch.cat([torch.stack(directions), query.new_tensor([[float(name == QUERY)] for name in names])], 1)
    which = torch.tensor([names.index(line["direction"]) for line in kept])
    far = torch.tensor([line["distance"] for line in kept]).double()
    rest = runs.outputs(points) @ matrix.T
    times = torch.full((len(kept), runs.runs), most)
    inside = torch.ones_like(times, dtype=torch.bool)
    for step in range(1, most + 1):
        runs.step(rate, batch)
        away = (runs.outputs(points) @ matrix.T - rest).abs().T[which]  # (lines, runs)
        gone = inside & (away > far[:, None])
        times[gone] = step
        inside &= ~gone
        if not bool(inside.any()):
            break
    for line, own, still in zip(kept, times.double(), inside, strict=True):
        left = int((~still).sum())
        line |= {"steps": float(own.sum()) / left if left else math.inf, "left": left}
    return kept


def over(rows: list[Row], against: str = "forecast") -> list[float]:
    """Steps over those that were forecast."""
    return [row["steps"] / row[against] for row in rows]


def slope(rows: list[Row]) -> float:
    """Of log steps against log forecast, by least squares."""
    xs, ys = (torch.tensor([math.log(row[key]) for row in rows]) for key in ("forecast", "steps"))
    xs, ys = xs - xs.mean(), ys - ys.mean()
    return float((xs @ ys) / (xs @ xs))


def judgements(rows: list[Row]) -> dict[str, float]:
    """What the claims are about."""
    quiet, loud = (_at(rows, pick) for pick in (min, max))
    seeds = sorted({row["seed"] for row in rows})
    off, *plain = (median(abs(math.log(r)) for r in over(rows, key)) for key in ("forecast", EQUAL, CURVED))
    return {
        "quiet": median(over(quiet)), "loud": median(over(loud)),
        "exponential": median(slope([row for row in quiet if row["seed"] == seed]) for seed in seeds),
        "queries": median(over([row for row in quiet if row["direction"] == QUERY])), "noise": off / min(plain),
    }  # fmt: skip


def _at(rows: list[Row], pick: Any) -> list[Row]:
    """Rows of the least or most noise: rate over batch."""
    level = pick(row["share"] / row["batch"] for row in rows)
    return [row for row in rows if row["share"] / row["batch"] == level]


COLUMNS = {
    "share": "rate, of the critical one", "batch": "batch", "direction": "direction", "runs": "forecasts",
    "ratio": "steps over forecast", "range": "from … to", EQUAL: "over that with equal noise",
    CURVED: "with noise as the curvature",
}  # fmt: skip


def summarized(rows: list[Row]) -> list[Row]:
    """A line a rate, batch and direction."""
    found = []
    for key in dict.fromkeys((row["share"], row["batch"], row["direction"]) for row in rows):
        own = [row for row in rows if (row["share"], row["batch"], row["direction"]) == key]
        ratio = spread(over(own))
        found.append({
            "share": key[0], "batch": key[1], "direction": key[2], "runs": len(own), "ratio": ratio["median"],
            "range": f"{ratio['min']:.2g} … {ratio['max']:.2g}", **{k: median(over(own, k)) for k in (EQUAL, CURVED)},
        })  # fmt: skip
    return found


def page(content: Row) -> str:
    """For docs/trajectory.md."""
    return told(content, COLUMNS)


def picture(rows: list[Row]) -> Any:
    """Steps against their forecast, by Diffusion and by the two simplifications."""
    figure, axes = plots.pyplot().subplots(1, 3, figsize=(11.5, 4.2), layout="constrained", sharey=True)
    settings = list(dict.fromkeys((row["share"], row["batch"]) for row in rows))
    for axis, key, title in zip(
        axes, ("forecast", EQUAL, CURVED),
        ("by the noise that batches have", "by equal noise in all weights", "by noise as the curvature"),
        strict=True,
    ):  # fmt: skip
        for i, (share, batch) in enumerate(settings):
            own = [row for row in rows if (row["share"], row["batch"]) == (share, batch)]
            label = f"{share:g} of the critical rate, batches of {batch}"
            xs, ys = [row[key] for row in own], [row["steps"] for row in own]
            axis.plot(xs, ys, ".", color=plots.COLOURS[i], label=label, markersize=5, alpha=0.7)
        ends = [min(row["steps"] for row in rows), max(row["steps"] for row in rows)]
        axis.plot(ends, ends, color="grey", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="forecast, steps", title=title)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("steps until runs had left, mean")
    figure.suptitle("When minibatch runs leave where they rest")
    legend_below(figure, 2)
    return figure


def main() -> None:
    asked = arguments("escape", __doc__, 5)
    torch.set_num_threads(1)
    size, rows = TOY if asked.quick else Size(), []
    with counter("escape", asked.seeds, asked.progress) as count:
        for seed in range(asked.seeds):
            rows += measured(size, seed)
            count(f"seed {seed}")
    concluded(
        "escape", asked, {**asdict(size), "noise": NOISE, "account": [claim.told() for claim in ACCOUNT]}, rows,
        range(asked.seeds), judged(ACCOUNT, judgements(rows)), summarized(rows), COLUMNS, picture,
    )  # fmt: skip


if __name__ == "__main__":
    main()
