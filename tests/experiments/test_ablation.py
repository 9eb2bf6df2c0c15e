"""Each variant changes what it says and nothing stays changed; counts are of the bare run that belongs to it."""

from __future__ import annotations

import math

import pytest
import torch

from experiments import ablation
from experiments.ablation import BARE, DEFAULT
from experiments.random_problems import variants
from experiments.random_problems.runs import Run
from jumpstart.skipping import forecast

from .test_skipping import OF, Plain


def wrapped(name, options=None, of=OF, steps=80):
    return ablation.wrapped(lambda: Run.start(of), steps, name, options or {}, False)


def test_every_variant_is_another_run_and_leaves_the_library_as_it_was():
    for options, names in (({}, ("predicted, not corrected", "1 secant", "2 secants")),
                           ({"skip": 20}, (variants.FROZEN, variants.RESET))):  # fmt: skip
        plain = wrapped(DEFAULT, options)
        assert plain.effective > plain.taken
        for name in names:
            assert wrapped(name, options).losses != plain.losses, name
        assert wrapped(DEFAULT, options).losses == plain.losses


def test_what_is_replaced_is_put_back_after_an_error():
    with pytest.raises(ZeroDivisionError), variants.replaced((forecast, "SECANTS", 1)):
        raise ZeroDivisionError
    assert forecast.SECANTS != 1
    with pytest.raises(AttributeError), variants.replaced((forecast, "NO_SUCH_PART", 1)):
        pass


@pytest.mark.parametrize("policy", [variants.FROZEN, variants.RESET])
def test_moments_after_a_skip(policy):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer, moments = torch.optim.Adam([p]), variants.Moments(policy)
    moments.watch(optimizer)
    p.grad = torch.ones(3)
    optimizer.step()
    kept = optimizer.state[p]["exp_avg"].clone()
    optimizer.state[p]["exp_avg"].zero_()  # as a skip would
    optimizer.state[p]["step"] += 10
    moments(type("Result", (), {"steps": 0})())
    assert float(optimizer.state[p]["step"]) == 11 and not optimizer.state[p]["exp_avg"].any()
    moments(type("Result", (), {"steps": 10})())
    if policy == variants.RESET:
        assert not optimizer.state
    else:
        assert torch.equal(optimizer.state[p]["exp_avg"], kept) and float(optimizer.state[p]["step"]) == 11


def test_any_fall_of_the_mean_is_no_test():
    before = torch.tensor([1.0, 1.0, 1.0])
    after = torch.tensor([3.0, 0.0, -0.1])
    assert variants.anyhow(before, after).accepted and not variants.acceptance.improves(before, after).accepted


def test_a_wrapper_that_does_nothing_is_the_bare_run_in_every_line(monkeypatch):
    class Same(Plain):
        def __init__(self, inner, objective, **_):
            super().__init__(inner, objective)

    monkeypatch.setattr(ablation.js, "JumpOptimizer", Same)
    row = ablation.measure(OF, lambda: Run.start(OF), 10, ablation.PARTS)
    lines = ablation.summarized([row])
    assert {line["part"] for line in lines} == {DEFAULT, *ablation.PARTS}
    for line in lines:
        assert (line["train"], line["held"], line["evaluations"]) == (1, 1, 1), line
        assert (line["problems"], line["errors"], line["worse"], line["skipped"]) == (1, 0, 0, 0)


def test_runs_are_counted_against_their_own_bare_run():
    def arm(held, evaluations, taken=50):
        return {"losses": {"train": 1.0, "held": held}, "evaluations": evaluations, "seconds": 1.0, "taken": taken,
                "effective": 100, "kept": 1, "tries": 2}  # fmt: skip

    arms = {DEFAULT: arm(1.0, 50), BARE: arm(1.0, 100), f"{BARE}, n/8": arm(2.0, 200), "batches: n/8": arm(2.0, 20),
            f"batches: n/8{ablation.FREE}": arm(4.0, 20), "forecast: 1 secant": {"error": "InputError"}}  # fmt: skip
    lines = {
        line["variant"]: line for line in ablation.summarized([{"start": {"train": 1.0, "held": 1.0}, "arms": arms}])
    }
    assert (lines["n/8"]["held"], lines["n/8"]["evaluations"], lines["n/8"]["worse"]) == (1.0, 0.1, 0)
    assert lines[f"n/8{ablation.FREE}"]["held"] == pytest.approx(2.0) and lines[f"n/8{ablation.FREE}"]["worse"] == 1
    assert (lines["1 secant"]["errors"], lines["1 secant"]["held"]) == (1, None)
    assert lines[DEFAULT]["skipped"] == 0.5 and math.isclose(lines[DEFAULT]["seconds"], 1.0)
