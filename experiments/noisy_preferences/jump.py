"""DPO by one jump: margins as outputs, a logistic loss, a dense kernel over pairs, the horizon by leaving pairs out.

python -m experiments.noisy_preferences.jump [--quick] [--seeds N] [--out DIR]

Which horizon is best for new pairs is asked of the linearized run alone, before the network moves; what it promises is
the loss on new pairs as noisy as these. Then the network is put there, and to the other horizons for comparison.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional as F

import jumpstart as js
from jumpstart.report import records
from jumpstart.report.records import Row
from jumpstart.utils.progress import counter

from ..common import arguments
from ..pages import machine, markdown
from . import pairs, task
from .pairs import Pairs
from .policy import divergence

POINTS = 4  # horizons: each is looked at with the real network
FIRST, LAST = 0.01, 30.0  # horizons, in relaxation times of the fastest mode


def row(of: Callable[[], Pairs], level: float, seed: int) -> Row:
    """A jump from the reference, what it promised, and what became of it."""
    data = of()
    drawn = task.samples(of, level, seed)
    policy = data.policy_of(seed)
    labels = (drawn.y > 0).to(drawn.y.dtype)[:, None]
    begun = time.process_time()
    objective = js.supervised(policy, data.batch(drawn.x), labels, loss="logistic")
    solution = js.solve(objective, basis="dense")
    ratios = torch.logspace(math.log10(FIRST), math.log10(LAST), POINTS, dtype=torch.float64)
    horizons = torch.cat([torch.zeros(1, dtype=torch.float64), ratios / float(solution.spectrum[0])])
    promised, predicted = torch.as_tensor(solution.risk(horizons)), torch.as_tensor(solution.loss(horizons))
    weights = solution.parameters(horizons)
    trusted = solution.check(float(horizons[-1])).trust_horizon  # how far the network follows on what it learns
    chosen = int(promised[horizons <= trusted].argmin())
    seconds = time.process_time() - begun
    found = []
    for i, horizon in enumerate(horizons.tolist()):
        policy.load_state_dict({name: each[i] for name, each in weights.items()}, strict=False)
        found.append({"horizon": horizon, "promised": float(promised[i]), "predicted": float(predicted[i]),
                      **looked(data, policy, drawn, level)})  # fmt: skip
    return {"level": level, "seed": seed, "chosen": chosen, "trusted": trusted, "seconds": seconds, "along": found}


@torch.no_grad()
def looked(data: Pairs, policy: pairs.Policy, drawn: task.Samples, level: float) -> Row:
    """The real network: its loss on some of what it learned, and on held-out pairs, clean and as noisy as these."""
    some = drawn[torch.arange(min(task.LOOKED, len(drawn)))]
    own, margins = data.margins(policy, some.x), data.margins(policy, data.held)
    clean = float(F.softplus(-margins).mean())
    drift = [divergence(policy, data.policy, data.batch(part)) for part in data.parts(data.held[: task.LOOKED])]
    return {
        "loss": float(F.softplus(-some.y * own).mean()), "held-out loss": clean,
        "as noisy": (1 - level) * clean + level * float(F.softplus(margins).mean()),
        "accuracy": float((margins > 0).double().mean()),
        "others": float((data.margins(policy, data.others) > 0).double().mean()),
        "drift": float(torch.cat(drift).mean()),
    }  # fmt: skip


def summarized(rows: list[Row]) -> list[Row]:
    """Medians at the chosen horizon, and at the one that was best for the held-out loss."""
    found = []
    for level in dict.fromkeys(row["level"] for row in rows):
        here = [row for row in rows if row["level"] == level]
        for name in (CHOSEN, BEST):
            points = [row["along"][row["chosen"] if name == CHOSEN else best(row)] for row in here]
            found.append({
                "level": level, "at": name, "runs": len(here),
                **{key: median(point[key] for point in points) for key in points[0]},
                "seconds": median(row["seconds"] for row in here),
            })  # fmt: skip
    return found


def best(row: Row) -> int:
    losses = [point["held-out loss"] for point in row["along"]]
    return losses.index(min(losses))


CHOSEN, BEST = "chosen by leave-one-out", "best in hindsight"
HEADS = {
    "level": "swapped", "at": "horizon", "accuracy": "accuracy", "others": "other problems",
    "held-out loss": "loss on clean held-out pairs",
    "promised": "promised, pairs as noisy", "as noisy": "real, pairs as noisy", "predicted": "training loss, predicted",
    "loss": "real", "drift": "drift, nats a token", "seconds": "seconds of solving",
}  # fmt: skip


def page(content: Row) -> str:
    """What docs/gates.md says of it."""
    rows = content["rows"]
    chosen = [row["along"][row["chosen"]] for row in rows]
    off = max(abs(point["promised"] - point["as noisy"]) for point in chosen)
    still = {level: sum(row["chosen"] == 0 for row in rows if row["level"] == level) for level in task.TASK.levels}
    told = ", ".join(
        f"at {level:.0%} swapped in {count} of {len(rows) // len(still)}" for level, count in still.items()
    )
    return "\n\n".join((
        markdown(content["settings"]["summary"], HEADS),
        f"At the chosen horizon the promised loss is within {off:.3f} of the real one. It is zero, nothing moves, "
        f"{told} runs: all margins are then rounding, and so is which of them are positive.",
        f"<sub>{machine(content)}</sub>",
    ))  # fmt: skip


def main() -> None:
    asked = arguments("noisy_preferences.jump", __doc__, 3)
    torch.set_num_threads(1)
    of, rows = pairs.toy if asked.quick else pairs.pairs, []
    levels = task.TASK.levels
    with counter("jumps", len(levels) * asked.seeds, asked.progress) as count:
        for level in levels:
            for seed in range(asked.seeds):
                rows.append(row(of, level, seed))
                count(f"swapped {level:g}")
    lines = summarized(rows)
    path = records.write(
        asked.out, "noisy_preferences.jump", {"quick": asked.quick, "summary": lines}, rows, range(asked.seeds)
    )
    print(records.table(lines, HEADS), f"written: {path}", sep="\n")


if __name__ == "__main__":
    main()
