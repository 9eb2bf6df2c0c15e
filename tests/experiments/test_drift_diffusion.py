"""Predicted variances are those of a linear model's runs, exponents are slopes, and a toy run."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

import jumpstart as js
from experiments.drift_diffusion import __main__ as command
from experiments.drift_diffusion import runs, summary
from experiments.drift_diffusion.problem import Problem, Size

SMALL = Size(samples=6, width=3, steps=12, runs=8_000, batches=(2,), slower=(1,))


def linear(seed):
    """A problem whose model is linear: no kernel changes, and residuals that stay."""
    problem = Problem(seed, SMALL)
    torch.manual_seed(seed)
    problem.model = nn.Sequential(nn.Linear(4, 1)).double()
    problem.y = problem.y + 5 * torch.randn_like(problem.y)
    problem.objective = js.supervised(problem.model, problem.x, problem.y, "mse")
    problem.start = problem.objective.theta()
    problem.rate = 0.02
    return problem


def test_runs_of_a_linear_model_vary_as_the_recorded_operators_say():
    problem = linear(0)
    run = runs.full_batch(problem, SMALL.steps)
    modes = run.modes
    assert run.error < 1e-10 and float(run.shares.min()) > -1e-12 and float(run.shares.max()) <= 1 + 1e-12
    assert 0 < run.sharpest < 2
    found = problem.minibatches(2, problem.rate, [SMALL.steps], SMALL.runs, 1)[0]
    first = problem.objective.outputs(problem.start).reshape(-1)
    real, told = (found @ modes).var(0), (modes.T @ run.predicted[-1] @ modes).diagonal() / 2
    kept = told > 1e-3 * told.max()
    # deviations feed back into per-sample gradients, second order in the rate; 8,000 runs say variances to 2%
    assert int(kept.sum()) >= 2 and float((real[kept] / told[kept] - 1).abs().max()) < 0.15
    told = (problem.tangents(2, [SMALL.steps], SMALL.runs, 2)[0] @ modes).var(0)
    assert float((real[kept] / told[kept] - 1).abs().max()) < 0.15
    # the mean run of a linear model is the full-batch run
    chance = (real / SMALL.runs).sqrt()
    assert bool(((found.mean(0) - first - run.moved[-1]) @ modes).abs().lt(5 * chance + 1e-12).all())


def test_groups_and_exponents():
    shares = torch.tensor([0.9, 0.5, 0.3, 0.05, 0.01])
    assert {k: v.tolist() for k, v in runs.groups(shares).items()} == {
        "channel": [True, True, False, False, False], "between": [False, False, True, True, False],
        "reservoir": [False, False, False, False, True],
    }  # fmt: skip
    assert summary.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert runs.times(320) == [10, 20, 40, 80, 160, 320] and runs.times(4) == [1, 2, 4]


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_verdicts_follow_from_rows(power):
    rows = [
        {"seed": 0, "batch": b, "slower": s, "time": t, "group": group, "predicted": t / b / s, "off": 0.05,
         "tangent": 1.0,
         "variance": (t**0.3 if group == "channel" else t**power) / 100 / b**power / s}
        for group in runs.GROUPS for b in (2, 4, 8) for s in (1, 2) for t in (10, 20, 40) if s == 1 or t == 40
    ]  # fmt: skip
    found = {line["claim"]: line["verdict"] for line in summary.verdicts(summary.lines(rows))}
    expected = "held" if power == 1 else "refuted"
    assert found["batch"] == found["time"] == expected
    assert found["rate"] == found["saturated"] == found["drift"] == "held" and found["predicted"] == "refuted"


def test_the_command_at_toy_size(tmp_path, monkeypatch):
    arguments = ["drift_diffusion", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    content = json.loads((tmp_path / "results.json").read_text())
    assert {line["claim"] for line in content["settings"]["verdicts"]} == set(summary.PREDICTIONS)
    assert all(row["error"] < 0.01 for row in content["rows"]) and (tmp_path / "drift_diffusion.png").is_file()
