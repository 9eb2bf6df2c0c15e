"""What the experiments on trajectory operators share: tasks with noise in their targets, recorded runs, and where the
noise went.

For F.mse_loss of N outputs, g(s) = B (u − y), B = 2/N: targets y = true + noise split it into a part of true targets
and −B·noise. Three questions about the latter (docs/theory.md, section 11):

- learned: how much of its energy the run has taken away, gᵀ W_S g over ½ B⁻¹ ‖g‖², which is W_S's ceiling. trapped is
  the rest; reservoir is the share in directions less than half learned.
- passed: mean square of what it does to query outputs, G_Q g, over the mean square of the noise itself.
- invisible: the share in directions that move the queries by less than a tenth of what the most visible one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jumpstart as js
from jumpstart.errors import JumpstartError
from jumpstart.linearization.linearize import linearize
from jumpstart.report.records import Row
from jumpstart.trajectory import Operators, Recorder

from .pages import machine, markdown

HALF = 0.5  # of the largest eigenvalue of W_S: what is less than half learned is the reservoir
FAITHFUL = 0.05  # error of operators, by their identities, above which nothing is read off from them
FAINT = 1e-2  # of the square of G_Q's largest singular value: what is below is invisible


@dataclass(frozen=True)
class Task:
    """Samples x (n, d), true targets (n, 1) and noise (n, 1) in them; queries (m, d) and their true answers (m, 1)."""

    x: Tensor
    true: Tensor
    noise: Tensor
    queries: Tensor
    answers: Tensor

    def targets(self, noisy: bool) -> Tensor:
        return self.true + self.noise if noisy else self.true


@dataclass(frozen=True)
class Training:
    """Full-batch SGD: ``share`` of the largest stable rate of plain gradient descent at the start, 2/λ of BK.

    ``decay`` of the weights is SGD's own; ``every``: see the recorder's. A run ends early at a loss of ``until``: what
    moves the weights below is rounding.
    """

    steps: int
    share: float = 0.15
    momentum: float = 0.95
    every: int = 1
    decay: float = 0.0
    until: float = 0.0

    def rate(self, model: nn.Module, task: Task) -> float:
        return self.share * 2 / fastest(model, task)


@dataclass(frozen=True)
class Look:
    """What there is after some steps: operators since the start, training loss, error at the queries."""

    step: int
    operators: Operators
    loss: float
    test: float


def smooth(count: int, queries: int, d: int, noise: float, seed: int) -> Task:
    """Gaussian inputs; a sine along one direction plus a slope along another; Gaussian noise of size ``noise``."""
    draw = torch.Generator().manual_seed(seed)
    x, q = (torch.randn(rows, d, generator=draw, dtype=torch.float64) for rows in (count, queries))
    along, across = nn.functional.normalize(torch.randn(2, d, generator=draw, dtype=torch.float64), dim=1)
    true = lambda z: (torch.sin(1.5 * (z @ along)) + 0.5 * (z @ across))[:, None]  # noqa: E731
    return Task(x, true(x), noise * torch.randn(count, 1, generator=draw, dtype=torch.float64), q, true(q))


def kernel(model: nn.Module, task: Task) -> Tensor:
    """K = J Jᵀ (n, n)."""
    objective = js.supervised(model, task.x, task.true)
    jacobian = linearize(objective, objective.theta()).jacobian()
    return jacobian @ jacobian.T


def fastest(model: nn.Module, task: Task) -> float:
    """The largest eigenvalue of BK."""
    return 2 / len(task.x) * float(torch.linalg.matrix_norm(kernel(model, task), 2))


def recorded(model: nn.Module, task: Task, noisy: bool, of: Training, at: Collection[int]) -> Iterator[Look]:
    """Train with a recorder beside, and look after the steps ``at``, and where the run ends early.

    Raises:
        JumpstartError: the run has diverged.
    """
    y = task.targets(noisy)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=of.rate(model, task), momentum=of.momentum, weight_decay=of.decay)
    recorder = Recorder(js.supervised(model, task.x, y), task.queries, optimizer=optimizer, every=of.every)
    for step in range(1, of.steps + 1):
        optimizer.zero_grad()
        loss = F.mse_loss(model(task.x), y)
        if not math.isfinite(loss.item()):
            raise JumpstartError(f"the run has diverged at step {step}: a smaller share= of the stable rate is needed.")
        loss.backward()
        optimizer.step()
        recorder.step()
        ends = loss.item() <= of.until
        if step in at or ends:
            with torch.no_grad():
                loss = float(F.mse_loss(model(task.x), y))
                test = float(F.mse_loss(model(task.queries), task.answers))
            yield Look(step, recorder.operators(), loss, test)
        if ends:
            return


def last(make: Callable[[], nn.Module], task: Task, noisy: bool, of: Training) -> Look:
    """The end of a run; recorded again at every step where the operators are not faithful to it."""
    (look,) = recorded(make(), task, noisy, of, {of.steps})
    if not look.operators.error <= FAITHFUL and of.every > 1:
        (look,) = recorded(make(), task, noisy, replace(of, every=1), {of.steps})
    return look


# -- where it went ---------------------------------------------------------------------------------------------------


def learned(operators: Operators, part: Tensor) -> float:
    """The share of a gradient's energy that the run has taken away, for squared loss; 1 when all of it."""
    g, ceiling = part.reshape(-1), len(part) / 4  # ½ B⁻¹
    return float(g @ operators.dissipation @ g) / (ceiling * float(g @ g))


def passed(operators: Operators, part: Tensor) -> float:
    """Mean square of what a part of the targets does to the queries, over its own mean square."""
    g = -2 / len(part) * part.reshape(-1)
    return float((operators.transfer @ g).square().mean() / part.square().mean())


def anatomy(operators: Operators, noise: Tensor) -> Row:
    """Where the noise in the targets went."""
    half = operators.where(noise, HALF)
    faint = operators.where(noise, FAINT)
    kept = learned(operators, noise)
    true = operators.gradient + 2 / len(noise) * noise.reshape(-1)  # the part that is not −B·noise
    return {
        "true learned": learned(operators, true), "learned": kept, "trapped": 1 - kept,
        "reservoir": half.reservoir, "invisible": faint.invisible,
        "passed": passed(operators, noise), "rank": operators.rank(HALF), "effective rank": operators.effective_rank,
        "quadrature": operators.error,
    }  # fmt: skip


def paired(make: Callable[[], nn.Module], tasks: Sequence[Task], of: Training) -> list[Row]:
    """For each task a run with its noise, beside one run without: tasks differ in the noise alone.

    The excess of the test error is what the noise has made. seen: mean square of what the noise did to the queries, by
    the operators of its own run; foretold: by those of the run without, which has never met it.
    """
    clean = last(make, tasks[0], False, of)
    count = sum(p.numel() for p in make().parameters() if p.requires_grad)
    rows = []
    for task in tasks:
        noisy = last(make, task, True, of)
        variance = float(task.noise.square().mean())
        found = anatomy(noisy.operators, task.noise)
        rows.append(
            {
                "weights": count,
                "variance": variance,
                "loss": noisy.loss,
                "test": noisy.test,
                "clean": clean.test,
                "excess": noisy.test - clean.test,
                **found,
                "seen": variance * found["passed"],
                "foretold": variance * passed(clean.operators, task.noise),
                "clean quadrature": clean.operators.error,
            }
        )
    return rows


def faithful(rows: Sequence[Row], key: str) -> list[Row]:
    """Rows whose operators may be asked for ``key``: those of the run without noise where that is foretold."""
    error = "clean quadrature" if key == "foretold" else "quadrature"
    return [row for row in rows if row[error] <= FAITHFUL]


def seldom(rows: Sequence[Row]) -> str:
    """How many rows the operators of which are not asked, in words."""
    lacking = {key: len(rows) - len(faithful(rows, key)) for key in ("seen", "foretold")}
    return (
        f"operators off by more than {FAITHFUL:.0%}, left out: {lacking['seen']} of {len(rows)} runs with noise, "
        + (f"{lacking['foretold']} of those without")
    )


# -- what would refute ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What the account says, written before the run, and the number at which it is refuted."""

    name: str
    says: str
    least: float = -math.inf
    most: float = math.inf

    def told(self) -> Row:
        """For the results: the claim and its limits."""
        limits = [
            f"{word} {value:g}" for word, value in (("below", self.least), ("above", self.most)) if math.isfinite(value)
        ]
        return {"claim": self.name, "says": self.says, "refuted if": " or ".join(limits)}


def judged(claims: Sequence[Claim], measured: Mapping[str, float]) -> list[Row]:
    """A line for each claim; what is no number has not held."""
    found = []
    for claim in claims:
        value = measured[claim.name]
        held = claim.least <= value <= claim.most
        found.append({**claim.told(), "measured": value, "verdict": "held" if held else "refuted"})
    return found


VERDICT = {"claim": "claim", "refuted if": "refuted if", "measured": "measured", "verdict": "verdict"}


def told(content: Row, columns: Mapping[str, str], *of: str) -> str:
    """What docs say of an experiment: verdicts, ``of`` what besides, and its table."""
    settings = content["settings"]
    heads = {key: key for key in of} | {"says": "the account says"} | VERDICT
    parts = (markdown(settings["verdicts"], heads), markdown(settings["summary"], columns), settings.get("left out"))
    return "\n\n".join([*filter(None, parts), f"<sub>{machine(content)}</sub>"])


def ranked(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    return float(scipy.stats.spearmanr(first, second).statistic)  # type: ignore[attr-defined]


def banded(axis: Any, rows: Sequence[Row], x: str, y: str | Callable[[Row], float], **style: Any) -> None:
    """The median over seeds as a line, and their range as a band."""
    value = y if callable(y) else lambda row: row[y]
    places = sorted({row[x] for row in rows})
    groups = [torch.tensor([float(value(row)) for row in rows if row[x] == at]) for at in places]
    axis.plot(places, [float(torch.quantile(g, 0.5)) for g in groups], **style)
    low, high = ([float(end(g)) for g in groups] for end in (torch.min, torch.max))
    axis.fill_between(places, low, high, color=style.get("color"), alpha=0.15, linewidth=0)
