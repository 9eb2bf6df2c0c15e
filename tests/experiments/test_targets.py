"""Who is where tuned AdamW ends, and when: counted right, chosen by that, and the averages are what they say."""

from __future__ import annotations

import math

import pytest
import torch

from experiments import targets
from experiments.loops import averages
from experiments.loops import data as loop_data
from experiments.loops.averages import EMA, LAWA
from experiments.targets import ADAMW, CONSTANT, COSINE, LOWEST, SHORT, Setting


def row(contender, setting, curve, seed=100):
    return {"task": "toy", "seed": seed, "contender": contender, **setting.told, "curve": curve,
            "best": min(point[3] for point in curve)}  # fmt: skip


def test_a_target_is_reached_at_the_first_look_that_is_below_it():
    found = row(ADAMW, Setting(1e-3, CONSTANT), [[1, 0.5, 1.0, 3.0], [2, 1.0, 2.0, 1.0], [3, 1.5, 3.0, 1.1]])
    assert targets.reached(found, 1.0) == (1.0, 2.0)
    assert targets.reached(found, 0.99) == (math.inf, math.inf)


def test_the_lowest_setting_makes_the_target_and_the_soonest_is_chosen():
    slow, soon, never = Setting(1e-3, COSINE), Setting(1e-2, SHORT), Setting(3e-3, CONSTANT)
    rows = [
        row(ADAMW, slow, [[1, 1.0, 1.0, 2.0], [2, 2.0, 2.0, 1.0]]),
        row(ADAMW, soon, [[1, 1.0, 1.0, 1.015]]),
        row("skips", never, [[1, 0.1, 1.0, 1.5]]),
        row("skips", slow, [[1, 0.1, 1.0, 1.9]]),
    ]
    found = targets.choose(rows)
    assert found["lowest"] == slow.told and found["error"] == 1.0
    assert found[ADAMW] == soon.told  # within 1.02
    assert found["skips"] == never.told  # nobody is there: the nearest
    assert EMA not in found


def test_failures_and_medians_are_told():
    mine, rows = Setting(1e-3, COSINE), []
    for seed, last in enumerate((1.0, 1.01, 1.5)):
        rows += [row(LOWEST, mine, [[1, 1.0, 10.0, 1.0]], seed), row(ADAMW, mine, [[1, 2.0, 20.0, last]], seed)]
    line = {found["contender"]: found for found in targets.summarized(rows)}[ADAMW]
    assert (line["target"], line["failed, 1"], line["failed, 1.02"]) == (1.0, 2, 1)
    assert (line["seconds, 1"], line["seconds, 1.02"], line["gradients, 1.02"]) == (None, 2.0, 20.0)


def test_averages_are_what_they_say():
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    ema, lawa, seen, mean = averages.Ema([p], 0.9), averages.Lawa([p], 3), [], 0.0
    for step in range(1, 41):
        with torch.no_grad():
            p.fill_(step**0.5)
        ema.step(), lawa.step()
        share = min(0.9, step / (step + 10))
        mean = share * mean + (1 - share) * step**0.5
        seen += [step**0.5] if step % 3 == 0 else []
    assert float(ema.weights()[0].detach()[0]) == pytest.approx(mean)
    assert float(lawa.weights()[0].detach()[0]) == pytest.approx(sum(seen[-averages.LATEST :]) / averages.LATEST)


def test_a_look_with_other_weights_leaves_the_model():
    data, network = targets.task("toy")
    model = network(data)
    before = [p.detach().clone() for p in model.parameters()]
    zero = [torch.zeros_like(p) for p in before]
    assert targets.error_with(model, data, zero) == pytest.approx(float(data.yt.square().mean()))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_cosine_ends_at_nothing_and_half_as_long_is_half_as_many_steps():
    of = targets.task("toy")
    for setting, steps in ((Setting(1e-3, COSINE), 40), (Setting(1e-3, SHORT), 20)):
        assert targets.length(setting, 40) == steps
        found = targets.run(of, ADAMW, setting, 0, 40)["curves"]
        assert found[ADAMW][-1][0] == steps and set(found) == {
            ADAMW,
            (EMA, 0.99),
            (EMA, 0.998),
            (LAWA, 50),
            (LAWA, 250),
        }
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    schedule = targets.scheduler(optimizer, Setting(1.0, COSINE), 10)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_choices_are_made_without_the_test_samples():
    data, _ = targets.task("toy")
    part = loop_data.validation(data)
    assert len(part.x) + len(part.xt) == len(data.x)
    assert torch.equal(torch.cat([part.x, part.xt]), data.x)
