"""The anatomy of grokking: the task, what decay does by itself, and a toy run."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from experiments import grokking_anatomy
from experiments.anatomy import Training, recorded


def test_the_task_has_its_wrong_labels_and_the_network_starts_at_zero():
    task, net = grokking_anatomy.signs(0), grokking_anatomy.model(0, 6)
    y = task.targets(True)
    assert set(y.unique().tolist()) == {-1.0, 1.0} and int((y != task.true).sum()) == 5
    torch.testing.assert_close(task.true[:, 0], task.x[:, 0] * task.x[:, 1])
    assert float(net(task.x).detach().abs().max()) < 1e-14


@pytest.mark.parametrize("decay", [0.0, 2.0])
def test_what_decay_does_by_itself_is_nothing_without_it(decay):
    task, net = grokking_anatomy.signs(0, samples=12), grokking_anatomy.model(0, 3)
    begin = net(task.queries).detach()
    (look,) = recorded(net, task, True, Training(15, momentum=0.5, decay=decay), {15})
    displaced = (net(task.queries) - begin).detach().reshape(-1)
    rest = grokking_anatomy.effects(look.operators, task, displaced)["rest"]
    assert (rest < 0.02) if decay == 0 else (rest > 0.05)


def test_changes_are_told_from_memorizing_on():
    def look(step, test, share, passed, trapped):
        return {"step": step, "test": test, "true learned": share, "aligned": share, "passed": passed,
                "trapped": trapped}  # fmt: skip

    course = [look(5, 3.0, 0.1, 9.0, 0.9), look(10, 2.0, 0.5, 1.0, 0.1), look(20, 1.0, 0.6, 0.5, 0.2),
              look(40, 0.5, 0.9, 0.25, 0.3)]  # fmt: skip
    row = {"course": course, "memorized": 10, "grokked": 40, "turned": 0.7}
    found = grokking_anatomy.measured([row])
    assert (found["delay"], found["hides"], found["turns"], found["trapped"]) == (4.0, 0.25, 0.7, -1.0)
    assert found["opens"] == found["same W_S"] == pytest.approx(0.4)
    never = {**row, "grokked": None}
    assert grokking_anatomy.measured([row, never])["delay"] != grokking_anatomy.measured([row, never])["delay"]


@pytest.mark.filterwarnings("ignore:Recorder")
def test_the_command_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        grokking_anatomy.main()
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / "results.json").read_text())
    (row,) = content["rows"]
    assert row["memorized"] is not None and row["course"][-1]["train accuracy"] > 0.95
    assert row["course"][-1]["quadrature"] < 0.1
    assert (tmp_path / "grokking_anatomy.png").stat().st_size > 10_000
    assert "refuted if" in grokking_anatomy.page(content)
