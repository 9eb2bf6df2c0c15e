"""The harness around a skip: a perfect one has no miss, one that does not move misses by all, rivals are exact where
the linearization is."""

from __future__ import annotations

import dataclasses
import math
import types

import pytest
import torch
from torch import nn

import jumpstart as js
from experiments.random_problems.problems import problem
from experiments.random_problems.runs import Run
from experiments.random_problems.tables import faults
from experiments.skipping import fidelity, rivals, summary, whole_runs
from jumpstart.errors import InputError

OF = dataclasses.replace(
    problem(3), network="mlp", loss="mse", outputs=1, optimizer="momentum", rate=0.01, decay=1e-3, samples=12, batch=12,
    width=8, depth=2, activation="Tanh", dtype="float64",
)  # fmt: skip


def stepping(share=1.0):
    """A skip that really takes a share of the steps, on all samples."""

    def skip(objective, optimizer, steps):
        count = round(share * steps)
        for _ in range(count):
            optimizer.zero_grad()
            objective.loss.value(objective.model(objective.parts[0].inputs)).backward()
            optimizer.step()
        outcome = types.SimpleNamespace(name="ACCEPTED" if count else "SKIPPED")
        return types.SimpleNamespace(
            steps=count, outcome=outcome, windows=1, gradient_evaluations=float(count), dense_work=0.0
        )

    return skip


def test_a_skip_that_takes_the_steps_misses_nothing(monkeypatch):
    monkeypatch.setattr(js, "skip", stepping())
    row = fidelity.measure(OF, 0, (5, 20))
    for result, m in zip(row["arms"][fidelity.SKIP], (5, 20), strict=True):
        assert (result["steps"], result["evaluations"], result["passes"]) == (m, m, m)
        assert max(result["miss"], result["later"], abs(result["train"]), abs(result["held"])) < 1e-12
    monkeypatch.setattr(js, "skip", stepping(0.5))
    assert [r["miss"] < 1e-12 for r in fidelity.measure(OF, 0, (6, 20))["arms"][fidelity.SKIP]] == [True, True]


def test_a_skip_that_claims_steps_and_stays_misses_by_all(monkeypatch):
    def stays(objective, optimizer, steps):
        return types.SimpleNamespace(**vars(stepping(0.0)(objective, optimizer, steps)) | {"steps": steps})

    monkeypatch.setattr(js, "skip", stays)
    result = fidelity.measure(OF, 0, (20,))["arms"][fidelity.SKIP][0]
    assert result["miss"] == pytest.approx(1.0) and result["train"] > 0.01


def test_what_the_library_raises_is_a_row(monkeypatch):
    def raises(objective, optimizer, steps):
        raise InputError(f"no {steps} steps")

    monkeypatch.setattr(js, "skip", raises)
    row = fidelity.measure(OF, 0, (5, 20))
    assert [r["error"] for r in row["arms"][fidelity.SKIP]] == ["InputError: no 5 steps", "InputError: no 20 steps"]
    line = summary.skips(list(summary.entries([row])), (5, 20))[0]
    assert (line["problems"], line["errors"], line["miss"]) == (1, 1, None)
    assert [line["times"] for line in faults([row, row])] == [2, 2]


def test_steps_that_were_not_skipped_are_paid_for():
    row = {"asked": 20, "steps": 8, "evaluations": 3.0, "in steps": 4.0, "seconds": 0.1, "stepping": 0.2}
    assert summary.ahead(row) == pytest.approx((24.0, 22.0))


def test_arms_are_compared_where_the_skip_took_all_steps():
    rows = [
        {
            "number": number, "optimizer": "SGD", "loss": "mse", "network": "mlp", "dtype": "float64", "samples": 8,
            "batch": 8, "stepping": [0.1, 0.2],
            "arms": {
                fidelity.SKIP: [{"asked": 5, "steps": 5, "miss": miss}, {"asked": 20, "steps": took, "miss": miss}],
                fidelity.LINE: [{"asked": m, "steps": m, "miss": 10 * miss} for m in (5, 20)],
            },
        }
        for number, miss, took in ((1, 0.1, 20), (2, 0.3, 7), (3, 0.2, 0))
    ]  # fmt: skip
    del rows[2]["arms"][fidelity.SKIP][1]["miss"]  # nothing moved
    found = summary.fidelity(list(summary.entries(rows)), (5, 20))
    lines = {line["arm"]: line for line in found if line["optimizer"] == "SGD"}
    assert (lines[summary.IN_FULL]["m=5"], lines[summary.IN_FULL]["m=20"]) == pytest.approx((1, 1 / 3))
    assert (lines[fidelity.SKIP]["m=5"], lines[fidelity.SKIP]["m=20"]) == (0.2, 0.1)
    assert (lines[fidelity.LINE]["m=5"], lines[fidelity.LINE]["m=20"]) == (2.0, 1.0)
    assert all(line["problems"] == 3 for line in lines.values())


def linear(optimizer, rate):
    """A run on a model that is its own linearization, twenty steps on its way."""
    run = Run.start(
        dataclasses.replace(OF, optimizer=optimizer, rate=rate, depth=0, decay=0.0 if rate < 0.01 else 1e-2)
    )
    assert [type(m) for m in run.model.body] == [nn.Linear]
    for _ in range(20):
        run.step()
    return run


@pytest.mark.parametrize(
    ("optimizer", "rate", "way"),
    [("SGD", 0.1, rivals.FLOW), ("momentum", 0.03, rivals.STATE), ("Adam", 3e-3, rivals.MOMENTS)],
)
def test_a_recursion_is_exact_where_the_model_is_linear(optimizer, rate, way):
    run = linear(optimizer, rate)
    real = fidelity.take(run.clone(), 40)
    for row in fidelity.linearized(run, real, way, (5, 40)):
        assert row["miss"] < 1e-9


def test_less_of_the_state_is_a_larger_miss():
    run = linear("Adam", 3e-3)
    real = fidelity.take(run.clone(), 10)
    misses = [fidelity.linearized(run, real, way, (10,))[0]["miss"] for way in rivals.names(run.problem)]
    assert misses[0] > misses[1] > 1e-4 > misses[2]


def test_the_last_update_repeated_is_a_straight_line():
    run = Run.start(OF)
    before = rivals.flat(run.model)
    run.step()
    real = fidelity.take(run.clone(), 3)
    theta = rivals.flat(run.model)
    assert torch.equal(rivals.flat(run.clone().model), theta)
    row = fidelity.repeated(run, real, before, (1, 3))
    slow = dataclasses.replace(OF, rate=1e-6, optimizer="SGD")
    assert [r["steps"] for r in row] == [1, 3] and row[1]["miss"] > 0
    run = Run.start(slow)  # so slow a run is straight
    before = rivals.flat(run.model)
    run.step()
    assert fidelity.repeated(run, fidelity.take(run.clone(), 3), before, (3,))[0]["miss"] < 1e-4


class Plain:
    """A wrapper that never skips."""

    def __init__(self, inner, objective, skip="auto", batch=None):
        self.inner, self.taken, self.results, self.jumps = inner, 0, [], 0

    effective_steps = property(lambda self: self.taken)

    def zero_grad(self):
        self.inner.zero_grad()

    def step(self):
        self.inner.step()
        self.taken += 1

    def steps(self, total):
        while self.taken < total:
            yield self.taken


def test_a_wrapper_that_does_nothing_is_the_bare_run(monkeypatch):
    monkeypatch.setattr(js, "JumpOptimizer", Plain)
    rows = [whole_runs.measure(dataclasses.replace(OF, batch=4), 0, 15), whole_runs.measure(OF, 1, 15)]
    lines = summary.whole(rows, (15,))
    assert [(line["batch"], line["problems"]) for line in lines] == [(w, 1) for w in ("full",) * 3 + ("minibatch",) * 3]
    for line in lines:
        if line["arm"] == whole_runs.NUDGED:
            assert 0 < abs(line["train"]) < 0.1 and line["passes"] == 1
            continue
        assert (line["train"], line["held"], line["evaluations"], line["skipped"]) == (0, 0, 1, 0)
        look = 1 if line["batch"] == "full" else 3  # an objective looks once at all samples, here in steps of 4
        assert line["passes"] == pytest.approx((15 + look) / 15)


def test_runs_are_counted_by_what_they_end_at():
    def run(train, held, evaluations=25.0):
        return {
            "losses": {"train": train, "held": held}, "taken": 25, "effective": 100, "evaluations": evaluations,
            "passes": 30.0, "seconds": 1.0, "kept": 3, "tries": 4,
        }  # fmt: skip

    rows = [
        {
            "batch": 8, "samples": 8, "length": 100, "start": {"train": 1.0, "held": 1.0},
            "arms": {
                whole_runs.BARE: run(0.1, 0.1, 100.0), whole_runs.AUTO: mine,
                **dict.fromkeys((whole_runs.TWENTY, whole_runs.NUDGED), run(0.1, 0.1)),
            },
        }
        for mine in (run(0.05, 0.12), run(0.1, 0.25), run(0.2, 0.1), run(0.1, math.nan), {"error": "InputError: no"})
    ]  # fmt: skip
    line = summary.whole(rows, (100,))[0]
    assert (line["problems"], line["errors"], line["kept"], line["tries"]) == (5, 1, 12, 16)
    assert (line["train worse"], line["train better"]) == (1, 1)
    assert (line["held worse"], line["held better"], line["held twice"], line["diverged"]) == (3, 0, 2, 0)
    assert (line["evaluations"], line["skipped"]) == (0.25, 0.75)
    limits = {(goal["of"], goal["goal"]): goal["holds"] for goal in summary.goals([], summary.whole(rows, (100,)))}
    assert limits["skip='auto', full", "evaluations / bare"] is True
    assert limits["skip='auto', full", "share of runs 2× worse"] is False
    assert limits["skip=20, full", "runs 10% worse less those 10% better"] is True
