"""The LoRA experiment at toy size: adapters start as nothing, targets are AdamW's, and who is there first is told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from experiments import pages
from experiments.lora import __main__ as race
from experiments.lora import loops, models, tasks, tuning
from experiments.pages import training
from jumpstart.report import records


def test_adapters_start_as_nothing_and_are_all_that_is_trained():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Sequential(nn.Linear(7, 5)))
    x = torch.randn(3, 5)
    before = base(x)
    adapted = models.adapted(base)
    assert torch.equal(adapted(x), before)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"0.down", "0.up", "2.0.down", "2.0.up"}
    with torch.no_grad():
        adapted[0].up.normal_()
    assert not torch.allclose(adapted(x), before)


def test_padding_changes_nothing():
    problem = tasks.toy()
    model = problem.start(0)
    with torch.no_grad():
        model.head.weight.normal_()
        states = problem.train.hidden[:4]
        alone = torch.cat([model(row[None], torch.ones(1, len(row))) for row in states])
        batch = tasks.collate([problem.train[i] for i in range(4)])
        assert torch.allclose(model(batch["hidden"], batch["mask"]), alone, atol=1e-6)
    assert len({len(row) for row in states}) > 1


def test_averages_are_those_of_the_weights():
    model = nn.Linear(2, 1, bias=False)
    averages = loops.Averages(model, last=2, interval=1)
    seen = []
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, value)
        averages.update()
        seen.append(model.weight.detach().clone())
    assert torch.equal(averages.weights()["LAWA"][0], (seen[1] + seen[2]) / 2)


def test_fast_forward_goes_on_while_the_small_loss_falls(monkeypatch):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    problem = tasks.toy()
    forward = loops.FastForward(model, problem.train.part(torch.arange(4)), loops.Clock(), 16)
    monkeypatch.setattr(loops, "cross_entropy", lambda model, batch: (model.weight - 3.2).square().sum())
    for step in range(loops.PERIOD):
        forward.prepare(step)
        if step == loops.PERIOD - 1:
            nn.init.constant_(model.weight, 1.0)
        forward.follow(step)
    assert float(model.weight) == pytest.approx(3.0)  # 1, then 2 and 3; 4 is farther off
    assert forward.repeated == 2


def test_who_is_first_is_told_so(tmp_path):
    problem = tasks.toy()
    rows = race.raced("toy", problem, range(1), True, lambda name: None)
    assert {row["contender"] for row in rows} == {*race.CONTENDERS, "EMA", "LAWA"} - {"schedule-free"}
    adamw = next(row for row in rows if row["contender"] == "AdamW")
    assert all(row["target"] == adamw["best"] for row in rows)
    assert adamw["reached"][0] == adamw["best at"][0]
    for row in rows:
        if row["reached"]:  # the run ends there
            assert row["contender"] in ("AdamW", "EMA", "LAWA") or list(row["curve"][-1][:3]) == row["reached"]
    lines = {line["contender"]: line for line in race.summarized(rows)}
    assert lines["AdamW"]["faster"] == pytest.approx(1.0)
    assert lines["fit_head"]["steps"] == 0  # the toy's states decide by their means, linearly
    records.write(tmp_path / "lora", "lora", {"summary": race.summarized(rows)}, rows, [0])
    assert "fit_head" in records.table(race.summarized(rows), race.COLUMNS)


def test_choices_are_the_first_at_adamws_best_else_the_lowest():
    def row(contender, rate, curve):
        best = min(curve, key=lambda point: point[3])
        return {
            "task": "t",
            "contender": contender,
            "rate": rate,
            "schedule": "linear",
            "best": best[3],
            "curve": curve,
        }

    rows = [
        row("AdamW", 1.0, [(1, 1, 1, 0.9), (2, 2, 2, 0.5)]),
        row("AdamW", 2.0, [(1, 1, 1, 0.7), (2, 2, 2, 0.6)]),
        row("a", 1.0, [(1, 1, 1, 0.6), (2, 2, 2, 0.3)]),
        row("a", 2.0, [(1, 1, 1, 0.5), (2, 2, 2, 0.4)]),
        row("b", 1.0, [(1, 1, 1, 0.9), (2, 2, 2, 0.8)]),
        row("b", 2.0, [(1, 1, 1, 0.7), (2, 2, 2, math.inf)]),
    ]
    assert {line["contender"]: line["rate"] for line in tuning.choices(rows)} == {"AdamW": 1.0, "a": 2.0, "b": 2.0}


def test_the_page_says_what_is_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    assert "experiments.lora" in training.lora()
