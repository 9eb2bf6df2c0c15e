"""Rates from the spectrum are those of the matrix itself, and what the summary says follows from the rows."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from experiments.spectral_rate import __main__ as command
from experiments.spectral_rate import arms, summary
from experiments.spectral_rate.problems import EMPTY, PROBLEMS, Problem, problem, trained


def small(loss):
    torch.manual_seed(0)
    x = torch.randn(7, 3).double()
    y = torch.tensor([0, 1, 1, 0, 2, 1, 0]) if loss == "cross_entropy" else torch.randn(7, 3).double()
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    return Problem(model, loss, x, y, (x, y))


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_critical_rate_is_that_of_the_curvature_written_out(loss, monkeypatch):
    monkeypatch.setattr(arms, "DEPTH", 40)  # all of the spectrum
    p = small(loss)
    theta = {k: v.detach() for k, v in p.model.named_parameters()}
    rows = jacrev(lambda t: functional_call(p.model, t, (p.x,)).reshape(-1))(theta)
    j = torch.cat([rows[k].reshape(21, -1) for k in theta], 1)
    of = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}[loss]
    b = torch.func.hessian(lambda u: of(u.reshape(7, 3), p.y))(p.model(p.x).detach().reshape(-1))
    largest = lambda part: float(torch.linalg.eigvalsh(part.T @ b @ part)[-1])  # noqa: E731
    whole, each = arms.critical(p)
    assert whole == pytest.approx(2 / largest(j), rel=1e-9)
    assert each == pytest.approx([1 / largest(j[:, :8]), 1 / largest(j[:, 8:])], rel=1e-9)


def test_a_quadratic_problem_is_stable_up_to_the_critical_rate_and_no_further():
    torch.manual_seed(0)
    x = torch.randn(9, 3).double()
    y = torch.randn(9, 1).double()
    make = lambda: Problem(nn.Sequential(nn.Linear(3, 1)).double(), "mse", x, y, (x, y))  # noqa: E731
    rate, each = arms.critical(make())
    assert each == [pytest.approx(rate)]
    for factor, stable in ((0.98, True), (1.02, False)):
        start, end = trained(make(), factor * rate, "full batch", 0, 800)
        assert (end < start) is stable
    assert trained(make(), [1e9], "full batch", 0, 50)[1] == EMPTY


def test_verdicts_follow_from_rows():
    def row(problem, arm, loss, change=""):
        return {"part": "runs", "kind": "full batch", "change": change, "problem": problem, "arm": arm, "seed": 0,
                "held-out loss": loss}  # fmt: skip

    rows = [row(name, arm, loss, change) for name in PROBLEMS for change in ("", *arms.CHANGES)
            for arm, loss in (("tuned", 1.0), ("spectrum", 1.05))]  # fmt: skip
    rows += [{"part": "edges", "problem": name, "seed": 0, "edge": 1.4} for name in PROBLEMS]
    assert [line["verdict"] for line in summary.verdicts(rows)] == ["held", "held", "refuted"]
    rows[-1]["edge"] = 2.8
    rows[1]["held-out loss"] = 1.2
    assert [line["verdict"] for line in summary.verdicts(rows)] == ["refuted", "refuted", "refuted"]


def test_the_command_at_toy_size(tmp_path, monkeypatch):
    arguments = ["spectral_rate", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    content = json.loads((tmp_path / "results.json").read_text())
    runs = [r for r in content["rows"] if r["part"] == "runs"]
    assert {row["arm"] for row in runs} == set(arms.ARMS) and {row["problem"] for row in runs} == set(PROBLEMS)
    assert len(content["settings"]["verdicts"]) == 3 and (tmp_path / "spectral_rate.png").is_file()
    # the share is of this very start: three times the inputs, another rate
    rate, wider = (arms.critical(problem("digits", 0, True, scale=scale))[0] for scale in (1.0, 3.0))
    assert wider < rate / 2
