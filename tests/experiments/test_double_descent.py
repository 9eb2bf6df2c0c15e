"""Where noise in targets went: against runs with and without it, and what is judged of the account; toy runs."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import nn

from experiments import anatomy, double_descent
from experiments.anatomy import Claim, Training, judged, learned, paired, passed, recorded, runs, smooth
from jumpstart.errors import JumpstartError


def readout(width=12, scale=1.0):
    """Random features: the outputs are linear in what is trained."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1)).double()
    net[0].requires_grad_(False)
    with torch.no_grad():
        for p in net[2].parameters():
            p.mul_(scale)
    return net


def test_what_is_passed_on_is_what_two_runs_differ_by_where_the_kernel_stands_still():
    task, training, outputs = smooth(10, 7, 3, 0.5, 0), Training(40, every=10), {}
    for noisy in (True, False):
        net = readout()
        (look,) = recorded(net, task, noisy, training, {40})
        outputs[noisy] = net(task.queries).detach()
    share = float((outputs[True] - outputs[False]).square().mean() / task.noise.square().mean())
    assert passed(look.operators, task.noise) == pytest.approx(share, rel=1e-9)
    (row,) = paired(readout, [task], training)
    errors = {noisy: float((u - task.answers).square().mean()) for noisy, u in outputs.items()}
    assert row["excess"] == pytest.approx(errors[True] - errors[False], rel=1e-9)
    assert row["seen"] == pytest.approx(row["foretold"], rel=1e-9)
    assert row["seen"] == pytest.approx(share * row["variance"], rel=1e-9)


def test_the_share_learned_is_that_of_the_loss_where_there_is_nothing_else_to_learn():
    task = smooth(10, 7, 3, 0.5, 0)
    task = anatomy.Task(task.x, 0 * task.true, task.noise, task.queries, task.answers)
    (look,) = recorded(readout(scale=0.0), task, True, Training(30, momentum=0.0), {30})
    fall = 1 - look.loss / float(task.noise.square().mean())
    assert 0.05 < fall < 0.95
    assert learned(look.operators, task.noise) == pytest.approx(fall, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Recorder")
def test_operators_that_are_off_are_recorded_again_at_every_step(monkeypatch):
    task, taken = smooth(10, 7, 3, 0.5, 0), []
    monkeypatch.setattr(runs, "recorded", lambda *a: taken.append(a[3].every) or recorded(*a))
    fast = lambda: nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 1)).double()  # noqa: E731
    torch.manual_seed(0)
    coarse = anatomy.last(fast, task, True, Training(30, share=0.9, every=15))
    assert taken == [15, 1] and coarse.operators.error < anatomy.FAITHFUL


def test_what_is_no_number_has_not_held():
    claims = [Claim("a", "at least", 0.5), Claim("b", "at most", most=2.0), Claim("c", "between", 0.5, 2.0)]
    verdicts = lambda a, b, c: [line["verdict"] for line in judged(claims, {"a": a, "b": b, "c": c})]  # noqa: E731
    assert verdicts(0.5, 2.0, 0.5) == ["held"] * 3
    assert verdicts(0.49, 2.01, 2.01) == ["refuted"] * 3
    assert verdicts(math.nan, math.nan, math.nan) == ["refuted"] * 3
    assert [claim.told()["refuted if"] for claim in claims] == ["below 0.5", "above 2", "below 0.5 or above 2"]


def test_a_run_that_diverges_is_told():
    with pytest.raises(JumpstartError, match="diverged at step"):
        list(recorded(readout(), smooth(10, 7, 3, 0.5, 0), True, Training(4000, share=40.0, every=5000), {4000}))


def test_peaks_are_compared_by_places_on_the_grid():
    def row(width, test, seen, reservoir, invisible, off=0.01):
        return {"width": width, "weights": 7 * width, "test": test, "seen": seen, "foretold": seen, "excess": test,
                "reservoir": reservoir, "invisible": invisible, "quadrature": 0.0, "clean quadrature": off}  # fmt: skip

    rows = [row(2, 1, 1, 0.5, 0.1), row(5, 2, 4, 0.1, 0.2), row(9, 4, 3, 0.1, 0.3), row(100, 1.5, 2, 0.4, 0.9)]
    found = double_descent.measured(rows)
    assert found["peak"] == 1
    assert (found["trapped"], found["invisible"]) == (pytest.approx(0.3), pytest.approx(0.6))
    assert found["size"] == pytest.approx(4 / 3 / 2 + 1.5 / 2 / 2)  # of the two with as many weights as samples
    assert found["rank"] == found["forecast"] == pytest.approx(0.8)
    wrong = double_descent.measured([*rows, row(2, 0.5, 900, 0.5, 0.1, off=1e7) | {"seen": 0.5}])
    assert wrong["forecast"] == pytest.approx(0.8)  # nothing is read off from operators of no run


@pytest.mark.filterwarnings("ignore:Recorder")
def test_the_command_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        double_descent.main()
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / "results.json").read_text())
    verdicts = content["settings"]["verdicts"]
    assert {line["verdict"] for line in verdicts} <= {"held", "refuted"}
    assert len(verdicts) == len(double_descent.ACCOUNT) * len(double_descent.WIDTHS)
    assert all(row["quadrature"] < 0.1 for row in content["rows"])
    still = [row for row in content["rows"] if row["family"] == double_descent.FEATURES]
    assert all(row["seen"] == pytest.approx(row["foretold"], rel=1e-6) for row in still)
    assert (tmp_path / "double_descent.png").stat().st_size > 10_000
    assert "refuted if" in double_descent.page(content)
