"""A problem's band is what other seeds do; who is beyond it is counted, and a wrapper that does nothing is not."""

from __future__ import annotations

import dataclasses
import math

import pytest

import jumpstart as js
from experiments import never_worse
from experiments.never_worse import BARE, BUDGET, FURTHER, NUDGED, PLACEBO, STEPS

from .test_skipping import OF, Plain


def row(number, mine, noise, batch=8):
    def arm(train, held):
        return {
            "losses": {"train": train, "held": held}, "effective": 100, "evaluations": 50.0, "seconds": 1.0,
        }  # fmt: skip

    plain = dict.fromkeys((BARE, FURTHER, PLACEBO, NUDGED), arm(0.1, 0.1))
    return {
        "number": number, "network": "mlp", "loss": "mse", "optimizer": "SGD", "samples": 8, "batch": batch,
        "length": 100, "start": {"train": 1.0, "held": 1.0},
        "arms": plain | dict.fromkeys((STEPS, BUDGET), arm(*mine)),
        "noise": [{"train": train, "held": held} for train, held in noise],
    }  # fmt: skip


def test_who_is_beyond_the_noise_is_counted():
    rows = [
        row(1, (0.12, 0.1), [(0.08, 0.1), (0.11, 0.1)]),  # within: 0.08 is as far below
        row(2, (0.12, 0.1005), [(0.1, 0.1), (0.11, 0.1)]),  # beyond in training; half a per cent is within any band
        row(3, (0.2, 0.3), [(0.15, 0.15), (0.1, 0.1)]),  # beyond in both
        row(4, (0.05, math.nan), [(0.1, 0.1), (0.1, 0.1)]),  # beyond where it is not finite
    ]
    assert never_worse.bands(rows[0]) == pytest.approx((-math.log(0.8), math.log(1.01)))
    train, held = never_worse.summarized(rows)[:2]
    assert (train["loss"], train["problems"], train["beyond"], train["ahead"]) == ("training", 4, 2, 1)
    assert (held["beyond"], held["ahead"], held["worse"], held["twice"], held["most"]) == (2, 0, 2, 2, math.inf)
    assert never_worse.both(rows)[0] == {"arm": STEPS, "problems": 4, "both": 1, "either": 3}
    assert [line["number"] for line in never_worse.worst(rows)] == [4, 3, 3, 2]
    assert never_worse.both(rows)[3] == {"arm": PLACEBO, "problems": 4, "both": 0, "either": 0}


@pytest.mark.parametrize("batch", [4, 12])
def test_a_wrapper_that_does_nothing_is_never_worse(monkeypatch, batch):
    monkeypatch.setattr(js, "JumpOptimizer", Plain)
    found = never_worse.measure(dataclasses.replace(OF, batch=batch), 12, 2)
    assert (
        never_worse.ratios(found, STEPS)
        == never_worse.ratios(found, BUDGET)
        == never_worse.ratios(found, FURTHER)
        == (0, 0)
    )
    assert never_worse.ratios(found, PLACEBO) != (0, 0)
    assert 0 < max(map(abs, never_worse.ratios(found, NUDGED))) < 0.1
    assert found["arms"][BUDGET]["effective"] == 12  # a budget is kept to
    assert len({losses["train"] for losses in found["noise"]}) == 2
    assert never_worse.both([found])[0]["either"] == 0
