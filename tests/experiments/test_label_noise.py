"""A stack is its members, labels are as wrong as is said, rivals are their formulas, and ends are judged alike."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from experiments import rivals
from experiments.common import Arguments
from experiments.label_noise import __main__ as command
from experiments.label_noise import networks, runs, summary, verdict
from experiments.label_noise.settings import (
    ADAMW,
    BETWEEN,
    CONTENDERS,
    DECAY,
    EARLY,
    EMA,
    GATES,
    REPORTED,
    STOPPED,
    TASKS,
    TUNING,
    Setting,
)
from jumpstart.gating.samples import noise, record

TOY = TASKS["toy"]


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(
    ("make", "shape"), [(networks.perceptron(4, 8, 3), (4,)), (networks.convolutional, (3, 32, 32))]
)
def test_a_stack_computes_its_members(make, shape, each):
    model = networks.stack(make, (3, 4), each)
    x = torch.randn(5, 2, *shape)
    for i, seed in enumerate((3, 4)):
        torch.manual_seed(seed)
        torch.testing.assert_close(model(x)[:, i], make()(x[:, i]), rtol=1e-4, atol=1e-5)


def test_exact_statistics_of_a_stack_are_its_members_own():
    model: Any = networks.stack(TOY.network, (0, 1), each=True).double()
    x, y = torch.randn(9, 2, 4, dtype=torch.float64), torch.randint(3, (9, 2))
    with record(model):
        runs.step(model, torch.optim.SGD(model.parameters(), lr=0.0), x, y)
        for i, one in enumerate(model.networks):
            weights = {name: p.detach() for name, p in one.named_parameters()}

            def loss(w, a, b, one=one):
                return F.cross_entropy(functional_call(one, w, (a[None],)), b[None])

            samples = vmap(grad(loss), (None, 0, 0))(weights, x[:, i], y[:, i])
            for name, p in one.named_parameters():
                torch.testing.assert_close(noise(p), samples[name].var(0) / 9)


@pytest.mark.parametrize(
    "name",
    [ADAMW, "hard, exact, batch", "snr, streaming, as published", "M-SVAG", "Cautious AdamW", "VR-Adam (GSNR)"],
)
def test_a_member_trains_as_it_does_alone(name):
    both = runs.run(TOY, name, Setting(1.0), REPORTED, (0, 1))
    alone = runs.run(replace(TOY, noises=(0.4,)), name, Setting(1.0), REPORTED, (1,))
    kept = [row for row in both if (row["noise"], row["seed"]) == (0.4, 1)]
    assert len(kept) == len(alone)
    for mine, theirs in zip(kept, alone, strict=True):
        assert mine["contender"] == theirs["contender"]
        assert mine["curve"]["held"] == pytest.approx(theirs["curve"]["held"], rel=1e-4)


def test_as_many_labels_are_wrong_as_is_said_and_nobody_is_judged_by_what_it_has_seen():
    y = torch.arange(30_000) % 7
    task = replace(TOY, count=20_000, classes=7)
    whole, part = (runs.draw(task, y, 0.4, 5, split) for split in (False, True))
    assert float((whole.labels[whole.train] != y[whole.train]).double().mean()) == pytest.approx(0.4, abs=0.015)
    assert torch.equal(whole.labels, part.labels) and torch.equal(whole.held, part.held)
    assert torch.equal(torch.cat([part.train, part.validation]), whole.train)
    assert len(part.validation) == 4000 and len(whole.validation) == 0
    assert torch.equal(whole.labels[whole.held], y[whole.held])
    assert sorted(torch.cat([whole.train, whole.held]).tolist()) == list(range(30_000))


def test_m_svag_is_its_algorithm():
    gradients = [0.3, -0.1, 0.7, 0.2, -0.4]
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = rivals.MSVAG([p], lr=0.1, weight_decay=0.0)
    m = v = weight = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g * g
        mean, square = m / (1 - 0.9**t), v / (1 - 0.9**t)
        rho = 0.1 * (1 + 0.9**t) / (1.9 * (1 - 0.9**t))
        s = 0.0 if t == 1 else (square - mean**2) / (1 - rho)
        weight -= 0.1 * mean * mean**2 / (mean**2 + rho * s)
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        assert float(p.detach()) == pytest.approx(weight, rel=1e-12)


def test_a_cautious_step_leaves_out_what_goes_against_the_gradient_and_keeps_its_length():
    p = torch.nn.Parameter(torch.zeros(2, 4, dtype=torch.float64))
    optimizer = rivals.Cautious([p], lr=0.1, weight_decay=0.0, members=2)
    first = torch.tensor([[1.0, 1.0, 1.0, 1.0]] * 2, dtype=torch.float64)
    second = torch.tensor([[-0.1, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    plain = torch.nn.Parameter(p.detach().clone())
    adam = torch.optim.Adam([plain], lr=0.1)
    for g in (first, second):
        before, old = p.detach().clone(), plain.detach().clone()
        p.grad, plain.grad = g.clone(), g.clone()
        optimizer.step()
        adam.step()
    moved, bare = p.detach() - before, plain.detach() - old
    assert moved[0, 0] == 0 and bare[0, 0] != 0
    torch.testing.assert_close(moved[0, 1:], bare[0, 1:] * 4 / 3)
    torch.testing.assert_close(moved[1], bare[1])


def test_averages_are_looked_at_and_the_run_goes_on_without_them():
    plain = runs.run(TOY, ADAMW, Setting(1.0), REPORTED, (0,))
    other = runs.run(TOY, DECAY, Setting(1.0), REPORTED, (0,))  # the same decay, no averages beside it
    assert plain[0]["curve"]["held"] == other[0]["curve"]["held"]
    averaged = [row for row in plain if row["contender"] == EMA]
    assert len(averaged) == 2 * len(TOY.noises)
    assert averaged[0]["curve"]["held"][-1] != plain[0]["curve"]["held"][-1]


def row(
    contender, factor, held, part=REPORTED, seed=0, train=(2.0, 1.0), accuracy=(0.5, 0.6), **curve
) -> dict[str, Any]:
    return {"task": "toy", "noise": 0.4, "seed": seed, "contender": contender, "part": part, "factor": factor,
            "decay": 0.01, "average": None,
            "curve": {"epoch": [1, 2], "seconds": [1.0, 2.0], "train": list(train), "train accuracy": [0.1, 0.2],
                      "held": list(held), "held accuracy": list(accuracy), **curve}}  # fmt: skip


def test_settings_are_chosen_at_the_end_and_of_who_stops_at_the_lowest():
    rows = [row(ADAMW, 0.1, (1, 1), TUNING, validation=[1.0, 1.1])]
    rows += [row(ADAMW, 1.0, (1, 1), TUNING, validation=[0.9, 3.0])]
    assert summary.chosen(rows, ADAMW, 0.4) == Setting(0.1)
    assert summary.chosen(rows, EARLY, 0.4) == Setting(1.0)
    assert summary.chosen(rows, ADAMW, 0.0) is None
    long = row(ADAMW, 1.0, (1, 1), TUNING, validation=[0.9, 3.0])
    long = {**long, "curve": {**long["curve"], "validation accuracy": [0.4, 0.3]}}
    assert summary.shortened(long)["curve"]["validation"] == [0.9, 3.0]
    broken = row(ADAMW, 0.3, (1, 1), TUNING, validation=[0.8, math.nan])
    assert summary.chosen([broken, *rows], ADAMW, 0.4) == Setting(0.1)


def test_who_stops_early_is_judged_where_it_stopped():
    stopped = row(EARLY, 1.0, (1.5, 9.0), STOPPED, validation=[1.0, 2.0])
    assert summary.at_end([stopped], "held") == 1.5
    assert summary.at_end([row(ADAMW, 1.0, (1.5, 9.0))], "held") == 9.0


def test_the_frontier_is_between_two_looks_of_any_rate():
    plain = [row(ADAMW, 1.0, (1.0, 3.0)), row(ADAMW, 0.1, (1.0, 1.4)), row(ADAMW, 0.1, (0.0, 0.0), seed=1)]
    assert summary.frontier(row(GATES[0], 1.0, (1.0, 1.5), train=(2.0, 1.25)), plain) == pytest.approx(1.5 - 1.3)
    assert summary.frontier(row(GATES[0], 1.0, (1.0, 1.5), train=(2.0, 0.5)), plain) is None


@pytest.mark.parametrize(("held", "accuracy", "passed"), [(0.9, 0.7, True), (1.1, 0.7, False), (0.9, 0.5, False)])
def test_who_passes_is_ahead_of_the_best_rate_on_every_seed(held, accuracy, passed):
    plain = [row(who, factor, (1.0, end), seed=seed)
             for who, factor, end in ((ADAMW, 0.1, 1.5), (BETWEEN, 0.2, 1.0), (ADAMW, 1.0, 2.0))
             for seed in (0, 1)]  # fmt: skip
    mine = [row(GATES[0], 1.0, (1.0, 0.8), seed=0, accuracy=(0.5, 0.8))]
    mine += [row(GATES[0], 1.0, (1.0, held), seed=1, accuracy=(0.5, accuracy))]
    lines = summary.summarized([*plain, *mine])
    line = next(line for line in lines if line["contender"] == GATES[0])
    assert verdict.passes(line) == passed
    assert verdict.verdict(lines).startswith("Ahead of" if passed else "No gate passes")
    assert not verdict.passes(next(line for line in lines if line["contender"] == ADAMW))


def test_tuning_comes_first_and_every_contender_has_four_settings():
    asked = Arguments(quick=True, seeds=2, out=Path(), progress=False)
    plan = list(command.jobs(asked, ["toy"]))
    parts = [job.part for job in plan]
    assert parts == sorted(parts, key=(TUNING, STOPPED, REPORTED).index)
    tuned = [job.contender for job in plan if job.part == TUNING]
    assert all(tuned.count(name) == 4 * (name != BETWEEN) for name in CONTENDERS) and parts.count(STOPPED) == 4
    assert len({job.of for job in plan}) == len(plan)
    assert not {0, 1} & {seed for job in plan if job.part == TUNING for seed in job.seeds}
